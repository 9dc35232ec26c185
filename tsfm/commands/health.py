"""What ``tsfm doctor`` finds out: versions, device, kernels, and what is wrong with an installation."""

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from packaging.requirements import Requirement

from tsfm.attention import Mask, kernel_name, xformers_problem
from tsfm_data.io import cache_folder, data_folder

State = Literal["ok", "note", "wrong"]
# What only some users need: the distribution, and the extra that installs it.
EXTRAS = {
    "xformers": "cuda",
    "nvidia-cuda-runtime-cu12": "cuda",
    "timm": "vision",
    "torchvision": "vision",
    "statsforecast": "stats",
    "tensorboard": "tensorboard",
    "neuralforecast": "peers",
}
# One batch of so many tokens, and two segments of it, are what the kernels are asked about.
TOKENS, SEGMENTS = 1024, (300, 724)
HEADS, CHANNELS = 8, 64


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        state: ``ok``; ``note`` (works, but could be better); ``wrong`` (the installation is broken).
        found: what is there.
        todo: what to do about it; empty where nothing is to be done.
    """

    subject: str
    state: State
    found: str
    todo: str = ""


def version(distribution: str) -> str | None:
    """The installed version of a distribution, ``None`` where it is absent."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine() -> list[Finding]:
    """Look at everything that an installation needs to work and to be quick."""
    return [*_versions(), *_extras(), _device(), _xformers(), _threads(), *_folders()]


def _versions() -> Iterator[Finding]:
    yield Finding("python", "ok", platform.python_version())
    try:
        needed = importlib.metadata.requires("tsfm-suite") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("tsfm-suite", "note", "runs from a folder, not installed", "pip install -e . in that folder")
        return
    yield Finding("tsfm-suite", "ok", str(version("tsfm-suite")))
    for requirement in map(Requirement, needed):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = version(requirement.name)
        if found is None:
            yield Finding(requirement.name, "wrong", "missing", f"pip install '{requirement}'")
        elif not requirement.specifier.contains(found, prereleases=True):
            todo = f"pip install '{requirement}'"
            yield Finding(requirement.name, "wrong", f"{found}, expected {requirement.specifier}", todo)
        else:
            yield Finding(requirement.name, "ok", found)


def _extras() -> Iterator[Finding]:
    for name, extra in EXTRAS.items():
        found = version(name)
        if found is not None:
            yield Finding(name, "ok", found)
        else:
            yield Finding(name, "ok", f"absent (optional: pip install 'tsfm-suite[{extra}]')")


def _device() -> Finding:
    build = f"PyTorch built for CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch without CUDA"
    if not torch.cuda.is_available():
        return Finding("device", "ok", f"CPU ({build})")
    major, minor = torch.cuda.get_device_capability()
    return Finding("device", "ok", f"{torch.cuda.get_device_name()}, capability {major}.{minor} ({build})")


def _xformers() -> Finding:
    """Whether its kernels can be used; without a CUDA device they are not missed."""
    has_device = torch.cuda.is_available()
    if version("xformers") is None:
        if not has_device:
            return Finding("xformers kernels", "ok", "not needed: there is no CUDA device")
        return Finding(
            "xformers kernels",
            "note",
            "absent: PyTorch's run instead",
            "pip install 'tsfm-suite[cuda]' for the faster ones",
        )
    if torch.version.cuda is None:
        return Finding("xformers kernels", "ok", "not usable with a PyTorch without CUDA, and not needed")
    problem = xformers_problem()
    if problem is None:
        return Finding("xformers kernels", "ok", "its CUDA library loads")
    if version("nvidia-cuda-runtime-cu12") is None:
        todo = "pip install nvidia-cuda-runtime-cu12 (its library wants libcudart.so.12)"
    else:
        todo = "pip install --upgrade xformers, to get a build for this PyTorch"
    return Finding("xformers kernels", "wrong" if has_device else "note", f"every one refuses: {problem}", todo)


def _threads() -> Finding:
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{threads} of {cores} cores"
    if threads > cores:
        return Finding("threads", "note", f"{found}: they wait for each other", f"export OMP_NUM_THREADS={cores}")
    return Finding("threads", "ok", found)


def _folders() -> Iterator[Finding]:
    data = data_folder()
    if data is None:
        yield Finding("TSFM_DATA", "ok", "not set: data sets are looked for in the cache, then fetched")
    elif not data.is_dir():
        todo = "let TSFM_DATA name a folder with data sets, or unset it"
        yield Finding("TSFM_DATA", "wrong", f"{data} is not a folder", todo)
    else:
        yield Finding("TSFM_DATA", "ok", str(data))
    cache = cache_folder()
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if there.is_dir() and os.access(there, os.W_OK):
        yield Finding("cache", "ok", str(cache))
    else:
        yield Finding("cache", "wrong", f"{cache} cannot be written", "let TSFM_CACHE name a folder that can")


def kernels() -> list[dict[str, str]]:
    """Which kernel ``attend`` would run here, asked of the code that chooses: a row a mask, a column a type."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    masks: dict[str, Mask | None] = {
        "none": None,
        "causal": Mask.causal(),
        "packed": Mask.packed(SEGMENTS),
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
