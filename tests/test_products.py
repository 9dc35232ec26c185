"""Products of linear layers in forecasts, and functions of our own, give what PyTorch's do."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tsfm.nn import onednn_products, products, softplus

INPUTS = {
    "matrix": torch.randn(7, 6),
    "vector": torch.randn(6),
    "four axes": torch.randn(2, 3, 4, 6),
    "no rows": torch.randn(0, 6),
    "steps apart": torch.randn(3, 8, 12)[:, ::2, ::2],
    "turned": torch.randn(6, 5).T,
    "not finite": torch.tensor([[1.0, 2, float("nan"), 4, 5, 6], [float("inf"), 0, 0, 0, 0, 0]]),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", INPUTS)
def test_when_a_forecast_multiplies_then_its_products_are_those_of_pytorch(name: str, bias: bool) -> None:
    layer = nn.Linear(6, 9, bias=bias)
    expected = layer(INPUTS[name])
    with torch.inference_mode(), onednn_products(layer):
        made = layer(INPUTS[name])
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=1e-5, equal_nan=True)


@pytest.mark.skipif(products.PRODUCT is None, reason="PyTorch was built without oneDNN")
def test_when_a_layer_is_trained_or_in_another_precision_then_its_product_is_that_of_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    product = products.PRODUCT
    monkeypatch.setattr(products, "PRODUCT", lambda *words: calls.append(words) or product(*words))
    layer, double, x = nn.Linear(6, 9), nn.Linear(6, 9, dtype=torch.float64), torch.randn(4, 6)
    with onednn_products(nn.ModuleList([layer, double])):
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with torch.no_grad():
            assert double(x.double()).dtype == torch.float64
            assert not calls
            layer(x)
            assert len(calls) == 1


def test_when_forecasts_are_made_then_layers_are_as_before_even_after_an_error() -> None:
    class Own(nn.Linear):
        pass

    layer, own, changed = nn.Linear(6, 9), Own(6, 9), nn.Linear(6, 9)
    changed.forward = lambda x: x
    model = nn.ModuleList([layer, own, changed])
    before = [dict(vars(module)) for module in model]

    def failing() -> None:
        with onednn_products(model), onednn_products(model):
            assert ("forward" in vars(own), vars(changed)["forward"]) == (False, before[2]["forward"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert [vars(module) for module in model] == before


def test_when_a_counter_watches_a_forecast_then_it_counts_every_product() -> None:
    layer = nn.Linear(6, 9)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter, onednn_products(layer):
        layer(torch.ones(5, 6))
    assert counter.get_total_flops() == 2 * 5 * 6 * 9


def test_when_weights_are_of_another_type_then_the_type_multiplies() -> None:
    class Packed(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is F.linear:
                return torch.full((1,), 7.0)
            return super().__torch_function__(func, types, args, kwargs)

    layer = nn.Linear(6, 9)
    layer.weight = nn.Parameter(torch.ones(9, 6).as_subclass(Packed))
    with torch.inference_mode(), onednn_products(layer):
        assert layer(torch.ones(6)).tolist() == [7.0]


@pytest.mark.skipif(products.PRODUCT is None, reason="PyTorch was built without oneDNN")
def test_when_a_thread_ends_before_another_then_the_other_still_has_the_same_products() -> None:
    layer, entered, left = nn.Linear(6, 9), Event(), Event()

    def longer() -> bool:
        with onednn_products(layer):
            entered.set()
            left.wait(60)
            return "forward" in vars(layer)

    with ThreadPoolExecutor(1) as pool:
        with onednn_products(layer):
            running = pool.submit(longer)
            assert entered.wait(60)
        left.set()
        assert running.result()
    assert "forward" not in vars(layer)


def test_when_softplus_is_computed_here_then_it_is_that_of_pytorch() -> None:
    x = torch.linspace(-80, 80, 4001)
    torch.testing.assert_close(softplus(x), F.softplus(x.double(), threshold=700).float(), atol=0, rtol=1e-6)
