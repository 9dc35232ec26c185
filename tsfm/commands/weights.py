"""``tsfm weights``: the models that have names, fetching, mirroring, checking and converting them, and their cards."""

from pathlib import Path
from typing import Any, Literal

from tabulate import tabulate

from tsfm import weights
from tsfm.commands.data import write_json
from tsfm_data import io
from tsfm_data.errors import InputError, check_sizes


def list_(
    *, task: Literal["forecast", "image"] | None = None, json: Path | None = None, overwrite: bool = False
) -> None:
    """List the models that have a name: ours, which ship with the package, and published ones.

    Args:
        task: forecast or image alone; both by default.
        json: file to write the list to; "-" writes to standard output in place of the table.
        overwrite: replace an output that is there.
    """
    io.check_new([json], overwrite)
    rows = [_row(entry) for entry in weights.registry.entries().values() if task in (None, entry.task)]
    here = sum(row["folder"] is not None for row in rows)
    summary = {"models": len(rows), "here": here, "restricted": sum(row["restricted"] for row in rows)}
    if json is not None:
        write_json(json, rows, summary)
        if str(json) == "-":
            return
    table = [
        [
            row["name"],
            row["family"],
            f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] else "",
            row["licence"] + (" (!)" if row["restricted"] else ""),
            "" if row["size"] is None else f"{row['size'] / 1e6:.1f} MB",
            (row["sha256"] or "")[:12],
            "; ".join(f"{score['value']:.4g} {score['metric'].split()[0]} {score['suite']}" for score in row["scores"]),
            row["source"] or "",
            {None: "", "shipped": "shipped"}.get(row["folder"] and row["source"], "pulled"),
        ]
        for row in rows
    ]
    headers = ["name", "family", "parameters", "licence", "size", "SHA-256", "scores", "source", "here"]
    print(tabulate(table, headers=headers, disable_numparse=True))
    print(
        f"\n{len(rows)} models, {here} here. (!) restricts use or is not known: pull asks for --accept-licence. "
        "MASE, WQL and CRPS are relative to seasonal naive; top-1 is the share of test images classified rightly."
    )


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
    """Fetch the weights of a model, verified, and make them a model folder that --model NAME finds.

    HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE work as everywhere; TSFM_CACHE names another cache.

    Args:
        name: see tsfm weights list.
        revision: another branch, tag or commit of its repository.
        accept_licence: say that you accept a licence that restricts use, or is not known.
        mirror: URL or path of a mirror (see tsfm weights mirror) to ask instead; by default TSFM_MIRROR.
    """
    folder = weights.pull(name, revision=revision, accept_licence=accept_licence, mirror=mirror)
    print(f"{folder}: --model {folder.name} finds it")


def mirror(
    name: str, folder: Path, *, revision: str | None = None, accept_licence: bool = False, overwrite: bool = False
) -> None:
    """Write a model into a folder for machines without network.

    Args:
        name: see tsfm weights list.
        folder: the mirror; the model becomes its folder NAME, which --model takes as it is.
        revision: another branch, tag or commit of its repository.
        accept_licence: say that you accept a licence that restricts use, or is not known.
        overwrite: replace an output that is there.
    """
    target = folder / weights.registry.pulled_folder(name, revision).name
    io.check_new([target], overwrite, sign="config.json")
    print(f"{weights.mirror(name, folder, revision=revision, accept_licence=accept_licence)}: written and verified")


def verify(folder: Path) -> None:
    """Check a model folder, or every model of a mirror: contents, checksums, and nothing else beside them.

    Args:
        folder: the folder.
    """
    for found in weights.verify(folder):
        compared = (
            f"{found.compared} files as their checksums say" if found.compared else "no checksums to compare with"
        )
        print(f"{found.folder}: {found.kind}, {found.layout.values:,} numbers, {compared}")


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
    """Make a model folder of a published checkpoint, without running anything in it.

    Moirai 1.x and 2, Chronos-Bolt, the scaling-law encoder and decoder (.ckpt), iTransformer of the original code or
    of the Time-Series-Library (.pth); PoolFormer, TNT, iLLaMA and BiFormer of timm or of the original code.

    Args:
        foreign: a file of weights, or a folder with one and perhaps a config.json.
        folder: where the model folder is written.
        context: steps of history to use, where the checkpoint leaves it open.
        horizon: steps of one pass, where the checkpoint leaves it open.
        architecture: name of an image model; by default the variant whose shapes fit.
        heads: attention heads of an iTransformer, which leave no trace in its checkpoint.
        activation: of an iTransformer.
        window_norm: whether an iTransformer was trained with use_norm.
        overwrite: replace an output that is there.
    """
    check_sizes(context=context, horizon=horizon, heads=heads)
    io.check_new([folder], overwrite, [foreign], sign="config.json")
    options = weights.Options(context, horizon, heads, activation, window_norm)
    found = weights.convert(foreign, folder, architecture=architecture, options=options)
    print(f"{foreign}: {found.family}, {found.parameters:,} numbers, {found.facts}\n{folder}: written")


def card(folder: Path, *, scores: Path | None = None, run: Path | None = None, check: bool = False) -> None:
    """Write README.md of a model of ours from what is recorded of it: config.json, weights and scores.json.

    Args:
        folder: the model folder.
        scores: what tsfm evaluate --suite bench --json wrote, or for an image model tsfm image evaluate --json; its
            summary, and the model's own errors on every set or class, become scores.json in the folder.
        run: of an image model, the folder of the training run, whose recipe is kept in the folder's config.json.
        check: write nothing; fail where the card says something else.
    """
    if run is not None:
        weights.keep_recipe(run, folder)
    if scores is not None:
        weights.keep_scores(scores, folder)
    text, file = weights.card(folder), folder / "README.md"
    if check:
        found = file.read_text() if file.is_file() else ""
        if found != text:
            lines = zip(text.splitlines(), [*found.splitlines(), *[""] * len(text)], strict=False)
            number, (ours, theirs) = next((i, pair) for i, pair in enumerate(lines, 1) if pair[0] != pair[1])
            raise InputError(
                f"expected {ours!r:.80} in line {number} of {file}, found {theirs!r:.80}: tsfm weights card"
            )
        print(f"{file}: as recorded")
        return
    with io.atomic_file(file) as temporary:
        temporary.write_text(text)
    print(f"{file}: written")
