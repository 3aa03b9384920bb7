"""A folder of Stable Diffusion 1.5's full size, made one file by `convert`, in the host's own checkpoint loader."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfy_client import Graph
from PIL import Image
from sd15 import UNET, random_checkpoint

from instaflow_core.weights.conversion import convert
from instaflow_core.weights.files import read_weights
from instaflow_core.weights.saving import save_folder

FOLDER = "instaflow_0_9B_random"
FILE = "instaflow_0_9B_random.safetensors"


@pytest.fixture(scope="module")
def released(server: Any) -> Iterator[Path]:
    """The folder in models/diffusers, and in models/checkpoints the file it was converted to."""
    models = server.base / "models"
    save_folder(random_checkpoint(), models / "diffusers" / FOLDER)
    convert(models / "diffusers" / FOLDER, models / "checkpoints" / FILE)
    yield models / "checkpoints" / FILE
    for path in (models / "checkpoints" / FILE, *(models / "diffusers" / FOLDER).rglob("*.safetensors")):
        path.unlink()


def graph(loader: dict[str, Any], model: list[Any]) -> Graph:
    """Text to image in one step by the host's own nodes; `loader` is node 1 and `model` where the MODEL comes from."""
    sampler = {"seed": 4, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"model": model, "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0]}
    return {
        "1": loader,
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a lighthouse on a cliff"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "KSampler", "inputs": links | sampler},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "converted"}},
        "7": {"class_type": "InstaFlowModelSampling", "inputs": {"model": ["1", 0]}},
    }


def picture(server: Any, prompt: Graph) -> np.ndarray:
    if prompt["4"]["inputs"]["model"] != ["7", 0]:
        del prompt["7"]
    (image,) = server.run_prompt(prompt, timeout=600).images
    return np.asarray(Image.open(io.BytesIO(image))).astype(int)


def test_the_stock_loader_opens_a_converted_folder(server: Any, released: Path) -> None:
    """Its MODEL, told that it is an InstaFlow, CLIP and VAE make the picture that our loader's make from the folder."""
    stock = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": FILE}}
    ours = {"class_type": "InstaFlowLoadCheckpoint", "inputs": {"checkpoint": FOLDER, "weight_dtype": "default"}}
    from_file, from_folder = picture(server, graph(stock, ["7", 0])), picture(server, graph(ours, ["1", 0]))
    assert from_file.shape == (64, 64, 3) and from_file.std() > 5, "random weights still make a picture with contrast"
    assert np.abs(from_file - from_folder).max() <= 1


def test_the_file_says_what_it_is(released: Path) -> None:
    tensors, metadata = read_weights(released)
    assert len(tensors) == 686 + 196 + 248
    assert metadata["instaflow.prediction"] == "velocity" and metadata["modelspec.resolution"] == "512x512"
    assert json.loads(metadata["instaflow.unet_config"]) == UNET
