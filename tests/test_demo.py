"""``tsfm demo``: what the page says is what was scored, and a second run says the same."""

import base64
import json
import re
import shlex
import sys
from html import unescape
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from command import run

from tsfm.commands import cli, demo_images
from tsfm.commands.demo import EXAMPLES, fit_command, training_facts
from tsfm.commands.demo_page import lead, own_commands
from tsfm.reports.html import Code, Section, Table, page, show_value
from tsfm.weights.pretrained import load
from tsfm_data.evaluation import Report

TITLES = {example.name: example.title for example in EXAMPLES}


def command(words: list[str]) -> None:
    """Run the command as a user does; it has to end with status 0."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a short demo."""
    output = tmp_path_factory.mktemp("demo") / "a demo"
    command(["demo", "--output", str(output), "--max_epochs", "1"])
    return output


@pytest.mark.slow
def test_page_shows_the_numbers_of_the_json_beside_it(folder: Path) -> None:
    html = (folder / "index.html").read_text()
    rows = json.loads((folder / "report.json").read_text())["rows"]
    series = [r for r in rows if r["dataset"] in TITLES]
    assert {(r["dataset"], r["model"]) for r in series} == {
        (name, model) for name in TITLES for model in ("iTransformer", "seasonal-naive", "naive")
    }
    assert {r["metric"] for r in series} == {"MASE", "WQL", "MAE", "coverage80"}
    for dataset, title in TITLES.items():
        section = html.split(f"<h2>{title}</h2>")[1].split("<h2>")[0]
        lines = re.findall(r"<tr[^>]*>(.*?)</tr>", section)
        cells = {line[0]: line[1:] for line in (re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", one) for one in lines)}
        for model in ("iTransformer", "seasonal-naive", "naive"):
            shown = dict(zip(cells["model"], cells[model], strict=True))
            for row in rows:
                if (row["dataset"], row["model"]) == (dataset, model):
                    cell = shown[row["metric"].replace("coverage80", "80 % coverage")]
                    assert float(cell.replace(",", "")) == pytest.approx(row["value"], rel=6e-3)


@pytest.mark.slow
def test_baselines_have_the_errors_known_of_these_series(folder: Path) -> None:
    rows = json.loads((folder / "report.json").read_text())["rows"]
    mase = {(r["dataset"], r["model"]): r["value"] for r in rows if r["metric"] == "MASE"}
    assert mase["us_employment", "seasonal-naive"] == pytest.approx(0.9151, abs=1e-4)
    assert mase["us_employment", "naive"] == pytest.approx(0.2946, abs=1e-4)
    assert mase["seattle_weather", "seasonal-naive"] == pytest.approx(1.6131, abs=1e-4)
    assert {r["windows"] for r in rows if r["dataset"] == "us_employment"} == {24 - 6 + 1}
    assert {r["windows"] for r in rows if r["dataset"] == "seattle_weather"} == {292 - 14 + 1}


def test_headline_compares_with_the_best_simple_baseline_whichever_way_it_went() -> None:
    first, second = EXAMPLES
    errors = {
        (first.name, "iTransformer"): 0.3,
        (first.name, "seasonal-naive"): 0.9,
        (first.name, "naive"): 0.25,
        (second.name, "iTransformer"): 0.6,
        (second.name, "seasonal-naive"): 0.8,
        (second.name, "naive"): 1.2,
    }
    rows = [{"metric": "MASE", "dataset": name, "model": model, "value": v} for (name, model), v in errors.items()]
    text = lead(Report(rows), EXAMPLES).replace("\u00a0", " ")
    assert f"20 % above that of naive on {first.title}" in text
    assert f"25 % below that of seasonal-naive on {second.title}" in text


@pytest.mark.slow
def test_page_says_data_splits_and_seed_and_needs_no_other_file(folder: Path) -> None:
    html = (folder / "index.html").read_text()
    for text in ("US Bureau of Labor Statistics", "NOAA", "1,461 (frequency D)", "84: 2006-01-01 to 2012-12-01"):
        assert text in html
    assert "<td>seed</td><td>2023</td>" in html
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    for image in re.findall(r"base64,([A-Za-z0-9+/=]+)", html):
        assert b"<svg" in base64.b64decode(image)
    assert html.count('<img src="data:image/svg+xml') == 4


@pytest.mark.slow
def test_second_run_gives_the_same_bytes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("index.html", "report.json", "us_employment/model/model.safetensors")
    before = [(folder / name).read_bytes() for name in names]
    command(["demo", "--output", str(folder), "--max_epochs", "1"])
    assert [(folder / name).read_bytes() for name in names] == before
    shown = capsys.readouterr().out
    rows = json.loads((folder / "report.json").read_text())["rows"]
    assert all(show_value(row["value"]) in shown for row in rows if row.get("item_id") is None)
    assert str(folder / "index.html") in shown


@pytest.mark.slow
def test_commands_of_the_page_run_as_they_are(folder: Path) -> None:
    text = own_commands(folder)
    assert text in unescape((folder / "index.html").read_text())
    lines = text.replace("\\\n", " ").splitlines()
    values = {name: shlex.split(value)[0] for name, value in (line.split("=", 1) for line in lines[:3])}
    for line in lines[3:]:
        words = shlex.split(re.sub(r"\$(\w+)", lambda match: values[match[1]], line))
        assert Path(words[0]).name == "tsfm"
        command([*words[1:], "--trainer.max_epochs", "1"] if words[1] == "fit" else words[1:])
    scores = json.loads((folder / "own_table" / "scores.json").read_text())
    assert {row["model"] for row in scores["rows"]} >= {"naive", "seasonal-naive"}
    assert len((folder / "own_table" / "forecast.csv").read_text().splitlines()) == 1 + 2 * 14
    assert (folder / "own_table" / "forecast.png").stat().st_size > 10_000


@pytest.mark.slow
def test_page_shows_the_commands_that_were_run(folder: Path) -> None:
    blocks = re.findall(r"<pre><code>(.*?)</code></pre>", (folder / "index.html").read_text(), flags=re.S)
    commands = [shlex.split(line)[1:] for line in unescape(blocks[-1]).replace("\\\n", " ").splitlines()]
    assert commands[0] == ["demo", "--output", str(folder), "--seed", "2023", "--max_epochs", "1"]
    for example, words in zip(EXAMPLES, commands[1:-1], strict=True):
        assert ["tsfm", *words] == shlex.split(fit_command(example, folder, 2023, 1))
    assert commands[-1][:3] == ["fit", "--config", str(folder / "digits.yaml")]


@pytest.mark.slow
def test_page_shows_the_image_example(folder: Path) -> None:
    section = (folder / "index.html").read_text().split("<h2>Handwritten digits</h2>")[1].split("<h2>")[0]
    assert "scikit-learn" in section
    assert "1,438 to train and validate on, 359 to test" in section
    lines = re.findall(r"<tr[^>]*>(.*?)</tr>", section)
    head, values = (re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line) for line in lines[:2])
    shown = dict(zip(head, values, strict=True))
    assert shown["model"] == "iLLaMA"
    rows = json.loads((folder / "report.json").read_text())["rows"]
    (top1,) = (r["value"] for r in rows if r["metric"] == "top1" and r.get("item_id") is None)
    assert float(shown["accuracy"]) == pytest.approx(top1, rel=6e-3)


def test_when_image_packages_are_missing_then_the_demo_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(entry: EntryPoint) -> None:
        raise ModuleNotFoundError("No module named 'timm'", name="timm")

    monkeypatch.setattr(EntryPoint, "load", missing)
    assert demo_images.run(tmp_path, 0, 1) is None
    output = capsys.readouterr().out
    assert "Handwritten digits: skipped (expected the packages of image models, found no timm: pip install " in output
    assert "'tsfm-suite[vision]')" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([3, 2, 1, 4], "4; all epochs"),
        ([1, 2, 3], "3; stopped after 2 epochs without improvement"),
        ([3, 2, 1], "3; stopped by the time limit: a faster machine gives other numbers"),
    ],
)
def test_facts_say_why_training_ended(losses: list[float], words: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    rows = "".join(f"{epoch},,{loss}\n{epoch},0.5,\n" for epoch, loss in enumerate(losses))
    (tmp_path / "logs" / "version_0" / "metrics.csv").write_text("epoch,train_loss,val_loss\n" + rows)
    stopping = {"class_path": "pytorch_lightning.callbacks.EarlyStopping", "init_args": {"patience": 2}}
    config = {"seed_everything": 5, "trainer": {"max_epochs": 4, "callbacks": [stopping]}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    facts = training_facts(tmp_path, load(folder / "us_employment" / "model"))
    assert facts["epochs"] == words
    assert facts["best epoch"].startswith(f"{losses.index(1) + 1}, validation MSE 1.0000")
    assert (facts["seed"], facts["parameters"]) == ("5", "52,550")


def test_when_no_epoch_is_asked_then_one_line_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--output", str(tmp_path / "out"), "--max_epochs", "0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_page_escapes_what_it_is_given() -> None:
    html = page("a < b", [Section("", ["<script>", Code("x && y"), Table([{"name": "<b>", "value": None}])])])
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "x &amp;&amp; y" in html
    assert "<td>&lt;b&gt;</td>" in html


def test_table_sets_numbers_right_and_shows_three_digits() -> None:
    html = page("t", [Section("s", [Table([{"name": "a", "value": 0.0024712}, {"name": "b", "value": 1234567.0}])])])
    assert '<td class="number">0.00247</td>' in html
    assert '<td class="number">1,234,567</td>' in html
    assert [show_value(x) for x in (0.0, 9.999, 105.717, -0.5, 7, None, "x")] == [
        "0",
        "10.00",
        "106",
        "-0.500",
        "7",
        "–",
        "x",
    ]


def test_when_the_tables_are_not_installed_then_one_line_names_the_extra_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vega_datasets", None)
    result = run(capsys, "demo", "--output", str(tmp_path / "demo"))
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "pip install 'tsfm-suite[demo]'" in result.err
    assert not list(tmp_path.iterdir())
