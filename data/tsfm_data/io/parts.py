"""Long tables that are too large for memory, read in parts of some series each.

What depends on the whole table (roles of columns, format of dates, time zone, the step of short series, notes, errors)
is decided on the whole table, so the series of the parts are those of ``read_series``.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tsfm_data.io import roles as naming
from tsfm_data.io import zones
from tsfm_data.io.assemble import Assembled, Cells, Common, Reading, build, notes_of, one_time_of_day
from tsfm_data.io.bad_series import BadSeries
from tsfm_data.io.blocks import Blocks, ReadAtOnce, TypeChanged, open_blocks
from tsfm_data.io.calendars import DAY
from tsfm_data.io.columns import ITEM_NAMES, Table, check_finite, doubtful
from tsfm_data.io.grid import SPARSE
from tsfm_data.io.roles import Roles
from tsfm_data.io.row_counts import RowCounts
from tsfm_data.io.scan import Scanned, scan
from tsfm_data.io.series import SeriesSet
from tsfm_data.io.steps import StepCounts
from tsfm_data.io.tables import prepare, with_holidays
from tsfm_data.io.timestamps import Stamps, no_date
from tsfm_data.progress import progress

PART_ROWS = 1_500_000  # most rows in a part, unless one series has more
PART_SERIES = 10_240  # most series in a part: 40 batches
BATCH = 256  # series in a batch of a forecast
ARRAYS = ("values", "offsets", "starts", "past", "known", "future_rows")  # of a ``SeriesSet``


class Parts:
    """The series of a large long table, in parts that are read from disk when they are asked for.

    Attributes:
        notes: how the table was read, as of a ``SeriesSet``.
        series: number of series.
        variates, past_names, known_names: as of a ``SeriesSet``.
    """

    def __init__(self, scanned: Scanned, reading: Reading, most: int) -> None:
        self._scanned, self._reading = scanned, reading
        scanned.spill.split(PART_ROWS)
        self._bounds = _bounds(scanned.spill.counts, most)
        self._common = self._clock()
        self.variates = scanned.roles.target
        self.past_names, self.known_names = scanned.roles.past, scanned.roles.known
        self.series = 0
        self._unobserved: dict[int, list[str]] = {}
        self.notes = self._check()

    def __len__(self) -> int:
        return len(self._bounds)

    def __iter__(self) -> Iterator[SeriesSet | None]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> SeriesSet | None:
        """The series of a part; None if all of them were left out."""
        file = self._file(number)
        if not file.exists():
            return None
        begin, end = self._bounds[number]
        with np.load(file, allow_pickle=False) as arrays:
            fields = {name: arrays[name] for name in ARRAYS}
            kept, freqs = arrays["kept"], tuple(map(str, arrays["names"][arrays["freqs"]]))
        keys = self._keys(begin, end).iloc[kept].reset_index(drop=True)
        return replace(self._template, item_ids=tuple(map(str, keys)), keys=keys, freqs=freqs, **fields)

    def _file(self, number: int) -> Path:
        return self._scanned.spill.folder / f"{number}.npz"

    def _save(self, number: int, series: SeriesSet) -> None:
        """Keep the series of a part on disk."""
        begin, end = self._bounds[number]
        ids = self._keys(begin, end).astype(str)
        kept = (
            np.arange(end - begin)
            if len(series) == end - begin
            else pd.Index(ids).get_indexer(pd.Index(series.item_ids))
        )
        names, freqs = np.unique(np.array(series.freqs), return_inverse=True)
        arrays = {name: getattr(series, name) for name in ARRAYS}
        np.savez(self._file(number), kept=kept, names=names, freqs=freqs, **arrays)
        empty = {name: array[:0] for name, array in arrays.items()}
        self._template = replace(series, item_ids=(), freqs=(), keys=None, **empty)

    def _keys(self, begin: int, end: int) -> pd.Series:
        """Ids of some series, with the type that they have in the table."""
        item, ids = self._scanned.roles.item, self._scanned.ids[begin:end]
        dtype = self._scanned.head.frame[item].dtype if isinstance(ids[0], int) else object
        return pd.Series(ids, name=item, dtype=dtype)

    def unobserved(self) -> list[str]:
        """Names of the series, one per variate, that have rows but no value."""
        return [name for number in sorted(self._unobserved) for name in self._unobserved[number]]

    def _build(self, number: int, common: Common) -> Assembled:
        begin, end = self._bounds[number]
        scanned, head, roles = self._scanned, self._scanned.head, self._scanned.roles
        records = scanned.spill.read(begin, end)
        ns, known = scanned.times.decode(np.ascontiguousarray(records["time"]))
        table = replace(head, frame=pd.DataFrame(), rows=records["row"])
        splits = np.cumsum([len(roles.target), len(roles.past)])
        blocks = [np.ascontiguousarray(block) for block in np.split(records["cells"], splits, axis=1)]
        problems: dict[int, str] = {}
        for names, block, wrong in zip(
            (roles.target, roles.past, roles.known), blocks, (problems, None, None), strict=True
        ):
            check_finite(table, names, block, wrong)
        dateless = {
            row: no_date(table, roles.time, row, scanned.times.shown(int(records["time"][row])))
            for row in np.flatnonzero(~known).tolist()
        }
        keys = self._keys(begin, end)
        stamps = Stamps(ns, scanned.times.zone, scanned.times.integer)
        codes = records["code"].astype(np.int64) - begin
        ids = tuple(str(key) for key in keys)
        cells = Cells(blocks, roles.past, roles.known, stamps, codes, ids, keys, problems, dateless)
        return build(table, replace(roles, unused=()), self._reading, head.name, cells, common)

    def _clock(self) -> Common:
        """The local time in which the series are regular, as ``read_series`` finds it."""
        times = self._scanned.times
        if times.integer:
            return Common()
        zone = times.zone
        if zone not in (None, "UTC"):
            wall = all(
                one_time_of_day(zones.to_wall(ns, str(zone)), codes, items) for ns, codes, items in self._stamps()
            )
            return Common(wall=zone, clock=zone) if wall else Common(clock="UTC")
        of_day = sorted(times.of_day)
        names: Sequence[str] = ()
        if len(of_day) == 2 and of_day[1] - of_day[0] in (DAY // 24, DAY // 24 * 23):
            names = zones.all_zones()
            for ns, _, _ in self._stamps():
                different = np.unique(ns)
                names = [name for name in names if not (zones.to_wall(different, name) % DAY).any()]
        if not names or all(one_time_of_day(*stamps) for stamps in self._stamps()):
            return Common(clock=zone)
        return Common(wall=names[0], clock=names[0])

    def _stamps(self) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Nanoseconds and series of the rows of each part, and its number of series."""
        for begin, end in self._bounds:
            records = self._scanned.spill.read(begin, end)
            ns, _ = self._scanned.times.decode(np.ascontiguousarray(records["time"]))
            yield ns, records["code"].astype(np.int64) - begin, end - begin

    def _check(self) -> tuple[str, ...]:
        """Read every part once; returns the notes.

        Raises:
            InputError: the table has bad series that are neither skipped nor fixed.
            ReadAtOnce: the parts do not tell how to read the table.
        """
        scanned, reading, roles = self._scanned, self._reading, self._scanned.roles
        found: list[tuple[RowCounts, StepCounts, BadSeries]] = [
            self._read(k) for k in self._bar(range(len(self)), "checking")
        ]
        usual = StepCounts()
        for _, steps, _ in found:
            usual.long += steps.long
            usual.every += steps.every
        freqs: Counter[str] = sum((counts.freqs for counts, _, _ in found), Counter())
        pair = usual.most_common()
        step = reading.resample or reading.freq or (freqs.most_common(1)[0][0] if freqs else None)
        self._common = replace(self._common, usual=StepCounts(pair), step=step)
        fixes = reading.on_bad_series == "fix"
        again = [k for k, (_, steps, bad) in enumerate(found) if steps.most_common() != pair or (fixes and bad.texts)]
        for k in self._bar(again, "checking again"):
            found[k] = self._read(k)
        total = sum((counts for counts, _, _ in found), RowCounts())
        table = replace(scanned.head, frame=pd.DataFrame())
        bad = BadSeries(table, roles, tuple(map(str, scanned.ids)), reading.on_bad_series, scanned.times.integer)
        for (begin, _), (_, _, part) in zip(self._bounds, found, strict=True):
            bad.add_part(part, begin)
        bad.check()
        if total.steps > SPARSE * total.rows + 100_000:
            raise ReadAtOnce
        self.series = total.series - (len(bad.texts) if reading.on_bad_series == "skip" else len(total.lost))
        total.bad = [bad.ids[code] for code in bad.texts]
        return (*scanned.head.notes, *scanned.times.notes, *roles.notes, *notes_of(total, reading))

    def _read(self, number: int) -> tuple[RowCounts, StepCounts, BadSeries]:
        """Read a part and keep its series on disk; returns its counts, the steps and the bad series found in it."""
        pair = self._common.usual.pair
        common = replace(self._common, usual=StepCounts(pair))
        assembled = self._build(number, common)
        self._file(number).unlink(missing_ok=True)
        if assembled.series is not None:
            self._save(number, assembled.series)
        if assembled.series is not None and np.isnan(assembled.series.values).any():
            self._unobserved[number] = assembled.series.unobserved()
        bad = BadSeries(self._scanned.head, self._scanned.roles, (), self._reading.on_bad_series, False)
        bad.add_part(assembled.bad, 0)  # a copy that does not keep the rows of the part in memory
        return assembled.counts, common.usual, bad

    def _bar(self, numbers: Sequence[int], what: str) -> Any:
        return progress(numbers, f"{what} {self._scanned.head.source}")

    def close(self) -> None:
        """Delete the rows on disk."""
        self._scanned.spill.remove()


def _bounds(counts: np.ndarray, most: int) -> list[tuple[int, int]]:
    """First and last (exclusive) series of each part: whole batches if possible, at most ``PART_ROWS`` rows."""
    ends, bounds, begin = np.cumsum(counts), [], 0
    while begin < len(counts):
        before = int(ends[begin - 1]) if begin else 0
        fit = int(np.searchsorted(ends, before + PART_ROWS, side="right")) - begin
        size = max(1, min(fit, most))
        if size > BATCH and begin + size < len(counts):
            size -= size % BATCH
        bounds.append((begin, begin + size))
        begin += size
    return bounds


def open_parts(
    path: Path,
    folder: Path,
    *,
    least: int | None = None,
    most: int = PART_SERIES,
    time_column: str | None = None,
    item_column: str | None = None,
    target: Sequence[str] | None = None,
    past_covariates: Sequence[str] = (),
    known_covariates: Sequence[str] = (),
    decimal: str | None = None,
    holidays: Sequence[str] = (),
    future: Any = None,
    **reading: Any,
) -> Parts | None:
    """A large long table in parts; None if it is small, or has to be read at once.

    Args:
        path: a Parquet or text file.
        folder: a new folder for rows on disk; removed again unless the parts are returned.
        least: fewest rows of a Parquet file, or bytes of a text file, that are read in parts.
        most: most series in a part.
        time_column, item_column, target, past_covariates, known_covariates, decimal, holidays, future: as for
            ``read_series``.
        **reading: other options of ``read_series``, except ``name`` and ``order``.

    Raises:
        InputError: as ``read_series``.
    """
    if future is not None or not path.is_file():
        return None
    given = {"time_column": time_column, "item_column": item_column, "target": target}
    if holidays:
        reading["freq"] = with_holidays(reading.get("freq"), holidays)
    try:
        blocks = open_blocks(path, item_column, decimal, least)
        while True:
            try:
                roles = _roles(blocks, given, past_covariates, known_covariates)
                options = Reading(**reading)
                return Parts(scan(blocks, roles, folder, options.dayfirst, options.timezone), options, most)
            except TypeChanged:
                shutil.rmtree(folder, ignore_errors=True)
                blocks.refresh()
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, ReadAtOnce):
            return None
        raise


def _roles(blocks: Blocks, given: dict[str, Any], past: Sequence[str], known: Sequence[str]) -> Roles:
    """The roles of the columns of a long table, if they follow from names and from the first rows.

    Raises:
        ReadAtOnce: they do not.
    """
    head = blocks.head
    names = [str(name) for name in head.frame.columns]
    targets = (given["target"],) if isinstance(given["target"], str) else tuple(given["target"] or ())
    free = [name for name in names if name not in (given["time_column"], *targets, *past, *known)]
    item = given["item_column"] if given["item_column"] is not None else naming.usual_column(free, ITEM_NAMES)
    if not item or prepare(head, given["time_column"]).frame is not head.frame:
        raise ReadAtOnce
    roles = naming.find_roles(head, **{**given, "item_column": item}, past=past, known=known)
    free = [name for name in free if name not in (roles.time, item)]
    if not targets and roles.target[0].strip().lower() not in naming.TARGET_NAMES and len(free) > 1:
        raise ReadAtOnce
    if naming.without_units(head, roles.time).frame is not head.frame or not _plain(head, roles, given):
        raise ReadAtOnce
    return roles


def _plain(head: Table, roles: Roles, given: dict[str, Any]) -> bool:
    """Whether no later row can change what the first rows say about the time column and the numbers."""
    folded = {str(name).strip().lower() for name in head.frame.columns if name != roles.time}
    parts = {part: bool(folded & set(words)) for part, words in naming.PARTS.items()}
    if folded & set(naming.HOURS) or (parts["year"] and (parts["month"] or parts["quarter"] or parts["week"])):
        return False  # two columns may be one time
    usual = {*naming.TIME_NAMES, *naming.OTHER_TIMES, *naming.LATER_NAMES, *naming.STEP_NAMES}
    numbered = pd.api.types.is_numeric_dtype(head.frame[roles.time])
    if given["time_column"] is None and numbered and folded & usual:
        return False
    values = (*roles.target, *roles.past, *roles.known)
    cells = [head.frame[name] for name in values]
    if not all(pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column) for column in cells):
        return False
    if head.delimiter in (None, ",") or head.decimal is not None:
        return True
    floats = [column.dropna() for column in cells if pd.api.types.is_float_dtype(column)]
    return not doubtful(head, values) and all((column % 1 != 0).any() for column in floats)
