"""The optimisers a training can have."""

import torch
from torch import nn

OPTIMIZERS = ("adamw", "adamw8bit")


def new_optimizer(
    parameters: list[nn.Parameter], name: str, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """One of OPTIMIZERS; adamw8bit is bitsandbytes', whose moments take a quarter of the memory.

    Raises:
        ValueError: the name is unknown, or its package missing.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"Unknown optimizer {name!r}; expected one of {', '.join(OPTIMIZERS)}.")
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError("adamw8bit needs bitsandbytes: pip install bitsandbytes, or take adamw.") from error
    return AdamW8bit(parameters, lr=learning_rate, weight_decay=weight_decay)
