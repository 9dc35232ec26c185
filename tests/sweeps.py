"""Grids of a sweep whose runs are those of a script that stands for ``tsfm fit``."""

import sys
from pathlib import Path

import yaml

# Stands for ``tsfm fit``: a checkpoint with the steps that were trained, and losses that follow a law.
FIT = """
import json, pathlib, sys, time, yaml
words = sys.argv[1:]
config = yaml.safe_load(open(words[words.index("--config") + 1]))
start = json.load(open(words[words.index("--ckpt_path") + 1]))["steps"] if "--ckpt_path" in words else 0
trainer, root = config["trainer"], pathlib.Path(config["trainer"]["default_root_dir"])
model = config["model"]["init_args"]
unit, end = trainer["limit_train_batches"], trainer["max_epochs"] * trainer["limit_train_batches"]
with open(root.parents[2] / "calls.txt", "a") as calls:
    calls.write(f"{root.parent.name}/{root.name} {start} {end} {model['optim']['schedule']}\\n")
for name in ("logs/version_0", "checkpoints"):
    (root / name).mkdir(parents=True, exist_ok=True)
if (root.parents[2] / "broken").exists() and "1K" in root.parent.name:
    sys.exit("out of memory")
for steps in range(start + unit, end + 1, unit):
    time.sleep(SLEEP)
    (root / "checkpoints/last.ckpt").write_text(json.dumps({"steps": steps}))
width, lr = model["forecaster"]["init_args"]["config"]["d_model"], model["optim"]["lr"]
if trainer.get("limit_val_batches") != 0:
    loss = 1 + width**-0.5 + end**-0.5 + 100 * abs(lr - 1e-3)
    loss = float("nan") if (root.parents[2] / "diverges").exists() and "10K" in root.parent.name else loss
    (root / "logs/version_0/metrics.csv").write_text(f"step,val_in_loss,val_out_loss\\n{end},{loss},{loss + 1}\\n")
"""


def write_grid(folder: Path, sleep: float = 0.0, **changes: object) -> Path:
    """A grid of four small sizes with two budgets, whose runs are those of the script."""
    (folder / "fit.py").write_text(FIT.replace("SLEEP", str(sleep)))
    data = {"class_path": "Data", "init_args": {"context": 64, "horizon": 32, "batch_size": 4}}
    grid: dict[str, object] = {
        "arch": ["encoder"],
        "size": ["1K", "10K"],
        "lr": [1e-3],
        "steps": [10, 40],
        "seed": [0, 1],
        "fit": {"data": data},
        "command": [sys.executable, str(folder / "fit.py")],
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump({**grid, **changes}))
    return folder / "grid.yaml"
