"""Targets of ``fuzz.py``: readers of model folders, weights, checkpoints, corpora, grids and fits, and their use."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fuzzing import Target
from safetensors.torch import save_file

from tsfm import inference, scaling
from tsfm.commands.checkpoints import read_checkpoint
from tsfm.models import TrainingData
from tsfm.models.chronos2 import Chronos2, Chronos2Config
from tsfm.models.itransformer import ITransformer, ITransformerConfig
from tsfm.models.scaling_law.encoder import Encoder
from tsfm.models.scaling_law.trunk import TrunkConfig
from tsfm.scaling.runs.grid import cells, piece_config, pieces, read_grid
from tsfm.weights import convert, released, save, verify
from tsfm.weights.cards import card
from tsfm.weights.folders import Origin, write_checksums
from tsfm.weights.tensors import read_tensors
from tsfm_data.corpus import Store, build
from tsfm_data.corpus.overlap import check_overlap
from tsfm_data.corpus.sources import read_plans
from tsfm_data.errors import InputError
from tsfm_data.evaluation import LEVELS
from tsfm_data.io import read_series, read_yaml
from tsfm_vision.weights import TrainedOn, check_size, data_config
from tsfm_vision.weights import create as create_image_model
from tsfm_vision.weights import load as load_images
from tsfm_vision.weights import save as save_images

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
  data:
    class_path: tsfm_data.corpus.PretrainingDataModule
    init_args: {context: 64, horizon: 16, batch_size: 4, synthetic_share: 1.0}
"""
CHRONOS = {
    "chronos_config": {
        "context_length": 64, "input_patch_size": 16, "input_patch_stride": 16, "max_output_patches": 2,
        "output_patch_size": 16, "quantiles": [0.1, 0.5, 0.9], "time_encoding_scale": 64, "use_arcsinh": True,
        "use_reg_token": True,
    },
    "d_ff": 16, "d_kv": 8, "d_model": 16, "feed_forward_proj": "relu", "num_heads": 2, "num_layers": 1,
    "rope_theta": 10000.0, "model_type": "t5",
}  # fmt: skip


def write_table(folder: Path) -> Path:
    """A daily table of two columns, which corpora are built from and models forecast."""
    values = np.random.default_rng(0).normal(size=(30, 2))
    frame = pd.DataFrame(values, columns=["a", "b"])
    frame.insert(0, "date", pd.date_range("2024-01-01", periods=30, freq="D"))
    frame.to_csv(folder / "wide.csv", index=False)
    return folder / "wide.csv"


def model_seeds(folder: Path) -> list[Path]:
    """Configs of two forecasters and of a choice of a backtest, and weights."""
    torch.manual_seed(0)
    series = read_series(write_table(folder))
    encoder = Encoder(64, 32, TrunkConfig(8, 1, 1))
    other = ITransformer(48, 14, ITransformerConfig(16, 16, 2, 8))
    other.training_data = TrainingData("x", "D", None, ("a", "b"), (0.0, 0.0), (1.0, 1.0))
    save(encoder, folder / "encoder")
    save(other, folder / "itransformer")
    members = (inference.Member("encoder", encoder), inference.Member("naive", inference.load_predictor("naive"), True))
    rows = dict.fromkeys(series.univariate().item_ids, (0.25, 0.75))
    inference.Selection(members, (0.5, 0.5), rows, np.ones((2, len(LEVELS))), False, {"x": 1}).save(folder / "choice")
    return [*folder.glob("*/config.json"), folder / "encoder" / "model.safetensors"]


def forecast(path: Path) -> pd.DataFrame:
    """The forecast by the model folder that holds a file."""
    predictor = inference.load_predictor(str(path.parent))
    return inference.forecast_frame(predictor, read_series(path.parent.parent / "wide.csv"), 3, [0.1, 0.5], 64)


def verify_seeds(folder: Path) -> list[Path]:
    """A model folder with checksums and scores."""
    shutil.copytree(folder_of("tsfm-decoder-small"), folder / "small")
    write_checksums(folder / "small", Origin("small", "apache-2.0", "https://example.org", "main", {"a": "b"}))
    return [folder / "small" / name for name in ("checksums.json", "scores.json", "config.json")]


def verify_and_describe(path: Path) -> str:
    """A check of the model folder that holds a file, and its card."""
    if path.name != "checksums.json":
        (path.parent / "checksums.json").unlink(missing_ok=True)  # they would refuse any change
    verify(path.parent)
    return card(path.parent)


def folder_of(name: str) -> Path:
    """The folder of a model that ships."""
    found = released()[name].folder
    assert found is not None
    return found


def image_seeds(folder: Path) -> list[Path]:
    """The folder of a tiny image model, more often than that of the larger one that ships."""
    sizes = {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "head_dim": 8, "n_win": 1, "topks": [1, 1, 1, -2]}
    save_images(
        create_image_model("biformer_tiny", 2, 32, 3, sizes, {}), folder / "tiny", TrainedOn("x", ("a", "b"), 9)
    )
    shutil.copytree(folder_of("tsfm-biformer-cifar10"), folder / "image")
    shipped = [folder / "image" / name for name in ("config.json", "scores.json")]
    return [*[folder / "tiny" / "config.json"] * 15, *[folder / "tiny" / "model.safetensors"] * 3, *shipped]


def load_and_describe(path: Path) -> str:
    """An image model, and its card."""
    net, classes = load_images(path.parent)
    shape = data_config(net)["input_size"]
    check_size(net, *shape[1:])
    assert len(classes) == len(net(torch.zeros(1, *shape))[0])
    return card(path.parent)


def foreign_seeds(folder: Path) -> list[Path]:
    """A published checkpoint with its config."""
    torch.manual_seed(0)
    model = Chronos2(64, 32, Chronos2Config(16, 16, 8, 2, 1, 16, 64, levels=(0.1, 0.5, 0.9)))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CHRONOS))
    converted(folder / "config.json")
    return [folder / "config.json", folder / "model.safetensors"]


def converted(path: Path) -> object:
    """The conversion of a checkpoint to a model folder."""
    return convert(path.parent, path.parent.parent / "converted")


def old_seeds(folder: Path) -> list[Path]:
    """Weights in PyTorch's old and new formats."""
    state = {"state_dict": {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2)}, "epoch": 3}
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(state, folder / "new.pt")
    torch.save(state | {"pytorch-lightning_version": "2.6.0"}, folder / "last.ckpt")
    return sorted(folder.iterdir())


def weights(path: Path) -> object:
    """The tensors of a file of PyTorch, or the names of those of a checkpoint."""
    return read_checkpoint(str(path)) if path.suffix == ".ckpt" else read_tensors(path)


def store_seeds(folder: Path) -> list[Path]:
    """A corpus: manifest, arrays, fingerprints, and the record of a source."""
    write_table(folder)
    (folder / "a.yaml").write_text(CORPUS)
    build(folder / "a.yaml", folder / "out", progress=False)
    arrays = [path for path in folder.glob("out/sources/*/*") if path.suffix != ".json"]
    return [*[folder / "out" / "manifest.json"] * len(arrays), *arrays, folder / "out" / "overlap.npz"]


def opened(path: Path) -> object:
    """A corpus, read as training reads it, and compared with a table."""
    root = next(parent for parent in path.parents if parent.name == "out")
    store = Store(root)
    for source in store.sources:
        ends = zip(source.offsets[:-1], source.offsets[1:], strict=True)
        assert all(len(source.values[a:b]) == b - a for a, b in ends)
        assert len(source.season) == len(source) == len([source.freq_names[k] for k in source.freqs])
    return check_overlap(root, [str(root.parent / "wide.csv")])


def corpus_seeds(folder: Path) -> list[Path]:
    """The YAML of a corpus."""
    write_table(folder)
    (folder / "a.yaml").write_text(CORPUS)
    return [folder / "a.yaml"]


def planned(path: Path) -> object:
    """The sources of a corpus."""
    return read_plans(path)


def grid_seeds(folder: Path) -> list[Path]:
    """A grid of runs."""
    (folder / "h.yaml").write_text(GRID)
    return [folder / "h.yaml"]


def grid_runs(path: Path) -> object:
    """The configs of the first cells of a grid."""
    grid = read_grid(path)
    runs = []
    for cell in cells(grid)[:3]:
        todo, unit = pieces(grid.budgets(cell), grid.decay)
        runs += [piece_config(grid, cell, cell.lr or 0.001, piece, unit, path.parent) for piece in todo[:3]]
    return runs


def config_seeds(folder: Path) -> list[Path]:
    """A config of ``tsfm fit``."""
    (folder / "fit.yaml").write_text(GRID[GRID.index("fit:") :].replace("fit:", "trainer: {max_epochs: 1}\nfit:"))
    return [folder / "fit.yaml"]


def settings(path: Path) -> object:
    """The mapping in a config, copied as a run copies it."""
    return json.dumps(read_yaml(path, "sections"), default=str)


def fit_seeds(folder: Path) -> list[Path]:
    """The fit.json of a small table, as ``tsfm scaling fit`` writes it."""
    rng = np.random.default_rng(0)
    params, tokens = (x.flatten() for x in np.meshgrid(np.logspace(4, 7, 4), np.logspace(6, 9, 4)))
    loss = (1.6 + 40 / params**0.3 + 90 / tokens**0.3) * np.exp(rng.normal(0, 0.003, len(params)))
    table = pd.DataFrame({"params": params, "tokens": tokens, "loss": loss})
    table.to_csv(folder / "ledger.csv", index=False)
    analysis = scaling.analyse(scaling.read_runs(folder / "ledger.csv"), 100)
    (folder / "fit.json").write_text(json.dumps(analysis.record))
    return [folder / "fit.json"]


def plans(path: Path) -> list[object]:
    """The plans for a compute, a size and a loss."""
    record = scaling.read_fit(path)
    made: list[object] = []
    for goal in ({"flops": 1e12}, {"params": 1e6}, {"loss": 2.5}, {"flops": 1e14, "inference_tokens": 1e9}):
        try:
            made.append(scaling.make_plan(record, **goal))
        except InputError as error:
            made.append(error)
    return made


TARGETS = [
    Target("model", model_seeds, forecast),
    Target("verify", verify_seeds, verify_and_describe),
    Target("image model", image_seeds, load_and_describe),
    Target("conversion", foreign_seeds, converted),
    Target("weights", old_seeds, weights),
    Target("corpus", store_seeds, opened),
    Target("corpus yaml", corpus_seeds, planned),
    Target("grid", grid_seeds, grid_runs),
    Target("config", config_seeds, settings),
    Target("fit", fit_seeds, plans),
]


def in_seeds(target: Target) -> Target:
    """A target that reads a file in the place of each seed with its name: ``fit_1_fit.json`` for ``fit.json``."""

    def read_in_place(path: Path) -> object:
        path = path / "config.json" if path.is_dir() else path
        place = path.parent / "seeds"
        place.mkdir()
        results = []
        for seed in dict.fromkeys(target.seeds(place)):
            if path.name.endswith(seed.name) or path.suffix == seed.suffix == ".yaml" or path.suffix == ".pt":
                content = seed.read_bytes()
                seed.write_bytes(path.read_bytes())
                try:
                    results.append(target.read(seed))
                except InputError as error:
                    results.append(error)
                seed.write_bytes(content)
        assert results, f"no seed of {target.kind} is like {path.name}"
        return results

    return Target(target.kind, lambda folder: [], read_in_place)
