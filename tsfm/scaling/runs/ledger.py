"""Reads and checks tables of training runs: mistakes that would lead to a wrong law raise an error or a warning."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from tsfm.scaling.laws.form import training_flops
from tsfm.scaling.runs.fields import (
    SUFFIXES,
    check_column,
    check_units,
    chosen,
    open_ledger,
    other_metrics,
    run_column,
    truth,
    unit_warnings,
    values,
)
from tsfm_data.errors import InputError
from tsfm_data.io import Table

DIVERGED = 3.0  # a run has diverged if its loss exceeds that of a smaller run on less data by this factor
HOPELESS = 100.0  # or the median loss by this factor
SAME = 0.02  # values with a smaller difference of logarithms count as equal
OWN_SWEEP = {"run", "arch", "size", "lr", "steps", "wall_s", "status"}  # columns whose rows are finished trainings


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
        has_curves: whether the rows of a run are a training curve, of which only the last is a finished training.
        metrics: other metrics of each row, by the name of their column; NaN where one is missing.
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
    has_curves: bool = False
    metrics: Mapping[str, Float64[np.ndarray, " N"]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.loss)

    @property
    def runs(self) -> int:
        """Number of runs; a run has several rows if the table holds training curves."""
        return len(np.unique(self.clusters))

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
            metrics={name: values[keep] for name, values in self.metrics.items()},
        )

    def with_loss(self, metric: str) -> "Runs":
        """The rows that have a metric, with this metric as their loss."""
        values = self.metrics[metric]
        return replace(self, loss=values).select(np.isfinite(values))


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
    only: str | None = None,
    params_unit: str = "1",
    tokens_unit: str = "1",
    every_row: bool = False,
) -> Runs:
    """Read a CSV, Excel, Parquet, Arrow, JSON or JSON-lines table of runs.

    Args:
        path: the file.
        params: column of model sizes.
        tokens: column of tokens seen.
        loss: column of losses; if some are at or below 0, laws are fitted to them, else to their logarithm.
        flops: column of training compute; by default ``flops`` if there is one, else 6 N D.
        run: column that names the run of each row; by default ``run``, ``name`` or the like, else every row is a run.
        group: column of groups whose laws are compared.
        exclude: column that is true (or 1) for rows to leave out.
        unique: column of the number of different tokens, if data were repeated.
        only: COLUMN=VALUE of the rows to read; by default those whose state or status is that of a finished run.
        params_unit: K, M or B if sizes are in thousands, millions or billions, or another factor.
        tokens_unit: the same for tokens; for a column of steps the number of tokens of a step.
        every_row: every row is a finished training, although several have the same run: branches of one training.

    Raises:
        InputError: a column is missing or given twice, a size is impossible, units are mixed, a run has two
            losses at one point, or no row is left.
    """
    table = open_ledger(Path(path))
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    roles = {"params": params, "tokens": tokens, "loss": loss, "flops": flops, "run": run}
    for role, name in (roles | {"group": group, "exclude": exclude, "unique": unique}).items():
        check_column(table, name, role)
    if len({params, tokens, loss}) < 3:
        raise InputError(f"{table.source}: expected three columns for params, tokens and loss, found one named twice")
    warnings = _end_warning(table)
    amounts = {
        params: values(table, params) * _unit(params_unit, "params"),
        tokens: values(table, tokens) * _unit(tokens_unit, "tokens"),
        loss: values(table, loss, missing=True),
    }
    keep = _rows_to_read(table, amounts[loss], exclude, only, warnings)
    for name, role in ((params, "params"), (tokens, "tokens")):
        _check_positive(table, name, amounts[name], keep, role)
    if (below := int((amounts[loss][keep] <= 0).sum())) > 0:
        warnings.append(f"{rows(below)} with a loss at or below 0: laws are fitted to the loss, not to its logarithm")
    flops = flops or ("flops" if "flops" in table.frame.columns else None)
    rule = np.asarray(training_flops(amounts[params], amounts[tokens]))
    compute = rule if flops is None else values(table, flops)
    if flops is not None:
        _check_positive(table, flops, compute, keep, "flops")
    run = run_column(table, run, amounts[params][keep], warnings)
    names = np.arange(len(keep)).astype(str) if run is None else table.frame[run].astype(str).to_numpy()
    keep &= _once(table, names, amounts[params], amounts[tokens], amounts[loss], keep, run, group, warnings)
    curves = _are_curves(table, names[keep], every_row)
    keep &= _converged(amounts[params], amounts[tokens], amounts[loss], names if curves else None, keep, warnings)
    if not keep.any():
        raise InputError(f"{table.source}: expected rows with params, tokens and loss, found none that can be used")
    for name, role in ((params, "params"), (tokens, "tokens")):
        check_units(table, name, amounts[name], keep, role)
    warnings += unit_warnings(amounts[params][keep], amounts[tokens][keep], (params, tokens))
    _check_compute(compute[keep], rule[keep], warnings)
    return Runs(
        table.source,
        digest,
        amounts[params][keep],
        amounts[tokens][keep],
        amounts[loss][keep],
        compute[keep],
        pd.factorize(names[keep])[0].astype(np.int64),
        None if group is None else tuple(table.frame[group].astype(str).to_numpy()[keep]),
        tuple(warnings),
        _different_tokens(table, unique, amounts[tokens], keep),
        curves,
        other_metrics(table, {params, tokens, loss, flops, run, group, exclude, unique}, keep),
    )


def _unit(word: str, role: str) -> float:
    """The factor of a unit such as M, or a number such as the tokens of a step."""
    try:
        factor = SUFFIXES.get(word.lower()) or float(word)
    except ValueError:
        factor = np.nan
    if not 0 < factor < np.inf:
        raise InputError(f"expected --{role}-unit K, M, B, T or a number above 0, found {word!r}")
    return factor


def _rows_to_read(
    table: Table, loss: np.ndarray, exclude: str | None, only: str | None, warnings: list[str]
) -> Bool[np.ndarray, " N"]:
    """The rows that are neither excluded nor without a loss."""
    keep = chosen(table, only, warnings)
    if exclude is not None:
        out = truth(table, exclude)
        warnings.append(f"{int(out.sum())} of {rows(len(keep))} left out by the column {exclude!r}")
        keep &= ~out
    bad = keep & ~np.isfinite(loss)
    if bad.any():
        warnings.append(f"{rows(int(bad.sum()))} without a finite loss left out: diverged, or not ended")
    return keep & ~bad


def _are_curves(table: Table, names: np.ndarray, every_row: bool) -> bool:
    """Whether several rows of a run are a training curve: unless the user or the columns of our sweep say otherwise."""
    several = len(np.unique(names)) < len(names)
    return several and not every_row and not set(map(str, table.frame.columns)) >= OWN_SWEEP


def _different_tokens(
    table: Table, unique: str | None, tokens: np.ndarray, keep: Bool[np.ndarray, " N"]
) -> Float64[np.ndarray, " N"] | None:
    """The number of different tokens of each row, at most the tokens seen."""
    if unique is None:
        return None
    different = values(table, unique)
    _check_positive(table, unique, different, keep, "unique")
    return np.minimum(different, tokens)[keep]


def rows(count: int) -> str:
    """A number of rows as text: "1 row", "2 rows"."""
    return f"{count:,} row" + ("s" if count != 1 else "")


def distinct(values: Float64[np.ndarray, " N"]) -> int:
    """Number of values that differ by more than 2 %."""
    logs = np.sort(np.log(values))
    count, start = 1, logs[0]
    for value in logs:
        if value - start > SAME:
            count, start = count + 1, value
    return count


def _check_positive(
    table: Table, name: str, values: Float64[np.ndarray, " N"], keep: Bool[np.ndarray, " N"], role: str
) -> None:
    wrong = np.flatnonzero(keep & ~(np.isfinite(values) & (values > 0)))
    if len(wrong):
        place, value = table.where(int(wrong[0]), name), values[wrong[0]]
        raise InputError(f"{place}: expected a {role} above 0, found {value:g}; correct the row")


def _once(
    table: Table,
    names: np.ndarray,
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    keep: Bool[np.ndarray, " N"],
    run: str | None,
    group: str | None,
    warnings: list[str],
) -> Bool[np.ndarray, " N"]:
    """True for rows that do not repeat another one; a run with two losses at one point is an error."""
    columns = {"params": params, "tokens": tokens} | ({} if run is None else {"run": names})
    columns |= {} if group is None else {"group": table.frame[group].astype(str).to_numpy()}
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
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    curves: np.ndarray | None,
    keep: Bool[np.ndarray, " N"],
    warnings: list[str],
) -> Bool[np.ndarray, " N"]:
    """False for rows that have diverged: their loss is far above that of a smaller run on less data, or all others.

    Args:
        params: size of each row.
        tokens: tokens of each row.
        loss: loss of each row.
        curves: run of each row if the rows are training curves, whose beginnings are high: then only ends count.
        keep: rows that are read.
        warnings: receives a text.
    """
    fine = np.ones(len(keep), bool)
    kept = np.flatnonzero(keep)
    if len(kept) and curves is not None:
        order = kept[np.lexsort((tokens[kept], curves[kept]))]
        kept = order[np.append(curves[order][1:] != curves[order][:-1], True)]
    if not len(kept):
        return fine
    order = kept[np.lexsort((tokens[kept], params[kept]))]
    middle, least = float(np.median(loss[kept])), float(loss[kept].min())
    height = loss if least > 0 else loss - least + max(middle - least, np.finfo(float).tiny)  # above 0, to be compared
    middle = float(np.median(height[kept]))
    highest = np.sort(height[kept])[-2] if len(kept) > 4 else np.inf
    for position, row in enumerate(order):
        before = order[:position]
        smaller = height[before][tokens[before] <= tokens[row]]
        above = len(smaller) > 0 and height[row] > DIVERGED * smaller.min()
        fine[row] = not (above or height[row] > min(HOPELESS * middle, DIVERGED * highest))
    if not fine.all():
        row = int(np.flatnonzero(~fine)[0])
        warnings.append(
            f"{rows(int((~fine).sum()))} left out as diverged (loss above {DIVERGED:g} times that of a smaller run on "
            f"less data or of every other run), the first with loss {loss[row]:.4g}"
        )
    return fine if curves is None else ~np.isin(curves, curves[~fine])


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
