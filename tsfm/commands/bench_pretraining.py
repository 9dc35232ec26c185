"""``tsfm bench pretraining``: training steps of the packed encoder beside plain PyTorch with padding."""

from pathlib import Path


def pretraining(
    corpus: Path,
    sizes: list[str] | None = None,
    threads: list[int] | None = None,
    output: Path = Path("benchmarks"),
    series: int = 48,
    repeats: int = 5,
) -> None:
    """Time training steps of the packed encoder beside the same architecture in plain PyTorch with padding.

    Args:
        corpus: folder that ``tsfm data build`` wrote.
        sizes: of the encoder; by default 1M and 3M.
        threads: numbers of CPU threads; by default 1 and 2.
        output: folder for pretraining.md and pretraining.json.
        series: crops in a batch.
        repeats: timings of each side, in turn; the median of the ratios counts.
    """
    from tsfm.bench.pretraining import run_table, to_markdown
    from tsfm.commands.bench import write
    from tsfm.models.scaling_law.trunk import SIZES
    from tsfm_data.errors import unknown_name

    for name in sizes or []:
        if name not in SIZES:
            raise unknown_name("size", name, SIZES)
    rows = run_table(str(corpus), sizes or ["1M", "3M"], threads or [1, 2], series, repeats)
    command = f"tsfm bench pretraining CORPUS --series {series} --repeats {repeats}"
    least = min(row["plain_over_ours"] for row in rows)
    write(output, "pretraining", rows, {"least_ratio": least, "command": command}, to_markdown(rows, command))
