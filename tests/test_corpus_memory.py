"""The loader maps its corpus: a corpus of twenty times the size costs it no memory."""

from pathlib import Path

import pytest
from loader import LENGTH, memory, write_store


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not tell private memory")
def test_when_a_corpus_is_twenty_times_as_large_then_the_loader_takes_no_more_memory(tmp_path: Path) -> None:
    small, large = (memory(written(tmp_path / str(series), series), False, 20) for series in (16, 320))
    assert 320 * LENGTH * 4 / 2**20 > 24
    assert abs(large - small) < 4


def written(folder: Path, series: int) -> Path:
    write_store(folder, series)
    return folder
