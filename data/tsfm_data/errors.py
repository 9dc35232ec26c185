"""The one error type for a user's mistake: the command prints its single line and exits with status 2."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in what the user gave: one line that says what was expected, what was found, where, and what to do."""


def check_horizon(horizon: int, name: str = "horizon", option: str = "") -> None:
    """Check that there is a step to forecast.

    Args:
        horizon: steps.
        name: what they are called, ``"horizon"`` or ``"context"``.
        option: the option that sets them, for the hint.

    Raises:
        InputError: there is none.
    """
    if horizon < 1:
        hint = f"{option} 24".lstrip()
        raise InputError(f"expected a {name} of at least 1 step, found {horizon}: give {hint}, for instance")


def check_positive(holder: object, *names: str, hint: str = "change it in the config") -> None:
    """Check that sizes are 1 or more.

    Args:
        holder: a config.
        names: the attributes that are sizes.
        hint: what to do.

    Raises:
        InputError: one is not.
    """
    check_sizes(hint, **{name: getattr(holder, name) for name in names})


def check_sizes(hint: str = "change it", /, **sizes: int | None) -> None:
    """Check that numbers are 1 or more; None stands for one that was not given.

    Args:
        hint: what to do.
        **sizes: the numbers by name.

    Raises:
        InputError: one is not.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise InputError(f"expected {name} of at least 1, found {size}: {hint}")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An ``InputError`` for a name that is not in ``known``, with the near ones listed.

    Args:
        kind: what the name stands for, for instance ``"model"``.
        name: the name that was asked for.
        known: every name that would have been accepted.
    """
    names = sorted(known)
    spellings = {spelling.lower(): spelling for spelling in names}
    near = [spellings[found] for found in difflib.get_close_matches(name.lower(), spellings, n=3, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names)}"
    return InputError(f"unknown {kind} {name!r}: {hint}")
