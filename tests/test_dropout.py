"""Dropout has PyTorch's distribution, follows PyTorch's seed, and its gradient is that of the formula."""

import math

import pytest
import torch
from torch import Tensor, nn

import tsfm.attention.dropout_kernel as attention_dropout
from tsfm.attention.dispatch import Mask, attend, attend_reference
from tsfm.attention.dropout import SMALL, Dropout, dropout, keep_mask

SCALE = 0.4


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 1 / 300, 0.999])
def test_when_a_mask_is_drawn_then_the_share_is_the_one_asked_for(p: float) -> None:
    torch.manual_seed(3)
    n = 4_000_000
    dropped = n - int(keep_mask((n,), p).sum())
    # Five standard deviations; rounding .1 to the nearest 256th would be fifteen off.
    assert abs(dropped - n * p) < 5 * math.sqrt(n * p * (1 - p))


def test_when_a_mask_is_drawn_then_neighbours_are_independent() -> None:
    torch.manual_seed(4)
    n, p = 2_000_000, 0.1
    drop = (~keep_mask((n,), p)).double()
    for lag in (1, 2, 8, 4096):
        both = float((drop[:-lag] * drop[lag:]).mean())
        assert abs(both - p**2) < 5 * math.sqrt(p**2 * (1 - p**2) / (n - lag))


def test_when_the_seed_is_the_same_then_the_mask_is_the_same_and_the_state_can_be_restored() -> None:
    x = torch.randn(3, 50_000)
    torch.manual_seed(5)
    first = dropout(x, 0.1, True)
    state = torch.get_rng_state()
    second = dropout(x, 0.1, True)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.1, True), second)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.1, True), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [7, SMALL + 3, 600_001])
def test_when_training_then_elements_are_dropped_or_scaled_and_so_is_the_gradient(
    size: int, dtype: torch.dtype
) -> None:
    x = torch.full((size,), 3.0, dtype=dtype, requires_grad=True)
    out = Dropout(0.25)(x)
    kept = torch.tensor(3.0, dtype=dtype) * (1 / 0.75)
    assert set(out.detach().tolist()) <= {0.0, float(kept)}
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad * 3, out.detach())


@pytest.mark.parametrize("size", [7, SMALL + 3, 600_001])
def test_when_a_residual_is_given_then_it_is_added_and_its_gradient_is_not_dropped(size: int) -> None:
    for kind in (torch.float32, torch.bfloat16):
        x = torch.full((size,), 3.0, dtype=kind, requires_grad=True)
        residual = torch.arange(float(size), requires_grad=True)
        torch.manual_seed(1)
        out = Dropout(0.25)(x, residual)
        torch.manual_seed(1)
        torch.testing.assert_close(out, residual + Dropout(0.25)(x), atol=0, rtol=1e-6)
        dropped, kept = torch.autograd.grad(out.sum(), (x, residual))
        assert torch.equal(kept, torch.ones(size))
        assert 0.1 < float((dropped == 0).double().mean()) < 0.4 or size == 7
        assert torch.equal(Dropout(0.25).eval()(x, residual), residual + x)


def test_when_the_input_is_strided_then_its_order_is_kept() -> None:
    x = torch.arange(40_000.0).view(200, 200).t().requires_grad_()
    out = dropout(x, 0.5, True)
    kept = out != 0
    assert torch.equal(out[kept], (x * 2)[kept])
    (grad,) = torch.autograd.grad(out.t().sum(), x)
    assert torch.equal(grad != 0, kept | ((x == 0) & (grad != 0)))


def test_when_not_training_or_nothing_is_dropped_then_the_input_itself_comes_back() -> None:
    x = torch.randn(10)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_when_it_replaces_the_module_of_pytorch_then_no_state_and_no_number_changes_its_use() -> None:
    assert Dropout(0.1).state_dict() == nn.Dropout(0.1).state_dict() == {}
    assert repr(Dropout(0.1)) == "Dropout(p=0.1)"
    with pytest.raises(ValueError, match=r"below 1, found 1\.5"):
        Dropout(1.5)


def explicit(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, p: float) -> Tensor:
    """Dropped-out attention by its formula, the mask drawn as attention draws it."""
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * SCALE
    bias = None if mask is None else mask.dense(q.shape[1], k.shape[1], q)
    if bias is not None:
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
    weights = scores.softmax(-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights * keep_mask(tuple(weights.shape), p) / (1 - p), v)


@pytest.mark.parametrize("chunk", [1, 40, 200, 1 << 18])
@pytest.mark.parametrize("name", ["none", "causal", "bias"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 0.06)]
)
def test_when_attention_weights_are_dropped_then_values_and_gradients_are_those_of_the_formula(
    chunk: int, name: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_dropout, "CHUNK", chunk)
    torch.manual_seed(1)
    for n in (9, 21):
        mask = {"none": None, "causal": Mask.causal(), "bias": Mask(bias=torch.randn(2, 1, n, n))}[name]
        inputs = [torch.randn(2, n, 3, 5, dtype=dtype).requires_grad_() for _ in range(3)]
        exact = [x.detach().double().requires_grad_() for x in inputs]
        torch.manual_seed(2)
        out = attend(*inputs, mask, scale=SCALE, dropout=0.3)
        torch.manual_seed(2)
        expected = explicit(*exact, mask, 0.3)
        torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
        weight = torch.randn(out.shape, dtype=torch.float64)
        gradients = torch.autograd.grad((out * weight.to(dtype)).sum(), inputs)
        wanted = torch.autograd.grad((expected * weight).sum(), exact)
        for a, b in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(a.double(), b, atol=4 * tolerance, rtol=4 * tolerance)


def test_when_attention_weights_are_dropped_then_the_gradient_is_the_numerical_one() -> None:
    inputs = [torch.randn(1, 4, 2, 3, dtype=torch.float64).requires_grad_() for _ in range(3)]

    def run(*x: Tensor) -> Tensor:
        torch.manual_seed(6)
        return attend(*x, Mask.causal(), dropout=0.4)

    assert torch.autograd.gradcheck(run, inputs)


def test_when_attention_weights_are_dropped_then_the_mean_is_the_undropped_value() -> None:
    torch.manual_seed(7)
    q, k, v = (torch.randn(1, 11, 2, 4, dtype=torch.float64) for _ in range(3))
    runs = 4000
    many = attend(*(x.repeat(runs, 1, 1, 1) for x in (q, k, v)), dropout=0.1)
    error = (many.mean(0) - attend_reference(q, k, v)[0]) / (many.std(0) / runs**0.5)
    assert float(error.abs().max()) < 5


@pytest.mark.parametrize("mask", [Mask.packed([10, 200, 30, 60]), Mask.local(8, 8)], ids=["packed", "local"])
def test_when_a_mask_hides_keys_then_dropout_works_within_what_is_seen(mask: Mask) -> None:
    torch.manual_seed(8)
    q, k = (torch.randn(1, 300, 2, 4) for _ in range(2))
    v = torch.ones(1, 300, 2, 4)
    outs = torch.stack([attend(q, k, v, mask, dropout=0.1) for _ in range(60)])
    torch.testing.assert_close(outs.mean(0), v, atol=0.5, rtol=0)
    torch.testing.assert_close(outs.mean(), torch.tensor(1.0), atol=0.01, rtol=0)
