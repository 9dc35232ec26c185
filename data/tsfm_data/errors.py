"""InputError, the error for a user's mistake: commands print its single line and exit with status 2."""

import difflib
from collections.abc import Iterable
from numbers import Integral

LONGEST_HORIZON = 1_000_000  # steps; more would ask for all the memory there is
SHOWN = 40  # names that a message lists


class InputError(ValueError):
    """A mistake in the user's input: one line with what was expected, what was found, where, and what to do."""


def check_horizon(horizon: int, name: str = "horizon", option: str = "") -> None:
    """Check that a horizon or context has at least one step, and not more than a million.

    Args:
        horizon: number of steps.
        name: ``"horizon"`` or ``"context"``.
        option: the option that sets it, for the hint.

    Raises:
        InputError: it is no whole number, less than 1, or more than a million.
    """
    hint = f"give {f'{option} 24'.lstrip()}, for instance"
    check_whole(hint, **{name: horizon})
    if horizon < 1:
        raise InputError(f"expected a {name} of at least 1 step, found {horizon}: {hint}")
    if horizon > LONGEST_HORIZON:
        raise InputError(f"expected a {name} of at most {LONGEST_HORIZON:,} steps, found {horizon:,}: {hint}")


def check_whole(hint: str, /, **sizes: object) -> None:
    """Check that numbers are whole.

    Args:
        hint: what to do.
        **sizes: the numbers by name.

    Raises:
        InputError: one is not, or is no number.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, Integral):
            raise InputError(f"expected a whole number as {name}, found {size!r:.40}: {hint}")


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
    """Check that numbers are whole and at least 1; None is allowed.

    Args:
        hint: what to do.
        **sizes: the numbers by name.

    Raises:
        InputError: one is less than 1.
    """
    for name, size in sizes.items():
        if size is None:
            continue
        check_whole(hint, **{name: size})
        if size < 1:
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
    some = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {some}"
    return InputError(f"unknown {kind} {name!r}: {hint}")
