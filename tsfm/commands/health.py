"""The checks of ``tsfm doctor``: versions, device, kernels, and problems of an installation."""

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from packaging.requirements import Requirement

from tsfm.attention import Mask, kernel_name, load_mslk, xformers_problem
from tsfm_data.io import cache_folder, data_folder

State = Literal["ok", "note", "wrong"]
# Optional distributions, and the extra that installs each.
EXTRAS = {
    "xformers": "cuda",
    "nvidia-cuda-runtime-cu12": "cuda",
    "mslk-cuda": "mslk",
    "timm": "vision",
    "vega_datasets": "demo",
    "torchvision": "vision",
    "statsforecast": "stats",
    "tensorboard": "tensorboard",
    "neuralforecast": "peers",
}
# Tokens of the batch, and lengths of its two segments, for which the kernels are shown.
TOKENS, SEGMENTS = 1024, (300, 724)
HEADS, CHANNELS = 8, 64


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        subject: what was checked.
        state: ``ok``; ``note`` (works, but could be better); ``wrong`` (the installation is broken).
        found: the result.
        todo: what to do about it; empty if nothing.
    """

    subject: str
    state: State
    found: str
    todo: str = ""


def version(distribution: str) -> str | None:
    """The installed version of a distribution; ``None`` if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine() -> list[Finding]:
    """Check everything that an installation needs to work and to be fast."""
    return [*_versions(), *_extras(), _device(), _xformers(), _threads(), *_folders()]


def _versions() -> Iterator[Finding]:
    yield Finding("python", "ok", platform.python_version())
    try:
        needed = importlib.metadata.requires("tsfm-suite") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("tsfm-suite", "note", "not installed, runs from a folder", "pip install -e . in that folder")
        return
    yield Finding("tsfm-suite", "ok", str(version("tsfm-suite")))
    for requirement in map(Requirement, needed):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = version(requirement.name)
        if installed is None:
            yield Finding(requirement.name, "wrong", "missing", f"pip install '{requirement}'")
        elif not requirement.specifier.contains(installed, prereleases=True):
            todo = f"pip install '{requirement}'"
            yield Finding(requirement.name, "wrong", f"{installed}, expected {requirement.specifier}", todo)
        else:
            yield Finding(requirement.name, "ok", installed)


def _extras() -> Iterator[Finding]:
    for name, extra in EXTRAS.items():
        installed = version(name)
        if installed is not None:
            yield Finding(name, "ok", installed)
        else:
            yield Finding(name, "ok", f"absent (optional: pip install 'tsfm-suite[{extra}]')")


def _device() -> Finding:
    build = f"PyTorch built for CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch without CUDA"
    if not torch.cuda.is_available():
        return Finding("device", "ok", f"CPU ({build})")
    major, minor = torch.cuda.get_device_capability()
    return Finding("device", "ok", f"{torch.cuda.get_device_name()}, capability {major}.{minor} ({build})")


def _xformers() -> Finding:
    """Whether its kernels can be used; they are only needed with a CUDA device."""
    has_device = torch.cuda.is_available()
    if version("xformers") is None:
        if load_mslk() is not None:
            return Finding("xformers kernels", "ok", "those of mslk, in which xformers is developed further")
        if not has_device:
            return Finding("xformers kernels", "ok", "not needed: there is no CUDA device")
        return Finding(
            "xformers kernels",
            "note",
            "not installed: PyTorch's kernels run instead",
            "pip install 'tsfm-suite[cuda]' for the faster ones",
        )
    if torch.version.cuda is None:
        return Finding(
            "xformers kernels", "ok", "not usable with this PyTorch, which is built without CUDA, and not needed"
        )
    problem = xformers_problem()
    if problem is None:
        return Finding("xformers kernels", "ok", "its CUDA library loads")
    if load_mslk() is not None:
        return Finding("xformers kernels", "ok", f"those of mslk, because its own cannot be used: {problem}")
    if version("nvidia-cuda-runtime-cu12") is None:
        todo = "pip install nvidia-cuda-runtime-cu12 (xformers needs libcudart.so.12)"
    else:
        todo = "pip install mslk-cuda, which needs no build for this PyTorch, or --upgrade xformers"
    return Finding("xformers kernels", "wrong" if has_device else "note", f"none can be used: {problem}", todo)


def _threads() -> Finding:
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usage = f"{threads} of {cores} cores"
    if threads > cores:
        return Finding("threads", "note", f"{usage}: they wait for each other", f"export OMP_NUM_THREADS={cores}")
    return Finding("threads", "ok", usage)


def _folders() -> Iterator[Finding]:
    data = data_folder()
    if data is None:
        yield Finding("TSFM_DATA", "ok", "not set: data sets are searched in the cache, then downloaded")
    elif not data.is_dir():
        todo = "set TSFM_DATA to a folder with data sets, or unset it"
        yield Finding("TSFM_DATA", "wrong", f"{data} is not a folder", todo)
    else:
        yield Finding("TSFM_DATA", "ok", str(data))
    cache = cache_folder()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if existing.is_dir() and os.access(existing, os.W_OK):
        yield Finding("cache", "ok", str(cache))
    else:
        yield Finding("cache", "wrong", f"{cache} cannot be written", "set TSFM_CACHE to a folder that can be written")


def kernels() -> list[dict[str, str]]:
    """The kernel that ``attend`` runs on this device: one row per mask, one column per type."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    padded = torch.arange(TOKENS, device=device)[None].lt(SEGMENTS[1]).long()
    masks: dict[str, Mask | None] = {
        "none": None,
        "padded rows": Mask.segments(padded),
        "causal": Mask.causal(),
        "packed rows": Mask.packed(SEGMENTS),
        "packed causal": Mask.packed(SEGMENTS, causal=True),
        "packed causal local": Mask(lengths=SEGMENTS, is_causal=True, window=(64, 0)),
        "local": Mask.local(64, 64),
        "additive bias": Mask(bias=torch.zeros(1, 1, 1, TOKENS, device=device)),
    }
    rows = []
    for name, mask in masks.items():
        row = {"mask": name}
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.empty(1, TOKENS, HEADS, CHANNELS, dtype=dtype, device=device)
            for label, dropout in (("", 0.0), (" dropout", 0.1)):
                row[f"{str(dtype).removeprefix('torch.')}{label}"] = kernel_name(x, x, x, mask, dropout=dropout)
        rows.append(row)
    return rows
