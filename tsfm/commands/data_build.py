"""``tsfm data build``, ``verify`` and ``overlap``: pretraining corpora on disk."""

import sys
from pathlib import Path


def build(config: Path, *, output: Path) -> None:
    """Turn the sources that a YAML names into one memory-mapped corpus.

    Run again, it adds what is missing, makes anew what changed or was damaged, and keeps the rest.

    Args:
        config: YAML with the list of sources, such as configs/corpus/open.yaml.
        output: folder of the corpus; new, empty, or an earlier corpus.

    Raises:
        InputError: the YAML, a source or the folder is not as it should be; the corpus is then as before.
    """
    from tabulate import tabulate

    from tsfm_data.build import build as make

    built = make(config, output)
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
    from tsfm_data.store import Store

    store = Store(corpus, verify=True)
    print(f"{corpus}: {len(store)} sources, {store.points:,} points, every array as it was written")
