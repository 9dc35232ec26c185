"""``tsfm bench cold-start``: time and memory of a first forecast."""

from pathlib import Path


def cold_start(output: Path = Path("benchmarks"), repeats: int = 5, threads: int = 2) -> None:
    """Time tsfm forecast with the shipped model from the start of the process to the file written; its peak memory.

    Args:
        output: folder for cold_start.md and cold_start.json.
        repeats: counted processes, one after the other.
        threads: of each.
    """
    from tsfm.bench.cold_start import run, summarise, to_markdown
    from tsfm.commands.bench import write

    rows = run(repeats, threads)
    command = "tsfm bench cold-start" + (f" --repeats {repeats}" if repeats != 5 else "")
    command += f" --threads {threads}" if threads != 2 else ""
    write(output, "cold_start", rows, summarise(rows) | {"command": command}, to_markdown(rows, threads, command))
