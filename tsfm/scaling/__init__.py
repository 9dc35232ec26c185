"""Scaling laws: training a grid of models, fitting laws to the runs, a report, and plans for a budget."""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm.scaling.analysis import analyse
    from tsfm.scaling.laws.estimate import fit_joint
    from tsfm.scaling.laws.form import NAMES
    from tsfm.scaling.nearest_model import Budget, Machine, find_nearest_model, machine_of
    from tsfm.scaling.plan import QUANTITIES, FittedLaw, beyond_data, make_plan, read_fit
    from tsfm.scaling.report import all_warnings, lead, write_report
    from tsfm.scaling.runs.grid import cells, read_grid
    from tsfm.scaling.runs.ledger import Runs, read_runs
    from tsfm.scaling.runs.ray_jobs import start_ray
    from tsfm.scaling.runs.sweep import (
        LEDGER,
        format_duration,
        learning_rate_warnings,
        read_rows,
        run_index,
        slurm_files,
        start_local,
        sweep,
    )
    from tsfm.scaling.selftest import CHINCHILLA, STUDY, coverage

__all__ = [
    "CHINCHILLA",
    "LEDGER",
    "NAMES",
    "QUANTITIES",
    "STUDY",
    "Budget",
    "FittedLaw",
    "Machine",
    "Runs",
    "all_warnings",
    "analyse",
    "beyond_data",
    "cells",
    "coverage",
    "find_nearest_model",
    "fit_joint",
    "format_duration",
    "lead",
    "learning_rate_warnings",
    "machine_of",
    "make_plan",
    "read_fit",
    "read_grid",
    "read_rows",
    "read_runs",
    "run_index",
    "slurm_files",
    "start_local",
    "start_ray",
    "sweep",
    "write_report",
]
__getattr__ = lazy_exports(__name__, __file__)
