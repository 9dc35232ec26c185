"""Compares a config with the shapes in a file of weights, before memory is taken for either."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from tsfm.weights.tensors import Layout
from tsfm_data.errors import LIBRARY_ERRORS, InputError, reason_of

MODULES_PER_TENSOR = 20  # activations, dropout and containers have none; our models have at most four


def check_shapes(build: Callable[[], nn.Module], found: Layout, file: Path) -> None:
    """Build a model without memory for its weights, and compare its shapes with those in a file.

    Args:
        build: creates the model.
        found: the header of the file.
        file: the file, for messages.

    Raises:
        InputError: the sizes are impossible, or a tensor is missing, left over or of another shape.
    """
    with torch.device("meta"), limited_construction(found, file):
        state = build().state_dict()
    compare_shapes({key: tuple(value.shape) for key, value in state.items()}, found.shapes, file)


@contextmanager
def limited_construction(found: Layout, file: Path) -> Iterator[None]:
    """Stop the construction of a model once it has many more tensors, values or modules than a file of its weights.

    Args:
        found: the header of the file.
        file: the file, for messages.

    Raises:
        InputError: it has more, or cannot be built.
    """
    limits = {"tensors": 2 * len(found.shapes) + 100, "values": 2 * found.values + 10**7}  # heads may be built twice
    limits["modules"] = MODULES_PER_TENSOR * limits["tensors"]
    counts = dict.fromkeys(limits, 0)

    def add(**more: int) -> None:
        for name, count in more.items():
            counts[name] += count
            if counts[name] > limits[name]:
                raise InputError(
                    f"expected a config of a model with the {len(found.shapes):,} tensors of {file}, found one with "
                    f"more {name} than that: config.json and the weights belong to different models"
                )

    def parameter_added(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        if value is not None:
            add(tensors=1, values=value.numel())

    def module_added(module: nn.Module, name: str, inner: nn.Module | None) -> None:
        add(modules=1)

    hooks = (
        register_module_parameter_registration_hook(parameter_added),
        register_module_module_registration_hook(module_added),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes of 0, for instance, which are compared later
            yield
    except InputError:
        raise
    except LIBRARY_ERRORS as error:
        raise InputError(
            f"expected the sizes of the model in {file}, found others in its config ({type(error).__name__}: "
            f"{reason_of(error)}): get both again"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def compare_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """Compare the shapes of a model with those of a file.

    Raises:
        InputError: a tensor is missing, left over or of another shape.
    """
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        key = wrong[0]
        raise InputError(
            f"expected tensor {key:.80} of shape {expected.get(key, 'none')}, found {found.get(key, 'none')} in {file} "
            f"({len(wrong)} differ): config.json and the weights belong to different models"
        )
