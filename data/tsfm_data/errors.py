"""InputError, the error for a user's mistake: commands print its single line and exit with status 2."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in the user's input: one line with what was expected, what was found, where, and what to do."""


def check_horizon(horizon: int, name: str = "horizon", option: str = "") -> None:
    """Check that a horizon or context has at least one step.

    Args:
        horizon: number of steps.
        name: ``"horizon"`` or ``"context"``.
        option: the option that sets it, for the hint.

    Raises:
        InputError: it is less than 1.
    """
    if horizon < 1:
        hint = f"{option} 24".lstrip()
        raise InputError(f"expected a {name} of at least 1 step, found {horizon}: give {hint}, for instance")


def check_positive(holder: object, *names: str, hint: str = "change it in the config") -> None:
    """Check that attributes are at least 1.

    Args:
        holder: a config.
        names: of the attributes.
        hint: what to do.

    Raises:
        InputError: one is less than 1.
    """
    check_sizes(hint, **{name: getattr(holder, name) for name in names})


def check_sizes(hint: str = "change it", /, **sizes: int | None) -> None:
    """Check that numbers are at least 1; None is allowed.

    Args:
        hint: what to do.
        **sizes: the numbers by name.

    Raises:
        InputError: one is less than 1.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise InputError(f"expected {name} of at least 1, found {size}: {hint}")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An ``InputError`` for a name that is not in ``known``, with similar names listed.

    Args:
        kind: what the name stands for, for instance ``"model"``.
        name: the unknown name.
        known: all valid names.
    """
    names = sorted(known)
    spellings = {spelling.lower(): spelling for spelling in names}
    near = [spellings[match] for match in difflib.get_close_matches(name.lower(), spellings, n=3, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names)}"
    return InputError(f"unknown {kind} {name!r}: {hint}")
