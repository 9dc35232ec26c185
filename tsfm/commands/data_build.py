"""``tsfm data build``, ``verify`` and ``overlap``: builds and checks pretraining corpora."""

import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from tsfm.commands.data import write_json
from tsfm.configs import config_path
from tsfm_data import corpus as corpora
from tsfm_data import io
from tsfm_data.errors import unknown_name
from tsfm_data.output import say


def build(config: Path, *, output: Path) -> None:
    """Build a memory-mapped corpus from the sources in a YAML file.

    If the corpus exists, missing, changed and damaged sources are built, and the others are kept.

    Args:
        config: YAML file with the list of sources, or the name of a config, such as corpus/open.
        output: folder of the corpus: new, empty, or an existing corpus.

    Raises:
        InputError: a mistake in the YAML, a source or the folder; the corpus is then unchanged.
    """
    result = corpora.build(config_path(config), output)
    rows = [
        [
            entry["name"],
            "built" if entry["name"] in result.built else "reused",
            entry["series"],
            entry["points"],
            sum(entry["dropped"].values()),
            ", ".join(frequency["freq"] for frequency in entry["frequencies"])[:24],
            entry["licence_class"],
            f"{entry['weight']:.2%}",
        ]
        for entry in result.manifest["sources"]
    ]
    columns = ("source", "", "series", "points", "dropped", "frequency", "licence", "weight")
    say(tabulate(rows, columns, intfmt=",", disable_numparse=[0, 1, 5, 6, 7], colalign=("left",) * 2))
    say(
        f"{output}: {len(rows)} sources ({len(result.built)} built, {len(result.reused)} reused), "
        f"{result.manifest['series']:,} series, {result.manifest['points']:,} points"
    )
    closed = [entry["name"] for entry in result.manifest["sources"] if entry["licence_class"] != "open"]
    if closed:
        say(
            f"{len(closed)} sources, such as {closed[0]}, have no open licence: do not release weights trained on them",
            file=sys.stderr,
        )


def verify(corpus: Path) -> None:
    """Compare every array of a corpus with its SHA-256.

    Args:
        corpus: folder of the corpus.

    Raises:
        InputError: a file is missing, truncated or changed.
    """
    store = corpora.Store(corpus, verify=True)
    say(f"{corpus}: {len(store)} sources, {store.points:,} points, all checksums correct")


def overlap(
    corpus: Path,
    suite: str = "bench",
    data: list[str] | None = None,
    json: Path | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Show which evaluation series a corpus contains, by content, and by name, file and group in the catalogue.

    Args:
        corpus: folder of the corpus, or the manifest.json of a model (with overlap.npz in the same folder).
        suite: evaluation sets to check: "bench" is all evaluation sets of the catalogue.
        data: data sets or tables to check instead of a suite.
        json: file to write the results to; "-" writes to standard output instead of the table.
        overwrite: replace an existing output.

    Raises:
        InputError: no corpus, an unknown suite or data set.
    """
    if suite != "bench":
        raise unknown_name("suite", suite, ("bench",))
    io.check_new([json], overwrite, [corpus, *(data or ())])
    results = corpora.check_overlap(corpus, data or io.catalog.names("bench"))
    rows: list[dict[str, Any]] = [
        {
            "dataset": result.name,
            "series": result.series,
            "checked": result.checked,
            "seen": len(result.seen),
            "seen_in": sorted({source for sources in result.seen.values() for source in sources}),
            "seen_series": sorted(result.seen),
            "same": list(result.same),
            "related": list(result.related),
        }
        for result in results
    ]
    touched = sum(not result.clean for result in results)
    summary = {"datasets": len(rows), "touched": touched, "seen_series": sum(len(result.seen) for result in results)}
    if json is not None:
        write_json(json, rows, summary)
    if json is None or str(json) != "-":
        table = [
            [
                row["dataset"],
                row["series"],
                "no data" if row["checked"] is None else f"{row['checked']:,}",
                row["seen"],
                _names(row["seen_series"]),
                _names(row["seen_in"]),
                _names([*row["same"], *row["related"]]),
            ]
            for row in rows
        ]
        columns = ("data set", "series", "checked", "seen", "series seen", "in source", "same or related source")
        say(tabulate(table, columns, intfmt=",", disable_numparse=[0, 2, 4, 5, 6], colalign=("left", "right", "right")))
        say(f"{touched} of {len(rows)} sets overlap, {summary['seen_series']:,} series are in the corpus")


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
