"""Backbones are exported, compiled, quantised, counted and differentiated as PyTorch's own models are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")

from graph_backbones import STEPS
from tiny_backbones import SMALL, create, image

from tsfm_data.errors import InputError
from tsfm_vision.commands import export
from tsfm_vision.weights import TrainedOn, load, save

ROOT = Path(__file__).resolve().parent.parent
# The largest difference, as a share: second derivatives are compared with differences of first ones.
LIMITS = {"second derivative": 1e-4, "count": 0.0}
# timm's TNT, whose blocks these are, takes no empty batch either.
REFUSED = {("tsfm_tnt_s_patch16_224", "no image")}


def apart(words: list[str], folder: Path | None = None) -> str:
    """The output of a Python process of its own."""
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "data", "vision", "tests"))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *words], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_when_pytorch_transforms_a_backbone_then_it_stays_the_same(name: str) -> None:
    pytest.importorskip("onnxruntime")
    said = apart([str(ROOT / "tests/graph_backbones.py"), name])
    rows = [line.split("\t") for line in said.splitlines() if line.startswith(f"{name}\t")]
    assert [step for _, step, _ in rows] == list(STEPS)
    for _, step, said in rows:
        if (name, step) in REFUSED:
            continue
        assert said.replace(".", "").replace("e-", "").isdigit(), f"{step}: {said}"
        assert float(said) <= LIMITS.get(step, 1e-4), step


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tsfm_poolformer_s12", "biformer_tiny"])
def test_when_an_image_model_is_exported_then_the_files_repeat_it_for_any_number_of_images(
    name: str, tmp_path: Path
) -> None:
    import onnxruntime

    classes = tuple("abcdefghij")
    save(create(name), tmp_path / "model", TrainedOn("letters", classes, 3))
    command = (
        "from pathlib import Path; from tsfm_vision.commands import export; export(output=Path(%r), model='model'%s)"
    )
    for output, more in (("m.onnx", ""), ("m.pt2", ", format='torch'")):
        said = apart(["-c", command % (output, more)], tmp_path)
        assert "for any number of images 3 x 224 x 224" in said
        assert float(said.split()[-1]) < 1e-4
    model, _ = load(tmp_path / "model")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    known = session.get_modelmeta().custom_metadata_map
    assert tuple(known["label_names"].split("\n")) == classes
    assert json.loads(known["mean"]) == list(model.pretrained_cfg["mean"])
    program = torch.export.load(str(tmp_path / "m.pt2")).module()
    for count in (1, 5):
        x = image(224, batch=count)
        with torch.no_grad():
            expected = model(x)
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), expected)
        torch.testing.assert_close(program(x), expected)


def test_when_the_suffix_of_an_exported_file_is_of_the_other_format_then_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected an output that ends in \.pt2 for format torch, found .*m\.onnx"):
        export(output=tmp_path / "m.onnx", format="torch")
