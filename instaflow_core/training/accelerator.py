"""The process's device, precision and place among other processes, as accelerate tells them, for one run alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""What a training can compute in, and what accelerate calls it."""
LOGGERS = ("none", "tensorboard", "wandb", "trackio")
_PROJECT = {"tensorboard": "log"}
"""What a logger's project is called: TensorBoard's is a folder in the run's own."""
_REFUSED = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}


@contextmanager
def own_state() -> Iterator[None]:
    """accelerate's process-wide state as if nobody had used it yet, and as it was afterwards.

    That state would hold a second run in a process to the first's precision, and another user's to ours.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    kinds = [AcceleratorState, GradientState]
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        kinds.append(PartialState)
    before = [dict(kind._shared_state) for kind in kinds]
    for kind in kinds:
        kind._shared_state.clear()
    try:
        yield
    finally:
        for kind, state in zip(kinds, before, strict=True):
            kind._shared_state.clear()
            kind._shared_state.update(state)


def new_accelerator(
    precision: str | None, log: str, folder: Path, device: str | None, compile: bool = False
) -> "Accelerator":
    """The accelerator of a run.

    Args:
        precision: "no" (float32), "bf16" or "fp16"; None for what `accelerate launch` was told, else float32.
        log: one of LOGGERS, which writes into the folder.
        device: "cpu" to stay off an accelerator; otherwise accelerate's choice.
        compile: let torch.compile make what it prepares faster; a launcher's `--dynamo_backend` is obeyed without.

    Raises:
        ValueError: the logger is unknown or its package missing, the processes are launched in a way that shards the
            weights otherwise than FSDP2, or the device cannot compute in that precision.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin

    for variable, name in _REFUSED.items():
        if _is_set(variable):
            raise ValueError(
                f"The processes were launched with {name}, which this training does not know. Launch with FSDP2 "
                "(accelerate launch --use_fsdp --fsdp_version 2) or without (--multi_gpu); --gradient-checkpointing, "
                "--optimizer adamw8bit and --method lora save memory, too."
            )
    if _is_set("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError(
            "The processes were launched with FSDP's first version, whose shards have no names. Launch with "
            "--fsdp_version 2, or fsdp_version: 2 in the configuration of accelerate."
        )
    log_with = None
    if log != "none":
        if log not in LOGGERS:
            raise ValueError(f"Unknown log {log!r}; expected one of {', '.join(LOGGERS)}.")
        from accelerate.tracking import get_available_trackers

        if log not in [str(tracker) for tracker in get_available_trackers()]:
            raise ValueError(f"Logging to {log} needs its package: pip install {log}, or leave it out.")
        log_with = log
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=device == "cpu",
        log_with=log_with,
        project_dir=folder,
        # The loop divides its batches itself; a launcher's number would divide the loss once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_plugin=TorchDynamoPlugin(backend="inductor") if compile else None,
    )
    if _is_set("ACCELERATE_USE_FSDP"):
        _shard_on_cpu(accelerator)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("The CPU does not train in fp16. Give bf16 or float32.")
    if log_with:
        accelerator.init_trackers(_PROJECT.get(log, "instaflow"), init_kwargs={"wandb": {"dir": str(folder)}})
    return accelerator


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def _shard_on_cpu(accelerator: "Accelerator") -> None:
    """Let processes on the CPU shard their weights, too: accelerate asks PyTorch for it on other devices alone."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP
