"""The data sets that the suite knows by name: where they are, what is in them, how they are split."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from tsfm_data.errors import InputError, unknown_name
from tsfm_data.io.download import check, data_folder, fetch, find
from tsfm_data.io.frequency import normalise, season_length
from tsfm_data.io.memory import release_memory
from tsfm_data.io.series import SeriesSet
from tsfm_data.io.tables import read_series

Role = Literal["bench", "train"]
Layout = Literal["wide", "long", "matrix"]
LicenceClass = Literal["open", "open (stated at origin)", "copyleft", "unstated", "no-derivatives"]


@dataclass(frozen=True)
class Borders:
    """How the rows of every series are divided, in order: training, validation, test.

    Attributes:
        unit: whether the three numbers are rows or fractions of the rows.
        train, val, test: the three shares; rows past their sum stay unused.
        overlap: whether the context of a validation or test window may reach back into the part before.
    """

    unit: Literal["rows", "fraction"]
    train: int | float
    val: int | float
    test: int | float
    overlap: bool = True

    def __post_init__(self) -> None:
        total = self.train + self.val + self.test
        whole = all(float(n).is_integer() for n in (self.train, self.val, self.test))
        if self.unit not in ("rows", "fraction") or min(self.train, self.val, self.test) <= 0:
            raise ValueError(f"borders: expected rows or fraction and three positive numbers, found {self}")
        if (self.unit == "fraction" and abs(total - 1) > 1e-9) or (self.unit == "rows" and not whole):
            raise ValueError(f"borders: expected fractions that sum to 1, or whole rows, found {self}")


@dataclass(frozen=True)
class DatasetSpec:
    """One data set of the catalogue.

    Attributes:
        name: name in configs, commands and reports.
        file: path in a mirror folder (TSFM_DATA).
        role: "bench" is for evaluation and supervised training under published splits, never for pretraining.
        layout: "wide" (a date column, one column per variate), "long" (item_id, timestamp, target), or "matrix"
            (numbers alone: a text file without header, or the first channel of array "data" in an .npz).
        freq: pandas alias of all series, or "mixed".
        domain: what the series are about.
        series: number of series (variates, in a wide table).
        points: values in all series.
        missing: how many of those are missing.
        licence: as the source states it.
        licence_class: "open" may train weights that are released; the others may not. "open (stated at origin)" is data
            whose own site states an open licence while our copy states none.
        sha256: digest of ``file``; None if its content was never verified.
        bytes: size of ``file``; None if unknown.
        source, commit, path: where the data came from: repository or site, commit, file in it.
        url: address of an original whose content is pinned by ``git_blob``; None if there is none.
        git_blob: git blob id of what ``url`` gives.
        time_column, item_column, target, split_column: columns; ``split_column`` marks the rows of a competition's
            "train" and "test".
        order: "rows" takes the rows as a plain sequence whatever their timestamps (see ``read_series``).
        start: first timestamp of a "matrix".
        splits: named borders, "lsf" being those of the long-horizon literature.
        groups: sets that share raw series have a group in common.
        bench_series: series of a training set that evaluation sets hold too, named as ``SeriesSet.univariate`` does; a
            corpus leaves them out.
        note: what else one should know, oddities included.
    """

    name: str
    file: str
    role: Role
    layout: Layout
    freq: str
    domain: str
    series: int
    points: int
    missing: int
    licence: str
    licence_class: LicenceClass
    sha256: str | None
    bytes: int | None
    source: str
    commit: str | None = None
    path: str | None = None
    url: str | None = None
    git_blob: str | None = None
    time_column: str | None = None
    item_column: str | None = None
    target: str | None = None
    split_column: str | None = None
    order: Literal["time", "rows"] = "time"
    start: str | None = None
    splits: Mapping[str, Borders] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    bench_series: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for value, allowed in (
            (self.role, get_args(Role)),
            (self.layout, get_args(Layout)),
            (self.licence_class, get_args(LicenceClass)),
            (self.order, ("time", "rows")),
        ):
            if value not in allowed:
                raise ValueError(f"data set {self.name!r}: expected one of {', '.join(allowed)}, found {value!r}")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(
                f"data set {self.name!r}: expected a sha256 of 64 hexadecimal digits, found {self.sha256!r}"
            )
        if self.freq != "mixed" and self.freq != normalise(self.freq):
            raise ValueError(f"data set {self.name!r}: expected frequency {normalise(self.freq)}, found {self.freq}")
        if (self.url is None) != (self.git_blob is None):
            raise ValueError(f"data set {self.name!r}: expected a git blob id with a URL and none without")

    @property
    def season(self) -> int | None:
        """Steps in one season; None if the series have several frequencies."""
        return None if self.freq == "mixed" else season_length(self.freq)

    @property
    def verified(self) -> bool:
        """Whether the content of ``file`` is known by its digest."""
        return self.sha256 is not None


@functools.cache
def _specs() -> Mapping[str, DatasetSpec]:
    entries = json.loads(Path(__file__).with_name("catalog.json").read_text(encoding="utf-8"))
    specs = {}
    for entry in entries:
        splits = {name: Borders(**borders) for name, borders in entry.pop("splits", {}).items()}
        entry |= {key: tuple(entry.get(key, ())) for key in ("groups", "bench_series")}
        spec = DatasetSpec(**entry, splits=MappingProxyType(splits))
        specs[spec.name] = spec
    if len(specs) != len(entries):
        raise ValueError(f"catalog.json: expected different names, found {len(entries) - len(specs)} repeated")
    return MappingProxyType(specs)


def names(role: Role | None = None) -> tuple[str, ...]:
    """Names of all data sets, or of those with one role, in the order of the catalogue."""
    return tuple(name for name, spec in _specs().items() if role in (None, spec.role))


def get(name: str) -> DatasetSpec:
    """The entry of a data set.

    Raises:
        InputError: there is no such data set; similar names are listed.
    """
    if name not in _specs():
        raise unknown_name("data set", name, _specs())
    return _specs()[name]


def local_file(spec: DatasetSpec) -> Path | None:
    """The file of a data set if it needs no download, with unchecked content; else None."""
    return find(spec.file) or (find(_url_file(spec)) if spec.url else None)


def pull(name: str, progress: bool = True) -> Path:
    """The verified file of a data set: from TSFM_DATA or the cache, else from its URL.

    Raises:
        InputError: unknown name, wrong content, neither present nor downloadable, or a failed download.
    """
    spec = get(name)
    path = find(spec.file)
    if path is not None:
        check(path, spec.sha256)
        return path
    if spec.url is not None:
        return fetch(_url_file(spec), url=spec.url, sha256=None, git_blob=spec.git_blob, progress=progress)
    folder = data_folder()
    place = f"{folder}/{spec.file}" if folder else f"FOLDER/{spec.file} and set TSFM_DATA=FOLDER"
    origin = spec.source + (f" at {spec.commit[:12]}, {spec.path}" if spec.commit and spec.path else "")
    unsure = "" if spec.verified else "; its content is not verified"
    raise InputError(f"data set {name!r} is not available; put its file at {place} (source: {origin}){unsure}")


def _url_file(spec: DatasetSpec) -> str:
    return f"{spec.name}/{PurePosixPath(spec.url or '').name}"


def load(name: str) -> SeriesSet:
    """The series of a data set, read as its entry says.

    Raises:
        InputError: as ``pull``, or the file does not hold what the entry says.
    """
    spec = get(name)
    path = pull(name)
    if spec.layout == "matrix":
        return _read_matrix(spec, path)
    series = read_series(
        path,
        time_column=spec.time_column,
        item_column=spec.item_column,
        target=spec.target,
        freq=spec.freq if spec.order == "rows" else None,
        order=spec.order,
        name=spec.name,
        own_hours=False,
    )
    count = len(series.variates) if spec.layout == "wide" else len(series)
    if spec.verified and count != spec.series:
        raise InputError(
            f"{path}: expected {spec.series} series, found {count}; the entry {name!r} does not fit the file"
        )
    return replace(series, natural=False, notes=())  # seasons are those of the published protocols


def _read_matrix(spec: DatasetSpec, path: Path) -> SeriesSet:
    """Numbers alone, one row per step: a text file, or the first channel of an .npz."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                values = archive["data"]
            values = values[..., 0] if values.ndim == 3 else values
        else:
            values = np.loadtxt(path, delimiter=",", ndmin=2)
    except (KeyError, ValueError, OSError) as error:
        raise InputError(f"{path}: expected a matrix of numbers, found something else ({error})") from error
    if values.ndim != 2 or values.shape[1] != spec.series:
        raise InputError(f"{path}: expected {spec.series} columns, found shape {list(values.shape)}")
    series = SeriesSet.from_arrays(spec.name, values, spec.freq, start=spec.start or "2000-01-01")
    return replace(series, source=str(path), item_ids=(spec.name,))


def open_source(
    source: str | Path,
    *,
    time_column: str | None = None,
    item_column: str | None = None,
    target: str | Sequence[str] | None = None,
    freq: str | None = None,
    season: int | None = None,
    **options: Any,
) -> SeriesSet:
    """A data set of the catalogue by its name, or the table in a file; the options are those of ``read_series``.

    Of these a data set takes the season alone.

    Raises:
        InputError: neither a name nor a file, options with a name (its columns are known), or anything about the table.
    """
    path = Path(source)
    known = isinstance(source, str) and source in _specs() and not path.is_file()
    if not known and not path.suffix and len(path.parts) < 2 and str(source) != "-" and not path.exists():
        raise InputError(f"{unknown_name('data set', str(source), _specs())}; nor is it a file")
    chosen = {"time_column": time_column, "item_column": item_column, "target": target, "freq": freq, **options}
    if known:
        given = [key for key, value in chosen.items() if value]
        if given:
            raise InputError(
                f"expected no column options for the data set {source!r}, found {', '.join(given)}: leave this out"
            )
        return replace(load(str(source)), season=season)
    series = read_series(path, season=season, **chosen)
    release_memory()  # the table, which is larger than its series
    return series
