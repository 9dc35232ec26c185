"""What other packages add to the suite by entry points: commands, forecasters, backbones, converters, demos.

Our own image package comes in by the same door.
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

    If a name is there twice, ours is used, or else that of the package that comes first by name. A line on standard
    error says so.

    Args:
        group: for instance ``tsfm.models``.
        own: names that are ours without an entry point.
    """
    used: dict[str, metadata.EntryPoint] = {}
    for entry in sorted(metadata.entry_points(group=group), key=lambda e: (e.name, package(e) != OURS, package(e))):
        if entry.name in own or entry.name in used:
            winner = OURS if entry.name in own else package(used[entry.name])
            say(f"{entry.name} of {group} is in {winner} and in {package(entry)}: that of {winner} is used")
        else:
            used[entry.name] = entry
    return list(used.values())


def load(entry: metadata.EntryPoint, what: str) -> Any:
    """What an entry point names.

    Args:
        entry: of any package.
        what: it stands for, for the error.

    Raises:
        InputError: it cannot be imported. If what is missing belongs to an extra of its package, the line says so.
    """
    try:
        return entry.load()
    except Exception as error:  # another package's: whatever it raises is its own fault, not ours
        missing = str(error.name) if isinstance(error, ModuleNotFoundError) else ""
        if extra := extra_of(entry, missing):
            hint = f"pip install '{package(entry)}[{extra}]'"
            raise InputError(f"expected the packages of {what}, found no {missing}: {hint}") from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise wrong(entry, what, f"an error on import ({reason})") from error


def wrong(entry: metadata.EntryPoint, what: str, problem: str) -> InputError:
    """The line for an entry point that does not name what it should."""
    return InputError(
        f"expected {what} in {entry.value} (entry point of {entry.group}), found {problem}: update or uninstall "
        f"{package(entry)}"
    )


def extra_of(entry: metadata.EntryPoint, module: str) -> str | None:
    """The extra of an entry point's package that a module belongs to."""
    for requirement in (entry.dist.requires if entry.dist else None) or ():
        parts = re.match(r"""([\w.-]+).*extra == ["']([\w.-]+)["']""", requirement)
        if parts and parts[1].lower().replace("-", "_") == module.split(".")[0].lower():
            return parts[2]
    return None


def package(entry: metadata.EntryPoint) -> str:
    """The name of the package that has an entry point."""
    return entry.dist.name if entry.dist else "a package without a name"


@functools.cache
def say(message: str) -> None:
    """Print a line on standard error, once per process."""
    logger.warning("warning: %s", message)
