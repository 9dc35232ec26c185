"""InputError, the error for a user's mistake: commands print its single line and exit with status 2."""

import difflib
import pickle
import reprlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from numbers import Integral

LARGEST_SEED = 2**32 - 1
LONGEST_HORIZON = 1_000_000  # steps; more would ask for all the memory there is
# No model of ours is larger; a config that says so would ask for all the memory there is, or build layers for hours.
LARGEST_SIZE, MOST_LAYERS = 2**20, 1000
LARGEST_COUNT = 10**9  # of anything else: steps in a season, windows in a batch
# What libraries raise on values that do not fit them, and on damaged files.
LIBRARY_ERRORS: tuple[type[Exception], ...] = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError),
    *(pickle.PickleError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
MOST_NAMES = 40  # names that a message lists


class InputError(ValueError):
    """A mistake in the user's input: one line with what was expected, what was found, where, and what to do."""

    def __init__(self, message: str = "") -> None:
        # PyTorch puts the traceback of a process that loads data before the message, and makes one error of both.
        super().__init__(message.rpartition(f"{__name__}.InputError: ")[2].rstrip("\n"))


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
        raise InputError(f"expected a {name} of at least 1 step, found {shown(horizon)}: {hint}")
    if horizon > LONGEST_HORIZON:
        raise InputError(f"expected a {name} of at most {LONGEST_HORIZON:,} steps, found {shown(horizon)}: {hint}")


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
            raise InputError(f"expected a whole number as {name}, found {shown(size)}: {hint}")


def check_model_sizes(config: object, *names: str) -> None:
    """Check that sizes in a model's config are at least 1, and at most a million (a thousand for numbers of layers).

    Args:
        config: its attributes are the sizes.
        names: of the attributes.

    Raises:
        InputError: one is not.
    """
    hint = "change it in the config"
    for name in names:
        size = getattr(config, name)
        check_sizes(hint, **{name: size})
        most = MOST_LAYERS if name.endswith("layers") else LARGEST_SIZE
        if size > most:
            raise InputError(f"expected {name} of at most {most:,}, found {shown(size)}: {hint}")


def check_sizes(hint: str = "change it", /, **sizes: int | None) -> None:
    """Check that numbers are whole, at least 1, and such that a product of two fits 64 bits; None is allowed.

    Args:
        hint: what to do.
        **sizes: the numbers by name.

    Raises:
        InputError: one is not.
    """
    for name, size in sizes.items():
        if size is None:
            continue
        check_whole(hint, **{name: size})
        if size < 1:
            raise InputError(f"expected {name} of at least 1, found {shown(size)}: {hint}")
        if size > LARGEST_COUNT:
            raise InputError(f"expected {name} of at most {LARGEST_COUNT:,}, found {shown(size)}: {hint}")


def check_workers(workers: int) -> None:
    """Check a number of worker processes; 0 means that this process does the work.

    Raises:
        InputError: it is negative.
    """
    if workers < 0:
        raise InputError(f"expected workers of 0 or more, found {workers}: change it")


def check_seed(seed: object, name: str = "seed") -> None:
    """Check that a seed is one that all random generators take: a whole number from 0 to 2**32 - 1.

    Raises:
        InputError: it is not.
    """
    hint = "give 0, for instance"
    check_whole(hint, **{name: seed})
    if not 0 <= int(seed) <= LARGEST_SEED:  # type: ignore[call-overload]
        raise InputError(f"expected {name} from 0 to {LARGEST_SEED:,}, found {shown(seed)}: {hint}")


def shown(value: object) -> str:
    """A value for a message, in at most 80 characters and without a walk through all of it."""
    if isinstance(value, int) and not isinstance(value, bool):  # Python does not print thousands of digits
        return f"{value:,}" if abs(value) < 10**30 else f"a whole number of {value.bit_length()} bits"
    try:
        return reprlib.repr(value)[:80]
    except ValueError:  # such a number in a list
        return f"a {type(value).__name__} with a huge number"


def reason_of(error: BaseException, longest: int = 160) -> str:
    """What an error of a library says, in one line of at most ``longest`` characters; its type if it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__)[:longest]


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
    some = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {some}"
    return InputError(f"unknown {kind} {name!r}: {hint}")
