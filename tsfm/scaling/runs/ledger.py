"""Reads and checks tables of training runs: mistakes that would lead to a wrong law raise an error or a warning."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from tsfm.scaling.laws.form import training_flops
from tsfm_data.errors import InputError, unknown_name
from tsfm_data.io import Table, numbers, read_table

CURVE = 10  # rows per run from which they count as a training curve
MIXED = 1000.0  # ratio of neighbouring values from which units must be mixed
DIVERGED = 3.0  # a run has diverged if its loss exceeds that of a smaller run on less data by this factor
HOPELESS = 100.0  # or the median loss by this factor
SAME = 0.02  # values with a smaller difference of logarithms count as equal
SMALLEST = {"params": 100.0, "tokens": 1000.0}


@dataclass(frozen=True)
class Runs:
    """The rows of a table of runs to which laws are fitted.

    Attributes:
        source: name of the file.
        digest: SHA-256 of the file.
        params: parameters of the model.
        tokens: tokens seen.
        loss: final loss, or the loss at that point of a training curve.
        flops: training compute, from the table or by 6 N D.
        clusters: number of the run of each row, from 0.
        groups: label of each row if laws of groups are compared.
        warnings: rows that were left out, and odd values.
        unique: number of different tokens, if the table has it: the rest of ``tokens`` repeats them.
    """

    source: str
    digest: str
    params: Float64[np.ndarray, " N"]
    tokens: Float64[np.ndarray, " N"]
    loss: Float64[np.ndarray, " N"]
    flops: Float64[np.ndarray, " N"]
    clusters: Int64[np.ndarray, " N"]
    groups: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()
    unique: Float64[np.ndarray, " N"] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.loss)

    @property
    def runs(self) -> int:
        """Number of runs; a run has several rows if the table holds training curves."""
        return len(np.unique(self.clusters))

    @property
    def has_curves(self) -> bool:
        """Whether the runs have so many rows that they are training curves."""
        return len(self) >= CURVE * self.runs

    def last(self) -> "Runs":
        """The row with the most tokens of each run."""
        order = np.lexsort((self.tokens, self.clusters))
        ends = np.append(self.clusters[order][1:] != self.clusters[order][:-1], True)
        keep = np.zeros(len(self), bool)
        keep[order[ends]] = True
        return self.select(keep)

    def select(self, keep: Bool[np.ndarray, " N"]) -> "Runs":
        """The rows for which ``keep`` is True."""
        groups = None if self.groups is None else tuple(g for g, k in zip(self.groups, keep, strict=True) if k)
        codes = np.unique(self.clusters[keep], return_inverse=True)[1].astype(np.int64)
        return replace(
            self,
            params=self.params[keep],
            tokens=self.tokens[keep],
            loss=self.loss[keep],
            flops=self.flops[keep],
            clusters=codes,
            groups=groups,
            unique=None if self.unique is None else self.unique[keep],
        )


def read_runs(
    path: str | Path,
    params: str = "params",
    tokens: str = "tokens",
    loss: str = "loss",
    flops: str | None = None,
    run: str | None = None,
    group: str | None = None,
    exclude: str | None = None,
    unique: str | None = None,
) -> Runs:
    """Read a CSV, Parquet or Arrow table of runs.

    Args:
        path: the file.
        params: column of model sizes.
        tokens: column of tokens seen.
        loss: column of losses; they must be above 0, because laws are fitted to their logarithm.
        flops: column of training compute; by default ``flops`` if there is one, else 6 N D.
        run: column that names the run of each row; by default ``run`` if there is one, else every row is a run.
        group: column of groups whose laws are compared.
        exclude: column that is true (or 1) for rows to leave out.
        unique: column of the number of different tokens, if data were repeated.

    Raises:
        InputError: a column is missing or given twice, a size or loss is impossible, units are mixed, a run has two
            losses at one point, or no row is left.
    """
    table = read_table(Path(path))
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    for role, name in (("params", params), ("tokens", tokens), ("loss", loss), ("flops", flops), ("run", run)):
        _check_column(table, name, role)
    _check_column(table, group, "group")
    _check_column(table, exclude, "exclude")
    _check_column(table, unique, "unique")
    if len({params, tokens, loss}) < 3:
        raise InputError(f"{table.source}: expected three columns for params, tokens and loss, found one named twice")
    columns = set(map(str, table.frame.columns))
    flops = flops or ("flops" if "flops" in columns else None)
    run = run or ("run" if "run" in columns else None)
    values = {name: _values(table, name) for name in (params, tokens, loss)}
    warnings = _end_warning(table)
    keep = np.ones(len(table.frame), bool)
    if exclude is not None:
        keep &= ~_truth(table, exclude)
        warnings += [f"{int((~keep).sum())} of {rows(len(keep))} left out by the column {exclude!r}"]
    bad = keep & ~np.isfinite(values[loss])
    if bad.any():
        warnings += [f"{rows(int(bad.sum()))} without a finite loss left out: diverged, or not ended"]
    keep &= ~bad
    for name, role in ((params, "params"), (tokens, "tokens"), (loss, "loss")):
        _check_positive(table, name, values[name], keep, role)
    rule = np.asarray(training_flops(values[params], values[tokens]))
    compute = rule if flops is None else _values(table, flops)
    if flops is not None:
        _check_positive(table, flops, compute, keep, "flops")
    names = np.arange(len(keep)).astype(str) if run is None else table.frame[run].astype(str).to_numpy()
    keep &= _once(table, names, values[params], values[tokens], values[loss], keep, run, warnings)
    keep &= _converged(values[params], values[tokens], values[loss], keep, warnings)
    if not keep.any():
        raise InputError(f"{table.source}: expected rows with params, tokens and loss, found none that can be used")
    for name, role in ((params, "params"), (tokens, "tokens")):
        _check_units(table, name, values[name], keep, role, warnings)
    _check_compute(compute[keep], rule[keep], warnings)
    different = None
    if unique is not None:
        values[unique] = _values(table, unique)
        _check_positive(table, unique, values[unique], keep, "unique")
        different = np.minimum(values[unique], values[tokens])[keep]
    labels = None if group is None else tuple(table.frame[group].astype(str).to_numpy()[keep])
    codes = pd.factorize(names[keep])[0].astype(np.int64)
    parts = (values[params][keep], values[tokens][keep], values[loss][keep], compute[keep])
    return Runs(table.source, digest, *parts, codes, labels, tuple(warnings), different)


def rows(count: int) -> str:
    """A number of rows as text: "1 row", "2 rows"."""
    return f"{count:,} row" + ("s" if count != 1 else "")


def distinct(values: Float64[np.ndarray, " N"]) -> int:
    """Number of values that differ by more than 2 per cent."""
    logs = np.sort(np.log(values))
    count, start = 1, logs[0]
    for value in logs:
        if value - start > SAME:
            count, start = count + 1, value
    return count


def _check_column(table: Table, name: str | None, role: str) -> None:
    columns = [str(column) for column in table.frame.columns]
    if name is not None and name not in columns:
        raise InputError(f"{table.source}: {unknown_name('column', name, columns)} (name it with --{role} COLUMN)")


def _values(table: Table, name: str) -> Float64[np.ndarray, " N"]:
    """A column as numbers; infinite values become NaN."""
    column = table.frame[name]
    if pd.api.types.is_float_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    if not pd.api.types.is_numeric_dtype(column):
        words = column.astype("string").str.strip().str.lower()
        column = column.mask(words.isin(["inf", "-inf", "+inf", "infinity", "-infinity"]))
    try:
        return numbers(replace(table, frame=pd.DataFrame({name: column})), [name])[:, 0]
    except InputError as error:
        reason = str(error).split(";")[0]  # the rest is advice about series
        raise InputError(f"{reason}; write plain numbers such as 7e7, all in one unit") from error


def _truth(table: Table, name: str) -> Bool[np.ndarray, " N"]:
    words = table.frame[name].astype("string").str.strip().str.lower()
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    wrong = np.flatnonzero(~words.isin(list(known)).to_numpy(dtype=bool))
    if len(wrong):
        raise InputError(
            f"{table.where(int(wrong[0]), name)}: expected true or false, found {str(words.iloc[wrong[0]])[:40]!r}; "
            "name a column that marks the rows to leave out"
        )
    return words.map(known).to_numpy(dtype=bool)


def _check_positive(
    table: Table, name: str, values: Float64[np.ndarray, " N"], keep: Bool[np.ndarray, " N"], role: str
) -> None:
    wrong = np.flatnonzero(keep & ~(np.isfinite(values) & (values > 0)))
    if len(wrong):
        reason = "laws are fitted to its logarithm; shift or normalise it" if role == "loss" else "correct the row"
        raise InputError(
            f"{table.where(int(wrong[0]), name)}: expected a {role} above 0, found {values[wrong[0]]:g}; {reason}"
        )


def _once(
    table: Table,
    names: np.ndarray,
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    keep: Bool[np.ndarray, " N"],
    run: str | None,
    warnings: list[str],
) -> Bool[np.ndarray, " N"]:
    """True for rows that do not repeat another one; a run with two losses at one point is an error."""
    columns = {"params": params, "tokens": tokens} | ({} if run is None else {"run": names})
    frame = pd.DataFrame(columns).assign(loss=loss)[keep]
    is_copy = frame.duplicated().to_numpy()
    rest = frame[~is_copy]
    is_second_loss = rest.duplicated(list(columns)).to_numpy()
    if run is not None and is_second_loss.any():
        row = int(rest.index[is_second_loss][0])
        raise InputError(
            f"{table.where(row, run)}: expected one loss per run and point, found run {names[row]!r} at "
            f"{tokens[row]:g} tokens twice with different losses; keep the row that counts"
        )
    if is_copy.any():
        warnings.append(f"{rows(int(is_copy.sum()))} left out as exact copies of another one")
    if is_second_loss.any():
        warnings.append(
            f"{rows(int(is_second_loss.sum()))} with the size and tokens of another one but a different loss, taken as "
            "runs with other seeds"
        )
    first = np.ones(len(keep), bool)
    first[frame.index[is_copy]] = False
    return first


def _converged(
    params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, keep: Bool[np.ndarray, " N"], warnings: list[str]
) -> Bool[np.ndarray, " N"]:
    """False for rows that have diverged: their loss is far above that of a smaller run on less data."""
    fine = np.ones(len(keep), bool)
    kept_rows = np.flatnonzero(keep)
    if not len(kept_rows):
        return fine
    order = kept_rows[np.lexsort((tokens[kept_rows], params[kept_rows]))]
    middle = float(np.median(loss[kept_rows]))
    for position, row in enumerate(order):
        before = order[:position]
        smaller = loss[before][tokens[before] <= tokens[row]]
        above = len(smaller) > 0 and loss[row] > DIVERGED * smaller.min()
        fine[row] = not (above or loss[row] > HOPELESS * middle)
    if not fine.all():
        row = int(np.flatnonzero(~fine)[0])
        warnings.append(
            f"{rows(int((~fine).sum()))} left out as diverged (loss above {DIVERGED:g} times that of a smaller run on "
            f"less data, or {HOPELESS:g} times the median), the first with loss {loss[row]:.4g}"
        )
    return fine


def _check_units(
    table: Table, name: str, values: np.ndarray, keep: Bool[np.ndarray, " N"], role: str, warnings: list[str]
) -> None:
    order = np.flatnonzero(keep)
    order = order[np.argsort(values[order], kind="stable")]
    gaps = values[order[1:]] / values[order[:-1]]
    if len(gaps) and gaps.max() >= MIXED:
        row = int(order[int(np.argmax(gaps))])
        raise InputError(
            f"{table.where(row, name)}: expected one unit, found {values[row]:g} and next {values[row] * gaps.max():g} "
            f"with nothing between; write plain numbers of {role} in every row, not millions or billions"
        )
    if values[order[-1]] < SMALLEST[role]:
        warnings.append(
            f"the largest value of {name!r} is {values[order[-1]]:g}: this looks like millions or billions. Constants "
            f"and compute are in that unit; write plain numbers of {role}"
        )


def _check_compute(compute: np.ndarray, rule: np.ndarray, warnings: list[str]) -> None:
    """Warn if the ratio of the compute in the table to 6 N D varies widely."""
    ratio = compute / rule
    if ratio.max() / ratio.min() > 100:
        warnings.append(
            f"the compute in the table is {ratio.min():.3g} to {ratio.max():.3g} times 6 N D: its unit may be mixed"
        )


def _end_warning(table: Table) -> list[str]:
    """A warning if a text file does not end with a line break: it may be truncated within its last number."""
    if not isinstance(table.text, bytes) or table.text.endswith((b"\n", b"\r")):
        return []
    return ["the file does not end with a line break: its last number may be truncated"]
