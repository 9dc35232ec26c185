"""timm's newer rules for models: device and type at creation, frozen parameters, pruning, traces."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from tiny_backbones import SMALL, create, every, image
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
# Rows and columns that no stride divides; PyramidTNT takes multiples of 8, a learned matrix its own size alone.
SIZES = {"ptnt_ti_patch16_192": (72, 40), "metaformer_ppff_s12_224": (64, 64)}
ODD = (75, 53)
TRACE = """
import timm
import torch
from tiny_backbones import SMALL, create, image
from timm.models import get_notrace_functions, get_notrace_modules
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
options = {
    "leaf_modules": get_notrace_modules(),
    "autowrap_functions": get_notrace_functions(),
    "param_shapes_constant": True,
}
for name in SMALL:
    model, x = create(name), image()
    last = get_graph_node_names(model, tracer_kwargs=options)[1][-1]
    traced = create_feature_extractor(model, [last], tracer_kwargs=options)
    output, expected = traced(x)[last], model(x)
    assert torch.allclose(output, expected, atol=1e-5), name
    output.mean().backward()
    assert [key for key, p in traced.named_parameters() if p.grad is None] == [], name
    if "fx" in model.extractors:
        made = {}
        for kind in ("getter", "fx"):
            torch.manual_seed(0)
            made[kind] = timm.create_model(name, features_only=True, feature_cls=kind, **SMALL[name]).eval()(x)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(made["getter"], made["fx"], strict=True)), name
    print(name)
"""


@every
def test_when_created_on_a_device_and_in_a_type_then_every_tensor_is_there(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.bfloat16, num_classes=10, **SMALL[name])
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.bfloat16}
    out = model.eval()(image().to("meta", torch.bfloat16))
    assert (out.shape, out.dtype) == ((2, 10), torch.bfloat16)
    with pytest.raises(TypeError, match="no_size_of_a_model"):
        timm.create_model(name, no_size_of_a_model=1)


@every
def test_when_the_classifier_is_replaced_then_it_is_as_the_model_is_and_what_is_frozen_stays_so(name: str) -> None:
    model = create(name).double().requires_grad_(False)
    model.reset_classifier(0)
    if hasattr(model, "set_input_size"):
        model.set_input_size((96, 128))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.reset_classifier(3)
    assert {p.dtype for p in model.get_classifier().parameters()} == {torch.float64}
    assert not any(module.training for module in model.modules())


@every
def test_when_pruned_to_any_block_then_its_features_stay_and_every_parameter_is_used(name: str) -> None:
    model, x = create(name), image()
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
    for index, expected in enumerate(maps):
        with torch.no_grad():
            early = model.forward_intermediates(x, indices=[index], stop_early=True, intermediates_only=True)
            assert torch.equal(early[0], expected)
        pruned = copy.deepcopy(model)
        taken = pruned.prune_intermediate_layers([index], prune_norm=True)
        (left,) = pruned.forward_intermediates(x, indices=taken, intermediates_only=True)
        assert torch.allclose(left, expected, atol=1e-5)
        (left.sum() + pruned.forward_features(x).sum()).backward()
        assert [key for key, p in pruned.named_parameters() if p.grad is None] == []


@every
def test_when_features_are_asked_of_an_odd_size_then_every_level_alone_is_that_of_all_together(name: str) -> None:
    size = SIZES.get(name, ODD)
    x = image(size[0], width=size[1], batch=1)
    levels = len(create(name).feature_info)
    everything = features(name, x, tuple(range(levels)))
    for index in range(levels):
        (alone,) = features(name, x, (index,))
        assert torch.allclose(alone, everything[index], atol=1e-5)


def features(name: str, x: Tensor, out_indices: tuple[int, ...]) -> list[Tensor]:
    """Maps of a model whose weights depend on its name alone; their channels and sizes are those it says."""
    torch.manual_seed(0)
    net = timm.create_model(name, **SMALL[name]).eval()
    chosen = timm.create_model(name, features_only=True, out_indices=out_indices, **SMALL[name]).eval()
    state = net.state_dict()
    inner = chosen.model if hasattr(chosen, "model") else chosen
    inner.load_state_dict({key: state[key] for key in inner.state_dict()})
    with torch.no_grad():
        maps = chosen(x)
    for map_, channels, reduction in zip(
        maps, chosen.feature_info.channels(), chosen.feature_info.reduction(), strict=True
    ):
        assert map_.shape[:2] == (1, channels)
        for side, whole in zip(map_.shape[2:], x.shape[2:], strict=True):
            assert whole // reduction <= side <= -(-whole // reduction)
    return maps


@every
def test_when_features_are_trained_with_checkpointing_then_gradients_stay_the_same(name: str) -> None:
    grads = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = timm.create_model(name, features_only=True, **SMALL[name]).train()
        model.model.set_grad_checkpointing(enable)
        sum((map_.square().mean() for map_ in model(image())), torch.zeros(())).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    assert all(torch.allclose(one, two, rtol=1e-4, atol=1e-5) for one, two in zip(*grads, strict=True))


@pytest.mark.slow
def test_when_traced_symbolically_then_graphs_give_the_same_outputs_and_gradients() -> None:
    # In a process of its own: type checks of the test run refuse the proxies of a trace.
    folders = (ROOT, ROOT / "data", ROOT / "vision", ROOT / "tests")
    path = os.pathsep.join(map(str, folders))
    done = subprocess.run(
        [sys.executable, "-c", TRACE], env={**os.environ, "PYTHONPATH": path}, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == list(SMALL)
