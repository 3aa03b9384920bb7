"""Training inside the host: its models out of the way, its models as checkpoints of the core, its folders."""

from __future__ import annotations

import gc
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import comfy.model_management
import folder_paths
import torch

from . import saving
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


def as_checkpoint(model: Any, clip: Any, vae: Any) -> Checkpoint:
    """Copies of the weights of MODEL and CLIP, and of VAE where it is given, every patch of weights baked in.

    Raises:
        ValueError: they carry more than weights, or as `saving.write_checkpoint`.
    """
    from ...instaflow_core.weights.checkpoint import load

    check_only_weights(model, clip)
    # An error holds the file that was read until it has been shown, and Windows does not delete that.
    with tempfile.TemporaryDirectory(dir=folder_paths.get_temp_directory(), ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "checkpoint.safetensors"
        saving.write_checkpoint(path, model, clip, vae)
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
    """The file of prompts in the input folder that a line names; None where the line is a prompt.

    Workflows and prompts come from strangers: what hosts up to 0.3.75 make of a name may lie anywhere.
    """
    inside = name.removesuffix(" [input]")
    if os.path.splitext(inside.partition(" [")[0])[1].lower() not in _PROMPT_ENDINGS:
        return None
    root = os.path.realpath(folder_paths.get_input_directory())
    path = os.path.realpath(os.path.join(root, inside))
    elsewhere = inside.endswith(("[output]", "[temp]")) or PureWindowsPath(inside).drive
    if elsewhere or not _is_inside(path, root):
        raise ValueError(
            f"The prompts are to come from {name!r}, which is not in ComfyUI's input folder. Put the file there and "
            "give its name, or write the prompts into the node."
        )
    return path if os.path.isfile(path) else None


def _is_inside(path: str, root: str) -> bool:
    """Whether a real path lies under a real folder."""
    try:
        return os.path.commonpath([path, root]) == root
    except ValueError:  # on two drives
        return False


def set_folder(name: str) -> Path:
    """Where the set of triplets of this name lies: output/instaflow/triplets/NAME."""
    return _inside(_SETS, name)


def set_names() -> list[str]:
    """The names of the sets there are, whole or not, by whatever they were made."""
    from ...instaflow_core.triplets.format import SET_FILE

    root, found = os.path.join(folder_paths.get_output_directory(), _SETS), []
    for path, folders, files in os.walk(root):
        if SET_FILE in files:
            found.append(os.path.relpath(path, root).replace(os.sep, "/"))
            folders.clear()
    return sorted(found)


def whole_set(name: str) -> Path:
    """The folder of a set that is whole.

    Raises:
        ValueError: there is none of this name, or it lacks some of its shards.
    """
    from ...instaflow_core.triplets.format import read_info
    from ...instaflow_core.triplets.storage import Storage

    if name not in set_names():
        raise ValueError(
            f"There is no set of triplets {name!r} under output/{_SETS}. Make one with InstaFlow Triplets or the "
            "command line, or put one there, refresh the page (R) and choose it again."
        )
    folder = Path(os.path.realpath(folder_paths.get_output_directory())) / _SETS / name
    read_info(Storage(folder))
    return folder


def result_path(name: str) -> Path:
    """Where the trained checkpoint of this name lies: output/checkpoints/NAME.safetensors, which the loaders list."""
    return _inside("checkpoints", name + ".safetensors")


def lora_path(name: str) -> Path:
    """Where the LoRA of a training of this name lies: output/loras/NAME.safetensors, which the LoRA loaders list."""
    return _inside("loras", name + ".safetensors")


def run_folder(name: str) -> Path:
    """Where a training of this name keeps what it needs to go on and what it shows of itself:
    output/instaflow/training/NAME, which no loader lists."""
    return _inside(_RUNS, name)


def _inside(folder: str, name: str) -> Path:
    if not re.fullmatch(r"[\w][\w .()+-]*(/[\w][\w .()+-]*)*", name):
        raise ValueError(
            f"The name is {name!r}. Give a plain name of letters, digits, spaces, - and _, with / for subfolders."
        )
    root = os.path.realpath(folder_paths.get_output_directory())
    path = Path(root) / folder / name
    if not _is_inside(os.path.realpath(path), root):
        raise ValueError(
            f"{folder}/{name} is a link that leads out of ComfyUI's output folder. Give another name, or "
            "remove the link."
        )
    return path
