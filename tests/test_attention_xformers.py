"""The door speaks xformers' language: its mask classes mean what ours mean, its kernels are chosen by what they take.

No GPU is needed: the classes write their masks out on a CPU, and the choice is made on fake CUDA tensors of an H100.
"""

import itertools
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from tsfm.attention import dispatch as attention
from tsfm.attention.dispatch import Mask, attend, attend_reference, kernel_name, xformers_bias

pytest.importorskip("xformers")

IDS = torch.tensor([[1, 1, 1, 2, 2, 0, 0, 0, 0], [0, 3, 3, 1, 1, 1, 1, 2, 2]])
SEEN: dict[str, tuple[int, int, int, Mask]] = {
    "causal": (2, 9, 9, Mask.causal()),
    "causal with a cache": (2, 4, 9, Mask.causal()),
    "packed": (1, 9, 9, Mask.packed([2, 4, 3])),
    "packed causal": (1, 9, 9, Mask.packed([2, 4, 3], causal=True)),
    "packed causal local": (1, 9, 9, Mask(lengths=(2, 4, 3), is_causal=True, window=(1, 0))),
    "local": (2, 9, 9, Mask.local(3, 2)),
    "local with a cache": (2, 4, 9, Mask.local(3, 2)),
    "causal local": (2, 9, 9, Mask.local(3, 2, causal=True)),
    "segments": (2, 9, 9, Mask.segments(IDS)),
    "segments causal": (2, 9, 9, Mask.segments(IDS, causal=True)),
    "segments causal local": (2, 9, 9, Mask(segment_ids=IDS, is_causal=True, window=(1, 1))),
    "scattered": (2, 9, 9, Mask.segments((torch.arange(18) % 3 != 1).long().view(2, 9))),
    "bias": (2, 9, 9, Mask(bias=torch.randn(1, 2, 9, 9))),
    "causal bias": (2, 9, 9, Mask(bias=torch.randn(2, 1, 1, 9), is_causal=True)),
}


@pytest.mark.parametrize("name", SEEN)
def test_when_a_mask_is_translated_then_xformers_means_the_same_by_it(name: str) -> None:
    b, n, m, mask = SEEN[name]
    q, k, v = (torch.randn(b, size, 2, 4) for size in (n, m, m))
    translation = xformers_bias(mask, q, k)
    assert translation is not None
    rows = [x.flatten(0, 1)[None] if translation.is_flat else x for x in (q, k, v)]
    bias = translation.bias
    if not isinstance(bias, torch.Tensor):
        bias = bias.materialize((1, 2, rows[0].shape[1], rows[1].shape[1]))
    assert translation.bias is not bias or bias.stride(-2) % 8 == 0
    out = attend_reference(*rows, Mask(bias=bias)).view(b, n, 2, 4)
    if translation.blind is not None:
        out = out.masked_fill(translation.blind, 0)
    torch.testing.assert_close(out, attend_reference(q, k, v, mask))


def test_when_xformers_has_no_class_for_a_mask_then_it_is_not_asked() -> None:
    x = torch.randn(1, 9, 2, 4)
    assert xformers_bias(Mask(lengths=(4, 5), window=(2, 2)), x, x) is None


@pytest.fixture
def fake_h100(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CUDA tensors without numbers, on a machine that says it has an H100."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    ops = attention.load_xformers()
    assert ops is not None
    import xformers

    if not getattr(xformers, "_has_cpp_library", False):
        pytest.skip("xformers cannot load its CUDA library beside this PyTorch")
    classes, cutlass = ops.fmha.attn_bias, ops.fmha.cutlass
    build = classes.BlockDiagonalMask.from_seqlens.__func__
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(
        classes.BlockDiagonalMask,
        "from_seqlens",
        classmethod(lambda cls, sizes, device: build(cls, sizes, device=torch.device("cpu"))),
    )
    for operator in (cutlass.FwOp, cutlass.BwOp):
        known = (*operator.SUPPORTED_ATTN_BIAS_TYPES, FakeTensor)
        monkeypatch.setattr(operator, "SUPPORTED_ATTN_BIAS_TYPES", known)
    attention._blocks.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    attention._blocks.cache_clear()


FLASH, CUTLASS, TORCH = "xformers fa2F", "xformers cutlassF", "torch SDPA"
MASKS: dict[str, Callable[[], Mask | None]] = {
    "none": lambda: None,
    "causal": Mask.causal,
    "packed": lambda: Mask.packed([10, 23]),
    "packed causal": lambda: Mask.packed([10, 23], causal=True),
    "packed causal local": lambda: Mask(lengths=(10, 23), is_causal=True, window=(3, 0)),
    "local": lambda: Mask.local(3, 2),
    "bias": lambda: Mask(bias=torch.zeros(1, 1, 33, 33, device="cuda")),
    "packed local": lambda: Mask(lengths=(10, 23), window=(3, 2)),
}
CHOICE = {
    # Type and head size: kernels for the masks above, in their order.
    (torch.bfloat16, 64): [FLASH] * 6 + [CUTLASS, TORCH],
    (torch.bfloat16, 12): [FLASH] * 6 + [CUTLASS, TORCH],
    (torch.bfloat16, 264): [CUTLASS] * 5 + [TORCH, CUTLASS, TORCH],
    (torch.float32, 64): [CUTLASS] * 5 + [TORCH, CUTLASS, TORCH],
    (torch.float32, 5): [CUTLASS] * 5 + [TORCH, CUTLASS, TORCH],
    (torch.float64, 64): [TORCH] * 8,
}


@pytest.mark.parametrize("case", CHOICE, ids=str)
def test_when_a_cuda_tensor_arrives_then_the_kernel_is_one_that_takes_it(
    case: tuple[torch.dtype, int], fake_h100: None
) -> None:
    dtype, d = case
    x = torch.empty(1, 33, 2, d, dtype=dtype, device="cuda")
    for (name, mask), expected in zip(MASKS.items(), CHOICE[case], strict=True):
        assert kernel_name(x, x, x, mask(), dropout=0.1).startswith(expected), name


@pytest.mark.parametrize("d", [64, 12])
@pytest.mark.parametrize("name", ["none", "causal", "packed causal", "local", "bias"])
def test_when_a_cuda_tensor_arrives_then_xformers_is_called_with_what_its_kernels_take(
    d: int, name: str, fake_h100: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = attention.load_xformers()
    assert ops is not None
    calls = []

    def record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append((q.shape, options))
        return torch.empty_like(q)

    monkeypatch.setattr(ops, "memory_efficient_attention", record)
    x = torch.empty(1, 33, 2, d, dtype=torch.bfloat16, device="cuda")
    assert attend(x, x, x, MASKS[name](), dropout=0.1).shape == x.shape
    ((shape, options),) = calls
    assert shape[-1] % 8 == 0
    assert options["p"] == 0.1
    assert options["scale"] == pytest.approx(d**-0.5)


@pytest.mark.slow
def test_when_xformers_is_loaded_then_nothing_is_said() -> None:
    code = "from tsfm.attention.dispatch import load_xformers; assert load_xformers() is not None"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == done.stderr == ""


def test_when_xformers_does_not_import_then_the_door_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with caplog.at_level(logging.WARNING):
        assert attention.load_xformers.__wrapped__() is None
    assert "tsfm doctor" in caplog.text


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [*SEEN, "none"])
def test_when_on_cuda_then_values_and_gradients_are_those_of_a_plain_softmax(name: str) -> None:
    b, n, m, mask = SEEN[name] if name != "none" else (2, 9, 9, None)
    for dtype, d in itertools.product((torch.float32, torch.bfloat16), (5, 12, 64, 264)):
        inputs = [torch.randn(b, s, 2, d, dtype=dtype, device="cuda", requires_grad=True) for s in (n, m, m)]
        exact = [x.detach().double().requires_grad_() for x in inputs]
        out, wanted = attend(*inputs, mask), attend_reference(*exact, mask)
        tolerance = 4e-2 if dtype == torch.bfloat16 else 2e-4
        torch.testing.assert_close(out.double(), wanted, atol=tolerance, rtol=tolerance)
        pairs = zip(torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(wanted.sum(), exact), strict=True)
        for actual, right in pairs:
            torch.testing.assert_close(actual.double(), right, atol=2 * tolerance, rtol=2 * tolerance)
