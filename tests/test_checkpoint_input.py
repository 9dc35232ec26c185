"""Checkpoints of others: nothing that they name is imported, and what cannot be restored is one line."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command import done, prepare, run

from tsfm.commands.train import train

PLANTED = "import pathlib\npathlib.Path('proof').touch()\nfrom pytorch_lightning import LightningModule as Module\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(("fit", "--config", "config.yaml"))
    return folder


def rewritten(trained: Path, **changes: Any) -> str:
    """A checkpoint of the run with other content; None removes a key."""
    content = torch.load(trained / "run/checkpoints/last.ckpt", weights_only=True) | changes
    file = trained / "run/checkpoints/changed.ckpt"
    torch.save({key: value for key, value in content.items() if value is not None}, file)
    return str(file.relative_to(trained))


@pytest.mark.slow
@pytest.mark.parametrize("instantiator", ["planted.make", "pytorch_lightning.cli.instantiate_module"])
def test_when_a_checkpoint_names_a_class_then_it_is_not_imported(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, instantiator: str
) -> None:
    monkeypatch.chdir(trained)
    (trained / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(str(trained))
    names = {"_class_path": "planted.Module", "_instantiator": instantiator, "forecaster": {"class_path": "planted.X"}}
    file = rewritten(trained, hyper_parameters=names, datamodule_hyper_parameters=dict(names))
    done(capsys, "validate", "--config", "config.yaml", "--ckpt_path", file)
    done(capsys, "fit", "--config", "config.yaml", "--ckpt_path", file, "--trainer.max_epochs", "3")
    assert "planted" not in sys.modules
    assert not (trained / "proof").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"state_dict": None},
        {"state_dict": [1]},
        {"loops": None},
        {"loops": {"fit_loop": {}}},
        {"optimizer_states": 3},
        {"optimizer_states": [{"state": {}, "param_groups": []}]},
        {"lr_schedulers": [{}, {}, {}]},
        {"callbacks": [1]},
        {"pytorch-lightning_version": "x"},
        {"epoch": "x", "global_step": None},
    ],
    ids=str,
)
def test_when_a_checkpoint_cannot_be_restored_then_one_line_says_so(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.chdir(trained)
    words = ("--config", "config.yaml", "--ckpt_path", rewritten(trained, **changes), "--trainer.max_epochs", "3")
    result = run(capsys, "fit", *words)
    if result.status:
        assert result.status == 2
        assert result.err.splitlines()[-1].startswith("tsfm: error: expected a checkpoint")
        assert "Traceback" not in result.err
    else:  # what is missing is not needed
        assert "epochs" in result.out
