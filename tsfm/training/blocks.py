"""The blocks of a model: sharded over devices, or computed again in the backward pass to save memory."""

from functools import partial
from typing import Any

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint

from tsfm_data.errors import InputError

LISTS = (nn.ModuleList, nn.Sequential)
CONTAINERS = (*LISTS, nn.ModuleDict)


def blocks_of(model: nn.Module, containers: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    """The members of a model's containers that consist of several layers, inner ones before those around them."""
    members = [member for one in model.modules() if isinstance(one, containers) for member in one.children()]
    return [x for x in reversed(members) if next(x.children(), None) is not None and not isinstance(x, CONTAINERS)]


def shard(task: Any, model: nn.Module, *methods: str) -> None:
    """Shard parameters, gradients and optimiser states over all devices (FSDP2), if the strategy does so.

    That is Lightning's ``ModelParallelStrategy``; with any other strategy nothing happens, nor at a second call.

    Args:
        task: the Lightning module; its trainer knows strategy and devices.
        model: its model.
        methods: names of other methods than ``forward`` that are called from outside.
    """
    if task.device_mesh is None or isinstance(model, FSDPModule):
        return
    # Lightning's mesh has two axes, of which only one would be used.
    mesh = init_device_mesh(task.trainer.strategy.root_device.type, (task.trainer.world_size,))
    for block in blocks_of(model, LISTS):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in methods:  # parameters are gathered in forward and in the methods registered here
        register_fsdp_forward_method(model, method)


def checkpoint_activations(model: nn.Module) -> None:
    """Let every block of a forecaster keep only its inputs; the backward pass computes the rest again.

    Gradients are the same to the bit, with dropout too. The forward pass is computed twice.

    Raises:
        InputError: the model has no blocks.
    """
    blocks = blocks_of(model, CONTAINERS)
    inner = {part for block in blocks for part in block.modules() if part is not block}
    outer = [block for block in blocks if block not in inner]
    if not outer:
        raise InputError(
            f"expected a model of blocks, found {type(model).__name__}: leave out activation_checkpointing"
        )
    for block in outer:
        forward: Any = block.forward
        block.forward = partial(checkpoint, forward, use_reentrant=False)  # type: ignore[method-assign]
