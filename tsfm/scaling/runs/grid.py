"""Grids of training runs: reading and checking the YAML file, its cells, and the config of every piece of training.

A cell is one training with a constant learning rate after warm-up. At every budget a short decay branches off, so one
training gives results for many budgets (Hägele et al. 2024, arXiv 2405.18392). Each piece, of the trunk or a branch, is
an ordinary ``tsfm fit`` run that goes on from the checkpoint of the piece before it.
"""

import copy
import math
from dataclasses import MISSING, asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NotRequired

from annotated_types import Ge, Le
from typing_extensions import TypedDict

from tsfm.configs import config_path
from tsfm.models import MODELS, Counts, count_forecaster, model_class, sizes_of
from tsfm.weights import from_plain
from tsfm_data.errors import LARGEST_SIZE, LONGEST_HORIZON, InputError, shown, unknown_name
from tsfm_data.io import check_record, read_yaml

CHECKPOINT = "checkpoints/last.ckpt"
LARGEST = {"lr": 1e6, "steps": 1e9, "tokens": 1e15, "seed": 2**32 - 1}  # PyTorch takes no larger seed
MOST_CELLS = 100_000
NOT_HERE = ("EarlyStopping", "ModelCheckpoint", "ModelFolder")  # callbacks that a sweep replaces or leaves out


class Section(TypedDict, total=False):
    """A class of a config and its arguments."""

    class_path: str
    init_args: dict[str, Any]


class Callback(TypedDict):
    """A callback of a config."""

    class_path: str
    init_args: NotRequired[dict[str, Any]]


class TrainerSection(TypedDict, total=False):
    """The part of a config about the trainer that a sweep changes."""

    callbacks: list[Callback]


class Shared(TypedDict, total=False):
    """The config that all runs share."""

    model: Section
    data: Section
    trainer: TrainerSection


class InitArgs(TypedDict):
    """The arguments of the data module that a sweep needs."""

    context: Annotated[int, Ge(1), Le(LONGEST_HORIZON)]
    horizon: Annotated[int, Ge(1), Le(LONGEST_HORIZON)]
    batch_size: Annotated[int, Ge(1), Le(LARGEST_SIZE)]
    corpus: NotRequired[str | None]
    held_out: NotRequired[list[str]]
    synthetic_share: NotRequired[Annotated[float, Ge(0), Le(1)]]


@dataclass(frozen=True)
class Grid:
    """The runs of ``tsfm scaling sweep``; the attributes are the keys of the YAML file.

    Attributes:
        arch: names of architectures in ``tsfm.models.registry.MODELS``.
        size: names of sizes, or a mapping from names to sizes.
        lr: peak learning rates. If there are several, each is tried with the first seed at the smallest budget, for
            every architecture and size, and the best by ``choose`` is used for the other runs.
        steps: budgets in optimiser steps.
        tokens: budgets in tokens, instead of ``steps``.
        seed: random seeds of weights and batches.
        data: arguments of the data module by name, for laws in data; by default the data of ``configs``.
        configs: configs of ``tsfm fit`` that all runs share: names, or YAML files relative to the grid.
        fit: settings that override those configs.
        decay: share of every budget over which the learning rate goes to zero.
        warmup: optimiser steps of warm-up.
        choose: validation loss that chooses the learning rate.
        loss: logged loss that becomes the column ``loss`` of the ledger.
        command: command of a training run; by default ``tsfm fit`` in the same process.
        folder: folder of the YAML file.
    """

    arch: list[str]
    size: dict[str, Any] | list[str]
    lr: list[float]
    steps: list[int] | None = None
    tokens: list[float] | None = None
    seed: tuple[int, ...] = (0,)
    data: dict[str, dict[str, Any]] | None = None
    configs: tuple[str, ...] = ()
    fit: dict[str, Any] | None = None
    decay: float = 0.2
    warmup: int = 0
    choose: str = "val_in_loss"
    loss: str = "val_in_loss"
    command: list[str] | None = None
    folder: Path = Path()

    def base(self) -> dict[str, Any]:
        """The config shared by all runs."""
        merged: dict[str, Any] = {}
        for name in self.configs:
            merged = overlay(merged, read_yaml(config_path(name, self.folder), "the keys of a config"))
        both = overlay(merged, self.fit or {})
        return dict(check_record(both, Shared, "the grid", "sections of a config", finite=False, hint="correct it"))

    def config_of(self, arch: str, size: str) -> Any:
        """The sizes of a model.

        Raises:
            InputError: the architecture has no size of that name, or the sizes are impossible.
        """
        if isinstance(self.size, dict):
            return from_plain(model_class(arch).config_type, self.size[size], "size of the grid")
        known = sizes_of(arch)
        if size not in known:
            raise unknown_name(f"size of {arch}", size, known)
        return known[size]

    def counts(self, arch: str, size: str) -> Counts:
        """Parameters, and FLOPs and tokens per window."""
        data = self.base().get("data", {}).get("init_args", {})
        return count_forecaster(arch, self.config_of(arch, size), data["context"], data["horizon"])

    def batch(self, data: str) -> int:
        """Windows per optimiser step."""
        init = overlay(self.base(), {"data": {"init_args": (self.data or {}).get(data, {})}})["data"]["init_args"]
        return int(init["batch_size"])

    def budgets(self, cell: "Cell") -> list[int]:
        """Budgets of a cell in optimiser steps, ascending."""
        if self.steps is not None:
            return sorted(self.steps)
        per_step = self.batch(cell.data) * self.counts(cell.arch, cell.size).tokens
        return sorted({max(1, round(count / per_step)) for count in self.tokens or ()})


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        scan: whether it only tries a learning rate, at the smallest budget.
    """

    arch: str
    size: str
    data: str
    lr: float | None
    seed: int
    scan: bool = False

    def name(self, lr: float) -> str:
        """Name of its folder."""
        return f"{self.arch}-{self.size}-{self.data}-lr{lr:g}-seed{self.seed}"


@dataclass(frozen=True)
class Piece:
    """One ``tsfm fit`` run: a stretch of the trunk, or the decay at the end of a budget.

    Attributes:
        name: its folder in the folder of the cell.
        start: optimiser steps before it.
        end: optimiser steps after it.
        after: name of the piece whose checkpoint it starts from.
        budget: the budget at its end; None for the trunk.
    """

    name: str
    start: int
    end: int
    after: str | None
    budget: int | None = None


def pieces(budgets: list[int], decay: float) -> tuple[list[Piece], int]:
    """The pieces of a cell in order, and the steps per epoch, a divisor of every piece's start and end.

    Args:
        budgets: budgets in steps, ascending.
        decay: share of a budget over which the learning rate decays.
    """
    unit = max(1, math.floor(budgets[0] * min(decay, 1 - decay)))
    result: list[Piece] = []
    before: str | None = None
    start = 0
    for budget in dict.fromkeys(max(2, round(steps / unit)) for steps in budgets):
        stable = max(1, budget - max(1, round(decay * budget)))
        if stable * unit > start:
            result.append(Piece(f"trunk-{stable * unit}", start, stable * unit, before))
            before, start = result[-1].name, stable * unit
        origin = max((p for p in result if p.budget is None and p.end <= stable * unit), key=lambda p: p.end)
        result.append(Piece(f"budget-{budget * unit}", origin.end, budget * unit, origin.name, budget * unit))
    return result, unit


def piece_config(grid: Grid, cell: Cell, lr: float, piece: Piece, unit: int, root: Path) -> dict[str, Any]:
    """The config of ``tsfm fit`` for one piece."""
    module, name = MODELS[cell.arch].split(":")
    sizes = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(grid.config_of(*_key(cell))).items()}
    decay = (piece.end - piece.start) / piece.end if piece.budget else 0.0
    optim = {"lr": lr, "warmup_steps": grid.warmup, "schedule": "wsd" if piece.budget else "constant"}
    forecaster = {"class_path": f"{module}.{name}", "init_args": {"config": sizes}}
    base = grid.base()
    data = overlay({"seed": cell.seed, "batches_per_epoch": unit}, (grid.data or {}).get(cell.data, {}))
    kept_callbacks = [c for c in base.get("trainer", {}).get("callbacks", []) if not c["class_path"].endswith(NOT_HERE)]
    callbacks = [
        {
            "class_path": "pytorch_lightning.callbacks.ModelCheckpoint",
            "init_args": {"filename": "last", "save_on_train_epoch_end": True},
        }
    ]
    trainer: dict[str, Any] = {
        "max_epochs": piece.end // unit,
        "max_steps": -1,
        "limit_train_batches": unit,
        "check_val_every_n_epoch": piece.end // unit,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "default_root_dir": str(root / piece.name),
        "callbacks": kept_callbacks + callbacks,
    }
    if piece.budget is None:
        trainer["limit_val_batches"] = 0
    piece_settings = {
        "seed_everything": cell.seed,
        "model": {"init_args": {"forecaster": forecaster, "optim": optim | ({"decay": decay} if decay else {})}},
        "data": {"init_args": data},
        "trainer": trainer,
    }
    return overlay(base, piece_settings)


def _key(cell: Cell) -> tuple[str, str]:
    return cell.arch, cell.size


def cells(grid: Grid) -> list[Cell]:
    """All cells: first those that try learning rates, if there are several, then the others."""
    sizes, names = list(grid.size), list(grid.data or {"all": {}})
    several = len(grid.lr) > 1
    scans = [
        Cell(arch, size, names[0], lr, grid.seed[0], True) for arch, size, lr in product(grid.arch, sizes, grid.lr)
    ]
    rest = product(grid.arch, sizes, names, grid.seed)
    fixed = None if several else grid.lr[0]
    return (scans if several else []) + [Cell(arch, size, data, fixed, seed) for arch, size, data, seed in rest]


def read_grid(path: str | Path) -> Grid:
    """Read a grid and check everything that can be checked before a run.

    Raises:
        InputError: a file is missing, a key is unknown or missing, or a value is out of range.
    """
    plain = read_yaml(Path(path), "a grid")
    _check_keys(plain, path)
    for key in ("arch", "size", "lr", "seed", "steps", "tokens", "configs"):
        kinds = (list, dict) if key == "size" else list
        if key in plain and not (isinstance(plain[key], kinds) and plain[key]):
            raise InputError(f"{path}: expected a list at {key!r}, found {shown(plain[key])}: write one")
    for key, kind, least in (("lr", float, 0), ("steps", int, 1), ("tokens", float, 0), ("seed", int, -1)):
        for value in plain.get(key) or ():
            _check_number(value, key, kind, least, path)
    checked = check_record(plain, Grid, path, "a grid", finite=False, hint="correct it")
    grid = replace(checked, folder=Path(path).resolve().parent)
    _check(grid, path)
    return grid


def _check_keys(plain: dict[str, Any], path: str | Path) -> None:
    """Refuse keys that a grid does not have, and a grid without one that it needs."""
    keys = {field.name: field.default is MISSING for field in fields(Grid) if field.name != "folder"}
    for key in plain:
        if key not in keys:
            raise InputError(f"{path}: {unknown_name('key of a grid', str(key)[:60], list(keys))}")
    for key, needed in keys.items():
        if needed and key not in plain:
            raise InputError(f"{path}: expected the key {key!r}, found none: add it")


def _check_number(value: Any, key: str, kind: type[int] | type[float], least: int, path: str | Path) -> None:
    """Refuse a value that is no number, or not above the least one and at most the largest one of its key."""
    if isinstance(value, bool) or not isinstance(value, int | kind) or not value > least:
        words = "whole numbers" if kind is int else "numbers"
        hint = "; YAML wants 1.0e-3 for 1e-3" if isinstance(value, str) else ""
        raise InputError(f"{path}: expected {words} above {least} at {key!r}, found {shown(value)}{hint}")
    if not value <= LARGEST[key]:
        raise InputError(f"{path}: expected at most {LARGEST[key]:g} at {key!r}, found {shown(value)}: lower it")


def _check(grid: Grid, path: str | Path) -> None:
    if (grid.steps is None) == (grid.tokens is None):
        raise InputError(f"{path}: expected budgets under either 'steps' or 'tokens', found both or none: keep one")
    if not 0 < grid.decay < 1 or grid.warmup < 0:
        raise InputError(
            f"{path}: expected decay between 0 and 1 and warmup of 0 or more, found {grid.decay} and {grid.warmup}"
        )
    data = grid.base().get("data", {}).get("init_args", {})
    for name, more in {"all": {}, **(grid.data or {})}.items():
        init = check_record(
            {**data, **more}, InitArgs, path, "data.init_args in 'configs' or 'fit'", hint="add or correct it"
        )
        corpus = init.get("corpus")
        if corpus is not None and grid.command is None and not Path(corpus).exists():
            raise InputError(
                f"{path}: expected the corpus of data {name!r} at {corpus}, found nothing: tsfm data build makes one"
            )
    count = len(grid.arch) * len(grid.size) * (len(grid.lr) + len(grid.data or "1") * len(grid.seed))
    if count > MOST_CELLS:
        raise InputError(f"{path}: expected at most {MOST_CELLS:,} trainings, found {count:,}: shorten a list")
    for arch, size in product(grid.arch, grid.size):
        grid.config_of(arch, size)
    for cell in cells(grid):
        shortest = grid.budgets(cell)[0]
        if grid.warmup > (1 - grid.decay) * shortest:
            raise InputError(
                f"{path}: expected warmup to end before the decay of the smallest budget, found {grid.warmup} of "
                f"{shortest} steps: lower warmup"
            )


def overlay(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Two configs combined: mappings are merged, other values of ``under`` are replaced by those of ``over``."""
    merged = copy.deepcopy(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = overlay(merged[key], value) if both else copy.deepcopy(value)
    return merged
