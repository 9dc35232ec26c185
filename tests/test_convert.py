"""Published checkpoints become model folders that give the originals' outputs; every file has the published layout."""

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_images import close as close_image
from golden_series import FIELDS, check_distribution, close_by_series, columns_of, split
from safetensors.torch import load_file, save_file

from tsfm.models.chronos2 import Chronos2, Chronos2Config
from tsfm.models.chronos_bolt import ChronosBolt, ChronosBoltConfig
from tsfm.models.moirai import FAMILY_NAMES, Moirai, MoiraiConfig
from tsfm.models.moirai2 import Moirai2, Moirai2Config
from tsfm.models.packing import Packed, pack_window
from tsfm.models.registry import model_class
from tsfm.models.scaling_law.trunk import DECODER_SIZES, SIZES
from tsfm.weights import registry
from tsfm.weights.conversion import Options, convert
from tsfm.weights.pretrained import load
from tsfm_data.errors import InputError
from tsfm_data.windows.batch import Batch

LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def case(golden: Path, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A golden case: its facts, all tensors, and the weights among them."""
    tensors = load_file(golden / f"{name}.safetensors")
    weights = {k.removeprefix("weights/"): v.contiguous() for k, v in tensors.items() if k.startswith("weights/")}
    return json.loads((golden / f"{name}.json").read_text()), tensors, weights


def hub_folder(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    """A repository of the hub as it is downloaded."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def packed_of(tensors: dict[str, torch.Tensor]) -> Packed:
    result = {ours: tensors[f"in/{theirs}"] for ours, theirs in FIELDS.items()}
    return Packed(**{name: x.long() if x.dtype == torch.int32 else x for name, x in result.items()})


def moirai_config(d_model: int, num_layers: int, patch_sizes: list[int]) -> dict[str, Any]:
    """``config.json`` as Salesforce publishes it."""
    mixture = "uni2ts.distribution.mixture.MixtureOutput"
    parts = [{"_target_": f"uni2ts.distribution.{name.lower()}.{name}"} for name in FAMILY_NAMES]
    sizes = {"d_model": d_model, "num_layers": num_layers, "patch_sizes": patch_sizes, "max_seq_len": 512}
    rest = {"attn_dropout_p": 0.0, "dropout_p": 0.0, "scaling": True}
    return {"distr_output": {"_target_": mixture, "components": parts}, **sizes, **rest}


@torch.inference_mode()
def test_when_a_moirai_is_converted_then_its_mixture_is_the_originals(golden_folder: Path, tmp_path: Path) -> None:
    info, tensors, weights = case(golden_folder / "timeseries/moirai", "moirai_d64_l2_patch8_16_32")
    config = moirai_config(64, 2, info["config"]["patch_sizes"])
    weights = {key: value.float() for key, value in weights.items()}
    result = convert(hub_folder(tmp_path / "in", config, weights), tmp_path / "out")
    assert (result.family, result.parameters) == ("moirai", info["n_params"])
    model = load(tmp_path / "out")
    assert isinstance(model, Moirai)
    found_ids = {ours: tensors[f"in/{theirs}"] for ours, theirs in FIELDS.items()}
    check_distribution(model, Packed(**found_ids, patch_size=tensors["in/patch_size"]), tensors)
    config["distr_output"]["components"][0]["_target_"] = "os.system"
    with pytest.raises(InputError, match=r"expected a mixture of StudentTOutput, .* found system"):
        convert(hub_folder(tmp_path / "evil", config, weights), tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


@torch.inference_mode()
def test_when_a_moirai_2_is_converted_then_its_forecast_is_the_originals(golden_folder: Path, tmp_path: Path) -> None:
    info, tensors, weights = case(golden_folder / "timeseries/moirai", "moirai2_forecast_ctx100")
    config = {**info["config"], "quantile_levels": LEVELS, "attn_dropout_p": 0.0, "dropout_p": 0.0}
    convert(hub_folder(tmp_path / "in", config, weights), tmp_path / "out", options=Options(context=100))
    model = load(tmp_path / "out")
    assert isinstance(model, Moirai2)
    assert (model.context, model.horizon) == (100, 32)
    past, observed, pad = (tensors[f"in/past_{name}"] for name in ("target", "observed_target", "is_pad"))
    packed = pack_window(past, observed, pad, 16)
    close_by_series(model.unroll(packed, 24, 1)[:, :, 0].transpose(1, 2), tensors["out/quantiles_h24"])


@torch.inference_mode()
def test_when_a_chronos_bolt_is_converted_then_its_forecast_is_the_originals(
    golden_folder: Path, tmp_path: Path
) -> None:
    info, tensors, weights = case(golden_folder / "timeseries/chronos_bolt", "bolt_dummy")
    result = convert(hub_folder(tmp_path / "in", info["hf_config"], weights), tmp_path / "out")
    assert result.family == "chronos-bolt"
    model = load(tmp_path / "out")
    assert isinstance(model, ChronosBolt)
    past, observed = split(tensors["in/context"])
    close_by_series(model.unroll(past, observed, 24).transpose(1, 2), tensors["out/quantiles_h24"])


@torch.inference_mode()
def test_when_a_chronos_2_is_converted_then_its_forecast_is_the_originals(golden_folder: Path, tmp_path: Path) -> None:
    info, tensors, weights = case(golden_folder / "timeseries/chronos_2", "chronos2_d64_l2_univariate")
    result = convert(hub_folder(tmp_path / "in", info["hf_config"], weights), tmp_path / "out")
    assert (result.family, result.parameters) == ("chronos2", info["n_params"])
    model = load(tmp_path / "out")
    assert isinstance(model, Chronos2)
    assert (model.context, model.horizon) == (256, 64)
    quantiles = model.unroll(columns_of(tensors["in/context"][:, None], 100))[:, :, 0]
    close_by_series(quantiles.transpose(1, 2), tensors["out/quantiles_h100"])


@torch.inference_mode()
@pytest.mark.parametrize("name", ["encoder_1K", "decoder_1K"])
def test_when_a_lightning_checkpoint_is_converted_then_the_objects_in_it_stay_unmade(
    golden_folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, tensors, weights = case(golden_folder / "timeseries/tsfm_scaling", name)
    module: Any = types.ModuleType("uni2ts")

    class StudentTOutput:
        made = 0

        def __setstate__(self, state: object) -> None:
            type(self).made += 1

    StudentTOutput.__module__, StudentTOutput.__qualname__ = module.__name__, "StudentTOutput"
    module.StudentTOutput = StudentTOutput
    output = StudentTOutput()
    output.components = 4  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        whole = {
            "epoch": 3,
            "pytorch-lightning_version": "2.2.0",
            "state_dict": {f"module.{key}": value for key, value in weights.items()},
            "hyper_parameters": {"module_kwargs": {"distr_output": output, "d_model": 8}},
            "callbacks": {},
        }
        torch.save(whole, tmp_path / f"{name}_16B.ckpt")
        result = convert(tmp_path / f"{name}_16B.ckpt", tmp_path / "out", options=Options(context=64, horizon=32))
    assert StudentTOutput.made == 0
    assert result.family == info["config"]["arch"]
    model = load(tmp_path / "out")
    packed = packed_of(tensors)
    real = packed.sample_id > 0
    loc, scale = model.scale(packed)
    hidden, reference = model.represent(packed, loc, scale)[real], tensors["out/hidden"][real]
    assert (hidden - reference).abs().max() <= 5e-5 * reference.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("name", ["nomarks_norm_gelu_l2", "tslib_projection"])
def test_when_an_itransformer_pth_is_converted_then_its_forecast_is_the_originals(
    golden_folder: Path, tmp_path: Path, name: str
) -> None:
    info, tensors, weights = case(golden_folder / "timeseries/itransformer", name)
    config = info["config"]
    torch.save(weights, tmp_path / "checkpoint.pth")
    options = Options(heads=config["n_heads"], activation=config["activation"], window_norm=config["use_norm"])
    convert(tmp_path / "checkpoint.pth", tmp_path / "out", options=options)
    past, marks = tensors["in/x_enc"], tensors.get("in/x_mark_enc")
    batch = Batch(past, torch.ones_like(past, dtype=torch.bool), config["pred_len"], past_marks=marks)
    result = load(tmp_path / "out")(batch).squeeze(-1)
    close_by_series(result.transpose(1, 2).flatten(0, 1), tensors["out/forecast"].transpose(1, 2).flatten(0, 1))


@torch.inference_mode()
def test_when_an_original_poolformer_is_converted_then_its_logits_are_the_originals(
    golden_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    from tsfm_vision.weights import load as load_image

    info, tensors, weights = case(golden_folder / "vision/poolformer", "poolformer_lowvar_eps")
    kwargs = info["config"]["kwargs"]
    (tmp_path / "in").mkdir()
    state = {"model": weights, "args": argparse.Namespace(lr=1e-3), "epoch": 300}
    torch.save(state, tmp_path / "in/poolformer.pth.tar")
    sizes = {"depths": kwargs["layers"], "dims": kwargs["embed_dims"], "mlp_ratios": kwargs["mlp_ratios"]}
    config = {"architecture": "tsfm_poolformer_s12", "model_args": sizes}
    (tmp_path / "in/config.json").write_text(json.dumps(config))
    result = convert(tmp_path / "in", tmp_path / "out")
    assert (result.family, result.facts) == ("PoolFormer", "variant tsfm_poolformer_s12, 10 classes")
    model, classes = load_image(tmp_path / "out")
    assert len(classes) == 10
    close_image(model(tensors["io/input"]), tensors["io/logits"], "logits")


# Names of tensors that the published files have: d is the width of a token, ff that inside the
# feed-forward parts, inner that of all heads.
PUBLISHED = {
    "chronos-bolt": {
        "shared.weight": (2, "d"),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, "heads"),
        "decoder.block.1.layer.1.EncDecAttention.q.weight": ("inner", "d"),
        "output_patch_embedding.residual_layer.bias": (9 * 64,),
    },
    "chronos2": {
        "shared.weight": (2, "d"),
        "input_patch_embedding.hidden_layer.weight": (3072, 48),
        "encoder.block.11.layer.1.self_attention.o.weight": ("d", "inner"),
        "encoder.block.0.layer.2.mlp.wi.weight": (3072, "d"),
        "output_patch_embedding.residual_layer.bias": (21 * 16,),
    },
    "moirai": {
        "in_proj.weight": (5, "d", 128),
        "param_proj.proj.weights_logits.weight": (5, 4 * 128, "d"),
        "param_proj.proj.components.2.total_count.weight": (5, 128, "d"),
        "encoder.layers.0.self_attn.var_attn_bias.emb.weight": (2, "heads"),
        "mask_encoding.weight": (1, "d"),
    },
    "moirai2": {"in_proj.hidden_layer.weight": ("d", 32), "out_proj.output_layer.weight": (4 * 9 * 16, "d")},
    "encoder": {"mask_encoding.weight": (1, "d"), "param_proj.proj.components.3.df.weight": (32, "d")},
    "decoder": {"encoder.layers.0.ffn.fc_gate.weight": ("ff", "d"), "in_proj.weight": ("d", 32)},
}


def test_when_a_published_size_is_built_then_it_has_the_published_number_of_parameters() -> None:
    counted = 0
    for entry in registry.published().values():
        sizes = entry.sizes or {}
        config: Any = None
        if entry.family == "chronos-bolt":
            names = ("d_model", "d_ff", "d_kv", "num_heads", "num_layers", "num_decoder_layers")
            config = ChronosBoltConfig(*(sizes[name] for name in names))
        elif entry.family == "chronos2" and sizes:
            config = Chronos2Config()
        elif entry.family == "moirai":
            config = MoiraiConfig(sizes["d_model"], sizes["num_layers"], sizes["d_model"] // 64)
        elif entry.family == "moirai2":
            config = Moirai2Config(384, 1024, 6, 6, 16, 4)
        elif entry.family in ("encoder", "decoder"):
            config = (SIZES if entry.family == "encoder" else DECODER_SIZES)[sizes["size"]]
        if config is None:
            continue
        with torch.device("meta"):
            model: torch.nn.Module = model_class(entry.family)(2048, 64, config)
        assert sum(p.numel() for p in model.parameters()) == entry.parameters, entry.name
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        axes: dict[Any, int] = {
            "d": config.d_model,
            "heads": config.heads,
            "ff": (int(config.d_model * 8 / 3) + 7) // 8 * 8,
        }
        axes["inner"] = config.heads * getattr(config, "d_kv", 64)
        for key, shape in PUBLISHED[entry.family].items():
            assert shapes[key] == tuple(axes.get(axis, axis) for axis in shape), (entry.name, key)
        counted += 1
    assert counted == 27


def test_when_a_checkpoint_is_unknown_or_has_a_name_of_another_kind_then_it_is_refused(tmp_path: Path) -> None:
    cases = {
        "encoder.block.0.layer.0.self_attention.q.weight": "expected the config.json of a Chronos-2",
        "encoder.layers.0.ffn.experts.0.fc1.weight": "found one of Moirai-MoE",
        "shared.weight": "found a T5",
        "lm_head.weight": "found the tensors lm_head.weight",
        "enc_embedding.value_embedding.weight": "expected the keys of an iTransformer",
    }
    for key, message in cases.items():
        save_file({key: torch.zeros(2, 2)}, tmp_path / "x.safetensors")
        with pytest.raises(InputError, match=message):
            convert(tmp_path / "x.safetensors", tmp_path / "out")
        assert not (tmp_path / "out").exists()
