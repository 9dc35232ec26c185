"""Damaged files that once ended in something else than a table or one clear line; a new file there is a new case."""

import shutil
from pathlib import Path

import fuzz_records
import fuzz_tables
import pytest
from conftest import shared_folder
from fuzzing import Limits, Target, ending_of

CASES = shared_folder("TSFM_CASES", "../shared/cases") / "fuzz"
TABLES = Target("tables", lambda folder: [], fuzz_tables.read)
RECORDS = {target.kind: target for target in fuzz_records.TARGETS}
KINDS = {"model": "model", "imodel": "image model", "convert": "conversion", "verify": "verify", "pt": "weights"}
KINDS |= {"store": "corpus", "corpus": "corpus yaml", "grid": "grid", "fit": "fit"}
# How the name of a case begins or ends -> its reader. Names that none of these takes belong to other tests.
READERS: dict[str, Target] = {
    **dict.fromkeys(("csv_*", "typed_*", "arrow_*", "parquet_*", "gz_*", "imgpq_*", "t.json"), TABLES),
    **dict.fromkeys(("*.csv", "*.parquet", "*.csv.gz"), TABLES),
    **{f"{name}_*": fuzz_records.in_seeds(RECORDS[kind]) for name, kind in KINDS.items()},
    "image_config_*": fuzz_records.in_seeds(RECORDS["image model"]),
    "yaml_alias_bomb.yaml": fuzz_records.in_seeds(RECORDS["corpus yaml"]),
}


def cases() -> list[tuple[Path, Target]]:
    """Every case with its reader."""
    found = sorted(CASES.iterdir()) if CASES.is_dir() else []
    readers = {path: next((t for pattern, t in READERS.items() if path.match(pattern)), None) for path in found}
    return [(path, reader) for path, reader in readers.items() if reader is not None]


@pytest.mark.parametrize(("case", "target"), cases(), ids=lambda value: getattr(value, "name", ""))
def test_a_case_gives_a_value_or_one_line(case: Path, target: Target, tmp_path: Path) -> None:
    place = tmp_path / case.name
    (shutil.copytree if case.is_dir() else shutil.copy)(case, place)
    ending, said = ending_of(target, place, tmp_path / "child", Limits(20, 1024))
    assert ending in ("read", "refused"), said
