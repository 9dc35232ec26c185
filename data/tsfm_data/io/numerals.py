"""Text to numbers: decimal commas, thousands separators, currencies, percent signs, brackets."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

CURRENCY = r"(?:[$€£¥₹₽₩₺]|USD|EUR|GBP|CHF|JPY|CNY|INR|SEK|NOK|DKK|PLN|kr\.?|zł)"
WORDS = (
    "",
    "-",
    "--",
    "–",
    "—",
    ".",
    "?",
    "na",
    "n/a",
    "#n/a",
    "#na",
    "n.a.",
    "nan",
    "-nan",
    "null",
    "none",
    "nil",
    "<na>",
    "nat",
    "missing",
    "#div/0!",
    "#value!",
    "#ref!",
    "#null!",
    "#num!",
    "#name?",
)
MISSING = frozenset(WORDS)  # words for missing values, in lower case


def missing_cells(text: pd.Series) -> Bool[np.ndarray, " rows"]:
    """Which values of a column of stripped text are missing."""
    return (text.isna() | text.str.lower().isin(MISSING)).to_numpy(dtype=bool)


def plain(text: pd.Series) -> pd.Series:
    """Cells without spaces, currency and percent signs; "(5)", "5-" and "\u2212" for minus become "-5"."""
    text = text.str.replace(r"[\s'’_\u00a0\u202f]", "", regex=True).str.replace("\u2212", "-", regex=False)
    text = text.str.replace(rf"^([+-]?){CURRENCY}([+-]?)(?=[\d.,(])|{CURRENCY}$|%$", r"\1\2", regex=True, case=False)
    text = text.str.replace(r"^\((.+)\)$", r"-\1", regex=True).str.replace(r"^([\d.,]+)-$", r"-\1", regex=True)
    return text.str.replace(rf"^([+-]?){CURRENCY}(?=[\d.,])", r"\1", regex=True, case=False)


def decimal_mark(cells: Iterable[pd.Series]) -> str | None:
    """The decimal mark in columns of ``plain`` text, or None if no value shows it.

    "1.234,5" and "12,5" show a comma, "1,234.5" and "12.5" a point; "1,234" and "1.234" alone show nothing.
    """
    votes = {",": 0, ".": 0}
    for column in cells:
        for mark, other in ((",", r"\."), (".", ",")):
            m = r"\." if mark == "." else ","
            shape = (
                rf"[+-]?\d{{1,3}}(?:{other}\d{{3}})+{m}\d+"  # both marks
                rf"|[+-]?\d{{1,3}}(?:{other}\d{{3}}){{2,}}"  # the other mark twice: thousands
                rf"|[+-]?\d*{m}(?:\d{{1,2}}|\d{{4,}})(?:[eE][+-]?\d+)?"  # not three digits after it
                rf"|[+-]?(?:0|\d{{4,}}){m}\d+"  # not a group of thousands before it
            )
            votes[mark] += int(column.str.fullmatch(shape).fillna(False).sum())
    if votes[","] == votes["."] == 0:
        return None
    return "," if votes[","] > votes["."] else "."


def parse(text: pd.Series, mark: str) -> Float64[np.ndarray, " rows"]:
    """``plain`` text as numbers; NaN if invalid."""
    group = "." if mark == "," else ","
    grouped = text.str.fullmatch(rf"[+-]?\d{{1,3}}(?:\{group}\d{{2,3}})*\{group}\d{{3}}(?:\{mark}\d*)?").fillna(False)
    text = text.mask(grouped, text.str.replace(group, "", regex=False))
    if mark == ",":
        text = text.mask(text.str.contains(".", regex=False).fillna(False)).str.replace(",", ".", regex=False)
    return floats(text)


def floats(cells: pd.Series) -> Float64[np.ndarray, " rows"]:
    """Text or numbers as numbers; NaN for text that is none, or has an exponent so long that pandas would crash."""
    if not pd.api.types.is_numeric_dtype(cells):
        cells = cells.astype("string")
        if (cells.str.len() > 10).any():
            cells = cells.mask(cells.str.contains(r"[eE][+-]?\d{9}").fillna(False).astype(bool))
    return pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
