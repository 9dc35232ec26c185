"""Lines for a terminal: names and ids of foreign files without control characters, and of bounded length."""

import os
import re
import sys
from typing import Any

# Control characters other than tab and line break, marks that reverse the direction of text, and halves of characters.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet runs
LONGEST = 4000  # characters of a line
ERROR = 1000  # characters of an error, a note or a warning


def printable(text: str, longest: int = LONGEST) -> str:
    """Text with escapes instead of control characters (``\\x1b``), and its long lines shortened in the middle."""
    text = UNPRINTABLE.sub(lambda mark: mark[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))
    if len(text) <= longest:
        return text
    return "\n".join(line if len(line) <= longest else _shortened(line, longest) for line in text.split("\n"))


def _shortened(line: str, longest: int) -> str:
    tail = longest // 3  # where a message says what to do
    return f"{line[: longest - tail - 5]} ... {line[-tail:]}"


def say(*parts: object, **options: Any) -> None:
    """Print as ``print`` does, but only printable text."""
    print(*(printable(str(part)) for part in parts), **options)


def note(message: str) -> None:
    """Print one line, such as a note or a warning, on standard error; if that cannot be written, results still can."""
    try:
        print(printable(" ".join(message.split()), ERROR), file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def without_formulas(text: str) -> str:
    """Text that no spreadsheet runs as a formula: an apostrophe before one that begins with =, +, -, @, tab or CR."""
    return f"'{text}" if text.startswith(FORMULA) else text
