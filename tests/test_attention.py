"""``attend`` gives what a plain softmax gives, whatever the mask, the type, the head size and the length."""

import itertools
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tsfm.attention.dispatch import Mask, attend, attend_reference
from tsfm.attention.segments import group
from tsfm.attention.torch_kernels import layout

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float64: 1e-11}


def lengths_of(n: int) -> list[int]:
    """Uneven segments that add up to ``n``."""
    cuts = sorted({0, n // 5, n // 4, n // 2, n})
    return [b - a for a, b in itertools.pairwise(cuts)]


def ids_of(n: int) -> Tensor:
    """Two rows: padding at the end of one, in front of the other; several segments in each."""
    first = torch.repeat_interleave(torch.arange(1, len(lengths_of(n)) + 1), torch.tensor(lengths_of(n)))
    second = first.flip(0)
    first, second = first.clone(), second.clone()
    first[n - n // 3 :] = 0
    second[: n // 4] = 0
    return torch.stack([first, second])


def scattered(n: int) -> Tensor:
    """Visible tokens here and there, as where variates of a window are missing."""
    return (torch.arange(2 * n) % 3 != 1).long().view(2, n)


MASKS: dict[str, tuple[int, Callable[[int], Mask | None]]] = {
    "none": (2, lambda n: None),
    "causal": (2, lambda n: Mask.causal()),
    "packed": (1, lambda n: Mask.packed(lengths_of(n))),
    "packed causal": (1, lambda n: Mask.packed(lengths_of(n), causal=True)),
    "packed causal local": (1, lambda n: Mask(lengths=tuple(lengths_of(n)), is_causal=True, window=(3, 0))),
    "packed local": (1, lambda n: Mask(lengths=tuple(lengths_of(n)), window=(2, 3))),
    "segments": (2, lambda n: Mask.segments(ids_of(n))),
    "segments causal": (2, lambda n: Mask.segments(ids_of(n), causal=True)),
    "scattered": (2, lambda n: Mask.segments(scattered(n))),
    "local": (2, lambda n: Mask.local(4, 2)),
    "causal local": (2, lambda n: Mask.local(5, 9, causal=True)),
    "bias": (2, lambda n: Mask(bias=torch.linspace(-2, 2, 3 * n * n).view(1, 3, n, n))),
    "causal bias": (2, lambda n: Mask(bias=torch.linspace(-2, 2, n).view(1, 1, 1, n), is_causal=True)),
    "segments bias": (2, lambda n: Mask(bias=torch.linspace(-2, 2, n).view(1, 1, 1, n), segment_ids=ids_of(n))),
}


def tensors(b: int, n: int, d: int, dtype: torch.dtype, m: int | None = None) -> list[Tensor]:
    torch.manual_seed(n * 100 + d)
    return [torch.randn(b, size, 3, d, dtype=dtype).requires_grad_() for size in (n, m or n, m or n)]


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return list(torch.autograd.grad((out * weight).sum(), inputs))


def assert_same(mask: Mask | None, inputs: list[Tensor]) -> None:
    out = attend(*inputs, mask)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = attend_reference(*exact, mask)
    tolerance = TOLERANCE[inputs[0].dtype]
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    for actual, wanted in zip(gradients(out, inputs), gradients(expected, exact), strict=True):
        assert torch.isfinite(actual).all()
        torch.testing.assert_close(actual.double(), wanted, atol=2 * tolerance, rtol=2 * tolerance)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 7, 33, 130])
def test_when_the_mask_varies_then_values_and_gradients_are_those_of_a_plain_softmax(
    name: str, dtype: torch.dtype, n: int
) -> None:
    b, build = MASKS[name]
    assert_same(build(n), tensors(b, n, 12, dtype))


@pytest.mark.parametrize("d", [1, 5, 12, 24, 64, 80, 264])
@pytest.mark.parametrize("name", ["none", "causal", "packed", "segments bias"])
def test_when_the_head_size_varies_then_values_and_gradients_are_those_of_a_plain_softmax(name: str, d: int) -> None:
    b, build = MASKS[name]
    assert_same(build(33), tensors(b, 33, d, torch.float32))


@pytest.mark.parametrize(("n", "m"), [(1, 7), (7, 33), (33, 130), (33, 7)])
@pytest.mark.parametrize("name", ["none", "causal", "local"])
def test_when_there_are_more_keys_than_queries_then_the_queries_are_the_last_tokens(name: str, n: int, m: int) -> None:
    _, build = MASKS[name]
    inputs = tensors(2, n, 12, torch.float32, m)
    if n > m and name != "none":
        with pytest.raises(ValueError, match="no more queries than keys"):
            attend(*inputs, build(n))
        return
    assert_same(build(n), inputs)


def test_when_decoding_the_last_token_then_it_equals_the_last_of_the_whole() -> None:
    q, k, v = tensors(2, 9, 8, torch.float64)
    torch.testing.assert_close(attend(q[:, -1:], k, v, Mask.causal()), attend(q, k, v, Mask.causal())[:, -1:])


def test_when_a_query_sees_no_key_then_its_value_and_gradient_are_zero() -> None:
    for dropout in (0.0, 0.1):
        q, k, v = tensors(2, 8, 4, torch.float32)
        bias = torch.zeros(1, 1, 8, 8)
        bias[..., 2, :] = -torch.inf
        out = attend(q, k, v, Mask(bias=bias), dropout=dropout)
        assert (out[:, 2] == 0).all()
        assert (out[:, 3] != 0).any()
        dq, dk, dv = gradients(out, [q, k, v])
        assert (dq[:, 2] == 0).all()
        assert all(torch.isfinite(x).all() for x in (dq, dk, dv))


def test_when_segments_are_packed_then_they_give_what_each_gives_alone() -> None:
    sizes = [5, 1, 17, 4, 3, 3, 40]
    q, k, v = (x[:1] for x in tensors(1, sum(sizes), 6, torch.float64))
    packed = attend(q, k, v, Mask.packed(sizes, causal=True)).split(sizes, 1)
    parts = zip(*(x.split(sizes, 1) for x in (q, k, v)), packed, strict=True)
    for q_i, k_i, v_i, out in parts:
        torch.testing.assert_close(out, attend_reference(q_i, k_i, v_i, Mask.causal()))


def test_when_segments_are_packed_then_the_work_is_bounded_by_the_sum_of_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    for high in (5, 50, 500):
        sizes = torch.randint(1, high, (200,), generator=generator).tolist()
        runs = Mask.packed(sizes).runs
        assert runs is not None
        assert group(runs).cost <= 1.5625 * sum(x**2 for x in sizes)
        assert layout(Mask.packed(sizes), 1, sum(sizes), sum(sizes)) == "segments"
    assert layout(Mask.packed([8000, *[8] * 1000]), 1, 16000, 16000) == "segments"


def test_when_the_window_is_short_then_the_work_is_done_by_window() -> None:
    assert layout(Mask.local(16, 16), 2, 1000, 1000) == "windows"
    assert layout(Mask.local(16, 16, causal=True), 2, 1000, 1000) == "windows"
    assert layout(Mask.local(400, 0), 2, 1000, 1000) == "dense"
    for mask in (Mask.local(16, 7), Mask.local(20, 5, causal=True), Mask.local(0, 0)):
        for n in (256, 301):
            assert layout(mask, 2, n, n) == "windows"
            assert_same(mask, tensors(2, n, 5, torch.float32))


def test_when_autocast_is_on_then_the_work_is_done_in_its_type() -> None:
    q, k, v = tensors(2, 20, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for dropout in (0.0, 0.1):
            out = attend(q, k, v, Mask.causal(), dropout=dropout)
            assert out.dtype == torch.bfloat16
            assert all(x.dtype == torch.float32 for x in gradients(out, [q, k, v]))


def test_when_a_bias_is_learned_then_its_gradient_is_that_of_a_plain_softmax() -> None:
    q, k, v = tensors(2, 10, 4, torch.float64)
    bias = torch.randn(1, 3, 10, 10, dtype=torch.float64, requires_grad=True)
    mask = Mask(bias=bias, is_causal=True)
    (actual,) = gradients(attend(q, k, v, mask), [bias])
    (wanted,) = gradients(attend_reference(q, k, v, mask), [bias])
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda: Mask.packed([]), "segments of one token or more"),
        (lambda: Mask.packed([3, 0]), "segments of one token or more"),
        (lambda: Mask.local(-1, 2), "window of two sizes"),
        (lambda: Mask(lengths=(3,), segment_ids=torch.ones(1, 3, dtype=torch.long)), "found both"),
        (lambda: Mask.packed([3, 4]), "7 tokens in 1 rows"),
        (lambda: Mask.segments(torch.ones(2, 7, dtype=torch.long)), "7 tokens in 2 rows"),
    ],
)
def test_when_a_mask_is_wrong_then_the_error_says_what_was_expected(mask: Callable[[], Mask], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend(*tensors(1, 6, 4, torch.float32), mask())


@pytest.mark.slow
def test_when_tensors_are_on_the_cpu_then_xformers_stays_out() -> None:
    code = (
        "import sys, torch; from tsfm.attention.dispatch import attend, Mask; x = torch.ones(1, 4, 2, 8); "
        "attend(x, x, x, Mask.causal(), dropout=0.1); assert 'xformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", ["none", "causal", "bias", "blind rows"])
def test_when_a_gradient_is_needed_then_products_give_what_the_fused_kernel_gives(
    dtype: torch.dtype, masked: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 9, 3, 8, generator=generator).to(dtype) for _ in range(3))
    bias = torch.randn(2, 1, 9, 9, generator=generator).to(dtype)
    masks = {
        "none": None,
        "causal": Mask.causal(),
        "bias": Mask(bias=bias),
        "blind rows": Mask.segments(torch.tensor([[1] * 5 + [0] * 4] * 2)),
    }
    expected = attend(q, k, v, masks[masked])  # without gradient: the fused kernel
    trained = [x.clone().requires_grad_() for x in (q, k, v)]
    actual = attend(*trained, masks[masked])
    close = {"atol": 2e-2, "rtol": 2e-2} if dtype == torch.bfloat16 else {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(actual, expected, **close)
    actual.float().square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in trained)
    if masked == "blind rows":
        assert not actual[:, 5:].any()
        assert trained[0].grad is not None
        assert not trained[0].grad[:, 5:].any()
