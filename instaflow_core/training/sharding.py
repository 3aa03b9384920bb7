"""Tensors in shards, one to a process (PyTorch's FSDP2): gathered to be written, and shared out when they are read.

What is written is what a run of whole tensors writes, so that a run may be gone on with by another number of processes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def whole(value: Any) -> Any:
    """The same dictionaries and lists with each sharded tensor gathered, on the CPU.

    Every process must ask, and for the same things.
    """
    if isinstance(value, Mapping):
        return {name: whole(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(inner) for inner in value)
    # A shard's own class cannot be asked for where torch was built without distributed.
    return value.full_tensor().cpu() if hasattr(value, "full_tensor") else value


def shared_out(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, placed as a sharded one is; the tensor itself where that is whole."""
    if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed: Any = like
    return distribute_tensor(tensor.to(placed.device), placed.device_mesh, placed.placements)


def optimizer_state(state: dict[str, Any], parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
    """An optimiser's whole state as its parameters are placed: what lies beside a parameter in its shape is shared out
    as that is."""
    placed = list(parameters)
    inner = {
        i: {name: shared_out(value, placed[i]) if torch.is_tensor(value) else value for name, value in values.items()}
        for i, values in state["state"].items()
    }
    return {**state, "state": inner}
