"""``tsfm doctor``: shows which kernels run on this machine, and problems of the installation."""

import dataclasses
import json as json_format
import sys

from tabulate import tabulate

BROKEN = 2


def doctor(json: bool = False) -> int:
    """Show versions, the device, the attention kernels that run on it, problems, and what to do about them.

    The exit status is 0 if everything works, even with notes, and 2 if something in the installation is broken.

    Args:
        json: print JSON instead of tables.
    """
    from tsfm.commands.health import examine, kernels  # PyTorch takes seconds

    findings, table = examine(), kernels()
    wrong = [finding for finding in findings if finding.state == "wrong"]
    notes = [finding for finding in findings if finding.state == "note"]
    if json:
        summary = {"wrong": len(wrong), "notes": len(notes)}
        rows = [dataclasses.asdict(finding) for finding in findings]
        json_format.dump({"rows": rows, "kernels": table, "summary": summary}, sys.stdout, indent=2)
        print()
        return BROKEN if wrong else 0
    print(tabulate([[x.subject, x.found if x.state == "ok" else f"{x.state.upper()}: {x.found}"] for x in findings]))
    print("\nAttention kernels on this device, by mask and type:\n")
    print(tabulate(table, headers="keys"))
    print()
    for finding in (*wrong, *notes):
        print(f"{finding.state}: {finding.subject}: {finding.found}\n  to do: {finding.todo}")
    if not wrong:
        print("nothing is wrong here")
    return BROKEN if wrong else 0
