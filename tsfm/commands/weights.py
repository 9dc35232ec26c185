"""``tsfm weights``: lists, downloads, mirrors, verifies and converts models, and writes model cards."""

from pathlib import Path
from typing import Any, Literal

from tabulate import tabulate

from tsfm import weights
from tsfm.commands.data import write_json
from tsfm_data import io
from tsfm_data.errors import InputError, check_sizes
from tsfm_data.output import say


def list_(
    *,
    task: Literal["forecast", "image"] | None = None,
    wide: bool = False,
    json: Path | None = None,
    overwrite: bool = False,
) -> None:
    """List all named models: ours, which ship with the package, and published ones.

    Args:
        task: only forecast or only image models; by default both.
        wide: show family, size, SHA-256, scores and source, too.
        json: file to write the list to; "-" writes to standard output instead of the table.
        overwrite: replace an existing output.
    """
    io.check_new([json], overwrite)
    rows = [_row(entry) for entry in weights.registry.entries().values() if task in (None, entry.task)]
    here = sum(row["folder"] is not None for row in rows)
    summary = {"models": len(rows), "here": here, "restricted": sum(row["restricted"] for row in rows)}
    if json is not None:
        write_json(json, rows, summary)
        if str(json) == "-":
            return
    table = [_cells(row) for row in rows]
    if not wide:
        narrow = ("name", "parameters", "variates", "covariates", "licence", "here")
        table = [{name: cells[name] for name in narrow} for cells in table]
    say(tabulate(table, headers="keys", disable_numparse=True))
    say(
        f"\n{len(rows)} models, {here} here. variates: whether a model looks at one series at a time or at several.\n"
        "(!) the licence restricts use or is unknown: pull needs --accept-licence."
    )
    if wide:
        say("MASE, WQL and CRPS are relative to seasonal naive; top-1 is the share of images classified correctly.")
    else:
        say("--wide and --json show scores, sizes and sources, too.")


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """A row as the table shows it."""
    forecast = row["task"] == "forecast"
    return {
        "name": row["name"],
        "family": row["family"],
        "parameters": f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] else "",
        "variates": ("several" if row["several"] else "one") if forecast else "",
        "covariates": ("yes" if row["covariates"] else "no") if forecast else "",
        "licence": row["licence"] + (" (!)" if row["restricted"] else ""),
        "size": "" if row["size"] is None else f"{row['size'] / 1e6:.1f} MB",
        "SHA-256": (row["sha256"] or "")[:12],
        "scores": "; ".join(f"{s['value']:.4g} {s['metric'].split()[0]} {s['suite']}" for s in row["scores"]),
        "source": row["source"] or "",
        "here": {None: "", "shipped": "shipped"}.get(row["folder"] and row["source"], "pulled"),
    }


def _row(entry: Any) -> dict[str, Any]:
    folder = weights.local_folder(entry.name)
    size, sha256 = None, entry.sha256
    if folder is not None:
        file = folder / "model.safetensors"
        size = file.stat().st_size
        known = weights.read_checksums(folder / weights.CHECKSUMS)[1] if (folder / weights.CHECKSUMS).is_file() else {}
        sha256 = known[file.name][1] if known else weights.digest(file)
    return {
        "name": entry.name,
        "task": entry.task,
        "family": entry.family,
        "parameters": entry.parameters,
        "several": entry.several,
        "covariates": entry.covariates,
        "licence": entry.licence,
        "restricted": entry.restricted,
        "source": entry.source,
        "size": size,
        "sha256": sha256,
        "scores": list(entry.scores),
        "note": entry.note,
        "folder": None if folder is None else str(folder),
    }


def pull(name: str, *, revision: str | None = None, accept_licence: bool = False, mirror: str | None = None) -> None:
    """Download a model, verify it and convert it to a model folder, for --model NAME.

    The environment variables HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE apply; TSFM_CACHE sets another cache.

    Args:
        name: a name of tsfm weights list.
        revision: another branch, tag or commit of its repository.
        accept_licence: accept a licence that restricts use or is unknown.
        mirror: URL or path of a mirror (tsfm weights mirror) to download from; by default TSFM_MIRROR.
    """
    folder = weights.pull(name, revision=revision, accept_licence=accept_licence, mirror=mirror)
    say(f"{folder}: use it as --model {folder.name}")


def mirror(
    name: str, folder: Path, *, revision: str | None = None, accept_licence: bool = False, overwrite: bool = False
) -> None:
    """Copy a model to a folder for machines without network.

    Args:
        name: a name of tsfm weights list.
        folder: the mirror; the model is written to its subfolder NAME, which is a model folder.
        revision: another branch, tag or commit of its repository.
        accept_licence: accept a licence that restricts use or is unknown.
        overwrite: replace an existing output.
    """
    target = folder / weights.registry.pulled_folder(name, revision).name
    io.check_new([target], overwrite, sign="config.json")
    say(f"{weights.mirror(name, folder, revision=revision, accept_licence=accept_licence)}: written and verified")


def verify(folder: Path) -> None:
    """Check a model folder, or every model folder of a mirror: contents, checksums, and no other files.

    Args:
        folder: the folder.
    """
    for checked in weights.verify(folder):
        compared = (
            f"{checked.compared} files match their checksums" if checked.compared else "no checksums to compare with"
        )
        say(f"{checked.folder}: {checked.kind}, {checked.layout.values:,} parameters, {compared}")


def convert(
    foreign: Path,
    folder: Path,
    *,
    context: int | None = None,
    horizon: int | None = None,
    architecture: str | None = None,
    heads: int = 8,
    activation: Literal["gelu", "relu"] = "gelu",
    window_norm: bool = True,
    overwrite: bool = False,
) -> None:
    """Convert a published checkpoint to a model folder, without executing anything in it.

    Supported are Moirai 1.x and 2, Chronos-Bolt, the scaling-law encoder and decoder (.ckpt), iTransformer of the
    original code or of the Time-Series-Library (.pth); PoolFormer, TNT, iLLaMA and BiFormer of timm or of the original
    code.

    Args:
        foreign: a file of weights, or a folder with one and perhaps a config.json.
        folder: the model folder to write.
        context: time steps of history, if the checkpoint does not fix them.
        horizon: time steps of one forward pass, if the checkpoint does not fix them.
        architecture: name of an image model; by default the variant whose shapes fit.
        heads: number of attention heads of an iTransformer, which its checkpoint does not contain.
        activation: activation function of an iTransformer.
        window_norm: whether an iTransformer was trained with use_norm.
        overwrite: replace an existing output.
    """
    check_sizes(context=context, horizon=horizon, heads=heads)
    io.check_new([folder], overwrite, [foreign], sign="config.json")
    options = weights.Options(context, horizon, heads, activation, window_norm)
    with io.atomic_folder(folder) as temporary:
        converted = weights.convert(
            foreign, temporary, name=folder.resolve().name, architecture=architecture, options=options
        )
    say(f"{foreign}: {converted.family}, {converted.parameters:,} parameters, {converted.facts}\n{folder}: written")


def card(folder: Path, *, scores: Path | None = None, run: Path | None = None, check: bool = False) -> None:
    """Write the model card, README.md of a model folder, from its config.json, weights and scores.json.

    Args:
        folder: the model folder.
        scores: output of tsfm evaluate --suite bench --json, or for an image model of tsfm image evaluate --json; its
            summary, and the errors of the model on every set or class, are written to scores.json in the folder.
        run: for an image model, the folder of its training run, whose recipe is written to config.json.
        check: write nothing, and fail if the card differs.
    """
    if run is not None:
        weights.keep_recipe(run, folder)
    if scores is not None:
        io.check_new([folder / "scores.json"], True, [scores])
        weights.keep_scores(scores, folder)
    text, file = weights.card(folder), folder / "README.md"
    if check:
        current = file.read_text() if file.is_file() else ""
        if current != text:
            lines = zip(text.splitlines(), [*current.splitlines(), *[""] * len(text)], strict=False)
            number, (expected, actual) = next((i, pair) for i, pair in enumerate(lines, 1) if pair[0] != pair[1])
            raise InputError(
                f"expected {expected!r:.80} in line {number} of {file}, found {actual!r:.80}: tsfm weights card"
            )
        say(f"{file}: up to date")
        return
    with io.atomic_file(file) as temporary:
        temporary.write_text(text)
    say(f"{file}: written")
