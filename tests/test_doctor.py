"""``tsfm doctor`` says what runs here, what is wrong, and what to do."""

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch

import tsfm.commands.health as checks
from tsfm.attention.dispatch import Mask, kernel_name
from tsfm.attention.libraries import Library
from tsfm.commands.doctor import doctor


def finding(subject: str) -> checks.Finding:
    (result,) = (x for x in checks.examine() if x.subject == subject)
    return result


@pytest.fixture(autouse=True)
def no_xformers_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import takes seconds and has tests of its own."""
    monkeypatch.setattr(checks, "xformers_problem", lambda: None)
    monkeypatch.setattr(checks, "load_mslk", lambda: None)


def absent(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    installed_version = importlib.metadata.version

    def version(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed_version(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_when_all_is_well_then_the_status_is_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor() == 0
    output = capsys.readouterr().out
    for word in (
        "torch",
        "device",
        "packed rows",
        "packed causal",
        "padded rows",
        "bfloat16 dropout",
        "nothing is wrong here",
    ):
        assert word in output


def test_when_json_is_asked_for_then_only_json_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(json=True) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["summary"]["wrong"] == 0
    assert {"subject", "state", "found", "todo"} == set(output["rows"][0])
    assert len(output["kernels"]) == 8


def test_when_kernels_are_listed_then_they_are_those_that_attention_chooses() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    row = next(x for x in checks.kernels() if x["mask"] == "local")
    x = torch.empty(1, checks.TOKENS, checks.HEADS, checks.CHANNELS, device=device)
    assert row["float32"] == kernel_name(x, x, x, Mask.local(64, 64))
    if device == "cpu":
        assert row["float32"] == "torch SDPA, by window"
        assert row["float32 dropout"] == "cached dropout, by window"


def test_when_data_is_looked_for_nowhere_then_it_is_wrong_and_the_status_is_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TSFM_DATA", str(tmp_path / "nowhere"))
    assert doctor() == 2
    output = capsys.readouterr().out
    assert f"wrong: TSFM_DATA: {tmp_path / 'nowhere'} is not a folder" in output
    assert "unset it" in output
    assert "nothing is wrong" not in output


def test_when_the_cache_cannot_be_written_then_it_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TSFM_CACHE", str(tmp_path / "file" / "cache"))
    result = finding("cache")
    assert result.state == "wrong"
    assert "TSFM_CACHE" in result.todo


def test_when_an_extra_is_absent_then_how_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "timm")
    result = finding("timm")
    assert result.state == "ok"
    assert "pip install 'tsfm-suite[vision]'" in result.found


def test_when_a_dependency_is_missing_or_too_old_then_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["tabulate>=0.9", "tqdm>=9999", "missing-thing>=1", "timm; extra == 'vision'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    absent(monkeypatch, "missing-thing")
    monkeypatch.setattr(checks, "EXTRAS", {})
    states = {x.subject: x for x in checks.examine()}
    assert states["tabulate"].state == "ok"
    assert (states["tqdm"].state, states["tqdm"].todo) == ("wrong", "pip install 'tqdm>=9999'")
    assert (states["missing-thing"].state, states["missing-thing"].found) == ("wrong", "missing")
    assert "timm" not in states


@pytest.mark.parametrize(("has_device", "state"), [(True, "wrong"), (False, "note")])
@pytest.mark.parametrize(
    ("missing", "todo"), [(("nvidia-cuda-runtime-cu12",), "libcudart"), ((), "--upgrade xformers")]
)
def test_when_the_library_of_xformers_does_not_load_then_what_to_install_is_said(
    has_device: bool, state: str, missing: tuple[str, ...], todo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"xformers": "0.0.35", "nvidia-cuda-runtime-cu12": "12.9"}
    monkeypatch.setattr(checks, "version", lambda name: None if name in missing else versions.get(name))
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_device)
    monkeypatch.setattr(checks, "xformers_problem", lambda: "libcudart.so.12: cannot open")
    result = checks._xformers()
    assert result.state == state
    assert "libcudart.so.12: cannot open" in result.found
    assert todo in result.todo


def test_when_xformers_is_absent_then_only_a_cuda_device_misses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "version", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checks._xformers().state == "ok"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert checks._xformers().state == "note"
    assert "tsfm-suite[cuda]" in checks._xformers().todo


@pytest.mark.parametrize("xformers", ["0.0.35", None])
def test_when_mslk_is_installed_then_its_kernels_stand_in_for_those_of_xformers(
    xformers: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "version", {"xformers": xformers}.get)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(checks, "xformers_problem", lambda: "libcudart.so.12: cannot open")
    monkeypatch.setattr(checks, "load_mslk", lambda: Library("mslk", None))
    result = checks._xformers()
    assert result.state == "ok"
    assert "those of mslk" in result.found


def test_when_there_are_more_threads_than_cores_then_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    result = finding("threads")
    assert result.state == "note"
    assert "OMP_NUM_THREADS" in result.todo
