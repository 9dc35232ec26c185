"""A long table read in parts gives the same series, notes and errors as one that is read at once."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stamps import BERLIN, DAYS, HOURS, MONTHS

from tsfm_data.corpus import build, sources
from tsfm_data.errors import InputError
from tsfm_data.io import SeriesSet, blocks, open_parts, parts, read_series, spill


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that small tables have many."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 300)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 7)
    monkeypatch.setattr(spill, "SERIES_PER_FILE", 2)
    monkeypatch.setattr(spill, "READ_ROWS", 16)
    monkeypatch.setattr(parts, "PART_ROWS", 150)


def one_of(stamps: Any, name: str, values: Any = None, **columns: Any) -> pd.DataFrame:
    """One series of a long table."""
    values = np.arange(len(stamps)) % 7 + 0.5 if values is None else values
    return pd.DataFrame({"item_id": name, "ds": stamps, **columns, "y": values})


def several(*frames: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)


def daily(count: int = 7, **columns: Any) -> pd.DataFrame:
    return several(*(one_of(DAYS[i : 20 + 3 * i], f"s{i}", **columns) for i in range(count)))


def with_cell(frame: pd.DataFrame, row: int, column: str, value: Any) -> pd.DataFrame:
    frame = frame.astype({column: object})
    frame.loc[row, column] = value
    return frame


REPEATED = daily()
FRAMES: dict[str, tuple[pd.DataFrame, dict[str, Any]]] = {
    "days": (daily(), {}),
    "whole ids": (daily().assign(item_id=lambda f: f["item_id"].str[1:].astype(int) * 3), {}),
    "short ones after long ones": (
        several(*(one_of(HOURS[:9], f"l{i}") for i in range(3)), *(one_of(HOURS[:2], f"s{i}") for i in range(4))),
        {},
    ),
    "months and days": (
        several(*(one_of(s[:9], f"{n}{i}") for i in range(3) for n, s in (("d", DAYS), ("m", MONTHS)))),
        {},
    ),
    "only short ones, of two steps": (
        several(*(one_of(s[:3], f"{n}{i}") for i in range(3) for n, s in (("d", DAYS), ("h", HOURS)))),
        {},
    ),
    "gaps": (daily().drop(index=[4, 5, 30, 31, 32, 90]), {}),
    "missing values": (daily().assign(y=lambda f: f["y"].where(f.index % 5 > 0)), {}),
    "a series without values": (daily().assign(y=lambda f: f["y"].where(f["item_id"] != "s3")), {}),
    "repeats": (several(REPEATED, REPEATED.iloc[[3, 60, 61]]), {}),
    "other repeats": (several(REPEATED, REPEATED.iloc[[3, 60]].assign(y=77.0)), {}),
    "years": (
        several(*(one_of(range(1990 + i, 2010), f"s{i}") for i in range(5))),
        {},
    ),
    "steps": (several(*(one_of(range(i, 20), f"s{i}") for i in range(5))), {}),
    "seconds since 1970": (
        daily().assign(ds=lambda f: f["ds"].to_numpy().astype("datetime64[s]").astype(np.int64)),
        {},
    ),
    "the day first": (daily().assign(ds=lambda f: f["ds"].dt.strftime("%d/%m/%Y")), {}),
    "day or month first": (daily().iloc[:9].assign(ds=lambda f: f["ds"].dt.strftime("%d/%m/%Y")), {}),
    "day first, as said": (
        several(*(one_of(DAYS[:9], f"s{i}") for i in range(3))).assign(ds=lambda f: f["ds"].dt.strftime("%d/%m/%Y")),
        {"dayfirst": True},
    ),
    "days of Berlin": (several(*(one_of(BERLIN[i:], f"s{i}") for i in range(5))), {}),
    "midnights in UTC": (
        several(*(one_of(BERLIN[i:].tz_convert("UTC").tz_localize(None), f"s{i}") for i in range(5))),
        {},
    ),
    "local text with offsets": (
        several(*(one_of([s.isoformat() for s in BERLIN[i:]], f"s{i}") for i in range(5))),
        {},
    ),
    "UTC to Berlin": (
        several(*(one_of([f"{s:%Y-%m-%d %H:%M}Z" for s in HOURS[i:50]], f"s{i}") for i in range(5))),
        {"timezone": "Europe/Berlin"},
    ),
    "no date in one row": (with_cell(daily().assign(ds=lambda f: f["ds"].astype(str)), 33, "ds", "soon"), {}),
    "no date in two series": (
        with_cell(with_cell(daily().assign(ds=lambda f: f["ds"].astype(str)), 99, "ds", "soon"), 3, "ds", None),
        {},
    ),
    "an infinite value": (with_cell(daily(), 50, "y", np.inf).astype({"y": float}), {}),
    "one series at random": (
        several(daily(), one_of(pd.to_datetime(["2024-01-01 00:03", "2024-01-01 07:00", "2024-01-03 09:00"]), "z")),
        {},
    ),
    "repeats, no dates and random steps": (
        several(
            with_cell(daily().assign(ds=lambda f: f["ds"].astype(str)), 70, "ds", "soon"),
            daily().iloc[[3]].assign(y=77.0, ds="2024-01-04"),
            one_of(["2024-01-01 00:03", "2024-01-01 07:00", "2024-01-03 09:00"], "z"),
        ),
        {},
    ),
    "all series bad": (several(*(one_of(pd.to_datetime(["2024-01-01"] * 2), f"z{i}", [1, 2]) for i in range(3))), {}),
    "late stamps": (
        several(*(one_of(HOURS[:60] + pd.to_timedelta(np.arange(60) % 3, "min"), f"s{i}") for i in range(4))),
        {},
    ),
    "closed at night": (
        several(*(one_of([s for s in HOURS if 8 <= s.hour < 20][i:], f"s{i}") for i in range(3))),
        {},
    ),
    "resampled": (several(*(one_of(HOURS[i:], f"s{i}") for i in range(4))), {"resample": "D", "aggregate": "sum"}),
    "days of local hours": (
        several(*(one_of(BERLIN[0] + pd.to_timedelta(np.arange(i, 900), "h"), f"s{i}") for i in range(4))),
        {"resample": "D", "aggregate": "sum"},
    ),
    "covariates": (
        daily(promo=1.0, heat=0.5).assign(y=lambda f: f["y"].where(f.groupby("item_id").cumcount(ascending=False) > 1)),
        {"known_covariates": ["promo"], "past_covariates": ["heat"]},
    ),
    "a column too many": (daily(note="x"), {}),
    "a season": (daily(), {"season": 5}),
    "a frequency": (several(*(one_of(HOURS[: 30 + i : 3], f"s{i}") for i in range(4))), {"freq": "h"}),
    "a wrong frequency": (daily(), {"freq": "W"}),
    "two targets": (daily(z=3.0), {"target": ["y", "z"]}),
    "one id": (one_of(DAYS, "s"), {}),
}  # fmt: skip


def outcome(read: Any) -> Any:
    try:
        return read()
    except InputError as error:
        return str(error)


def joined(found: parts.Parts) -> list[SeriesSet]:
    return [part for part in found if part is not None]


def assert_same(path: Path, folder: Path, options: dict[str, Any], most: int = 2) -> bool:
    """Compare; returns whether the table was read in parts."""
    shutil.rmtree(folder, ignore_errors=True)
    whole = outcome(lambda: read_series(path, **options))
    found = outcome(lambda: open_parts(path, folder, least=0, most=most, **options))
    if found is None:
        assert not folder.exists()
        return False
    if isinstance(whole, str) or isinstance(found, str):
        assert found == whole
        assert not folder.exists()
        return True
    assert found.notes == whole.notes
    assert found.series == len(whole)
    assert found.unobserved() == whole.unobserved()
    assert (found.variates, found.past_names, found.known_names) == (
        whole.variates, whole.past_names, whole.known_names
    )  # fmt: skip
    begin = 0
    for part in joined(found):
        same = whole.select(range(begin, begin + len(part)))
        assert part.sha256() == same.sha256()
        assert part.keys is not None
        assert part.keys.tolist() == same.keys.tolist()  # type: ignore[union-attr]
        assert part.season == same.season
        for labels in (part.labels, same.labels):
            assert labels.show(part.timestamps(0, extra=2)).equals(same.labels.show(same.timestamps(0, extra=2)))
        assert (part.labels.time, part.labels.item) == (same.labels.time, same.labels.item)
        begin += len(part)
    assert begin == len(whole)
    found.close()
    assert not folder.exists()
    return True


ORDERS, BAD, SUFFIXES = ("as it is", "by time", "shuffled"), ("error", "skip", "fix"), (".csv", ".parquet")
WAYS = [*itertools.product(ORDERS, BAD, SUFFIXES)]


def check(kind: str, way: tuple[str, str, str], folder: Path) -> None:
    frame, options = FRAMES[kind]
    order, bad, suffix = way
    if order == "by time":
        frame = frame.sort_values("ds", kind="stable")
    elif order == "shuffled":
        frame = frame.iloc[np.random.default_rng(1).permutation(len(frame))]
    path = folder / f"table{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path, index=False)
    in_parts = assert_same(path, folder / "rows", {**options, "on_bad_series": bad})
    assert in_parts or order != "as it is"


@pytest.mark.parametrize(("kind", "way"), [*zip(FRAMES, itertools.cycle(WAYS), strict=False)])
def test_series_notes_and_errors_are_those_of_the_whole_table(
    kind: str, way: tuple[str, str, str], tmp_path: Path, tiny: None
) -> None:
    check(kind, way, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FRAMES)
def test_they_are_so_in_every_order_and_format(kind: str, tmp_path: Path, tiny: None) -> None:
    for way in WAYS:
        check(kind, way, tmp_path)


def test_a_corpus_of_a_large_table_is_that_of_the_table_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daily().to_parquet(tmp_path / "table.parquet", index=False)
    (tmp_path / "corpus.yaml").write_text("sources:\n  - {path: table.parquet, licence: CC0, licence_class: open}\n")
    whole = build(tmp_path / "corpus.yaml", tmp_path / "whole", progress=False).manifest
    monkeypatch.setattr(blocks, "LEAST_ROWS", 0)
    monkeypatch.setattr(parts, "PART_ROWS", 50)
    monkeypatch.setattr(sources, "read_series", None)
    assert build(tmp_path / "corpus.yaml", tmp_path / "parts", progress=False).manifest == whole
