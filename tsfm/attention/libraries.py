"""The libraries with xformers' attention operators: xformers itself, and ``mslk``, in which it is developed further.

No other module imports them, and this one does so only when attention gets the first CUDA tensor.
"""

import ctypes
import importlib.util
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = ("xformers", "mslk")
PYTHON_ONLY = "MSLK_PYTHON_ONLY"  # environment variable of mslk


class Library(NamedTuple):
    """A library that is installed: its name, and its module of attention operators and masks."""

    name: str
    fmha: Any


@cache
def load_library() -> Library | None:
    """The library whose operators run: xformers if they can, else mslk; ``None`` if neither is installed.

    If both are installed and those of neither can run, it is xformers, whose operators then refuse.
    """
    xformers = load_xformers()
    if xformers is not None and xformers_problem() is None:
        return xformers
    return load_mslk() or xformers


@cache
def load_xformers() -> Library | None:
    """xformers with its CUDA library loaded; ``None`` if it is not installed.

    xformers' wheel is linked to version 12 of the CUDA runtime, but recent PyTorch installs version 13. Without version
    12 every operator refuses CUDA tensors, so it is loaded here from the wheel ``nvidia-cuda-runtime-cu12``.
    """
    if importlib.util.find_spec("xformers") is None:
        return None
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia.submodule_search_locations or []) if nvidia is not None else []:
        for library in Path(folder).glob("cuda_runtime/lib/libcudart.so.12*"):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    # `tsfm doctor` reports problems with its library, and what to do about them.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    try:
        import xformers.ops
    except (ImportError, OSError, RuntimeError) as error:
        logging.getLogger(__name__).warning("xformers is not used: %s (see `tsfm doctor`)", error)
        return None
    return Library("xformers", xformers.ops.fmha)


@cache
def load_mslk() -> Library | None:
    """mslk (the wheel ``mslk-cuda``); ``None`` if it is not installed.

    Its operators for the masks of this suite are PyTorch's own, so its binary library, which fits one version of
    PyTorch only, is not loaded.
    """
    if importlib.util.find_spec("mslk") is None:
        return None
    root = logging.getLogger()
    handlers, before = list(root.handlers), os.environ.get(PYTHON_ONLY)
    os.environ[PYTHON_ONLY] = "1"
    try:
        import mslk.attention.fmha
    except (ImportError, OSError, RuntimeError) as error:
        logging.getLogger(__name__).warning("mslk is not used: %s (see `tsfm doctor`)", error)
        return None
    finally:
        if before is None:
            os.environ.pop(PYTHON_ONLY)
        else:
            os.environ[PYTHON_ONLY] = before
        for handler in set(root.handlers) - set(handlers):  # it logs at its import, which adds one
            root.removeHandler(handler)
    return Library("mslk", mslk.attention.fmha)


def xformers_problem() -> str | None:
    """The reason why xformers cannot run on CUDA tensors on this machine; ``None`` if it can."""
    if load_xformers() is None:
        return "it is not installed or does not import"
    from xformers import _cpp_lib

    problem = _cpp_lib._cpp_library_load_exception
    return None if problem is None else " ".join(str(problem).split())
