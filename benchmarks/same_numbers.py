"""Write the numbers that the commands produce to a JSON file, before and after a change that should not alter them.

python benchmarks/same_numbers.py --output after.json
python benchmarks/same_numbers.py --root OLD_CHECKOUT --output before.json --compare after.json

The numbers are forecasts, scores, class probabilities, and losses of trainings, fine-tuning and scaling laws. The runs
are small and use generated data and a few data sets. All commands run on one thread, and an older checkout can be
compared as well. The exit status is 1 if a number differs.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

HERE = Path(__file__).resolve().parents[1]
SEEDS = "--trainer.accelerator cpu --trainer.devices 1 --seed_everything 1 --data.seed 1"
# Parts of the names of times and speeds, which differ from run to run.
TIMES = ("second", "time", "/s", "stall", "mfu", "elapsed", "version")
# Name -> command and the file whose numbers are compared.
STEPS = {
    "forecast": ("forecast table.csv --horizon 24 --output forecast.csv", "forecast.csv"),
    "forecast, encoder": (
        "forecast table.csv --horizon 700 --model tsfm-encoder-small --output encoder.csv",
        "encoder.csv",
    ),
    "forecast, AutoTheta": ("forecast table.csv --horizon 24 --model auto-theta --output theta.csv", "theta.csv"),
    "evaluate a table": (
        "evaluate --model tsfm-decoder-small --data table.csv --horizon 24 --json own.json",
        "own.json",
    ),
    "evaluate sets": (
        "evaluate --model tsfm-encoder-small --data national_illness us_births --json sets.json",
        "sets.json",
    ),
    "evaluate a suite": (
        "evaluate --model tsfm-decoder-small --suite bench --sets m4_hourly us_births --json suite.json",
        "suite.json",
    ),
    "train iTransformer": (
        "fit --config DEMO --data.source table.csv --data.context 96 --data.horizon 24 "
        f"{SEEDS} --trainer.max_epochs 2 --trainer.default_root_dir run",
        "run/logs/version_0/metrics.csv",
    ),
    "test iTransformer": ("evaluate --model run --data table.csv --horizon 24 --json run.json", "run.json"),
    "pretrain an encoder": (
        "fit --config ROOT/configs/pretrain/base.yaml --config ROOT/configs/pretrain/encoder.yaml "
        f"--config ROOT/configs/pretrain/debug.yaml {SEEDS} --trainer.max_steps 6 --trainer.default_root_dir encoder",
        "encoder/logs/version_0/metrics.csv",
    ),
    "pretrain the zero-shot decoder": (
        "fit --config ROOT/configs/pretrain/base.yaml --config ROOT/configs/pretrain/zeroshot_decoder.yaml "
        f"--config ROOT/configs/pretrain/cpu.yaml {SEEDS} --data.batch_size 8 --data.val_windows 32 "
        "--trainer.log_every_n_steps 2 --trainer.max_steps 6 --trainer.default_root_dir decoder",
        "decoder/logs/version_0/metrics.csv",
    ),
    "finetune": ("finetune table.csv --horizon 24 --steps 4 --output tuned", "tuned/result.json"),
    "scaling fit": ("scaling fit ledger.csv --draws 100 --output law", "law/fit.json"),
    "scaling counts": ("scaling counts --json counts.json", "counts.json"),
    "image predict": ("image predict images --output probabilities.csv", "probabilities.csv"),
}


def inputs() -> None:
    """Write three hourly series, a ledger that follows a scaling law, and a few images into the current folder."""
    rng = np.random.default_rng(0)
    hours = np.arange(900)
    waves = [10 * np.sin(2 * np.pi * (hours + shift) / 24) + 0.02 * hours for shift in (0, 5, 11)]
    table = pd.DataFrame(np.round(np.stack(waves, 1) + rng.normal(0, 1, (900, 3)), 3), columns=["a", "b", "c"])
    table.insert(0, "date", pd.date_range("2024-01-01", periods=900, freq="h"))
    table.iloc[100:110, 1] = np.nan
    table.to_csv("table.csv", index=False)
    rows = []
    for params in np.geomspace(1e5, 1e8, 6):
        for tokens in np.geomspace(1e7, 1e10, 6):
            loss = (1.2 + 40 / params**0.3 + 200 / tokens**0.35) * math.exp(rng.normal(0, 0.003))
            rows.append({"params": round(params), "tokens": round(tokens), "loss": loss})
    pd.DataFrame(rows).to_csv("ledger.csv", index=False)
    Path("images").mkdir()
    for name in "abcd":
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(f"images/{name}.png")


def numbers(path: Path) -> dict[str, float]:
    """Every number of a JSON or CSV file, by its place; times and speeds, which always differ, are left out."""
    if path.suffix == ".json":
        items = json_items(json.loads(path.read_text()), "")
    else:
        with path.open() as file:
            rows = list(csv.DictReader(file))
        items = ((f"{k}/{name}", value) for k, row in enumerate(rows) for name, value in row.items())
    out = {}
    for place, value in items:
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        if not any(word in place for word in TIMES):
            out[place] = number
    return out


def json_items(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON document, each with its place."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from json_items(inner, f"{place}/{key}")
    else:
        yield place, value


def run_all(root: Path) -> dict[str, dict[str, float]]:
    """Name -> numbers of every command, run in one checkout.

    Args:
        root: the checkout.
    """
    script = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]["tsfm"]
    module, function = script.split(":")
    start = [sys.executable, "-c", f"from {module} import {function}; {function}()"]
    paths = [str(root), str(root / "data"), str(root / "vision")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    demo = next((root / "tsfm").rglob("demo.yaml"))
    collected = {}
    for name, (command, file) in STEPS.items():
        words = command.replace("ROOT", str(root)).replace("DEMO", str(demo)).split()
        done = subprocess.run([*start, *words], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        collected[name] = numbers(Path(file))
        print(f"{name}: {len(collected[name])} numbers", flush=True)
    return collected


def compare(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> bool:
    """Print one line per command; return whether all numbers are equal to the last digit."""
    equal = True
    for name in sorted(before | after):
        old, new = before.get(name, {}), after.get(name, {})
        same = old.keys() & new.keys()
        differ = [
            place
            for place in same
            if old[place] != new[place] and not (math.isnan(old[place]) and math.isnan(new[place]))
        ]
        alone = old.keys() ^ new.keys()
        worst = max((abs(old[p] - new[p]) / max(abs(old[p]), 1e-12) for p in differ), default=0.0)
        text = f"{len(differ)} differ, by {worst:.1e} at most, such as {sorted(differ)[:2]}" if differ else "equal"
        text += f"; {len(alone)} on one side alone, such as {sorted(alone)[:2]}" if alone else ""
        print(f"{name}: {len(same)} numbers, {text}")
        equal &= not differ
    return equal


def main() -> int:
    """Run all commands, and compare with another file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=HERE, help="the checkout to run")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--compare", type=Path, help="a JSON file that this script wrote for another checkout")
    options = parser.parse_args()
    output, other = options.output.resolve(), options.compare.resolve() if options.compare else None
    root = options.root.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        inputs()
        collected = run_all(root)
        os.chdir(output.parent)
    output.write_text(json.dumps(collected, indent=1) + "\n")
    return 0 if other is None or compare(collected, json.loads(other.read_text())) else 1


if __name__ == "__main__":
    sys.exit(main())
