"""The golden cases of image backbones: which there are, the sizes of their models, and how close outputs come."""

import json
from typing import Any

import pytest
from conftest import golden_cases
from torch import Tensor


def cases(family: str) -> list[Any]:
    files = [file for file in golden_cases(f"vision/{family}") if json.loads(file.read_text()).get("config")]
    params = [pytest.param(file, id=file.stem) for file in files]
    return params or [pytest.param(None, marks=pytest.mark.skip(f"no golden cases of {family} (set TSFM_GOLDEN)"))]


def close(actual: Tensor, expected: Tensor, what: str) -> None:
    assert actual.shape == expected.shape, what
    limit = 5e-5 * max(1.0, float(expected.abs().max()))
    assert float((actual.detach() - expected).abs().max()) <= limit, what


def sizes_of(case: dict[str, Any]) -> Any:
    return json.loads(case.read_text())["config"]["kwargs"]


MIXERS = {"Identity": "identity", "Pooling": "pool", "Attention": "attention", "SpatialFc": "fc"}


def metaformer_sizes(kwargs: dict[str, Any], size: int) -> dict[str, Any]:
    def name(entry: Any) -> Any:
        return entry and MIXERS.get(entry.get("$") or entry["$partial"][0])

    ours: dict[str, Any] = {
        "depths": kwargs["layers"],
        "dims": kwargs["embed_dims"],
        "mlp_ratios": kwargs["mlp_ratios"],
        "num_classes": kwargs["num_classes"],
        "layer_scale": 1e-5 if kwargs.get("use_layer_scale", True) else None,
        "stage_norms": kwargs.get("fork_feat", False),
        "pool_size": kwargs.get("pool_size", 3),
        "img_size": size,
    }
    if "token_mixers" in kwargs:
        ours["mixers"] = [name(entry) for entry in kwargs["token_mixers"]]
        ours["channel_norm"] = "norm_layer" not in kwargs
        ours["positioned"] = [i for i, entry in enumerate(kwargs.get("add_pos_embs", [])) if entry]
    return ours


def tnt_sizes(kwargs: dict[str, Any]) -> dict[str, Any]:
    names = {"outer_dim": "embed_dim", "outer_num_heads": "num_heads_outer", "inner_num_heads": "num_heads_inner"}
    names |= {"inner_stride": "first_stride", "se": "gated"}
    sizes = {names.get(key, key): value for key, value in kwargs.items()}
    return {**sizes, "gated": bool(sizes.get("gated"))}


def illama_sizes(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key != "norm_layer"}


def biformer_sizes(kwargs: dict[str, Any], family: str) -> dict[str, Any]:
    names = {"depth": "depths", "embed_dim": "dims", "n_wins": "n_win"}
    sizes = {names.get(key, key): value for key, value in kwargs.items() if key not in ("norm_layer", "pe")}
    return {**sizes, "overlap": "stl" not in family, "newer_op": "nchw" in family}
