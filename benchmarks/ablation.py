"""Ablation of the zero-shot recipe: one choice is changed at a time, and the model trained again on the same budget.

Scores come from the training sets of the catalogue that are not in the open corpus because of their licences. So
neither the benchmark sets nor the training series influence the choice.

    python benchmarks/ablation.py
"""

import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from common import run, write
from jaxtyping import Float
from tabulate import tabulate

from tsfm_data.corpus import AugmentConfig
from tsfm_data.errors import InputError, unknown_name
from tsfm_data.evaluation import Predictor, get_baseline
from tsfm_data.io import atomic_file

METRICS = ("MASE", "WQL")
MOST_SERIES = 60  # per set, drawn once, so that no set takes most of the time
HORIZONS = {"Y": 6, "Q": 8, "B": 30}  # if the protocol has none; by the first letter of the frequency
CONFIG = "--model.forecaster.init_args.config."
RECIPE = "recipe"
CHOICES: Mapping[str, tuple[str, ...]] = {
    RECIPE: (),
    "linear patches": (f"{CONFIG}residual_mlp=false",),
    "robust scale": (f"{CONFIG}scale=robust",),
    "no arcsinh": (f"{CONFIG}arcsinh=false",),
    "no periods": (f"{CONFIG}periods=0",),
    "one period": (f"{CONFIG}periods=1",),
    "two periods": (f"{CONFIG}periods=2",),
    "no lags": (f"{CONFIG}lags=0",),
    "drift": (f"{CONFIG}drift=true",),
    "no copy": (f"{CONFIG}copy=false",),
    "naive unit": (f"{CONFIG}naive_unit=true",),
    "no naive unit": (f"{CONFIG}naive_unit=false",),
    "mirrored": (f"{CONFIG}flip_average=true",),
    "one horizon": (f"{CONFIG}random_horizon=false",),
    "span masking": (f"{CONFIG}span_masking=0.5",),
    "cosine": ("--model.optim.schedule=cosine",),
    "constant rate": ("--model.optim.schedule=constant",),
    "averaged": ("--config=pretrain/average",),
    "no augmentation": tuple(f"--data.augment.{field.name}=0" for field in fields(AugmentConfig)),
    "no synthetic": ("--data.synthetic=false",),
    "synthetic alone": ("--data.corpus=null",),
}

# What a row of the table means, for a reader who has not seen the config.
MEANINGS: Mapping[str, str] = {
    "linear patches": "one linear layer instead of a residual MLP at the input and at the output",
    "robust scale": "scaling by median and interquartile range instead of mean and standard deviation",
    "no arcsinh": "scaled values do not pass through arcsinh",
    "no periods": "no seasonal periods from the spectrum, and so no seasonal-naive features",
    "one period": "one seasonal period instead of two",
    "two periods": "two seasonal periods instead of one",
    "no lags": "no seasonal-naive features, that is values one or more periods earlier",
    "drift": "with features that continue the mean change of the history",
    "no drift": "without features that continue the mean change of the history",
    "no copy": "quantiles do not start from a learnt mixture of the naive and seasonal-naive features",
    "naive unit": "quantiles and loss in units of a naive forecast's error on the history",
    "no naive unit": "quantiles and loss not in units of a naive forecast's error on the history",
    "mirrored": "the forecast is averaged with the negated forecast of the negated history",
    "one horizon": "every training batch has the full horizon instead of a random one",
    "span masking": "in half of the batches, spans of the history are hidden and predicted as well",
    "cosine": "cosine learning-rate schedule instead of warm-up, constant rate and decay",
    "constant rate": "constant learning rate after warm-up",
    "averaged": "a moving average of the weights is scored",
    "no augmentation": "training series are not augmented",
    "no synthetic": "no synthetic series",
    "synthetic alone": "synthetic series only",
}

# A decoder's patches all have the same horizon and hide nothing; its recipe has one period and no naive unit already.
ENCODER_ALONE = ("one horizon", "span masking", "one period", "no naive unit")
DECODER_ALONE = ("two periods", "naive unit")


def choose(kind: str, names: Sequence[str]) -> list[str]:
    """The choices with these names; all that a model has if no name is given. The recipe itself is always among them.

    Raises:
        InputError: the model has no such choice.
    """
    known = [name for name in CHOICES if name not in (DECODER_ALONE if kind == "encoder" else ENCODER_ALONE)]
    for name in names:
        if name not in known:
            raise unknown_name("choice", name, known)
    return [name for name in known if not names or name in names or name == RECIPE]


@cache
def held_out_sets() -> tuple[tuple[str, Any], ...]:
    """Name and series of every training set outside the open corpus, at most ``MOST_SERIES`` per set."""
    from tsfm_data.io import catalog

    sets = []
    for name in catalog.names():
        spec = catalog.get(name)
        if spec.role != "train" or spec.licence_class == "open":
            continue
        series = catalog.load(name).univariate()
        if len(set(series.freqs)) == 1:
            chosen = np.random.default_rng(0).permutation(len(series))[:MOST_SERIES]
            sets.append((name, series.select(sorted(chosen.tolist()))))
    return tuple(sets)


def scores(predictor: Predictor) -> dict[str, dict[str, float]]:
    """MASE and WQL of every held-out set under GIFT-Eval's rules; sets that are too short are left out."""
    from tsfm_data.evaluation import evaluate_series, get_profile

    errors = {}
    for name, series in held_out_sets():
        horizon = HORIZONS.get(series.freqs[0][0])
        try:
            rows = evaluate_series(predictor, series, get_profile("gift"), name, horizon=horizon).rows
        except InputError:
            continue
        errors[name] = {row["metric"]: row["value"] for row in rows if row["metric"] in METRICS}
    return errors


def train_choice(kind: str, name: str, seed: int, corpus: str, steps: int, folder: Path) -> dict[str, Any]:
    """Train one choice with one seed by ``tsfm fit`` and score its model folder."""
    import torch

    from tsfm.commands.train import run as fit
    from tsfm.weights import load

    torch.set_num_threads(1)
    root = folder / f"{kind}-{name.replace(' ', '_')}-{seed}"
    configs = [f"--config=pretrain/{file}" for file in ("base", f"zeroshot_{kind}", "cpu")]
    budget = [f"--data.corpus={corpus}", f"--data.batches_per_epoch={steps}", "--trainer.max_epochs=1"]
    budget += [f"--model.optim.warmup_steps={steps // 10}", f"--seed_everything={seed}", f"--data.seed={seed}"]
    silent = [f"--trainer.default_root_dir={root}", "--overwrite", "--trainer.enable_progress_bar=false"]
    fit(["fit", *configs, *budget, *CHOICES[name], *silent, "--trainer.enable_model_summary=false"])
    return {"kind": kind, "choice": name, "seed": seed, "steps": steps, "scores": scores(load(root / "model"))}


def run_table(
    kind: str, choices: Sequence[str], seeds: int, corpus: Path, steps: int, folder: Path, jobs: int
) -> list[dict[str, Any]]:
    """Train and score choices; results that are already in the folder are used again.

    Args:
        kind: "encoder" or "decoder".
        choices: names; all if empty.
        seeds: trainings per choice.
        corpus: the open corpus.
        steps: training steps per run.
        folder: where runs and results are kept.
        jobs: trainings at the same time, one thread each.
    """
    wanted = [(name, seed) for seed in range(seeds) for name in choose(kind, choices)]

    def file_of(name: str, seed: int) -> Path:
        return folder / "results" / f"{kind}-{name.replace(' ', '_')}-{steps}-seed{seed}.json"

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the processes that are started now
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        todo = [choice for choice in wanted if not file_of(*choice).is_file()]
        futures = {pool.submit(train_choice, kind, *choice, str(corpus), steps, folder): choice for choice in todo}
        for done in as_completed(futures):
            if done.exception() is not None:
                pool.shutdown(cancel_futures=True)
            with atomic_file(file_of(*futures[done])) as file:
                file.write_text(json.dumps(done.result(), indent=1) + "\n")
            print(f"{futures[done][0]}, seed {futures[done][1]}: done", flush=True)
    return [json.loads(file_of(*choice).read_text()) for choice in wanted]


def compare(
    runs: Sequence[dict[str, Any]], naive: Mapping[str, Mapping[str, float]], draws: int = 10_000
) -> list[dict[str, Any]]:
    """Each choice relative to seasonal naive (geometric mean over sets and seeds) and to the recipe, with intervals.

    Args:
        runs: from ``run_table``.
        naive: seasonal naive's scores of the same sets.
        draws: bootstrap draws over the data sets, of the differences averaged over seeds.
    """
    rows = []
    for choice in dict.fromkeys(one["choice"] for one in runs):
        row: dict[str, Any] = {"choice": choice, "seeds": sum(one["choice"] == choice for one in runs)}
        for metric in METRICS:
            logs, base = (mean_logs(runs, name, metric, naive) for name in (choice, RECIPE))
            row[metric] = float(np.exp(logs.mean()))
            change = logs - base
            picks = np.random.default_rng(0).integers(len(change), size=(draws, len(change)))
            low, high = np.quantile(change[picks].mean(1), [0.025, 0.975])
            row |= {f"{metric}_change": float(np.expm1(change.mean()))}
            row |= {f"{metric}_low": float(np.expm1(low)), f"{metric}_high": float(np.expm1(high))}
        rows.append(row)
    return rows


def mean_logs(
    runs: Sequence[dict[str, Any]], choice: str, metric: str, naive: Mapping[str, Mapping[str, float]]
) -> Float[np.ndarray, " sets"]:
    """Logarithm of a choice's error relative to seasonal naive, one per set, averaged over seeds."""
    sets = [name for name in naive if naive[name].get(metric) and all(name in run["scores"] for run in runs)]
    ratios = [
        [run["scores"][name][metric] / naive[name][metric] for name in sets] for run in runs if run["choice"] == choice
    ]
    return np.log(ratios).mean(0)


def to_markdown(kind: str, rows: Sequence[dict[str, Any]], steps: int, command: str) -> str:
    """The page: what is measured, the command, the table, and what its rows mean."""

    def change(row: dict[str, Any], metric: str) -> str:
        low, mid, high = (100 * row[f"{metric}_{name}"] for name in ("low", "change", "high"))
        return "" if row["choice"] == RECIPE else f"{mid:+.1f} % ({low:+.1f} to {high:+.1f})"

    head = ["choice", "seeds", "MASE", "change", "WQL", "change"]
    table = [
        [r["choice"], r["seeds"], f"{r['MASE']:.3f}", change(r, "MASE"), f"{r['WQL']:.3f}", change(r, "WQL")]
        for r in rows
    ]
    text = [
        f"# Ablation of the {kind}'s recipe",
        "",
        f"The zero-shot {kind} is trained again for {steps:,} steps per row, with one choice of its recipe changed.",
        "MASE and WQL are relative to seasonal naive: geometric means over data sets outside the training corpus.",
        "`change` compares the row with the recipe, with a 95 % bootstrap interval over the data sets.",
        "A positive change means a larger error than that of the recipe.",
        "",
        f"    {command}",
        "",
        tabulate(table, head, tablefmt="github", disable_numparse=True),
        "",
        *(f"- {row['choice']}: {MEANINGS[row['choice']]}" for row in rows if row["choice"] in MEANINGS),
        "",
    ]
    return "\n".join(text)


def main(
    kind: str = "encoder",
    choices: list[str] | None = None,
    corpus: Path = Path("corpus/open"),
    steps: int = 300,
    seeds: int = 2,
    runs: Path = Path("runs/ablation"),
    output: Path = Path("benchmarks"),
    jobs: int = 2,
) -> None:
    """Change one choice of the zero-shot recipe at a time, train on the same budget, and score the result.

    Finished trainings are kept in the runs folder, so an interrupted table continues where it stopped.

    Args:
        kind: encoder or decoder.
        choices: rows of the table, for instance "no copy"; all by default.
        corpus: the corpus that the config corpus/open lists.
        steps: training steps per run.
        seeds: trainings per choice.
        runs: folder of the training runs and their results.
        output: folder for ablation_KIND.md and ablation_KIND.json.
        jobs: trainings at the same time, one thread each.
    """
    if kind not in ("encoder", "decoder"):
        raise InputError(f"expected encoder or decoder, found {kind!r}")
    trained = run_table(kind, choices or [], seeds, corpus, steps, runs, jobs)
    naive = get_baseline("seasonal-naive")
    assert naive is not None
    rows = compare(trained, scores(naive))
    chosen = "".join(f' "{name}"' for name in choices or ())
    command = f"python benchmarks/ablation.py --kind {kind} --steps {steps} --seeds {seeds}" + (
        f" --choices{chosen}" if chosen else ""
    )
    write(
        output, f"ablation_{kind}", rows, {"steps": steps, "command": command}, to_markdown(kind, rows, steps, command)
    )


if __name__ == "__main__":
    run(main)
