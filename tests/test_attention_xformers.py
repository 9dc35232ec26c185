"""The door speaks the language of xformers, mslk and ``varlen_attn``: masks mean the same, kernels take what they get.

No GPU is needed: the classes write their masks out on a CPU, and the choice is made on fake CUDA tensors of an H100.
"""

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tsfm.attention import dispatch as attention
from tsfm.attention import libraries, varlen
from tsfm.attention.dispatch import Mask, attend, attend_reference, kernel_name, xformers_bias
from tsfm.attention.libraries import LIBRARIES, Library

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


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Library:
    """xformers and mslk, if they are installed."""
    found = libraries.load_xformers() if request.param == "xformers" else libraries.load_mslk()
    if found is None:
        pytest.skip(f"{request.param} is not installed")
    return found


@pytest.mark.parametrize("name", SEEN)
def test_when_a_mask_is_translated_then_the_library_means_the_same_by_it(name: str, library: Library) -> None:
    b, n, m, mask = SEEN[name]
    q, k, v = (torch.randn(b, size, 2, 4) for size in (n, m, m))
    translation = xformers_bias(library, mask, q, k)
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


def test_when_the_library_has_no_class_for_a_mask_then_it_is_not_asked(library: Library) -> None:
    x = torch.randn(1, 9, 2, 4)
    assert xformers_bias(library, Mask(lengths=(4, 5), window=(2, 2)), x, x) is None


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CUDA tensors without numbers, on a machine that says it has an H100."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    for cached in (attention._blocks, varlen.borders):
        cached.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    for cached in (attention._blocks, varlen.borders):
        cached.cache_clear()


@pytest.fixture
def chosen(library: Library, fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The library that the door finds, which takes fake tensors."""
    from torch._subclasses.fake_tensor import FakeTensor

    if library.name == "xformers" and libraries.xformers_problem() is not None:
        pytest.skip("xformers cannot load its CUDA library beside this PyTorch")
    classes, cutlass = library.fmha.attn_bias, library.fmha.cutlass
    build = classes.BlockDiagonalMask.from_seqlens.__func__
    monkeypatch.setattr(
        classes.BlockDiagonalMask,
        "from_seqlens",
        classmethod(lambda cls, sizes, device: build(cls, sizes, device=torch.device("cpu"))),
    )
    for operator in (cutlass.FwOp, cutlass.BwOp):
        known = (*operator.SUPPORTED_ATTN_BIAS_TYPES, FakeTensor)
        monkeypatch.setattr(operator, "SUPPORTED_ATTN_BIAS_TYPES", known)
    monkeypatch.setattr(attention, "load_library", lambda: library)
    return library


FLASH, CUTLASS, TORCH = "fa2F", "cutlassF", "torch SDPA"
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
    case: tuple[torch.dtype, int], chosen: Library
) -> None:
    dtype, d = case
    x = torch.empty(1, 33, 2, d, dtype=dtype, device="cuda")
    for (name, mask), expected in zip(MASKS.items(), CHOICE[case], strict=True):
        expected = expected if expected == TORCH else f"{chosen.name} {expected}"
        assert kernel_name(x, x, x, mask(), dropout=0.1).startswith(expected), name


@pytest.mark.parametrize("d", [64, 12])
@pytest.mark.parametrize("name", ["none", "causal", "packed causal", "local", "bias"])
def test_when_a_cuda_tensor_arrives_then_the_library_is_called_with_what_its_kernels_take(
    d: int, name: str, chosen: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append((q.shape, options))
        return torch.empty_like(q)

    monkeypatch.setattr(chosen.fmha, "memory_efficient_attention", record)
    x = torch.empty(1, 33, 2, d, dtype=torch.bfloat16, device="cuda")
    assert attend(x, x, x, MASKS[name](), dropout=0.1).shape == x.shape
    ((shape, options),) = calls
    assert shape[-1] % 8 == 0
    assert options["p"] == 0.1
    assert options["scale"] == pytest.approx(d**-0.5)


@pytest.mark.slow
def test_when_xformers_is_loaded_then_nothing_is_said() -> None:
    pytest.importorskip("xformers")
    code = "from tsfm.attention.libraries import load_xformers; assert load_xformers() is not None"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == done.stderr == ""


def test_when_xformers_does_not_import_then_the_door_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("xformers")
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with caplog.at_level(logging.WARNING):
        assert libraries.load_xformers.__wrapped__() is None
    assert "tsfm doctor" in caplog.text


@pytest.mark.parametrize(
    ("installed", "problem", "expected"),
    [
        (LIBRARIES, None, "xformers"),
        (LIBRARIES, "libcudart.so.12: cannot open", "mslk"),
        (("xformers",), "libcudart.so.12: cannot open", "xformers"),
        (("mslk",), None, "mslk"),
        ((), None, None),
    ],
)
def test_when_libraries_are_installed_then_the_one_whose_operators_run_is_taken(
    installed: tuple[str, ...], problem: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LIBRARIES:
        found = Library(name, None) if name in installed else None
        monkeypatch.setattr(libraries, f"load_{name}", lambda found=found: found)
    monkeypatch.setattr(libraries, "xformers_problem", lambda: problem)
    chosen = libraries.load_library.__wrapped__()
    assert (None if chosen is None else chosen.name) == expected


def test_when_mslk_is_installed_then_its_import_says_nothing_and_loads_no_binary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mslk" / "attention" / "fmha"
    folder.mkdir(parents=True)
    # As mslk 1.1.0 does: it logs through the root logger, and loads its binary unless the variable is set.
    code = "import logging, os\nlogging.error('loading')\nassert os.environ['MSLK_PYTHON_ONLY'] == '1'\n"
    (tmp_path / "mslk" / "__init__.py").write_text("import logging\nlogging.info('python only')\n")
    (tmp_path / "mslk" / "attention" / "__init__.py").write_text("")
    (folder / "__init__.py").write_text(code.replace("logging.error('loading')\n", ""))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("MSLK_PYTHON_ONLY", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "mslk"]:
        monkeypatch.delitem(sys.modules, name)
    before = list(logging.getLogger().handlers)
    found = libraries.load_mslk.__wrapped__()
    assert found is not None
    assert found.name == "mslk"
    assert found.fmha.__name__ == "mslk.attention.fmha"
    assert logging.getLogger().handlers == before
    assert "MSLK_PYTHON_ONLY" not in os.environ
    assert capfd.readouterr() == ("", "")
    for name in [name for name in sys.modules if name.split(".")[0] == "mslk"]:
        del sys.modules[name]


PADDED = Mask.segments((torch.arange(33) < 20).long()[None])
assert PADDED.runs is not None  # found now, because fake tensors have no numbers
VARLEN = {
    "packed": (1, Mask.packed([2, 4, 3])),
    "packed causal": (1, Mask.packed([2, 4, 3], causal=True)),
    "packed local": (1, Mask(lengths=(2, 4, 3), window=(2, 1))),
    "packed causal local": (1, Mask(lengths=(2, 4, 3), is_causal=True, window=(1, 3))),
    "padded rows": (2, Mask.segments(IDS)),
    "padded rows causal": (2, Mask.segments(IDS, causal=True)),
}


def as_documented(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor, max_q: int, max_k: int,
    *, scale: float, window_size: tuple[int, int],
) -> torch.Tensor:  # fmt: skip
    """``varlen_attn`` as its documentation says: tokens ``[T, H, D]``, -1 for no limit of the window."""
    assert cu_q.dtype == torch.int32
    assert torch.equal(cu_q, cu_k)
    assert max_q == max_k == int(cu_q.diff().max())
    assert int(cu_q[-1]) == len(q)
    parts = []
    for first, last in itertools.pairwise(cu_q.tolist()):
        ahead = torch.arange(last - first) - torch.arange(last - first)[:, None]
        left, right = window_size
        seen = ((ahead >= -left) | (left < 0)) & ((ahead <= right) | (right < 0))
        bias = torch.zeros(ahead.shape, dtype=q.dtype).masked_fill(~seen, -torch.inf)
        rows = [x[first:last][None] for x in (q, k, v)]
        parts.append(attend_reference(*rows, Mask(bias=bias[None, None]), scale=scale)[0])
    return torch.cat(parts)


@pytest.mark.parametrize("name", VARLEN)
def test_when_packed_rows_go_to_varlen_then_values_and_gradients_are_those_of_a_plain_softmax(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "load_varlen", lambda: as_documented)
    b, mask = VARLEN[name]
    inputs = [torch.randn(b, 9, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    out, wanted = varlen.varlen_attend(*inputs, mask, 0.3), attend_reference(*inputs, mask, scale=0.3)
    torch.testing.assert_close(out, wanted)
    weight = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad(out, inputs, weight), torch.autograd.grad(wanted, inputs, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_when_no_library_is_installed_then_packed_rows_in_half_precision_go_to_varlen(
    fake_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if varlen.load_varlen() is None:
        pytest.skip("this PyTorch has no varlen_attn with windows")
    monkeypatch.setattr(attention, "load_library", lambda: None)
    mask = Mask.packed([10, 23], causal=True)
    for d in (12, 64):
        x = torch.empty(1, 33, 2, d, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        assert kernel_name(x, x, x, mask) == "torch varlen"
        out = attend(x, x, x, mask)
        assert out.shape == x.shape
        assert out.dtype == torch.bfloat16
        assert out.requires_grad
        assert kernel_name(x, x, x, PADDED) == "torch varlen"
        for other in (None, Mask.causal(), Mask(lengths=(10, 23), bias=torch.zeros(1, 1, 33, 33, device="cuda"))):
            assert kernel_name(x, x, x, other).startswith(TORCH)
        assert kernel_name(x, x, x, mask, dropout=0.1).startswith(TORCH)
        single = x.float()
        assert kernel_name(single, single, single, mask).startswith(TORCH)
    wide = torch.empty(1, 33, 2, 264, dtype=torch.bfloat16, device="cuda")
    assert kernel_name(wide, wide, wide, mask).startswith(TORCH)


NO_DEVICE = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def assert_exact_on_cuda(mask: Mask | None, b: int, n: int, m: int, dtype: torch.dtype, d: int) -> None:
    inputs = [torch.randn(b, s, 2, d, dtype=dtype, device="cuda", requires_grad=True) for s in (n, m, m)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out, wanted = attend(*inputs, mask), attend_reference(*exact, mask)
    tolerance = 4e-2 if dtype == torch.bfloat16 else 2e-4
    torch.testing.assert_close(out.double(), wanted, atol=tolerance, rtol=tolerance)
    pairs = zip(torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(wanted.sum(), exact), strict=True)
    for actual, right in pairs:
        torch.testing.assert_close(actual.double(), right, atol=2 * tolerance, rtol=2 * tolerance)


@pytest.mark.cuda
@NO_DEVICE
@pytest.mark.parametrize("name", [*SEEN, "none"])
def test_when_on_cuda_then_values_and_gradients_are_those_of_a_plain_softmax(
    name: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "load_library", lambda: library)
    b, n, m, mask = SEEN[name] if name != "none" else (2, 9, 9, None)
    for dtype, d in itertools.product((torch.float32, torch.bfloat16), (5, 12, 64, 264)):
        assert_exact_on_cuda(mask, b, n, m, dtype, d)


@pytest.mark.cuda
@NO_DEVICE
@pytest.mark.parametrize("name", VARLEN)
def test_when_on_cuda_without_a_library_then_packed_rows_are_exact_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "load_library", lambda: None)
    b, mask = VARLEN[name]
    for dtype, d in itertools.product((torch.float32, torch.bfloat16), (5, 12, 64, 264)):
        assert_exact_on_cuda(mask, b, 9, 9, dtype, d)
