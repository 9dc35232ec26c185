"""The one error type for a user's mistake: the command prints its single line and exits with status 2."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in what the user gave: one line that says what was expected, what was found, where, and what to do."""


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
