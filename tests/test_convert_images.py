"""Published image checkpoints, in the originals' layouts and in timm's, become folders that give the same outputs."""

import argparse
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_images import biformer_sizes, cases, close, illama_sizes, metaformer_sizes, sizes_of, tnt_sizes
from safetensors.torch import load_file, save_file

from tsfm.weights.conversion import Conversion, convert

timm: Any = pytest.importorskip("timm")

# Folder of the golden cases -> a variant of the family, its name in reports, and the sizes of a case.
FAMILIES: dict[str, tuple[str, str, Any]] = {
    "poolformer": ("tsfm_poolformer_s12", "PoolFormer", lambda kwargs: metaformer_sizes(kwargs, 64)),
    "metaformer": ("metaformer_ppaa_s12_224", "PoolFormer", lambda kwargs: metaformer_sizes(kwargs, 64)),
    "tnt": ("tsfm_tnt_s_patch16_224", "TNT", tnt_sizes),
    "illama": ("illama_tiny", "iLLaMA", illama_sizes),
    "biformer": ("biformer_tiny", "BiFormer", lambda kwargs: biformer_sizes(kwargs, "biformer")),
    "biformer_stl": ("biformer_stl", "BiFormer", lambda kwargs: biformer_sizes(kwargs, "biformer_stl")),
    "biformer_stl_nchw": ("biformer_stl_nchw", "BiFormer", lambda kwargs: biformer_sizes(kwargs, "biformer_stl_nchw")),
}
FORMS = ("plain.pth", "model.pth", "state_dict.pth.tar", "parallel.pth", "model.safetensors")
State = dict[str, torch.Tensor]


def write(state: State, file: Path) -> None:
    """The weights as the training scripts of the originals and of timm leave them."""
    whole: dict[str, Any] = {
        "plain.pth": OrderedDict(state),
        "model.pth": {"model": state, "epoch": 299, "args": argparse.Namespace(lr=1e-3, model="x")},
        "state_dict.pth.tar": {"state_dict": state, "arch": "x", "epoch": 299, "metric": 0.8},
        "parallel.pth": {"model": {f"module.{key}": value for key, value in state.items()}},
    }
    if file.suffix == ".safetensors":
        save_file(state, file, metadata={"format": "pt"})
    else:
        torch.save(whole[file.name], file)


def golden(family: str) -> list[Any]:
    """The cases that classify in evaluation mode; the first of a family comes in every form, others in one each."""
    params = []
    for case in cases(family):
        if case.values[0] is None:
            return [pytest.param(None, FORMS[0], marks=case.marks)]
        facts = json.loads(case.values[0].read_text())
        if facts.get("mode") != "train" and "io/logits" in load_file(case.values[0].with_suffix(".safetensors")):
            forms = FORMS[len(params) % len(FORMS) :][:1] if params else FORMS
            params += [pytest.param(case.values[0], form, id=f"{case.id}-{form}") for form in forms]
    return params


def converted(file: Path, state: State, form: str, folder: Path) -> Conversion:
    """Convert the weights with a config next to them, into ``folder / "out"``."""
    architecture, _, sizes = FAMILIES[file.parent.name]
    arguments = {key: value for key, value in sizes(sizes_of(file)).items() if key != "num_classes"}
    if "layer_scale" in arguments:
        arguments["layer_scale"] = arguments["layer_scale"] or 0.0  # timm leaves out arguments of None
    (folder / "in").mkdir()
    write(state, folder / "in" / form)
    (folder / "in/config.json").write_text(json.dumps({"architecture": architecture, "model_args": arguments}))
    return convert(folder / "in", folder / "out")


def check_logits(file: Path, tensors: State, folder: Path) -> None:
    """The converted model, read anew, gives the case's outputs."""
    from tsfm_vision.weights import load

    model: Any = load(folder / "out")[0]
    if rate := json.loads(file.read_text()).get("soft_mask_rate"):
        model.soft_mask_rate = rate  # of training, in no checkpoint
    with torch.inference_mode():
        close(model(tensors["io/input"]), tensors["io/logits"], "logits")


@pytest.mark.parametrize(("file", "form"), [case for family in FAMILIES for case in golden(family)])
def test_when_a_golden_file_of_the_original_is_converted_then_its_outputs_are_the_originals(
    file: Path, form: str, tmp_path: Path
) -> None:
    tensors = load_file(file.with_suffix(".safetensors"))
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    model = converted(file, weights, form, tmp_path)
    assert model.family == FAMILIES[file.parent.name][1]
    assert model.parameters == sum(value.numel() for value in weights.values())
    check_logits(file, tensors, tmp_path)


def timms_poolformer(sizes: dict[str, Any]) -> torch.nn.Module:
    """timm's PoolFormer of these sizes; its function of that name takes none."""
    from timm.models.metaformer import MetaFormer, Pooling

    norms = {"downsample_norm": None, "norm_layers": timm.layers.GroupNorm1, "mlp_act": torch.nn.GELU}
    rest = {"use_mlp_head": False, "res_scale_init_values": None, "layer_scale_init_values": sizes["layer_scale"]}
    taken = {key: sizes[key] for key in ("depths", "dims", "num_classes")}
    return MetaFormer(token_mixers=Pooling, mlp_bias=True, **taken, **norms, **rest)


def timms_tnt(sizes: dict[str, Any]) -> torch.nn.Module:
    """timm's TNT of these sizes."""
    return timm.models.tnt.TNT(**{key: value for key, value in sizes.items() if key != "gated"})


@pytest.mark.parametrize("form", FORMS[2::2])
@pytest.mark.parametrize(
    ("family", "name", "make"), [("poolformer", "poolformer_64", timms_poolformer), ("tnt", "tnt_48", timms_tnt)]
)
def test_when_a_golden_file_of_timms_layout_is_converted_then_its_outputs_are_the_originals(
    family: str, name: str, make: Any, form: str, golden_folder: Path, tmp_path: Path
) -> None:
    """timm's own model takes the renamed golden weights without one missing or left over, and its file is converted."""
    from tsfm_vision.backbones import fitting

    file = golden_folder / f"vision/{family}/{name}.json"
    tensors = load_file(file.with_suffix(".safetensors"))
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    architecture, kind, sizes_from = FAMILIES[family]
    sizes = sizes_from(sizes_of(file))
    peer = make(sizes)
    peer.load_state_dict(fitting(timm.create_model(architecture, **sizes), weights, file), strict=True)
    assert converted(file, peer.state_dict(), form, tmp_path).family == kind
    check_logits(file, tensors, tmp_path)
