"""Records: JSON and YAML files in bounded size and depth, checked against a type before anything uses them."""

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from typing_extensions import is_typeddict

from tsfm_data.errors import InputError, reason_of, shown

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError
    from yaml.nodes import Node

T = TypeVar("T")
LARGEST_JSON, LARGEST_YAML = 64 * 2**20, 2**20  # bytes; YAML takes four seconds per MiB
DEEPEST = 100  # lists and mappings inside each other
LONGEST_NUMBER = 40  # digits of a whole number
MOST_VALUES = 500_000  # values in a YAML file, with each alias counted as a copy of what it stands for
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
# What pydantic's mistakes expect, in our words.
WORDS = {
    "bool_type": "true or false",
    "dataclass_type": "keys and values",
    "dict_type": "keys and values",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "none_required": "nothing",
    "string_type": "text",
    "tuple_type": "a list",
}
FORM = re.compile(r"^\w+ should (be |have )?| after validation, not \d+$")  # of pydantic's other messages
HINT = "correct it, or get the file again"


def read_record(path: str | Path, kind: type[T], what: str, *, finite: bool = True, hint: str = HINT) -> T:
    """Read a JSON file as a value of a type.

    Args:
        path: the file.
        kind: a dataclass, a ``TypedDict``, or ``dict`` for any object. Types are strict: ``1`` is no text and ``true``
            no number. A mapping may have more keys than its type.
        what: what the file should be, for messages.
        finite: whether NaN and infinite numbers are refused.
        hint: what to do about a wrong file.

    Raises:
        InputError: no such file, a file that is too large, no JSON, or a value of another type; one line says where.
    """
    raw = _read(Path(path), LARGEST_JSON, what, hint)
    try:
        plain = json.loads(raw, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, found {_reason(error)}: {hint}") from error
    return check_record(plain, kind, path, what, finite=finite, hint=hint)


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """Read the mapping in a YAML file; aliases that would grow to a huge value are refused.

    Args:
        path: the file.
        what: what the file should have, for messages.

    Raises:
        InputError: no such file, a file that is too large or would become so, no YAML, or no mapping.
    """
    hint = "correct it"
    raw = _read(Path(path), LARGEST_YAML, what, hint)
    import yaml  # slow to import, and not every command needs it

    loader: Any = None
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(raw)
        node = loader.get_single_node()
        if node is not None:
            _count_values(node, {}, 1)
        plain = None if node is None else loader.construct_document(node)
    except InputError as error:
        raise InputError(f"{path}: {error}: {hint}") from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, KeyError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise InputError(f"expected YAML in {path}{where}, found {_reason(error)}: {hint}") from error
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(plain, dict):
        found = "nothing" if plain is None else f"a {type(plain).__name__}"
        raise InputError(f"{path}: expected {what}, found {found}: {hint}")
    return plain


def check_record(
    plain: object, kind: type[T], where: str | Path, what: str, *, finite: bool = True, hint: str = HINT
) -> T:
    """Check a value that was read from JSON or YAML against a type.

    A mapping is returned as it is. For a dataclass it is converted: lists become tuples, for instance.

    Args:
        plain: the value.
        kind: see ``read_record``.
        where: the file, for messages.
        what: what the value should be, for messages.
        finite: see ``read_record``.
        hint: what to do about a wrong value.

    Raises:
        InputError: it is no value of the type.
    """
    try:
        text = json.dumps(plain, ensure_ascii=False, allow_nan=not finite, default=str).encode()
        shallow = kind is not dict or _is_shallow(plain, DEEPEST)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: expected {what}, found {_reason(error)}: {hint}") from error
    if kind is dict:
        if not isinstance(plain, dict) or not shallow:
            raise InputError(f"{where}: expected {what} with keys and values, found {shown(plain)}: {hint}")
        return cast(T, plain)
    from pydantic import ValidationError  # 0.1 s, which commands that read no records need not wait for

    try:
        checked: T = _adapter(cast(Any, kind)).validate_json(text, strict=True, extra="ignore")
    except ValidationError as error:
        raise InputError(f"{where}: {_first_mistake(error, plain, what, hint)}") from error
    except (ArithmeticError, TypeError, AttributeError, RuntimeError) as error:  # from checks of the type itself
        raise InputError(f"{where}: expected {what}, found sizes that do not fit ({_reason(error)}): {hint}") from error
    return cast(T, plain) if is_typeddict(kind) else checked  # the plain value keeps the order of its keys


def check_version(plain: dict[str, Any], newest: int, path: Path) -> dict[str, Any]:
    """Check that this version reads the format of a record, which it returns.

    Raises:
        InputError: the format is newer.
    """
    version = plain.get("format_version", 0)
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version <= newest:
        raise InputError(
            f"expected format_version up to {newest} in {path}, found {shown(version)}: upgrade tsfm-suite"
        )
    return plain


def is_plain_name(name: str) -> bool:
    """Whether a name is that of one file or folder: letters, digits, ``_``, ``.`` and ``-``, no dot at its start."""
    return PLAIN.fullmatch(name) is not None and len(name) <= 200


def _read(path: Path, largest: int, what: str, hint: str) -> bytes:
    if not path.is_file():
        raise InputError(f"expected {what}, found no file at {path}: check the path")
    with path.open("rb") as handle:
        raw = handle.read(largest + 1)
    if len(raw) > largest:
        raise InputError(f"{path}: expected {what} of at most {largest:,} bytes, found more: {hint}")
    return raw


def _reason(error: BaseException) -> str:
    """An error of a library in short."""
    if isinstance(error, RecursionError):
        return "lists or mappings that are nested too deeply"
    return f"an error ({getattr(error, 'problem', None) or reason_of(error, 120)})"


def _whole(digits: str) -> int:
    """A whole number that also fits a float.

    Raises:
        ValueError: it has too many digits.
    """
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return int(digits)


def _is_shallow(value: object, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(part, depth - 1) for part in inner)


def _count_values(node: "Node", sizes: dict[int, int], depth: int) -> int:
    """Number of values that a YAML node stands for, each alias counted as a copy.

    Raises:
        InputError: there are too many, they are nested too deeply, or a node contains itself.
    """
    known = sizes.get(id(node))
    if known is not None:
        if not known:
            raise InputError("expected values, found one that contains itself")
        return known
    if depth > DEEPEST:
        raise InputError(f"expected lists and mappings at most {DEEPEST} deep, found deeper ones")
    if node.tag.endswith(":int") and len(node.value) > LONGEST_NUMBER:
        raise InputError(f"expected numbers, found one of {len(node.value):,} digits")
    sizes[id(node)] = 0
    total = 1
    for child in node.value if isinstance(node.value, list) else ():
        for part in child if isinstance(child, tuple) else (child,):
            total += _count_values(part, sizes, depth + 1)
    if total > MOST_VALUES:
        raise InputError(f"expected at most {MOST_VALUES:,} values, found aliases (*name) or lists that make more")
    sizes[id(node)] = total
    return total


@functools.cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _first_mistake(error: "ValidationError", plain: object, what: str, hint: str) -> str:
    """The first mistake that a check found: its place, what was expected there, what was found, and what to do."""
    mistakes = error.errors(include_url=False)
    first = mistakes[0]
    place, value = _place(first["loc"], plain)
    at = f" at {place}" if place else ""
    ours = first.get("ctx", {}).get("error")
    if isinstance(ours, InputError):
        return str(ours)
    if first["type"] == "missing":
        return f"expected {what} with the key {first['loc'][-1]!r}{at}, found none: {hint}"
    # A value of one of several types has one mistake for each of them.
    same = [mistake for mistake in mistakes if _place(mistake["loc"], plain)[0] == place]
    words = dict.fromkeys(WORDS.get(m["type"], FORM.sub("", m["msg"])) for m in same)
    expected = " ".join(" or ".join(words).split())[:160]
    return f"expected {expected}{at}{'' if place else f' of {what}'}, found {shown(value)}: {hint}"


def _place(steps: Sequence[int | str], plain: object) -> tuple[str, Any]:
    """The part of a location that is in the record (it also names types), as text, and the value there."""
    place, value = "", cast(Any, plain)
    for step in steps:
        if isinstance(value, dict) and step in value:
            place += f".{step}" if str(step).isprintable() else f".{str(step)[:80]!r}"
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            place += f"[{step}]"
        else:
            break
        value = value[step]
    return place.lstrip(".")[:80], value
