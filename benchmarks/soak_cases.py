"""The commands of ``soak.py`` on tiny data: how each begins, how it goes on after a kill, and what must be equal."""

import csv
import hashlib
import io
import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import trials
import yaml

RUN = "run/checkpoints/last.ckpt"
FIT = ("fit", "--config", "config.yaml", "--overwrite")
CONVERT, BUILT = ("weights", "convert", "foreign.pth"), ("--output", "out")
OUT = ("--output", "out", "--overwrite")
FORECAST = ("forecast", "table.csv", "--horizon", "6", "--model", "start", "--output", "out/f.csv", "--overwrite")
TUNE = ("finetune", "table.csv", "--horizon", "6", "--model", "start", "--steps", "8", *OUT)
IMAGES = ("image", "finetune", "digits", "--model", "net", "--steps", "6", "--checks", "2", "--batch-size", "8", *OUT)
BACKTEST = ("backtest", "table.csv", "--horizon", "6", "--models", "start", "naive", "seasonal-naive", *OUT)
MODELS = ("--model", "naive", "--horizon", "6")
LEFT_OUT = ("wall_s", "commit")  # columns of a ledger that differ between runs

Result = Callable[[Path], dict[str, str]]


@dataclass(frozen=True)
class Case:
    """A command to kill.

    Attributes:
        words: its command line; it writes ``out`` (``run`` in a training).
        first: a command line that makes an earlier result, which must stay until it is replaced; none if empty.
        again: the command line after a kill, by the folder.
        result: names and digests of what an undisturbed run gives.
        failed: exit status without a result; a sweep has a status of its own for trainings that failed.
        several: whether it writes several files one after the other, so that a kill may leave some old and some new.
        share: how many kills it gets, relative to others.
        before: called in the process of the command first.
    """

    words: tuple[str, ...]
    first: tuple[str, ...] = ()
    again: Callable[[Path], tuple[str, ...]] | None = None
    result: Result = lambda folder: tree(folder / "out")
    several: bool = False
    failed: int = 2
    share: int = 4
    before: Callable[[], object] = lambda: None


def tree(folder: Path, without: Sequence[str] = ()) -> dict[str, str]:
    """SHA-256 of every file under a folder, by its path; unfinished files are no part of a result."""
    kept = (path for path in sorted(folder.rglob("*")) if path.name not in without and ".tsfm-part" not in path.name)
    files = [path for path in kept if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def trained(folder: Path) -> dict[str, str]:
    """The model of a training; checkpoints include paths and times."""
    return tree(folder / "run/model")


def ledger(folder: Path) -> dict[str, str]:
    """The rows of a sweep, without those columns that differ between runs."""
    file = folder / "out/ledger.csv"
    rows = list(csv.DictReader(io.StringIO(file.read_text()))) if file.is_file() else []
    return {
        f"{row['run']} {row.get('steps')}": str({k: v for k, v in row.items() if k not in LEFT_OUT}) for row in rows
    }


def resumed(folder: Path) -> tuple[str, ...]:
    """A training goes on from its last checkpoint, or the best one, or starts anew."""
    there = [file for file in (RUN, "run/checkpoints/best.ckpt") if (folder / file).is_file()]
    return (*FIT[:-1], "--ckpt_path", there[0]) if there else FIT


def corpus(folder: Path) -> dict[str, str]:
    """The files of a corpus as readers find them, also after a stopped build."""
    from tsfm_data.corpus import MANIFEST, SOURCES, Store, current_path

    out = folder / "out"
    files = {name: current_path(out, name) for name in (MANIFEST, "overlap.npz")}
    found = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.is_file()}
    for source in Store(out, verify=True).sources:
        found |= {f"{source.name}/{k}": v for k, v in tree(current_path(out, SOURCES, source.name)).items()}
    return found


class Forked:
    """A cell of a sweep, forked by a helper."""

    def __init__(self, ask: Callable[..., int | None], process: int) -> None:
        self.ask, self.process = ask, process
        self.status: int | None = None

    def poll(self) -> int | None:
        """Exit status, or None while it runs."""
        self.status = self.ask("poll", self.process) if self.status is None else self.status
        return self.status

    def terminate(self) -> None:
        """Ask it to end."""
        self.ask("kill", self.process, int(signal.SIGTERM))

    def kill(self) -> None:
        """End it at once."""
        self.ask("kill", self.process, int(signal.SIGKILL))


def forked_cells() -> None:
    """Have a helper fork the trainings of a sweep; starting Python would take most of the time of tiny ones.

    The sweep itself cannot fork them, because it has computed gradients. The helper ends if the sweep does.
    """
    from tsfm import scaling

    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        helper(theirs)
    theirs.close()
    answers = ours.makefile("r")

    def ask(*request: object) -> int | None:
        ours.sendall((json.dumps(request) + "\n").encode())
        return json.loads(answers.readline())

    def start(command: Sequence[str], log: Path) -> Forked:
        log.parent.mkdir(parents=True, exist_ok=True)
        return Forked(ask, ask("start", command[3:], str(Path.cwd()), str(log.resolve())) or 0)

    scaling.start_local = start  # type: ignore[assignment]


def helper(requests: socket.socket) -> NoReturn:
    """Start cells, poll them and send them signals, until the other end is closed."""
    from tsfm.scaling.runs.sweep import PARENT

    os.environ[PARENT] = str(os.getpid())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, trials.SIGNALS)
    for line in requests.makefile("r"):
        kind, *given = json.loads(line)
        answer: int | None = None
        if kind == "start":
            words, place, log = given
            answer = trials.start(words, Path(place), out=Path(log), err=Path(log), own_session=False).process
        elif kind == "poll":
            found, status = os.waitpid(given[0], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if found else None
        else:
            with suppress(ProcessLookupError):
                os.kill(*given)
        requests.sendall((json.dumps(answer) + "\n").encode())
    os._exit(0)


CASES = {
    "fit": Case(FIT, again=resumed, result=trained),
    "data build": Case(("data", "build", "new.yaml", *BUILT), ("data", "build", "old.yaml", *BUILT), result=corpus),
    "scaling sweep": Case(
        ("scaling", "sweep", "grid.yaml", *BUILT), result=ledger, failed=1, share=1, before=forked_cells
    ),
    "scaling fit": Case(
        ("scaling", "fit", "ledger.csv", "--draws", "120", *OUT),
        ("scaling", "fit", "ledger.csv", "--draws", "100", *OUT),
        result=lambda folder: tree(folder / "out", ["report.html"]),
        several=True,
        share=1,
    ),
    "finetune": Case(TUNE, (*TUNE, "--seed", "1"), result=lambda folder: tree(folder / "out", ["report.html"])),
    "image finetune": Case(IMAGES, (*IMAGES, "--seed", "1")),
    "backtest": Case(BACKTEST, (*BACKTEST, "--windows", "3"), result=lambda folder: tree(folder / "out/model")),
    "evaluate": Case(
        ("evaluate", "--data", "table.csv", *MODELS, *OUT),
        ("evaluate", "--data", "table.csv", *MODELS, "--windows", "2", *OUT),
        result=lambda folder: tree(folder / "out", ["report.html"]),
        several=True,
    ),
    "forecast": Case(FORECAST, (*FORECAST, "--levels", "0.5")),
    "export": Case(
        ("export", "--model", "start", "--format", "torch", "--output", "out/m.pt2", "--overwrite"),
        result=lambda folder: {"there": str((folder / "out/m.pt2").is_file())},
        share=1,
    ),
    "weights pull": Case(
        ("weights", "pull", "chronos-bolt-tiny", "--mirror", "mirror"),
        result=lambda folder: tree(folder / "cache/weights/chronos-bolt-tiny"),
    ),
    "weights mirror": Case(
        ("weights", "mirror", "tsfm-decoder-small", "out", "--overwrite"),
        ("weights", "mirror", "tsfm-decoder-small", "out"),
        result=lambda folder: tree(folder / "out/tsfm-decoder-small"),
    ),
    "weights convert": Case((*CONVERT, "out", "--overwrite"), (*CONVERT, "out")),
}


def prepare(folder: Path) -> None:
    """Write the inputs of all commands."""
    noise, steps = np.random.default_rng(0), np.arange(220)
    columns = {f"v{k}": 10 * k + 3 * np.sin(steps / 4 + k) + noise.normal(0, 0.3, len(steps)) for k in range(3)}
    dates = pd.date_range("2024-01-01", periods=len(steps), freq="h")
    pd.DataFrame({"date": dates, **columns}).to_csv(folder / "table.csv", index=False)
    runs = [(n, d) for n in (1e5, 3e5, 1e6, 3e6, 1e7) for d in (1e7, 3e7, 1e8, 3e8, 1e9)]
    losses = [1.7 + 400 / n**0.34 + 410 / d**0.28 + noise.normal(0, 0.003) for n, d in runs]
    rows = [(n, d, loss) for (n, d), loss in zip(runs, losses, strict=True)]
    pd.DataFrame(rows, columns=["params", "tokens", "loss"]).to_csv(folder / "ledger.csv", index=False)
    (folder / "config.yaml").write_text(yaml.safe_dump(training()))
    mixture = {"generator": "mixture", "count": 60, "length": 96}
    for file, seed in (("old.yaml", 1), ("new.yaml", 2)):
        sources = [{**mixture, "name": "a", "seed": seed}, {**mixture, "name": "b", "seed": seed + 5}]
        table = {"path": "table.csv", "name": f"t{seed}"}  # the new corpus keeps the table of the old one
        (folder / file).write_text(yaml.safe_dump({"sources": [*sources, table]}))
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid()))
    models(folder)
    pictures(folder / "digits")


def training() -> dict[str, object]:
    """The config of a training of some seconds."""
    sizes = {"d_model": 16, "d_ff": 16, "layers": 1, "heads": 2}
    checkpoint = "pytorch_lightning.callbacks.ModelCheckpoint"
    return {
        "seed_everything": 1,
        "model": {
            "class_path": "ForecastTask",
            "init_args": {"forecaster": {"class_path": "ITransformer", "init_args": {"config": sizes}}},
        },
        "data": {
            "class_path": "ForecastDataModule",
            "init_args": {"source": "table.csv", "context": 24, "horizon": 6, "batch_size": 16},
        },
        "trainer": {
            "max_epochs": 4,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "default_root_dir": "run",
            "callbacks": [
                {"class_path": checkpoint, "init_args": {"monitor": "val_loss", "filename": "best"}},
                {"class_path": checkpoint, "init_args": {"filename": "last"}},
                {"class_path": "tsfm.training.task.ModelFolder"},
            ],
        },
    }


def grid() -> dict[str, object]:
    """A sweep of two trainings."""
    data = {"context": 64, "horizon": 16, "batch_size": 8, "val_windows": 8, "prefetch": 0}
    fit = {
        "model": {"class_path": "tsfm.training.task.ForecastTask"},
        "data": {"class_path": "tsfm_data.corpus.datamodule.PretrainingDataModule", "init_args": data},
        "trainer": {"accelerator": "cpu"},
    }
    return {"arch": ["encoder"], "size": ["1K"], "lr": [1e-3], "steps": [4], "seed": [0, 1], "fit": fit}


def models(folder: Path) -> None:
    """A forecaster, an image model, a mirror, and a published checkpoint."""
    import torch

    from tsfm import weights
    from tsfm.models.chronos_bolt import ChronosBolt, ChronosBoltConfig
    from tsfm.models.zeroshot.encoder import ZeroShotEncoder
    from tsfm.models.zeroshot.recipe import ZeroShotConfig
    from tsfm.weights.folders import Origin, write_checksums
    from tsfm_vision.weights import TrainedOn, create, save

    torch.manual_seed(0)
    tiny = ZeroShotEncoder(32, 8, ZeroShotConfig(d_model=16, layers=1, heads=2, patch_size=8))
    weights.save(tiny.eval(), folder / "start")
    sizes = {"dims": [16, 32], "depths": [1, 1], "mixers": ["pool", "pool"], "mlp_ratios": [2, 2]}
    net = create("tsfm_poolformer_s12", 3, 16, 3, sizes, {})
    save(net, folder / "net", TrainedOn("none", ("x", "y", "z"), 1))
    bolt = ChronosBolt(32, 8, ChronosBoltConfig.tiny())
    weights.save(bolt.eval(), folder / "mirror/chronos-bolt-tiny")
    write_checksums(folder / "mirror/chronos-bolt-tiny", Origin("chronos-bolt-tiny", "apache-2.0"))
    torch.save(original_itransformer(24, 6, 16), folder / "foreign.pth")


def original_itransformer(context: int, horizon: int, width: int) -> dict[str, object]:
    """Random weights with the names and shapes of the original code."""
    import torch

    block, square = "encoder.attn_layers.0.", (width, width)
    shapes: dict[str, tuple[int, ...]] = {"enc_embedding.value_embedding": (width, context)}
    shapes |= {f"{block}attention.{part}_projection": square for part in ("query", "key", "value", "out")}
    shapes |= {f"{block}conv{k}": (*square, 1) for k in (1, 2)} | {f"{block}norm{k}": (width,) for k in (1, 2)}
    shapes |= {"encoder.norm": (width,), "projector": (horizon, width)}
    weights = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    return weights | {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}


def pictures(folder: Path) -> None:
    """A folder of small pictures in two classes."""
    from PIL import Image

    noise = np.random.default_rng(1)
    for index in range(60):
        place = folder / ("dark" if index % 2 else "light")
        place.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 128, (16, 16, 3)) + 100 * (index % 2 == 0)
        Image.fromarray(pixels.astype("uint8")).save(place / f"{index}.png")
