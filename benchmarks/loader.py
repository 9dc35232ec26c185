"""Speed and memory of the corpus loader alone, reading a memory-mapped corpus.

Run it by ``python benchmarks/loader.py``.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import run, write
from tabulate import tabulate

CONTEXT, HORIZON, WINDOWS = 512, 64, 512
PATCH, TOKENS, CROPS = 32, 512, 256
LENGTH = 20_000
THREADS = 2
SMALL, LARGE = 100, 2000  # series of the corpora; memory is measured on both
MIB = 1 << 20


def write_store(folder: Path, series: int, sources: int = 8) -> None:
    """Write a corpus of random walks of ``LENGTH`` steps, block by block."""
    from tsfm_data.corpus import ARRAYS, FORMAT, MANIFEST, SOURCES

    rng = np.random.default_rng(0)
    entries: list[dict[str, Any]] = []
    for number in range(sources):
        place, count = folder / SOURCES / f"walks{number}", series // sources
        place.mkdir(parents=True)
        values = np.lib.format.open_memmap(place / "values.npy", "w+", ARRAYS["values"], (count * LENGTH,))
        for begin in range(0, count, 64):
            walks = rng.standard_normal((min(64, count - begin), LENGTH), dtype=np.float32).cumsum(axis=1)
            values[begin * LENGTH : begin * LENGTH + walks.size] = walks.reshape(-1)
        del values
        rest = {"offsets": np.arange(count + 1) * LENGTH, "items": np.arange(count), "freqs": np.zeros(count)}
        for name, array in {**rest, "overlap": np.zeros(0)}.items():
            np.save(place / f"{name}.npy", array.astype(ARRAYS[name]))
        arrays = {path.name: {"bytes": path.stat().st_size, "sha256": ""} for path in place.glob("*.npy")}
        entry = {"name": place.name, "weight": 1 / sources, "licence": "CC0-1.0", "licence_class": "open"}
        entry |= {
            "series": count,
            "items": count,
            "points": count * LENGTH,
            "missing": 0,
            "dropped": {},
            "arrays": arrays,
        }
        entry |= {"origin": "random walks", "files": [], "groups": [], "share": None}
        entries.append({**entry, "frequencies": [{"freq": "h", "season": 24, "series": count}]})
    totals = {name: sum(entry[name] for entry in entries) for name in ("series", "points")}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, **totals, "sources": entries}))


def make_loader(folder: Path, packed: bool, batches: int, prefetch: int = THREADS) -> Any:
    """Plain windows, or augmented and packed rows, of the corpus in ``folder``."""
    from tsfm_data.corpus import AugmentConfig, CorpusLoader, PackedLoader, Store

    store = Store(folder)
    if not packed:
        return CorpusLoader(
            store, context=CONTEXT, horizon=HORIZON, batch_size=WINDOWS, batches=batches, prefetch=prefetch
        )
    config = AugmentConfig(0.1, 0.3, 0.1, 0.1, 0.2, 0.05, 0.05, 0.05, 0.05, 0.05)
    return PackedLoader(
        store,
        patch_size=PATCH,
        tokens=TOKENS,
        batch_size=CROPS,
        batches=batches,
        augment=config,
        prefetch=prefetch,
    )


def observations(batch: Any) -> int:
    """Observed values of a batch."""
    if hasattr(batch, "past"):
        return int(batch.past_observed.sum() + batch.future_observed.sum())
    return int(batch.observed.sum())


def rates(loader: Any) -> tuple[float, float]:
    """Observations per second of wall time and of CPU time of all threads, without the time to count them."""
    batches = iter(loader)
    next(batches)
    began, cpu, total = time.perf_counter(), time.process_time(), 0
    counting = np.zeros(2)
    for batch in batches:
        paused = np.array([time.perf_counter(), time.thread_time()])
        total += observations(batch)
        counting += np.array([time.perf_counter(), time.thread_time()]) - paused
    spent = np.array([time.perf_counter() - began, time.process_time() - cpu]) - counting
    return float(total / spent[0]), float(total / spent[1])


def copying(seconds: float = 1.0) -> tuple[float, float]:
    """The same for a plain loop that copies blocks of one batch's size, on one thread."""
    source = np.ones((64, WINDOWS, CONTEXT + HORIZON), dtype=np.float32)
    target, blocks = np.empty_like(source[0]), 0
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        np.copyto(target, source[blocks % len(source)])
        blocks += 1
    points = blocks * target.size
    return points / (time.perf_counter() - began), points / (time.process_time() - cpu)


def private_memory() -> int:
    """Bytes of anonymous memory of this process: pages of the mapped corpus in the page cache are not counted."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no line 'Anonymous' in /proc/self/smaps_rollup")


def memory(folder: Path, packed: bool, batches: int) -> float:
    """MiB of private memory of a fresh process after this number of batches."""
    code = (
        "import sys, torch, loader; from pathlib import Path; torch.set_num_threads(1); "
        f"[None for _ in loader.make_loader(Path(sys.argv[1]), {packed}, {batches}, prefetch=0)]; "
        "print(loader.private_memory())"
    )
    paths = ":".join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, env=environment
    )
    return int(done.stdout) / MIB


def measure(repeats: int = 5, batches: int = 100, folder: Path | None = None) -> list[dict[str, Any]]:
    """Time both loaders on the larger corpus, in turn with the copying loop, and measure memory on both corpora.

    Args:
        repeats: timings per loader; the median counts.
        batches: batches per timing.
        folder: place for the corpora, about 170 MB; a temporary one by default.

    Returns:
        One row for plain windows and one for augmented and packed rows.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the loader's own threads work side by side
    try:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            stores = [Path(place) / name for name in ("small", "large")]
            for store, series in zip(stores, (SMALL, LARGE), strict=True):
                write_store(store, series)
            return [_row(stores, packed, repeats, batches // 10 if packed else batches) for packed in (False, True)]
    finally:
        torch.set_num_threads(threads)


def _row(stores: list[Path], packed: bool, repeats: int, batches: int) -> dict[str, Any]:
    timings, copied = [], []
    for _ in range(repeats):  # in turn, so that other work on the machine affects both
        timings.append(rates(make_loader(stores[1], packed, batches + 1)))
        copied.append(copying())
    clock, cpu = (statistics.median(x) for x in zip(*timings, strict=True))
    small, large = (memory(store, packed, 2 * batches) for store in stores)
    return {
        "loader": "augmented and packed" if packed else "plain windows",
        "million_per_s": round(clock / 1e6, 1),
        "million_per_cpu_s": round(cpu / 1e6, 1),
        "copy_million_per_cpu_s": round(statistics.median(x[1] for x in copied) / 1e6),
        "of_copying": round(statistics.median(a[1] / b[1] for a, b in zip(timings, copied, strict=True)), 3),
        "memory_mib": round(small, 1),
        "memory_mib_20x_corpus": round(large, 1),
    }


def main(output: Path = Path("benchmarks"), repeats: int = 5, batches: int = 100) -> None:
    """Measure speed and memory of the corpus loader, and compare its speed with a plain copying loop.

    Args:
        output: folder for loader.md and loader.json.
        repeats: timings per loader; the median counts.
        batches: batches per timing.
    """
    rows = measure(repeats, batches)
    command = f"python benchmarks/loader.py --repeats {repeats} --batches {batches}"
    text = "\n".join(
        [
            "# The corpus loader",
            "",
            "Speed and memory of the loader that pretraining uses. It reads a memory-mapped corpus of 40 million",
            f"points in 8 sources, with {THREADS} threads, and gives tensors.",
            "",
            f"- plain windows: {WINDOWS} per batch, context {CONTEXT}, horizon {HORIZON}; a quarter of them are",
            "  cropped.",
            f"- augmented and packed: {CROPS} crops per batch in rows of {TOKENS} tokens of {PATCH} steps. Each",
            "  augmentation is applied to 5 to 30 % of the crops.",
            "- `million_per_s`, `million_per_cpu_s`: million observed values per second of wall time (other work ran",
            "  at the same time) and of CPU time of all threads.",
            "- `copy_million_per_cpu_s`: values that `numpy.copyto` copies; `of_copying` is the loader's share of that",
            "  speed.",
            "- `memory_mib`, `memory_mib_20x_corpus`: private memory without prefetching, on a corpus of 2 and of 40",
            "  million points. The page cache is not counted.",
            "",
            f"    {command}",
            "",
            tabulate(rows, headers="keys", tablefmt="github"),
            "",
        ]
    )
    write(output, "loader", rows, {"rows": len(rows), "command": command}, text)


if __name__ == "__main__":
    run(main)
