"""Targets of ``fuzz.py``: the readers of configs, corpora, fits, weights and checkpoints, and what they lead to."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = """\
sources:
  - {path: wide.csv, name: sales, freq: D, weight: 0.5}
  - {generator: gp, count: 4, length: 32, seed: 1}
"""
GRID = """\
arch: [encoder]
steps: [10, 20]
lr: [0.001]
size: {a: {d_model: 8, layers: 1, heads: 1}}
seed: [0]
warmup: 1
fit:
  model: {class_path: tsfm.training.task.ForecastTask}
  data: {class_path: tsfm_data.corpus.PretrainingDataModule, init_args: {context: 64, horizon: 16, batch_size: 4}}
"""
"""END"""
