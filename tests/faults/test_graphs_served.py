"""Odd graphs through a real server: what its red box says, and that the server goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from comfy_client import Graph, PromptFailed
from graph_parts import save_wide
from small_models import install


@pytest.fixture(scope="module")
def models(server: Any) -> Path:
    """The server's models folder, with small checkpoints in it."""
    folder = server.base / "models"
    install(folder)
    save_wide(folder)
    return folder


def load(checkpoint: str) -> dict[str, Any]:
    return {
        "class_type": "InstaFlowLoadCheckpoint", "inputs": {"checkpoint": checkpoint, "weight_dtype": "fp32"}
    }  # fmt: skip


def empty(node: str = "EmptyLatentImage", **sizes: int) -> dict[str, Any]:
    return {"class_type": node, "inputs": {"width": 64, "height": 64, "batch_size": 1} | sizes}


def encode(clip: str) -> dict[str, Any]:
    return {"class_type": "CLIPTextEncode", "inputs": {"clip": [clip, 1], "text": "a red circle"}}


# the flow, its prompt and an empty latent, a diffusion model, and a flow whose prompts are wider
COMMON: Graph = {
    "flow": load("two-rf.safetensors"),
    "text": encode("flow"),
    "latent": empty(),
    "teacher": load("teacher.safetensors"),
    "wide": load("wide-text.safetensors"),
}

SAMPLED: dict[str, Any] = {
    "model": ["flow", 0], "positive": ["text", 0], "latent_image": ["latent", 0], "seed": 0, "steps": 1,
    "guidance": 1.0, "denoise": 1.0,
}  # fmt: skip
CONTROLLED: dict[str, Any] = {
    "model": ["flow", 0], "positive": ["text", 0], "latent_image": ["latent", 0], "target": ["latent", 0],
    "iterations": 1, "learning_rate": 0.1, "steps": 1,
}  # fmt: skip
COMPARED: dict[str, Any] = {
    "model": ["flow", 0], "teacher": ["teacher", 0], "positive": ["text", 0], "negative": ["text", 0],
    "latent_image": ["latent", 0], "vae": ["flow", 2], "seed": 0, "teacher_steps": 2, "teacher_guidance": 2.0,
    "teacher_sampler": "euler",
}  # fmt: skip

# what is odd: (node, its changed inputs, more nodes, what the red box says)
ROWS: dict[str, tuple[str, dict[str, Any], Graph, str]] = {
    "an empty latent for SD3": (
        "InstaFlowSampler", {"latent_image": ["odd", 0]}, {"odd": empty("EmptySD3LatentImage")},
        "`latent_image` has the shape (1, 16, 8, 8); InstaFlow takes (batch, 4, height / 8, width / 8).",
    ),
    "an empty video": (
        "InstaFlowSampler", {"latent_image": ["odd", 0]}, {"odd": empty("EmptyHunyuanLatentVideo", length=5)},
        "`latent_image` has the shape (1, 16, 2, 8, 8)",
    ),
    "a prompt of a wider CLIP": (
        "InstaFlowSampler", {"positive": ["odd", 0]}, {"odd": encode("wide")},
        "`positive` comes from a text encoder 128 wide; `model` reads prompts 64 wide.",
    ),
    "a Stable Diffusion": (
        "InstaFlowSampler", {"model": ["teacher", 0]}, {}, "`model` is not an InstaFlow"
    ),
    "a flow under ModelSamplingSD3": (
        "InstaFlowSampler", {"model": ["odd", 0]},
        {"odd": {"class_type": "ModelSamplingSD3", "inputs": {"model": ["flow", 0], "shift": 3.0}}},
        "`model` is not an InstaFlow",
    ),
    "guidance that is not a number": (
        "InstaFlowSampler", {"guidance": float("nan")}, {}, "`guidance` is nan; expected a number from 0 to 30."
    ),
    "no steps, by a link": (
        "InstaFlowSampler", {"steps": ["odd", 0]}, {"odd": {"class_type": "PrimitiveInt", "inputs": {"value": 0}}},
        "`steps` is 0; expected a whole number from 1 to 10000.",
    ),
    "a target of another size": (
        "InstaFlowControl", {"target": ["odd", 0]}, {"odd": empty(width=128)},
        "`target` has the shape (1, 4, 8, 16); `latent_image` has (1, 4, 8, 8).",
    ),
    "a mask that is black": (
        "InstaFlowControl", {"mask": ["odd", 0]},
        {"odd": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 64, "height": 64}}},
        "The mask is 0 everywhere",
    ),
    "the autoencoder of models that work on pixels": (
        "InstaFlowCompare", {"vae": ["odd", 0]},
        {"odd": {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}}},
        "`vae` makes latents of pictures with 3 channels; `model` makes those of pictures with 4 channels.",
    ),
    "a teacher whose prompts are wider": (
        "InstaFlowCompare", {"teacher": ["wide", 0]}, {},
        "`positive` comes from a text encoder 64 wide; `teacher` reads prompts 128 wide.",
    ),
    "a finetune of another width": (
        "InstaFlowMergeDelta",
        {"model": ["flow", 0], "finetuned": ["wide", 0], "base": ["teacher", 0], "strength": 1.0}, {},
        "The UNets of `finetuned` and `base` differ in their tensors",
    ),
}  # fmt: skip

GOOD = {"InstaFlowSampler": SAMPLED, "InstaFlowControl": CONTROLLED, "InstaFlowCompare": COMPARED}


def shown(node: str, inputs: dict[str, Any], more: Graph) -> Graph:
    """A graph whose end needs what the node makes."""
    graph = COMMON | more | {"node": {"class_type": node, "inputs": GOOD.get(node, {}) | inputs}}
    if node == "InstaFlowCompare":
        graph["end"] = {"class_type": "PreviewImage", "inputs": {"images": ["node", 0]}}
    elif node == "InstaFlowMergeDelta":
        graph["made"] = {"class_type": "InstaFlowSampler", "inputs": SAMPLED | {"model": ["node", 0]}}
        graph["end"] = {"class_type": "SaveLatent", "inputs": {"samples": ["made", 0], "filename_prefix": "graphs"}}
    else:
        graph["end"] = {"class_type": "SaveLatent", "inputs": {"samples": ["node", 0], "filename_prefix": "graphs"}}
    return graph


@pytest.mark.parametrize(("node", "inputs", "more", "message"), ROWS.values(), ids=ROWS)
def test_the_red_box(server: Any, models: Path, node: str, inputs: dict[str, Any], more: Graph, message: str) -> None:
    with pytest.raises(PromptFailed) as failed:
        server.run_prompt(shown(node, inputs, more))
    assert failed.value.node_type == node
    assert failed.value.exception_type.endswith(("ValueError", "FormatError"))
    assert message in failed.value.exception_message


def test_the_server_works_on(server: Any, models: Path) -> None:
    for node, inputs in GOOD.items():
        assert server.run_prompt(shown(node, inputs | {"latent_image": ["latent", 0]}, {})).outputs
