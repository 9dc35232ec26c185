"""What this suite does on one CUDA device: is it right, which kernels run, how fast, with how much memory.

Without a network, in eight minutes at most. Each section runs in its own process with a time of its own, and its rows
are written as soon as it ends: a section that fails, crashes the device's context or takes too long is reported, and
the next one begins. ``--device cpu`` runs all of it at tiny sizes, to try the script out; its times mean nothing.

    python benchmarks/gpu_lab.py --output runs/gpu_lab
"""

import datetime
import importlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common import run
from tabulate import tabulate

from tsfm_data.errors import InputError, unknown_name
from tsfm_data.io import atomic_file

Row = dict[str, Any]


class Section(NamedTuple):
    """A part of the lab.

    Attributes:
        function: ``module:function``, called with device and whether sizes are tiny; it yields the rows of a table.
        seconds: that it may take, start-up included.
        about: what the table shows.
    """

    function: str
    seconds: float
    about: str


SECTIONS = {
    "machine": Section("gpu_sections:machine", 25, "Device and versions."),
    "exact": Section(
        "gpu_sections:exact",
        60,
        "`attend` compared with a plain softmax in float64: largest errors of values and of gradients.",
    ),
    "operators": Section(
        "gpu_sections:operators",
        35,
        "The kernel that `tsfm doctor` names, and the operators in PyTorch's profile, those that took longest first.",
    ),
    "kernels": Section(
        "gpu_sections:kernels",
        65,
        "Attention of one layer in bfloat16 on segments of uneven lengths. Packed rows go through `attend`; padded "
        "ones are PyTorch's attention with a boolean mask, flash and flex its kernels of these names. Tokens are real.",
    ),
    "models": Section(
        "gpu_models:models", 45, "Every forecaster at tiny sizes: loss and gradients in bfloat16 and in float32."
    ),
    "training": Section(
        "gpu_models:training",
        120,
        "Training steps on packed rows in bfloat16 (autocast), optimiser included. Utilisation is the share of the "
        "device's peak, with 6 operations per weight and token, and those of attention within the segments.",
    ),
    "vision": Section(
        "gpu_models:vision",
        85,
        "Image models compared with timm's or, if timm has none, the reference arithmetic, with the same weights, in "
        "bfloat16 (autocast), in turns. A ratio above 1: ours is faster.",
    ),
    "inference": Section("gpu_models:inference", 40, "Zero-shot forecasts of the released models, 64 steps ahead."),
}


def work(connection: Connection, function: str, device: str, tiny: bool) -> None:
    """The process of a section: sends ``("row", ...)`` for each row, then ``("done", "")`` or ``("failed", why)``."""
    module, name = function.split(":")
    try:
        for row in getattr(importlib.import_module(module), name)(device, tiny):
            connection.send(("row", row))
        connection.send(("done", ""))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        connection.send(("failed", f"{type(error).__name__}: {reason}"))


def rows_of(section: Section, device: str, seconds: float) -> Row:
    """Run a section in its own process: its status, seconds and rows, also those before it failed."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(there, section.function, device, device == "cpu"), daemon=True)
    started, rows, status = time.monotonic(), [], ""
    process.start()
    there.close()
    while not status:
        if not here.poll(max(0.0, started + seconds - time.monotonic())):
            status = f"stopped after {seconds:.0f} s"
            break
        try:
            kind, value = here.recv()
        except EOFError:
            process.join(5)
            status = f"failed: the process ended with status {process.exitcode}"
            break
        if kind == "row":
            rows.append(value)
        else:
            status = kind if kind == "done" else f"failed: {value}"
    process.kill()
    process.join()
    return {"status": status, "seconds": round(time.monotonic() - started, 1), "rows": rows}


def results(sections: Mapping[str, Section], device: str, seconds: float) -> Iterator[tuple[str, Row]]:
    """Run sections one after the other, in ``seconds`` altogether."""
    end = time.monotonic() + seconds
    for name, section in sections.items():
        left = end - time.monotonic()
        if left < 1:
            yield name, {"status": "not started: the time was over", "seconds": 0.0, "rows": []}
        else:
            yield name, rows_of(section, device, min(section.seconds, left))


def targets(found: Mapping[str, Row]) -> list[Row]:
    """What was aimed at on an H200, and what was measured; empty without a measured row."""

    def rows(name: str, wanted: Callable[[Row], Any]) -> list[Row]:
        return [row for row in found.get(name, {}).get("rows", []) if "problem" not in row and wanted(row)]

    large = [row["utilisation"] for row in rows("training", lambda row: row["size"] in ("100M", "300M"))]
    packed = [row["times padded"] for row in rows("kernels", lambda row: row["kernel"] == "packed")]
    images = [row["ratio"] for row in rows("vision", lambda row: row["compared with"] == "timm")]
    aims = (
        ("utilisation at 100M and above", large, 0.45),
        ("packed rows, times as fast as padded", packed, 1.8),
        ("image models, times as fast as timm's", images, 1.0),
    )
    return [
        {"target": name, "at least": least, "lowest measured": round(min(values), 3), "met": min(values) >= least}
        for name, values, least in aims
        if values
    ]


def shown(value: Any) -> Any:
    """A number with four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else value


def page(found: Mapping[str, Row], sections: Mapping[str, Section], device: str, date: str, command: str) -> str:
    """The lab as Markdown."""
    lines = ["# GPU lab", "", f"Device: {device}, {date}.", "", f"    {command}", ""]
    if device == "cpu":
        lines += ["A trial on a CPU at tiny sizes: that it runs is the result, and the times mean nothing.", ""]
    elif table := targets(found):
        lines += ["Targets are those for an H200.", "", tabulate(table, headers="keys", tablefmt="github"), ""]
    for name, result in found.items():
        lines += [f"## {name.capitalize()}", "", sections[name].about, ""]
        lines += [f"{result['status']}, {result['seconds']} s", ""]
        if result["rows"]:
            columns = dict.fromkeys(key for row in result["rows"] for key in row)
            table = [{key: shown(row.get(key, "")) for key in columns} for row in result["rows"]]
            lines += [tabulate(table, headers="keys", tablefmt="github", disable_numparse=True), ""]
    return "\n".join(lines)


def main(
    device: Literal["cuda", "cpu"] = "cuda",
    output: Path = Path("runs/gpu_lab"),
    sections: list[str] | None = None,
    minutes: float = 8.0,
) -> None:
    """Test and measure everything that a CUDA device changes, and write gpu_lab.json and gpu_lab.md.

    Args:
        device: cuda, or cpu for a trial of the script at tiny sizes.
        output: folder of the two files.
        sections: some of machine, exact, operators, kernels, models, training, vision and inference; all by default.
        minutes: that it may take at most.
    """
    for name in sections or []:
        if name not in SECTIONS:
            raise unknown_name("section", name, SECTIONS)
    if minutes <= 0:
        raise InputError(f"minutes: expected more than 0, found {minutes:g}")
    chosen = {name: SECTIONS[name] for name in sections or SECTIONS}
    if device == "cuda" and not importlib.import_module("torch").cuda.is_available():
        raise InputError("expected a CUDA device, found none: give --device cpu for a trial at tiny sizes")
    command = f"python benchmarks/gpu_lab.py --device {device} --minutes {minutes:g}"
    command += f" --sections {' '.join(sections)}" if sections else ""
    found: dict[str, Row] = {}
    date, device_name = datetime.date.today().isoformat(), device
    for name, result in results(chosen, device, 60 * minutes):
        found[name] = result
        if name == "machine" and result["rows"]:
            device_name = result["rows"][0]["device"]
        summary = {"device": device_name, "date": date, "command": command, "targets": targets(found)}
        with atomic_file(output / "gpu_lab.json") as file:
            file.write_text(json.dumps({"summary": summary, "sections": found}, indent=1) + "\n")
        text = page(found, SECTIONS, device_name, date, command)
        with atomic_file(output / "gpu_lab.md") as file:
            file.write_text(text, encoding="utf-8")
        print(f"{name}: {result['status']}, {len(result['rows'])} rows, {result['seconds']} s", flush=True)
    print(f"{output / 'gpu_lab.md'}")


if __name__ == "__main__":
    run(main)
