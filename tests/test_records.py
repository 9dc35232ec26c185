"""JSON and YAML are read as a value of a type, or refused in one line that says where the mistake is."""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import pytest
from annotated_types import Ge
from mutation import mutate
from typing_extensions import TypedDict

from tsfm_data.errors import InputError
from tsfm_data.io import read_record, read_yaml


class Part(TypedDict):
    name: str
    share: NotRequired[Annotated[float, Ge(0)] | None]


class Whole(TypedDict):
    format: int
    parts: list[Part]


class Keys(TypedDict):
    parts: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Sizes:
    width: int
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError(f"expected a width of at least 1, found {self.width}: change it")
        assert 64 % self.width == 0


GOOD: dict[str, Any] = {"more": {"a": 1}, "parts": [{"name": "a"}, {"share": 0.5, "name": "b"}], "format": 1}


def write(path: Path, content: object) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_when_a_record_is_right_then_it_is_returned_as_it_is(tmp_path: Path) -> None:
    read = read_record(write(tmp_path / "a.json", GOOD), Whole, "a whole")
    assert read == GOOD
    assert list(read) == list(GOOD)  # a record that is written again has the same bytes
    sizes = read_record(write(tmp_path / "a.json", {"width": 8, "levels": [1, 0.5]}), Sizes, "sizes")
    assert sizes == Sizes(8, (1.0, 0.5))
    assert read_record(write(tmp_path / "a.json", {"x": math.nan}), dict, "any", finite=False)["x"] != 0


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b"", dict, "expected JSON, found an error"),
        (b"\xff{}", dict, "expected JSON, found an error"),
        (b"[" * 100_000, dict, "nested too deeply"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, dict, "expected a whole with keys and values"),
        (b"[1, 2]", dict, r"with keys and values, found \[1, 2\]"),
        (b'{"a": NaN}', dict, "Out of range float"),
        (b'{"a": 1e999}', dict, "Out of range float"),
        (b'{"a": ' + b"9" * 5000 + b"}", dict, "a whole number of 5,000 digits"),
        (b'{"a": "\\ud800"}', dict, "surrogates not allowed"),
        (GOOD | {"format": "1"}, Whole, "expected a whole number at format, found '1': get it"),
        (GOOD | {"format": True}, Whole, "expected a whole number at format, found True"),
        (GOOD | {"format": 1.0}, Whole, r"expected a whole number at format, found 1\.0"),
        (GOOD | {"parts": {}}, Whole, r"expected a list at parts, found \{\}"),
        (GOOD | {"parts": [{}]}, Whole, r"with the key 'name' at parts\[0\], found none"),
        (GOOD | {"parts": [{"name": "a", "share": -1}]}, Whole, r"greater than or equal to 0 .*at parts\[0\]\.share"),
        (GOOD | {"parts": [{"name": "a", "share": "x"}]}, Whole, r"a number .*at parts\[0\]\.share, found 'x'"),
        (GOOD | {"parts": [{"name": 1, "a\nb": 2}]}, Whole, r"text at parts\[0\]\.name, found 1"),
        ({"parts": {"a\nb": [1]}}, Keys, r"keys and values at parts\.'a\\nb'"),
        ({"width": 0}, Sizes, "at least 1, found 0: change it$"),
        ({"width": 7}, Sizes, "Assertion failed"),
    ],
)
def test_when_a_record_is_wrong_then_one_line_says_where(
    tmp_path: Path, content: object, kind: type, reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read_record(write(tmp_path / "a.json", content), kind, "a whole", hint="get it")
    assert "a.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def bomb(lines: int) -> str:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    return text + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, lines))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "found nothing"),
        ("- a", "found a list"),
        ("a: [", "expected YAML"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: !!timestamp x", "expected YAML"),
        ("a: !!int x", "expected YAML"),
        ("? [a]\n: 1", "unhashable"),
        (bomb(9), "aliases"),
        (f"b: {{<<: [{', '.join(['*a'] * 3)}]}}", "undefined alias"),
        ("a: &a [*a]", "contains itself"),
        ("a: " + "[" * 900 + "]" * 900, "deep"),
        ("a: " + "9" * 50, "found one of 50 digits"),
        ("a: " + "x" * 2**20, "at most 1,048,576 bytes"),
    ],
    ids=range(13),
)
def test_when_yaml_is_wrong_or_would_grow_then_one_line_says_so(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=reason) as caught:
        read_yaml(tmp_path / "a.yaml", "the keys")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_when_yaml_shares_a_part_then_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: &b {lr: 1.0e-3, seed: 1}\nrun: {<<: *b, seed: 2}\n" + bomb(3))
    read = read_yaml(tmp_path / "a.yaml", "the keys")
    assert read["run"] == {"lr": 1e-3, "seed": 2}
    with pytest.raises(InputError, match="found no file"):
        read_yaml(tmp_path, "the keys")


@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
def test_when_a_record_is_damaged_at_random_then_it_is_a_value_or_one_line(tmp_path: Path, name: str) -> None:
    data, path, endings = json.dumps(GOOD).encode(), tmp_path / name, set()
    for number in range(300):
        write(path, mutate(name, data, random.Random(number)))
        try:
            plain: Any = read_yaml(path, "a whole") if name == "a.yaml" else read_record(path, Whole, "a whole")
            endings.add(type(plain).__name__)
        except InputError as error:
            endings.add("one line" if "\n" not in str(error) else str(error))
    assert endings == {"dict", "one line"}
