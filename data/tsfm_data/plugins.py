"""Entry points by which other packages add commands, forecasters, backbones, converters and demos.

Our own image package is found in the same way.
"""

import functools
import logging
import re
from collections.abc import Collection
from importlib import metadata
from typing import Any

from tsfm_data.errors import InputError

OURS = "tsfm-suite"
logger = logging.getLogger(__name__)


def entry_points(group: str, own: Collection[str] = ()) -> list[metadata.EntryPoint]:
    """The entry points of a group, one per name, sorted by name; nothing is imported.

    If two packages use the same name, ours wins, else the first package by name; a warning on standard error says so.

    Args:
        group: for instance ``tsfm.models``.
        own: names that the suite itself uses without an entry point.
    """
    used: dict[str, metadata.EntryPoint] = {}
    for entry in sorted(
        metadata.entry_points(group=group), key=lambda e: (e.name, package_of(e) != OURS, package_of(e))
    ):
        if entry.name in own or entry.name in used:
            winner = OURS if entry.name in own else package_of(used[entry.name])
            warn_once(f"{entry.name} of {group} is in {winner} and in {package_of(entry)}: that of {winner} is used")
        else:
            used[entry.name] = entry
    return list(used.values())


def load(entry: metadata.EntryPoint, what: str) -> Any:
    """Import the object of an entry point.

    Args:
        entry: of any package.
        what: what it should be, for the error.

    Raises:
        InputError: it cannot be imported. If an extra of its package would help, the message names it.
    """
    try:
        return entry.load()
    except Exception as error:  # code of another package may raise anything
        missing = str(error.name) if isinstance(error, ModuleNotFoundError) else ""
        if extra := find_extra(entry, missing):
            hint = f"pip install '{package_of(entry)}[{extra}]'"
            raise InputError(f"expected the packages of {what}, found no {missing}: {hint}") from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise entry_point_error(entry, what, f"an error on import ({reason})") from error


def entry_point_error(entry: metadata.EntryPoint, what: str, problem: str) -> InputError:
    """The error for an entry point that is not what it should be."""
    return InputError(
        f"expected {what} in {entry.value} (entry point of {entry.group}), found {problem}: update or uninstall "
        f"{package_of(entry)}"
    )


def find_extra(entry: metadata.EntryPoint, module: str) -> str | None:
    """The extra of the entry point's package that installs a module; None if there is none."""
    for requirement in (entry.dist.requires if entry.dist else None) or ():
        parts = re.match(r"""([\w.-]+).*extra == ["']([\w.-]+)["']""", requirement)
        if parts and parts[1].lower().replace("-", "_") == module.split(".")[0].lower():
            return parts[2]
    return None


def package_of(entry: metadata.EntryPoint) -> str:
    """The name of the package that has an entry point."""
    return entry.dist.name if entry.dist else "a package without a name"


@functools.cache
def warn_once(message: str) -> None:
    """Print a line on standard error, once per process."""
    logger.warning("warning: %s", message)
