"""The command as the tests call it, tables to give it, and a config that trains in a second."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import pandas as pd
import pytest

from tsfm.commands.cli import main

CONFIG = """\
seed_everything: 1
model:
  class_path: ForecastTask
  init_args:
    forecaster:
      class_path: ITransformer
      init_args:
        config: {d_model: 16, d_ff: 16, layers: 1, heads: 2}
    optim: {name: adam, lr: 1.0e-3, schedule: halving}
data:
  class_path: ForecastDataModule
  init_args: {source: table.csv, context: 24, horizon: 6, batch_size: 32}
trainer:
  max_epochs: 2
  accelerator: cpu
  enable_progress_bar: false
  default_root_dir: run
  log_every_n_steps: 1
  callbacks:
    - class_path: EarlyStopping
      init_args: {monitor: val_loss, patience: 3}
    - class_path: ModelCheckpoint
      init_args: {monitor: val_loss, filename: best}
    - class_path: ModelCheckpoint
      init_args: {filename: last}
    - class_path: tsfm.training.task.ModelFolder
"""


@dataclass(frozen=True)
class Result:
    """What a command did: its exit status and what it said."""

    status: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Result:
    """Call the command in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(words)
    said = capsys.readouterr()
    return Result(int(end.value.code or 0), said.out, said.err)


def script(capsys: pytest.CaptureFixture[str], main: Callable[..., None], *words: str) -> Result:
    """Call a script of ``benchmarks`` in this process."""
    capsys.readouterr()
    status = 0
    try:
        common.run(main, words)
    except SystemExit as end:
        status = int(end.code or 0)
    said = capsys.readouterr()
    return Result(status, said.out, said.err)


def done(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Call the command in this process, expect success, and return what it printed."""
    result = run(capsys, *words)
    assert result.status == 0, result.err
    return result.out


def waves(rows: int = 220, variates: int = 3, scale: float = 3.0) -> pd.DataFrame:
    """A wide hourly table: daily waves around 10, 110, 210, ... with some noise."""
    noise, steps = np.random.default_rng(0), np.arange(rows)
    columns = {
        f"v{k}": 10 + 100 * k + scale * np.sin(2 * np.pi * steps / 24 + k) + noise.normal(0, 0.3, rows)
        for k in range(variates)
    }
    return pd.DataFrame({"date": pd.date_range("2024-01-01", periods=rows, freq="h"), **columns})


def prepare(folder: Path, replacements: dict[str, str] | None = None) -> None:
    """Write ``table.csv`` and ``config.yaml`` into a folder."""
    waves().to_csv(folder / "table.csv", index=False)
    text = CONFIG
    for old, new in (replacements or {}).items():
        assert old in text, old
        text = text.replace(old, new)
    (folder / "config.yaml").write_text(text)


def listing(folder: Path) -> dict[str, int]:
    """Every path under a folder, hidden ones too, with its size."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*"))}
