"""Targets of ``fuzz.py``: the readers of configs, corpora, fits, weights and checkpoints, and what they lead to."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fuzzing import Target
from safetensors.torch import save_file

from tsfm import inference, scaling
from tsfm.models.chronos2 import Chronos2, Chronos2Config
from tsfm.models.itransformer import ITransformer, ITransformerConfig
from tsfm.models.scaling_law.encoder import Encoder
from tsfm.models.scaling_law.trunk import TrunkConfig
from tsfm.weights import convert, load, save, verify
from tsfm.weights.folders import Origin, read_checksums, write_checksums
from tsfm.weights.tensors import layout, read
from tsfm_data.corpus import Store, build
from tsfm_data.corpus.overlap import compare
from tsfm_data.corpus.sources import read_plans
from tsfm_data.windows import Batch

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
