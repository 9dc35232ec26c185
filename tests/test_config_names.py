"""Configs that ship have names, which work from any folder, and commands that list, print and copy them."""

from pathlib import Path

import pytest
import yaml
from command import done, run

from tsfm.configs import CONFIG_FOLDER, config_names, config_path
from tsfm_data.errors import InputError

NAME = "itransformer/ETTh1"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_when_names_are_listed_then_every_yaml_file_that_ships_has_one() -> None:
    assert [config_path(name) for name in config_names()] == sorted(CONFIG_FOLDER.rglob("*.yaml"))
    assert NAME in config_names()


@pytest.mark.parametrize("name", [NAME, f"{NAME}.yaml", f"configs/{NAME}.yaml", f"configs/{NAME}"])
def test_when_a_config_is_named_then_it_is_found_from_any_folder(name: str) -> None:
    assert config_path(name) == CONFIG_FOLDER / f"{NAME}.yaml"


def test_when_a_file_has_the_words_of_a_name_then_it_is_taken_but_a_folder_is_not(workplace: Path) -> None:
    (workplace / "corpus/open").mkdir(parents=True)
    assert config_path("corpus/open") == CONFIG_FOLDER / "corpus/open.yaml"
    (workplace / "corpus/open.yaml").touch()
    assert config_path("corpus/open.yaml") == Path("corpus/open.yaml")
    assert config_path("open.yaml", workplace / "corpus") == workplace / "corpus/open.yaml"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("itransformer/ETTh11", "itransformer/ETTh1"),
        ("ETTh1", "itransformer/ETTh1"),
        ("configs/finetuning/lora.yaml", "finetune/lora"),
        ("mien.yaml", "mine.yaml"),
        ("?", "tsfm configs list"),
    ],
)
def test_when_no_config_has_a_name_then_near_ones_are_listed(workplace: Path, name: str, near: str) -> None:
    (workplace / "mine.yaml").touch()
    with pytest.raises(InputError) as error:
        config_path(name)
    assert near in str(error.value).partition(": ")[2] or near in str(error.value).partition("; ")[2]


def test_when_configs_are_listed_then_each_has_a_line_of_at_most_100_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = done(capsys, "configs", "list").splitlines()
    assert [line.split()[0] for line in lines] == config_names()
    assert all(len(line.split()) > 2 and len(line) <= 100 for line in lines)


def test_when_a_config_is_copied_then_it_is_a_file_that_is_never_replaced(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (CONFIG_FOLDER / f"{NAME}.yaml").read_text()
    assert done(capsys, "configs", "show", NAME) == text
    assert done(capsys, "configs", "copy", NAME) == "ETTh1.yaml\n"
    done(capsys, "configs", "copy", NAME, "--output", "new/mine.yaml")
    assert [Path(file).read_text() for file in ("ETTh1.yaml", "new/mine.yaml")] == [text, text]
    Path("ETTh1.yaml").write_text("mine")
    refused = run(capsys, "configs", "copy", NAME)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "found ETTh1.yaml, which exists" in refused.err
    assert Path("ETTh1.yaml").read_text() == "mine"


@pytest.mark.slow
def test_when_named_configs_are_stacked_then_the_command_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--config", "itransformer/base", "--config=itransformer/ETTh1.yaml", "-c=itransformer/ETTh1_long")
    config = yaml.safe_load(done(capsys, "fit", *words, "--print_config"))
    assert config["model"]["init_args"]["forecaster"]["init_args"]["config"]["d_model"] == 512
    assert config["data"]["init_args"]["source"] == "ETTh1"


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--config", "itransformer/ETTh3"),
        ("test", "-c=itransformer/ETTh3"),
        ("configs", "show", "itransformer/ETTh3"),
        ("scaling", "sweep", "itransformer/ETTh3", "--output", "out"),
        ("data", "build", "itransformer/ETTh3", "--output", "out"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_when_a_command_is_given_an_unknown_config_then_one_line_lists_near_ones(
    workplace: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    result = run(capsys, *words)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "did you mean itransformer/ETTh" in result.err
    assert not list(workplace.iterdir())
