"""Parameters and FLOPs counted without weights are those of PyTorch's counter on a real run, and of the formulas."""

import pytest
import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.utils.flop_counter import FlopCounterMode

from tsfm.models.counts import count, count_forecaster, counts_table, parameters, sizes_of
from tsfm.models.itransformer import ITransformerConfig
from tsfm.models.moirai import MoiraiConfig
from tsfm.models.moirai2 import Moirai2Config
from tsfm.models.registry import model_class
from tsfm.models.scaling_law.trunk import TrunkConfig
from tsfm_data.errors import InputError
from tsfm_data.windows.batch import Batch

CONTEXT, HORIZON = 128, 64
SMALL = {
    "encoder": TrunkConfig(16, 2, 2, 16),
    "decoder": TrunkConfig(16, 2, 2, 16),
    "itransformer": ITransformerConfig(d_model=16, d_ff=24, heads=2),
    "moirai": MoiraiConfig(d_model=24, layers=2, heads=2),
    "moirai2": Moirai2Config(d_model=24, d_ff=32, layers=2, heads=2),
}


@pytest.mark.parametrize("name", SMALL)
def test_when_a_model_is_counted_then_a_real_training_step_costs_the_same(name: str) -> None:
    found = count_forecaster(name, SMALL[name], CONTEXT, HORIZON)
    model = model_class(name)(CONTEXT, HORIZON, SMALL[name])
    past, future = torch.randn(3, CONTEXT, 1), torch.randn(3, HORIZON, 1)
    batch = Batch(past, torch.ones_like(past).bool(), HORIZON, 1, future, torch.ones_like(future).bool())
    with FlopCounterMode(display=False) as counter:
        loss = model.loss(batch)
        forward = counter.get_total_flops()
        loss.backward()
    assert (3 * found.forward_flops, 3 * found.flops) == (forward, counter.get_total_flops())
    assert found.params == sum(p.numel() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning", "ignore:torch.quantize_per:UserWarning")
@pytest.mark.parametrize("name", SMALL)
def test_when_a_model_is_quantised_then_its_linear_layers_are_and_it_forecasts(name: str) -> None:
    model = quantize_dynamic(model_class(name)(CONTEXT, HORIZON, SMALL[name]).eval(), {nn.Linear})
    kept = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert kept <= {"head"}  # whose outputs are reordered
    past, marks = torch.randn(3, CONTEXT, 2), torch.zeros(3, CONTEXT + HORIZON, 4)
    batch = Batch(past, torch.ones_like(past).bool(), HORIZON, 1, None, None, marks[:, :CONTEXT], marks[:, CONTEXT:])
    assert model.predict(batch, [0.5]).quantiles.isfinite().all()


@pytest.mark.parametrize("arch", ["encoder", "decoder"])
@pytest.mark.parametrize("size", ["1K", "1M"])
def test_when_the_published_family_is_counted_then_it_is_the_closed_form(arch: str, size: str) -> None:
    config = sizes_of(arch)[size]
    width, layers, patch = config.d_model, config.layers, config.patch_size
    hidden = (int(8 * width / 3) + 7) // 8 * 8
    tokens = CONTEXT // patch + HORIZON // patch
    head = patch * width * 4 * 3 + patch * width * 4
    each = layers * (4 * width**2 + 3 * width * hidden) + patch * width
    products = tokens * each + HORIZON // patch * head  # the mixture is that of the patches to predict alone
    attention = layers * 4 * tokens**2 * width
    found = count_forecaster(arch, config, CONTEXT, HORIZON)
    assert found.tokens == tokens
    assert found.forward_flops == 2 * products + attention
    # Backward: two products for one, but no gradient of the data. Few tokens: attention keeps its scores.
    assert found.flops == 6 * products - 2 * tokens * patch * width + 3 * attention


def test_when_the_published_sizes_are_counted_then_the_trunk_has_the_published_parameters() -> None:
    published = {"1K": 872, "10K": 14_040, "100K": 100_928, "1M": 1_771_712, "10M": 14_163_328, "100M": 127_432_704}
    for name, params in published.items():
        with torch.device("meta"):
            model = model_class("encoder")(CONTEXT, HORIZON, sizes_of("encoder")[name])
        assert parameters(model)[1] == params


@pytest.mark.slow
def test_when_the_model_is_small_then_6nd_of_the_trunk_is_wrong_and_for_large_ones_right() -> None:
    rows = {row["size"]: row for row in counts_table(["encoder"], 512, 64, ["1K", "100K", "3M"])}
    assert rows["1K"]["times_6ND_trunk"] == pytest.approx(2.00, abs=0.01)
    assert rows["100K"]["times_6ND_trunk"] == pytest.approx(1.09, abs=0.01)
    assert rows["3M"]["times_6ND"] == pytest.approx(0.986, abs=0.001)


def test_when_tokens_choose_their_layer_then_fewer_parameters_are_active() -> None:
    config = SMALL["moirai"]
    model = model_class("moirai")(CONTEXT, HORIZON, config)
    total, trunk, active = parameters(model)
    assert trunk < active < total
    sized = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("in_proj", "param_proj")))
    assert total - active == sized * 4 // 5


def test_when_any_module_is_given_then_it_is_counted_by_its_loss() -> None:
    layer = count(lambda: torch.nn.Linear(10, 20, bias=False), lambda model, zeros: model(zeros(3, 10)).sum())
    assert (layer.params, layer.forward_flops, layer.flops) == (200, 1200, 2400)


def test_when_a_size_or_architecture_is_unknown_then_the_line_names_those_that_are() -> None:
    with pytest.raises(InputError, match="did you mean 1K, 10K"):
        counts_table(["encoder"], 512, 64, ["11K"])
    with pytest.raises(InputError, match="unknown architecture 'encodr'"):
        counts_table(["encodr"], 512, 64)
    with pytest.raises(InputError, match="at least 1 step"):
        counts_table(["encoder"], 0, 64)
