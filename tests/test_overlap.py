"""The overlap check: planted copies are found whatever was done to their units and borders, strangers are not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from command import done, run

from tsfm_data.corpus.building import build
from tsfm_data.corpus.overlap import BLOCK, MAX_FINGERPRINTS, block_hashes, check_overlap, fingerprints, subsample
from tsfm_data.errors import InputError
from tsfm_data.io import catalog

DATE = pd.date_range("2020-01-01", periods=2000, freq="D")


def walks(seed: int, rows: int, count: int) -> np.ndarray:
    """[rows, count] values with one decimal, as published series are."""
    rng = np.random.default_rng(seed)
    return (100 + rng.normal(size=(rows, count)).cumsum(0)).round(1)


def write(path: Path, values: np.ndarray, names: list[str] | None = None) -> Path:
    columns = names or [f"v{k}" for k in range(values.shape[1])]
    frame = pd.DataFrame(values, columns=columns)
    frame.insert(0, "date", DATE[: len(frame)])
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus of two sources of walks: "long" of 1500 steps, "short" of 60."""
    write(tmp_path / "long.csv", walks(1, 1500, 4))
    write(tmp_path / "short.csv", walks(2, 60, 4))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"sources": [{"path": "long.csv"}, {"path": "short.csv"}]}))
    build(tmp_path / "c.yaml", tmp_path / "corpus", progress=False)
    return tmp_path / "corpus"


@pytest.mark.parametrize(
    ("scale", "offset", "first", "last"),
    [(1, 0, 0, 1500), (1, 0, 701, 764), (1000, -5e4, 333, 600), (1 / 7, 1e3, 11, 1489), (1.8, 32, 1400, 1500)],
)
def test_when_a_series_was_trained_on_then_it_is_found_scaled_moved_and_cut(
    tmp_path: Path, corpus: Path, scale: float, offset: float, first: int, last: int
) -> None:
    planted = scale * walks(1, 1500, 4)[first:last, 2] + offset
    other = walks(9, last - first, 1)[:, 0]
    file = write(tmp_path / "test.csv", np.stack([other, planted], axis=1), ["stranger", "planted"])
    (found,) = check_overlap(corpus, [str(file)])
    assert dict(found.seen) == {"planted": ("long",)}
    assert (found.series, found.checked, found.clean) == (2, 2, False)


def test_when_a_short_series_was_trained_on_then_24_steps_of_it_are_found(tmp_path: Path, corpus: Path) -> None:
    part = np.concatenate([walks(8, 50, 1)[:, 0], 3 * walks(2, 60, 4)[19:43, 1]])
    (found,) = check_overlap(corpus, [str(write(tmp_path / "test.csv", part[:, None]))])
    assert list(found.seen.values()) == [("short",)]


def test_when_a_copy_was_rounded_then_it_is_still_found(tmp_path: Path, corpus: Path) -> None:
    rough = (walks(1, 1500, 4)[:, :1] * 2.54).round(1)
    (found,) = check_overlap(corpus, [str(write(tmp_path / "test.csv", rough))])
    assert found.seen


def test_when_single_precision_rounds_a_series_then_a_copy_in_other_units_is_still_found(tmp_path: Path) -> None:
    exact = 3e6 + np.random.default_rng(4).normal(size=(500, 1)).cumsum(0) + np.linspace(0, 5e3, 500)[:, None]
    (tmp_path / "c.yaml").write_text("sources: [{path: large.csv}]")
    write(tmp_path / "large.csv", exact)
    build(tmp_path / "c.yaml", tmp_path / "corpus", progress=False)
    (found,) = check_overlap(tmp_path / "corpus", [str(write(tmp_path / "test.csv", exact * 0.4536))])
    assert found.seen


def test_when_series_are_strangers_then_none_is_found(tmp_path: Path, corpus: Path) -> None:
    waves = 10 * np.sin(2 * np.pi * np.arange(1000)[:, None] / np.array([24, 48, 91.3, 365.25])) + walks(5, 1000, 4) / 2
    counts = np.random.default_rng(0).poisson(0.3, (1000, 4)).astype(float)
    line = np.arange(1000.0)[:, None] * [1, 2]
    file = write(tmp_path / "test.csv", np.concatenate([walks(7, 1000, 20), waves, counts, line], axis=1))
    (found,) = check_overlap(corpus, [str(file)])
    assert found.clean
    assert (found.series, found.checked) == (30, 24)  # of counts and straight lines nothing can be said


def test_when_a_block_says_nothing_then_it_has_no_fingerprint() -> None:
    for dull in (np.zeros(64), np.arange(64.0), np.tile([0.0, 1.0], 32), np.r_[np.zeros(40), 5.0, np.zeros(23)]):
        assert len(block_hashes(dull, BLOCK, 1)) == 0
    telling = np.random.default_rng(0).normal(size=320)
    assert len(fingerprints(telling)) == 10
    telling[100] = np.nan
    assert len(fingerprints(telling)) == 9
    assert len(fingerprints(telling[:10])) == 0


def test_when_a_source_has_very_many_blocks_then_the_smallest_stand_for_it() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, MAX_FINGERPRINTS + 5000, dtype=np.uint64)
    np.testing.assert_array_equal(
        subsample(np.concatenate([hashes, hashes[:1000]])), np.unique(hashes)[:MAX_FINGERPRINTS]
    )
    np.testing.assert_array_equal(subsample(hashes[:5]), np.sort(hashes[:5]))
    assert len(subsample(hashes[:0])) == 0


def test_when_only_the_manifest_of_a_card_is_at_hand_then_it_is_enough(tmp_path: Path, corpus: Path) -> None:
    card = tmp_path / "card"
    card.mkdir()
    for name in ("manifest.json", "overlap.npz"):
        (card / name).write_bytes((corpus / name).read_bytes())
    file = write(tmp_path / "test.csv", walks(1, 1500, 4)[:, :1])
    (found,) = check_overlap(card / "manifest.json", [str(file)])
    assert found.seen
    (card / "overlap.npz").unlink()
    (unknown,) = check_overlap(card, [str(file)])
    assert unknown.checked is None  # said, not guessed
    (card / "overlap.npz").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"overlap\.npz: expected fingerprints"):
        check_overlap(card, [str(file)])


def test_when_raw_series_are_shared_under_another_name_then_the_catalogue_tells(
    tmp_path: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("sources: [{catalog: electricity_weekly}]")
    build(tmp_path / "c.yaml", tmp_path / "out", progress=False)
    ecl, same = check_overlap(tmp_path / "out", ["ECL", "electricity_weekly"])
    assert (ecl.related, ecl.same) == (("electricity_weekly",), ())
    assert same.same == ("electricity_weekly",)
    assert len(same.seen) == 321
    assert "1 of 1 sets overlap" in done(capsys, "data", "overlap", str(tmp_path / "out"), "--data", "ECL")
    assert "unknown suite" in run(capsys, "data", "overlap", str(tmp_path / "out"), "--suite", "gitf").err


def test_when_the_macroeconomic_sets_are_built_then_what_m3_and_m4_hold_of_them_is_left_out(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("fred_md", "fred_md_bvar", "us_initial_claims")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"sources": [{"catalog": name} for name in names]}))
    m3 = catalog.load("m3")
    macro = m3.select([i for i, name in enumerate(m3.item_ids) if "N2480" <= name <= "N2540"])
    macro.to_frame().to_parquet(tmp_path / "m3_part.parquet")
    tests = [str(tmp_path / "m3_part.parquet"), "m4_weekly"]
    build(tmp_path / "c.yaml", tmp_path / "out", progress=False)
    assert all(one.clean for one in check_overlap(tmp_path / "out", tests))
    specs = {name: replace(spec, bench_series=()) for name, spec in catalog._specs().items()}
    monkeypatch.setattr(catalog, "_specs", lambda: specs)
    build(tmp_path / "c.yaml", tmp_path / "raw", progress=False)
    m3_part, m4 = check_overlap(tmp_path / "raw", tests)
    assert set(m3_part.seen) == {"N2492", "N2516", "N2517", "N2520", "N2534"}
    assert m3_part.seen["N2492"] == ("fred_md", "fred_md_bvar")  # housing starts
    assert dict(m4.seen) == {"W4": ("us_initial_claims",)}
