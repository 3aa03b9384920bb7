"""What stands in for weights that are not shipped, so that a workflow that names them can be run and its picture shown.

The graph stays as it is. Names of checkpoints become names of built-in models or of small files made here, its prompts
captions that the built-in models know, and its sizes an eighth of what they were, since those models draw 64x64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import stand_in_control
import torch
from comfy_client import Graph
from safetensors.torch import save_file
from small_models import save_unet

from instaflow_core.weights.checkpoint import load

BUILT_IN, SMALL = "built-in model", "small stand-in"
SMALLER = 8  # 512 becomes 64


def _lora(path: Path) -> None:
    """A random LoRA of rank 4 on the built-in text encoder: other words, as it were."""
    weights = load("built-in: shapes").text_encoder or {}
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, weight in weights.items():
        if weight.ndim == 2 and ("self_attn" in name or "mlp" in name):
            layer = "lora_te_" + name.removesuffix(".weight").replace(".", "_")
            tensors[f"{layer}.lora_up.weight"] = torch.randn(len(weight), 4, generator=generator) * weight.std() / 4
            tensors[f"{layer}.lora_down.weight"] = torch.randn(4, weight.shape[1], generator=generator)
            tensors[f"{layer}.alpha"] = torch.tensor(4.0)
    save_file(tensors, path)


def _no_delta(path: Path) -> None:
    """A delta of nothing: the built-in teacher is straight enough in four windows as it is."""
    teacher = load("built-in: shapes-teacher")
    save_unet(replace(teacher, unet={name: torch.zeros_like(weight) for name, weight in teacher.unet.items()}), path)


# A loader's class and what it loads -> the loader that stands in, with its inputs.
_LOADERS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("InstaFlowLoadCheckpoint", "instaflow_0_9B_from_sd_1_5"): (
        "InstaFlowLoadCheckpoint", {"checkpoint": "built-in: shapes"},
    ),
    ("LoraLoader", "add_detail.safetensors"): ("LoraLoader", {"lora_name": "stand-in.safetensors"}),
    ("ControlNetLoader", "control_v11p_sd15_canny_fp16.safetensors"): (
        "ControlNetLoader", {"control_net_name": "stand-in.safetensors"},
    ),
    ("CheckpointLoaderSimple", "DreamShaper_8_pruned.safetensors"): (
        "InstaFlowLoadCheckpoint", {"checkpoint": "built-in: shapes-teacher", "weight_dtype": "default"},
    ),
    ("UNETLoader", "diffusion_pytorch_model.v0-1.safetensors"): (
        "InstaFlowLoadUNet", {"unet_name": "stand-in.safetensors", "weight_dtype": "default"},
    ),
}  # fmt: skip
# The files among them: where they lie in models/, and what makes them.
_FILES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "LoraLoader": ("loras", _lora),
    "ControlNetLoader": ("controlnet", stand_in_control.make),
    "InstaFlowLoadUNet": ("diffusion_models", _no_delta),
}
_TEXTS = {
    "A hyper-realistic photo of a cute cat.": "a large orange heart in the center on a white background",
    "A photo of two tall buildings at the sea, at sunset.": stand_in_control.caption("blue"),
    "RAW photo, high quality, film grain, highly detailed; a colorful bird standing on a tree, open beak": (
        "a large green star in the center on a yellow background"
    ),
    "distorted, blur, smooth, low-quality, haze, over-saturated, out of focus, dark": "",
}
_SIZES = ("width", "height", "x", "y")
_GUIDANCE = {"cfg": 2.0}  # the built-in teacher's


def stand_in(graph: Graph, models: Path) -> tuple[Graph, str]:
    """The graph with stand-ins, whose files are written into the host's models folder, and in words what they are.

    The words are empty, and the graph is the same, where it names nothing that is not shipped.
    """
    changed, words = copy.deepcopy(graph), ""
    for node in changed.values():
        kind, values = node["class_type"], node["inputs"].values()
        named = next((key for key in _LOADERS if key[0] == kind and key[1] in values), None)
        if named is None:
            continue
        loader, inputs = _LOADERS[named]
        links = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
        kept = node["inputs"] if loader == kind else links
        node |= {"class_type": loader, "inputs": {**kept, **inputs}}
        words = words or BUILT_IN
        if loader in _FILES:
            folder, make = _FILES[loader]
            path = models / folder / "stand-in.safetensors"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                make(path)
            words = SMALL
    if not words:
        return graph, ""
    for node in changed.values():
        for name, value in node["inputs"].items():
            if name in _SIZES and isinstance(value, int):
                node["inputs"][name] = value // SMALLER
            elif isinstance(value, str):
                node["inputs"][name] = _TEXTS.get(value, value)
            elif name in _GUIDANCE:
                node["inputs"][name] = _GUIDANCE[name]
    return changed, words
