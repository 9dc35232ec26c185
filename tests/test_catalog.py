"""Every entry of the catalogue is true: names, files, digests, shapes, frequencies and published borders."""

import json
from pathlib import Path

import numpy as np
import pytest

from tsfm.commands import data as command
from tsfm.commands.arguments import Columns
from tsfm_data.errors import InputError
from tsfm_data.io import catalog
from tsfm_data.io.catalog import Borders, DatasetSpec
from tsfm_data.io.frequency import season_length

LSF = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "weather", "exchange_rate", "ECL", "Traffic", "Solar")
PEMS = ("PEMS03", "PEMS04", "PEMS07", "PEMS08")


def test_unknown_names_list_near_ones() -> None:
    with pytest.raises(InputError, match="unknown data set 'ETTh3': did you mean ETTh"):
        catalog.get("ETTh3")
    with pytest.raises(InputError, match=r"unknown data set 'wether': did you mean weather.*nor is it a file"):
        catalog.open_source("wether")


def test_every_set_of_the_long_horizon_literature_has_its_borders() -> None:
    etth, ettm = catalog.get("ETTh2").splits["lsf"], catalog.get("ETTm1").splits["lsf"]
    assert (etth.unit, etth.train, etth.val, etth.test) == ("rows", 8640, 2880, 2880)
    assert (ettm.train, ettm.val, ettm.test) == (34560, 11520, 11520)
    for name in LSF[4:]:
        assert catalog.get(name).splits["lsf"] == Borders("fraction", 0.7, 0.1, 0.2)
    for name in PEMS:
        assert catalog.get(name).splits["lsf"] == Borders("fraction", 0.6, 0.2, 0.2, overlap=False)


def test_only_ecl_and_traffic_share_raw_series_with_training_sets() -> None:
    bench = {group for name in catalog.names("bench") for group in catalog.get(name).groups}
    train = {group for name in catalog.names("train") for group in catalog.get(name).groups}
    assert not set(catalog.names("bench")) & set(catalog.names("train"))
    assert set(catalog.names()) == set(catalog.names("bench")) | set(catalog.names("train"))
    # Two sets of the literature whose files are not part of the reference data: excerpts and sums of them train.
    assert bench & train == {"ecl", "traffic_sf"}
    for group, name in (("ecl", "ECL"), ("traffic_sf", "Traffic")):
        assert [n for n in catalog.names("bench") if group in catalog.get(n).groups] == [name]


def test_a_wrong_entry_is_refused() -> None:
    good = catalog.get("ETTh1")
    for change, text in (
        ({"role": "both"}, "both"),
        ({"layout": "tall"}, "tall"),
        ({"sha256": "abc"}, "64 hexadecimal digits"),
        ({"freq": "M"}, "expected frequency ME"),
        ({"git_blob": None}, "a git blob id with a URL"),
    ):
        with pytest.raises((ValueError, TypeError), match=text):  # the type check of the tests may come first
            DatasetSpec(**{**good.__dict__, **change})
    for borders in (("rows", 1, 0, 1), ("rows", 1.5, 1, 1), ("fraction", 0.7, 0.2, 0.2), ("rest", 1, 1, 1)):
        with pytest.raises((ValueError, TypeError), match=r"borders|Borders"):
            Borders(*borders)


def test_every_benchmark_at_hand_loads_as_its_entry_says(data_folder: Path) -> None:
    loaded = [name for name in catalog.names("bench") if catalog.local_file(catalog.get(name))]
    assert len(loaded) >= 23
    for name in loaded:
        spec, series = catalog.get(name), catalog.load(name)
        assert series.name == name
        assert series.values.size == spec.points, name
        assert int(np.isnan(series.values).sum()) == spec.missing, name
        if spec.freq != "mixed":
            assert set(series.freqs) == {spec.freq}, name
            assert spec.season == season_length(spec.freq)


def test_every_training_set_at_hand_is_the_file_that_was_listed(data_folder: Path) -> None:
    names = [name for name in catalog.names("train") if catalog.get(name).bytes < 100_000]  # type: ignore[operator]
    assert len(names) > 50
    for name in names:
        spec, series = catalog.get(name), catalog.load(name)
        assert set(series.freqs) == {spec.freq}, name
        assert np.isfinite(series.values).sum() == spec.points - spec.missing, name


def test_weather_is_a_plain_sequence_despite_its_dates(data_folder: Path) -> None:
    series = catalog.load("weather")
    assert series.values.shape == (52696, 21)
    assert int((series.values == -9999).sum()) == 81
    assert (series.freqs, str(series.starts[0])[:16]) == (("10min",), "2020-01-01T00:10")


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSFM_DATA", str(tmp_path))
    (tmp_path / "ETTh1.parquet").write_bytes(b"PAR1 other")
    with pytest.raises(InputError, match="expected sha256 4469695fac40"):
        catalog.load("ETTh1")


def test_a_set_that_is_absent_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSFM_DATA", str(tmp_path))
    with pytest.raises(InputError, match=rf"put its file at {tmp_path}/electricity/electricity.csv .*not verified"):
        catalog.load("ECL")
    monkeypatch.delenv("TSFM_DATA")
    with pytest.raises(InputError, match=r"FOLDER/bench/nn5\.parquet and set TSFM_DATA=FOLDER"):
        catalog.load("nn5")


def test_sets_of_the_literature_are_read_once_they_are_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSFM_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    (tmp_path / "PEMS").mkdir()
    flow = rng.normal(size=(40, 170, 3))
    np.savez(tmp_path / "PEMS/PEMS08.npz", data=flow)
    np.testing.assert_array_equal(catalog.load("PEMS08").item(0), flow[..., 0])
    np.savetxt(tmp_path / "solar_AL.txt", rng.normal(size=(5, 137)), delimiter=",")
    solar = catalog.load("Solar")
    assert (solar.values.shape, solar.freqs) == ((5, 137), ("10min",))
    (tmp_path / "solar_AL.txt").write_text("date,a\n")
    with pytest.raises(InputError, match="expected a matrix of numbers"):
        catalog.load("Solar")


def test_names_take_no_column_options_and_files_do(data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column options for the data set.*found target"):
        catalog.open_source("ETTh1", target="OT")
    path = tmp_path / "t.csv"
    path.write_text("date,a,b\n2021-01-01,1,2\n2021-01-02,3,4\n")
    assert catalog.open_source(path, target="b").variates == ("b",)
    assert len(catalog.open_source("ETTh1")) == 1


def test_data_list_shows_every_set_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.list_(json=tmp_path / "list.json")
    shown = capsys.readouterr().out
    written = json.loads((tmp_path / "list.json").read_text())
    assert [row["name"] for row in written["rows"]] == list(catalog.names())
    assert all(name in shown for name in catalog.names())
    command.list_(role="bench", json=Path("-"))
    assert len(json.loads(capsys.readouterr().out)["rows"]) == len(catalog.names("bench"))
    with pytest.raises(InputError, match="unknown role 'trian': did you mean train"):
        command.list_(role="trian")


def test_data_pull_prints_the_path_and_the_licence(data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.pull("ETTh1")
    shown = capsys.readouterr()
    assert Path(shown.out.strip()).is_file()
    assert "no-derivatives" in shown.err


def test_data_inspect_says_what_was_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "shops.csv"
    path.write_text(
        "shop,date,sales,colour\n"
        + "".join(f"a,2021-01-{d:02d},{d},red\n" for d in (1, 2, 3, 5, 6))
        + "".join(f"b,2021-01-{d:02d},{4 if d != 3 else ''},blue\n" for d in range(1, 7))
    )
    command.inspect(str(path), Columns(item_column="shop"), json=tmp_path / "out.json")
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["summary"] | {} == {
        "source": str(path),
        "layout": "long",
        "time_column": "date",
        "item_column": "shop",
        "items": 2,
        "item_ids": ["a", "b"],
        "variates": ["sales"],
        "past_covariates": [],
        "known_covariates": [],
        "future_rows": 0,
        "rows": 11,
        "missing": 1,
        "gaps": 1,
        "warnings": [
            "columns not used as target or covariate: colour",
            "1 series with a constant column: b",
            "2 series shorter than two seasons: a, b",
        ],
    }
    assert found["rows"] == [
        {
            "frequency": "D",
            "season": 7,
            "items": 2,
            "shortest": 6,
            "median": 6.0,
            "longest": 6,
            "first": "2021-01-01 00:00:00",
            "last": "2021-01-06 00:00:00",
        }
    ]
    for text in ("ids in 'shop'", "1 time steps without a row", "constant column: b"):
        assert text in shown
