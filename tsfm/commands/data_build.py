"""``tsfm data build``, ``verify`` and ``overlap``: pretraining corpora on disk."""

import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from tsfm.commands.data import write_json
from tsfm.configs import config_path
from tsfm_data import corpus as corpora
from tsfm_data import io
from tsfm_data.errors import unknown_name


def build(config: Path, *, output: Path) -> None:
    """Turn the sources that a YAML names into one memory-mapped corpus.

    Run again, it adds what is missing, makes anew what changed or was damaged, and keeps the rest.

    Args:
        config: YAML with the list of sources, or the name of a config, such as corpus/open.
        output: folder of the corpus; new, empty, or an earlier corpus.

    Raises:
        InputError: the YAML, a source or the folder is not as it should be; the corpus is then as before.
    """
    built = corpora.build(config_path(config), output)
    rows = [
        [
            entry["name"],
            "made" if entry["name"] in built.made else "kept",
            entry["series"],
            entry["points"],
            sum(entry["dropped"].values()),
            ", ".join(frequency["freq"] for frequency in entry["frequencies"])[:24],
            entry["licence_class"],
            f"{entry['weight']:.2%}",
        ]
        for entry in built.manifest["sources"]
    ]
    columns = ("source", "", "series", "points", "dropped", "frequency", "licence", "weight")
    print(tabulate(rows, columns, intfmt=",", disable_numparse=[0, 1, 5, 6, 7], colalign=("left",) * 2))
    print(
        f"{output}: {len(rows)} sources ({len(built.made)} made, {len(built.kept)} kept), "
        f"{built.manifest['series']:,} series, {built.manifest['points']:,} points"
    )
    closed = [entry["name"] for entry in built.manifest["sources"] if entry["licence_class"] != "open"]
    if closed:
        print(f"not open, so not for released weights: {len(closed)} sources, such as {closed[0]}", file=sys.stderr)


def verify(corpus: Path) -> None:
    """Compare every array of a corpus with its digest.

    Args:
        corpus: folder of the corpus.

    Raises:
        InputError: a file is missing, cut off or altered; it is named.
    """
    store = corpora.Store(corpus, verify=True)
    print(f"{corpus}: {len(store)} sources, {store.points:,} points, every array as it was written")


def overlap(
    corpus: Path,
    suite: str = "bench",
    data: list[str] | None = None,
    json: Path | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Say which evaluation series a corpus has seen: by name, file and groups of the catalogue, and by content.

    Args:
        corpus: folder of the corpus, or the manifest.json that lies with a model (with overlap.npz beside it).
        suite: the evaluation sets: "bench" is every set of the catalogue that is for evaluation.
        data: data sets or tables to look at in place of a suite.
        json: file to write the findings to; "-" writes to standard output in place of the table.
        overwrite: replace an output that is there.

    Raises:
        InputError: no corpus, an unknown suite or data set.
    """
    if suite != "bench":
        raise unknown_name("suite", suite, ("bench",))
    io.check_new([json], overwrite, [corpus, *(data or ())])
    found = corpora.check_overlap(corpus, data or io.catalog.names("bench"))
    rows: list[dict[str, Any]] = [
        {
            "dataset": one.name,
            "series": one.series,
            "checked": one.checked,
            "seen": len(one.seen),
            "seen_in": sorted({source for sources in one.seen.values() for source in sources}),
            "seen_series": sorted(one.seen),
            "same": list(one.same),
            "related": list(one.related),
        }
        for one in found
    ]
    touched = sum(not one.clean for one in found)
    summary = {"datasets": len(rows), "touched": touched, "seen_series": sum(len(one.seen) for one in found)}
    if json is not None:
        write_json(json, rows, summary)
    if json is None or str(json) != "-":
        table = [
            [
                row["dataset"],
                row["series"],
                "not at hand" if row["checked"] is None else f"{row['checked']:,}",
                row["seen"],
                _names(row["seen_series"]),
                _names(row["seen_in"]),
                _names([*row["same"], *row["related"]]),
            ]
            for row in rows
        ]
        columns = ("data set", "series", "checked", "seen", "series seen", "in source", "same or related source")
        print(
            tabulate(table, columns, intfmt=",", disable_numparse=[0, 2, 4, 5, 6], colalign=("left", "right", "right"))
        )
        print(f"{touched} of {len(rows)} sets touched, {summary['seen_series']:,} series seen")


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
