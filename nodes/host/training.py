"""Training inside the host: its models out of the way, its models as checkpoints of the core, its folders."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import folder_paths
import torch

from . import saving

if TYPE_CHECKING:
    from ...instaflow_core.weights.checkpoint import Checkpoint


@contextmanager
def training_device() -> Iterator[str]:
    """The device to train on, with the host's models unloaded and autograd on; its memory is given back afterwards."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield comfy.model_management.get_torch_device().type
    finally:
        comfy.model_management.soft_empty_cache()


def precision() -> str:
    """ "bf16" where the host would compute in it, "no" for float32 elsewhere."""
    device = comfy.model_management.get_torch_device()
    on_cpu = comfy.model_management.is_device_cpu(device)
    return "bf16" if not on_cpu and comfy.model_management.should_use_bf16(device) else "no"


def as_checkpoint(model: Any, clip: Any, vae: Any) -> Checkpoint:
    """Copies of the weights of MODEL, and of CLIP and VAE where they are given, every patch baked in."""
    from ...instaflow_core.weights.checkpoint import load

    with tempfile.TemporaryDirectory(dir=folder_paths.get_temp_directory()) as folder:
        path = Path(folder) / "checkpoint.safetensors"
        saving.write_checkpoint(path, model, clip, vae)
        checkpoint = load(path)
        # The file goes away, and the tensors are views of it.
        for weights in (checkpoint.unet, checkpoint.text_encoder or {}, checkpoint.vae or {}):
            weights.update({name: tensor.clone() for name, tensor in weights.items()})
    return checkpoint


def prompts(text: str, count: int) -> list[str]:
    """The lines of the text; up to `count` lines of a file where the text is the name of one in the input folder."""
    from ...instaflow_core.triplets.prompts import lines, read_prompts

    texts = lines(text)
    if len(texts) == 1 and folder_paths.exists_annotated_filepath(texts[0]):
        return read_prompts(folder_paths.get_annotated_filepath(texts[0]), count)
    return texts


def set_folder(name: str) -> Path:
    """Where the set of triplets of this name lies: output/instaflow/triplets/NAME."""
    return _inside("instaflow/triplets", name)


def result_path(name: str) -> Path:
    """Where the trained checkpoint of this name lies: output/checkpoints/NAME.safetensors, which the loaders list."""
    return _inside("checkpoints", name + ".safetensors")


def _inside(folder: str, name: str) -> Path:
    if not re.fullmatch(r"[\w][\w .()+-]*(/[\w][\w .()+-]*)*", name):
        raise ValueError(
            f"The name is {name!r}. Give a plain name of letters, digits, spaces, - and _, with / for subfolders."
        )
    return Path(folder_paths.get_output_directory()) / folder / name
