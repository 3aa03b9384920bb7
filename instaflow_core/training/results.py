"""What a stage leaves behind: a checkpoint that says how it was made, and the LoRA it was made with."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..triplets.format import SetInfo
from ..weights.checkpoint import Checkpoint, load
from ..weights.files import FormatError, fingerprint
from ..weights.metadata import ASSUMED_KEY, RULE_ASSUMED_KEY, RULE_KEY, ZERO_SNR_KEY, json_entry
from ..weights.saving import save, save_folder
from .config import StageConfig

_RESULT = {"reflow": ("2-rectified-flow", "1.5"), "distill": ("one-step", "1.0")}
_NOT_INHERITED = (
    ASSUMED_KEY,
    ZERO_SNR_KEY,
    RULE_KEY,
    RULE_ASSUMED_KEY,
    "instaflow.folder",
    "instaflow.renamed",
    "modelspec.title",
    "modelspec.prediction_type",
    "modelspec.resolution",
)
RECORDED = ("batch_size", "seed", "method", "times", "loss", "on_policy")


def record_of(init: Checkpoint, info: SetInfo, config: StageConfig) -> dict[str, Any]:
    """What a checkpoint says of the stage that made it, but for its loop."""
    return {
        "stage": config.stage,
        "from": json_entry(init.metadata, "instaflow.training", dict, "the model to start from")
        or fingerprint(init.unet),
        "triplets": asdict(info),
        **{name: getattr(config, name) for name in RECORDED},
    }


def result_of(init: Checkpoint, unet: Any, record: dict[str, Any], info: SetInfo) -> Checkpoint:
    """The checkpoint with the trained UNet, which says what it is and how it was made."""
    weights = {name: tensor.detach().cpu() for name, tensor in unet.state_dict().items()}
    return replace(described_result(init, record, info), unet=weights)


def described_result(init: Checkpoint, record: dict[str, Any], info: SetInfo) -> Checkpoint:
    """The same without weights of its UNet."""
    stage, guidance = _RESULT[record["stage"]]
    metadata = {name: value for name, value in init.metadata.items() if name not in _NOT_INHERITED} | {
        "instaflow.prediction": "velocity",
        "instaflow.stage": stage,
        "instaflow.guidance": guidance,
        "instaflow.training": json.dumps(record),
    }
    height, width = (side * init.latent_downscale for side in info.latent_shape[1:])
    if height == width:
        metadata["instaflow.native_size"] = str(height)
    return replace(init, unet={}, metadata=metadata)


def save_result(checkpoint: Checkpoint, out: Path, dtype: torch.dtype | None) -> None:
    """Write a checkpoint as one file or as a diffusers folder, by the name."""
    if out.suffix == ".safetensors":
        save(checkpoint, out, dtype)
    else:
        save_folder(checkpoint, out, dtype)


def check_result(out: Path, lora: Path, record: dict[str, Any], work: Path) -> None:
    """Make sure that results without a run are this run's own: the training would replace them in the end."""
    there = _record_there(out) if out.exists() else {}
    if {name: there.get(name) for name in record} == json.loads(json.dumps(record)):
        return
    for path in (out, lora):
        if path.exists():
            raise ValueError(
                f"{path} is there already, and not a result of this run: there is no run to resume in {work}. "
                "Give another name, or move that away."
            )


def _record_there(out: Path) -> dict[str, Any]:
    """What a file or folder says of the training it is from; nothing where it is no checkpoint."""
    try:
        return json_entry(load(out).metadata, "instaflow.training", dict, out.name)
    except FormatError:
        return {}
