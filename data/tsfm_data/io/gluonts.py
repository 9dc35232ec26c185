"""GluonTS data sets (``ListDataset``, ``PandasDataset``, ``FileDataset``, lists of entries) to a ``SeriesSet``."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from tsfm_data.errors import InputError
from tsfm_data.io.frequency import normalise, step_of
from tsfm_data.io.series import SeriesSet


def read_gluonts(source: Iterable[dict[str, Any]], *, freq: str | None, name: str) -> SeriesSet:
    """The series of GluonTS entries: ``start``, ``target`` ([T] or [V, T]), ``item_id``, ``feat_dynamic_real`` (known
    covariates, which may reach past the target), ``past_feat_dynamic_real``, ``feat_static_real``, ``feat_static_cat``.

    Raises:
        InputError: not such a data set, or an entry that does not fit the others.
    """
    entries = _entries(source, name)
    starts, freqs, ids = [], [], []
    blocks: list[list[np.ndarray]] = [[], [], []]
    future = np.zeros(len(entries), dtype=np.int64)
    for i, entry in enumerate(entries):
        where = f"{name}, entry {i + 1}"
        start, alias = _start(entry["start"], freq, where)
        target = _rows(entry["target"], f"{where}, target")
        known = _rows(entry.get("feat_dynamic_real"), f"{where}, feat_dynamic_real", len(target))
        past = _rows(entry.get("past_feat_dynamic_real"), f"{where}, past_feat_dynamic_real", len(target))
        total = max(len(target), len(known))
        if len(past) != len(target) or len(known) < len(target):
            raise InputError(
                f"{where}: expected covariates as long as the target ({len(target)}), found {len(past)} and "
                f"{len(known)}"
            )
        future[i] = total - len(target)
        for block, rows in zip(blocks, (target, past, known), strict=True):
            block.append(np.pad(rows, ((0, total - len(rows)), (0, 0)), constant_values=np.nan))
        starts.append(start)
        freqs.append(alias)
        ids.append(str(entry.get("item_id", i)))
    columns = [_stack(block, name) for block in blocks]
    lengths = [len(rows) for rows in blocks[0]]
    width = columns[0].shape[1]
    return SeriesSet(
        name=name,
        source=name,
        values=columns[0],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_ids=tuple(ids),
        variates=("target",) if width == 1 else tuple(str(v) for v in range(width)),
        starts=np.array(starts, dtype="datetime64[ns]"),
        freqs=tuple(freqs),
        past=columns[1],
        past_names=tuple(f"past_feat_dynamic_real_{i}" for i in range(columns[1].shape[1])),
        known=columns[2],
        known_names=tuple(f"feat_dynamic_real_{i}" for i in range(columns[2].shape[1])),
        future_rows=future,
        static=_static(entries),
    )


def _entries(source: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    expected = "expected a file, a pandas or pyarrow table or a GluonTS data set"
    try:
        entries = list(source)
    except TypeError as error:
        raise InputError(f"{expected}, found {type(source).__name__}") from error
    if not entries:
        raise InputError(f"{name}: expected series, found an empty data set")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or "start" not in entry or "target" not in entry:
            found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
            raise InputError(f"{name}, entry {i + 1}: {expected} (entries with start and target), found {found}")
    return entries


def _start(start: Any, freq: str | None, where: str) -> tuple[pd.Timestamp, str]:
    """First timestamp and frequency; a period becomes the timestamp that our alias puts it at."""
    if not isinstance(start, pd.Period):
        if freq is None:
            raise InputError(
                f"{where}: expected a start with a frequency (pandas.Period), found {type(start).__name__}; give freq"
            )
        return pd.date_range(pd.Timestamp(start), periods=1, freq=normalise(freq))[0], normalise(freq)
    alias = start.freqstr
    if alias.startswith("W") or "W-" in alias:
        return start.end_time.normalize(), alias
    months = {"M": "MS", "Q": "QS", "Y": "YS", "A": "YS"}
    bare = alias.lstrip("0123456789")
    if bare[:1] in months and bare.split("-")[0] in months:
        first = start.asfreq("M", how="start").to_timestamp()
        count = alias[: len(alias) - len(bare)]
        anchor = "" if bare[0] == "M" else f"-{first.strftime('%b').upper()}"
        return first, normalise(f"{count}{months[bare[0]]}{anchor}")
    step_of(alias)
    return start.to_timestamp(), normalise(alias)


def _rows(values: Any, where: str, length: int = 0) -> np.ndarray:
    """[T] or [C, T] as rows [T, C]; an absent member has no columns."""
    if values is None:
        return np.zeros((length, 0))
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: expected numbers, found {str(error).splitlines()[0]}") from error
    if array.ndim not in (1, 2):
        raise InputError(f"{where}: expected shape [T] or [C, T], found {list(array.shape)}")
    if np.isinf(array).any():
        raise InputError(
            f"{where}: expected finite numbers, found an infinite one at step {np.argwhere(np.isinf(array))[0][-1] + 1}"
        )
    return array[:, None] if array.ndim == 1 else array.T


def _stack(blocks: list[np.ndarray], name: str) -> np.ndarray:
    for i, block in enumerate(blocks):
        if block.shape[1] != blocks[0].shape[1]:
            raise InputError(
                f"{name}, entry {i + 1}: expected {blocks[0].shape[1]} columns as in entry 1, found {block.shape[1]}"
            )
    return np.concatenate(blocks)


def _static(entries: list[dict[str, Any]]) -> pd.DataFrame | None:
    names = [key for key in ("feat_static_real", "feat_static_cat") if key in entries[0]]
    if not names:
        return None
    parts = {key: np.array([np.atleast_1d(entry[key]) for entry in entries]) for key in names}
    return pd.DataFrame({f"{key}_{i}": part[:, i] for key, part in parts.items() for i in range(part.shape[1])})
