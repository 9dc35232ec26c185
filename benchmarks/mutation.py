"""Damage to files: bytes, words of text, trees of JSON and YAML, and members of archives.

A mutator takes the bytes of a file and random numbers, and returns other bytes.
"""

import bz2
import contextlib
import copy
import gzip
import io
import itertools
import json
import lzma
import random
import re
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import yaml
from mutation_arrow import damage_table

Mutator = Callable[[bytes, random.Random], bytes]
NUMBERS = (
    "1E4041751706", "-1e-99999999999", "1e308", "-1e309", "9" * 400, "0." + "0" * 400 + "1", "nan", "NaN", "inf",
    "-Infinity", "-0", "-0.0", "0x1F", "1_000", "٣٫١٤", "１２３", "1,234.5", "1.234,5", "1e", "+-1", "--5", "(5)", "5%",
    "$1e9", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616", "4294967296",
    "1e16", "0.1e-400", "true", "None", "",
)  # fmt: skip
DATES = (
    "0000-00-00", "9999-12-31", "1677-09-21", "2262-04-12", "2024-02-30", "2024-01-01T24:00:00", "20240101", "1e18",
    "2024-W53", "2024Q5", "31/12/2024", "2024-01-01 00:00+99:99", "2024-01-01T00:00Z", "-2024-01-01", "1700000000",
    "99999999999999999999", "Mar 2024", "FY24", "24:61", "NaT", "45000", "2024-13", "12", "292278994-08-17",
)  # fmt: skip
WORDS = (
    "\x1b[31mred\x1b[0m", "\x00", "\r", "\n", "\x0b", "\x7f", "\u202e", "\ufeff", "\ud7ff", "💥", "é", "=1+1",
    "@SUM(A1)", "x" * 300, "x" * 70_000, '"', "'", ",", ";", "\t", "|", "id", "date", "time", "target", "y", "None",
    "nan", "a/b",
    " ", "", "\\", "%s%n", "{0}", "../..",
)  # fmt: skip
SCALARS = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**18, 10**400, -0.0, 0.5, 1e308, float("nan"), float("inf"), "", "x",
    "1", "1e9", "\x1b[31m", "x" * 5000, [], {}, [None], [[]], {"": None}, {"x": {"y": []}}, [1] * 2000,
)  # fmt: skip


def mutate(name: str, data: bytes, rng: random.Random) -> bytes:
    """A damaged file: by its format, or now and then as plain bytes.

    Args:
        name: of the file; its suffix says the format.
        data: a valid file.
        rng: random numbers.
    """
    suffix = name.rpartition(".")[2].lower()
    if rng.random() < 0.25:
        return damage_bytes(data, rng)
    if suffix in ("parquet", "arrow", "feather"):  # once, since the second time would read a damaged file
        return damage_table(suffix, data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = MUTATORS.get(suffix, damage_bytes)(data, rng)
    return data


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes replaced, and blocks removed, repeated, moved or blanked."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        size = len(result)
        if not size:
            break
        at, length = rng.randrange(size), min(rng.choice((1, 2, 4, 8, 64, 1024)), size)
        match rng.randrange(7):
            case 0:
                result[at] ^= 1 << rng.randrange(8)
            case 1:
                result[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del result[at : at + length]
            case 3:
                result[at:at] = result[at : at + length]
            case 4:
                del result[at:]
            case 5:
                result[at : at + length] = bytes(length) if rng.random() < 0.5 else b"\xff" * length
            case _:
                number = rng.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, rng.getrandbits(31)))
                result[at : at + 8] = number.to_bytes(8, "little", signed=True)
    return bytes(result)


def damage_text(data: bytes, rng: random.Random) -> bytes:
    """Words, lines, separators and the encoding of a text changed."""
    text = data.decode("utf-8", errors="surrogateescape")
    match rng.randrange(10):
        case 0 | 1 | 2:
            text = _other_number(text, rng)
        case 3:
            text = _other_match(text, r"[^\W\d]+", WORDS, rng)
        case 4:
            text = _other_match(text, r"\d[\d:/.T+-]{5,}", DATES, rng)
        case 5:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(WORDS) + text[at:]
        case 6 | 7:
            text = _other_lines(text, rng)
        case 8:
            old, new = rng.choice(",;\t|\n."), rng.choice((",", ";", "\t", "|", "\n", "\r\n", "\r", " ", '"', ""))
            text = text.replace(old, new, rng.choice((1, 5, -1)))
        case _:
            encoding = rng.choice(("utf-16", "utf-16-le", "utf-8-sig", "latin-1", "cp500", "utf-32"))
            return text.encode(encoding, errors="replace")
    return text.encode("utf-8", errors="surrogateescape")


def _other_number(text: str, rng: random.Random) -> str:
    if rng.random() < 0.3:  # a whole column, if the separator is a comma
        lines = [line.split(",") for line in text.split("\n")]
        column, number = rng.randrange(max(map(len, lines))), rng.choice((*NUMBERS, *DATES))
        for cells in lines[1:]:
            if len(cells) > column and rng.random() < 0.9:
                cells[column] = number
        return "\n".join(map(",".join, lines))
    return _other_match(text, r"[+-]?\d+(?:\.\d+)?", NUMBERS, rng)


def _other_match(text: str, pattern: str, replacements: tuple[str, ...], rng: random.Random) -> str:
    found = list(re.finditer(pattern, text))
    for match in sorted(rng.sample(found, min(rng.choice((1, 1, 3)), len(found))), key=re.Match.start, reverse=True):
        text = text[: match.start()] + rng.choice(replacements) + text[match.end() :]
    return text


def _other_lines(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    match rng.randrange(7):
        case 0:
            del lines[at]
        case 1:
            lines[at:at] = [lines[at]] * rng.choice((1, 2, 300))
        case 2:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines[at] = rng.choice((*WORDS, *NUMBERS))
        case 4:
            lines = lines[: at + 1]
        case 5:
            mark = rng.choice(",;\t|")
            lines[at] = mark * rng.choice((1, 10, 5000)) + lines[at]
        case _:
            cells = lines[at].split(",")
            rng.shuffle(cells)
            lines[at] = ",".join(cells)
    return "\n".join(lines)


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """A tree of JSON with values of other types, keys missing, extra or doubled, deep nesting, and huge numbers."""
    if rng.random() < 0.3:
        return damage_text(data, rng)
    try:
        tree = other_tree(json.loads(data), rng)
        text = json.dumps(tree)
    except (ValueError, RecursionError):
        return damage_text(data, rng)
    if rng.random() < 0.05:
        depth = rng.choice((100, 2000, 100_000))
        text = text.replace(rng.choice(("null", "1", "{}", "[]", "true")), "[" * depth + "]" * depth, 1)
    return text.encode()


def damage_yaml(data: bytes, rng: random.Random) -> bytes:
    """A tree of YAML as one of JSON, and anchors that multiply."""
    if rng.random() < 0.4 or re.search(rb"\*(a|id)\d", data):  # a tree of aliases would be walked endlessly
        return damage_text(data, rng)
    try:
        tree = other_tree(yaml.safe_load(data), rng)
        text = yaml.safe_dump(tree, sort_keys=False)
    except (ValueError, RecursionError, yaml.YAMLError):
        return damage_text(data, rng)
    if rng.random() < 0.05:
        bomb = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10 if i else ['x'] * 10)}]" for i in range(9)]
        text = "\n".join(bomb) + "\n" + text
    return text.encode()


def other_tree(tree: Any, rng: random.Random) -> Any:
    """A tree with one place changed."""
    places = list(itertools.islice(_places(tree), 100_000))
    if not places:
        return copy.deepcopy(rng.choice(SCALARS))
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0 | 1 | 2:
            holder[key] = copy.deepcopy(rng.choice(SCALARS))  # which the next damage may change
        case 3:
            del holder[key]
        case 4:
            other, place = rng.choice(places)
            with contextlib.suppress(LookupError):
                holder[key] = other[place] if rng.random() < 0.5 else json.loads(json.dumps(tree))
        case _:
            if isinstance(holder, dict):
                holder[rng.choice((*WORDS[:12], "type", "path", "name", f"{key} "))] = copy.deepcopy(
                    rng.choice(SCALARS)
                )
            else:
                holder.extend([holder[key]] * rng.choice((1, 10, 1000)))
    return tree


def _places(tree: Any) -> Any:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def packed(open_: Callable[[bytes], bytes], close: Callable[[bytes], bytes], inner: Mutator) -> Mutator:
    """Damage to the content of a compressed file, now and then to something that unpacks to hundreds of MiB."""

    def damage(data: bytes, rng: random.Random) -> bytes:
        try:
            content = open_(data)
        except (OSError, EOFError, zlib.error, lzma.LZMAError):  # the same
            return damage_bytes(data, rng)
        if len(content) > 1 << 22:  # damaged already
            return damage_bytes(data, rng)
        if rng.random() < 0.01:
            return close(content + rng.choice((b"\n", b"0", b"a,1\n")) * (1 << 24))
        return close(inner(content, rng))

    return damage


def damage_zip(data: bytes, rng: random.Random) -> bytes:
    """An archive with one member damaged, missing or empty."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return damage_bytes(data, rng)
    name = rng.choice(list(members))
    change = rng.choice((damage_bytes, damage_text, damage_text, lambda *_: b"", None))
    if change is None:
        del members[name]
    else:
        members[name] = change(members[name], rng)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


MUTATORS: dict[str, Mutator] = {
    **dict.fromkeys(("csv", "tsv", "txt"), damage_text),
    **dict.fromkeys(("yaml", "yml"), damage_yaml),
    **dict.fromkeys(("zip", "xlsx", "pt"), damage_zip),
    "json": damage_json,
    "gz": packed(gzip.decompress, lambda data: gzip.compress(data, 1), damage_text),
    "bz2": packed(bz2.decompress, lambda data: bz2.compress(data, 1), damage_text),
    "xz": packed(lzma.decompress, lambda data: lzma.compress(data, preset=0), damage_text),
}
