"""Training inside the host: its models out of the way, its models as checkpoints of the core, its folders."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import folder_paths
import torch

from . import paths, saving
from .model_files import listable
from .patches import check_only_weights

if TYPE_CHECKING:
    from ...instaflow_core.weights.checkpoint import Checkpoint

_SETS = "instaflow/triplets"
_RUNS = "instaflow/training"
_PROMPT_ENDINGS = (".txt", ".csv", ".json", ".jsonl", ".parquet")


@contextmanager
def training_device() -> Iterator[str]:
    """The device to train on, with the host's models unloaded and autograd on; its memory is given back afterwards."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield comfy.model_management.get_torch_device().type
    finally:
        gc.collect()  # the host's own patchers go in circles, and a full card would make the next node load in parts
        comfy.model_management.soft_empty_cache()


def precision() -> str:
    """ "bf16" where the host would compute in it, "no" for float32 elsewhere."""
    device = comfy.model_management.get_torch_device()
    on_cpu = comfy.model_management.is_device_cpu(device)
    return "bf16" if not on_cpu and comfy.model_management.should_use_bf16(device) else "no"


def computing_type(model: Any) -> torch.dtype:
    """What the host computes a MODEL in, whatever it keeps its weights in."""
    dtype: torch.dtype = model.get_model_object("manual_cast_dtype") or model.model.get_dtype()
    return dtype


def as_checkpoint(model: Any, clip: Any, vae: Any, clip_of: str = "clip") -> Checkpoint:
    """Copies of the weights of MODEL and CLIP, and of VAE where it is given, every patch of weights baked in.

    Args:
        clip_of: the name of the input that the CLIP came with.

    Raises:
        ValueError: they carry more than weights, or as `saving.write_checkpoint`.
    """
    from ...instaflow_core.disk import refusals_told
    from ...instaflow_core.weights.checkpoint import load

    check_only_weights(model, clip)
    with paths.temporary_folder() as folder:
        path = folder / "checkpoint.safetensors"
        with refusals_told(path):
            saving.write_checkpoint(path, model, clip, vae, clip_of=clip_of)
        checkpoint = load(path)
        checkpoint.let_go_of(path)  # which goes away
    return checkpoint


def prompts(text: str, count: int) -> list[str]:
    """The lines of the text; up to `count` lines of a file where the text is the name of one in the input folder.

    Raises:
        ValueError: the text names a file of prompts outside the input folder, or a prompt an embedding.
    """
    from ...instaflow_core.triplets.prompts import lines, read_prompts

    file = _named_file(text)
    texts = read_prompts(file, count) if file else lines(text)
    named = next((t for t in texts if "embedding:" in t), None)
    if named:
        raise ValueError(
            f"The prompt {named!r} names an embedding, which only CLIP Text Encode reads. Write what it stands for, or "
            "leave it out."
        )
    return texts


def prompts_state(text: str) -> Any:
    """What changes with the file of prompts that a text names; nothing where it names none."""
    file = _named_file(text)
    return (os.stat(file).st_mtime_ns, os.stat(file).st_size) if file else None


def _named_file(text: str) -> str | None:
    from ...instaflow_core.triplets.prompts import lines

    texts = lines(text)
    return _prompt_file(texts[0]) if len(texts) == 1 else None


def _prompt_file(name: str) -> str | None:
    """The file of prompts in the input folder that a line names; None where the line is a prompt."""
    without_folder = name.removesuffix(" [input]").partition(" [")[0]
    if os.path.splitext(without_folder)[1].lower() not in _PROMPT_ENDINGS:
        return None
    return paths.input_file(name, "prompts")


def set_folder(name: str) -> Path:
    """Where the set of triplets of this name lies: output/instaflow/triplets/NAME."""
    return paths.output_path(_SETS, name)


def set_names() -> list[str]:
    """The names of the sets there are, whole or not, by whatever they were made, as far as they are listable."""
    from ...instaflow_core.triplets.format import SET_FILE

    root, found = os.path.join(folder_paths.get_output_directory(), _SETS), []
    for path, folders, files in os.walk(root):
        if SET_FILE in files:
            found.append(os.path.relpath(path, root).replace(os.sep, "/"))
            folders.clear()
    return sorted(listable(found))


def whole_set(name: str) -> Path:
    """The folder of a set that is whole.

    Raises:
        ValueError: there is none of this name, or it lacks some of its shards, or as `paths.contained_output`.
    """
    from ...instaflow_core.triplets.format import read_info
    from ...instaflow_core.triplets.storage import Storage

    if name not in set_names():
        raise ValueError(
            f"There is no set of triplets {name!r} under output/{_SETS}. Make one with InstaFlow Triplets or the "
            "command line, or put one there, refresh the page (R) and choose it again."
        )
    folder = paths.contained_output(Path(_SETS, name))
    read_info(Storage(folder))
    return folder


def result_path(name: str) -> Path:
    """Where the trained checkpoint of this name lies: output/checkpoints/NAME.safetensors, which the loaders list."""
    return paths.output_path("checkpoints", name, ".safetensors")


def lora_path(name: str) -> Path:
    """Where the LoRA of a training of this name lies: output/loras/NAME.safetensors, which the LoRA loaders list."""
    return paths.output_path("loras", name, ".safetensors")


def run_folder(name: str) -> Path:
    """Where a training of this name keeps what it needs to go on and what it shows of itself:
    output/instaflow/training/NAME, which no loader lists."""
    return paths.output_path(_RUNS, name)
