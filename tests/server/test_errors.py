"""Bad input through the real server: a clear error, and a server that works on afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_client import Graph, PromptFailed, PromptRefused
from safetensors.torch import save_file
from small_models import install, new_kl, save_lora


@pytest.fixture(scope="module")
def models(server: Any) -> Path:
    """The server's models folder, with small checkpoints that work in it."""
    folder = server.base / "models"
    install(folder)
    return folder


def graph(checkpoint: str = "one-step.safetensors", empty: str = "EmptyLatentImage", **sampler: Any) -> Graph:
    """Text to image on that checkpoint, `sampler` being inputs of InstaFlowSampler."""
    inputs = {"seed": 0, "steps": 1, "guidance": 1.0, "denoise": 1.0} | sampler
    links = {"model": ["1", 0], "positive": ["2", 0], "latent_image": ["3", 0]}
    return {
        "1": {
            "class_type": "InstaFlowLoadCheckpoint",
            "inputs": {"checkpoint": checkpoint, "weight_dtype": "default"},
        },
        "2": {
            "class_type": "CLIPTextEncode",
            "inputs": {"clip": ["1", 1], "text": "a red circle on a blue background"},
        },
        "3": {"class_type": empty, "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "InstaFlowSampler", "inputs": links | inputs},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "errors"}},
    }


@pytest.fixture
def works_afterwards(server: Any, models: Path) -> Any:
    """After the test the same server still makes a picture."""
    yield
    seed = int.from_bytes(os.urandom(4), "big")  # a new one, so that nothing comes from the server's cache
    assert len(server.run_prompt(graph(seed=seed)).images) == 1


# --- checkpoints that are none ---


def truncated(models: Path) -> str:
    whole = (models / "checkpoints" / "one-step.safetensors").read_bytes()
    (models / "checkpoints" / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    return "truncated.safetensors"


def lora(models: Path) -> str:
    save_lora(models / "checkpoints" / "lora.safetensors")
    return "lora.safetensors"


def vae(models: Path) -> str:
    save_file(new_kl(0).state_dict(), models / "checkpoints" / "vae.safetensors")
    return "vae.safetensors"


def sdxl(models: Path) -> str:
    unet = "model.diffusion_model"
    tensors = {
        f"{unet}.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
        f"{unet}.label_emb.0.0.weight": torch.zeros(8, 2816),
        f"{unet}.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(8, 2048),
        "conditioner.embedders.1.model.ln_final.weight": torch.zeros(1280),
    }
    save_file(tensors, models / "checkpoints" / "sdxl.safetensors")
    return "sdxl.safetensors"


def no_unet(models: Path) -> str:
    folder = models / "diffusers" / "no-unet"
    (folder / "vae").mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "RectifiedFlowPipeline"}))
    return "no-unet"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated, "cut short"),
        (lora, "a LoRA"),
        (vae, "a VAE alone"),
        (sdxl, "a Stable Diffusion XL model"),
        (no_unet, "has no unet/ in it"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_not_an_instaflow(
    server: Any, models: Path, works_afterwards: None, make: Callable[[Path], str], message: str
) -> None:
    with pytest.raises(PromptFailed) as failed:
        server.run_prompt(graph(make(models)))
    assert failed.value.node_type == "InstaFlowLoadCheckpoint"
    assert message in failed.value.exception_message
    assert "Expected" in failed.value.exception_message


class Bomb:
    """A pickle of this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_does_not_run(server: Any, models: Path, works_afterwards: None, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "bomb": Bomb(marker)}, models / "checkpoints" / "bomb.ckpt")
    with pytest.raises(PromptFailed, match="a pickle that holds Python objects or code; it was not run"):
        server.run_prompt(graph("bomb.ckpt"))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../../secret.safetensors", "absent.safetensors"])
def test_a_name_that_is_no_choice(server: Any, models: Path, works_afterwards: None, name: str) -> None:
    """Newer hosts refuse the prompt, older ones leave it to the node."""
    with pytest.raises((PromptFailed, PromptRefused), match=r"There is no checkpoint|not in list"):
        server.run_prompt(graph(name))


# --- sampling ---


def test_a_latent_with_16_channels(server: Any, models: Path, works_afterwards: None) -> None:
    with pytest.raises(PromptFailed, match=r"shape \(1, 16, 8, 8\); InstaFlow takes \(batch, 4, .*Empty Latent Image"):
        server.run_prompt(graph(empty="EmptySD3LatentImage"))


def test_zero_steps(server: Any, models: Path, works_afterwards: None) -> None:
    with pytest.raises(PromptRefused) as refused:
        server.run_prompt(graph(steps=0))
    (error,) = refused.value.node_errors["4"]["errors"]
    assert error["type"] == "value_smaller_than_min"
    assert error["extra_info"]["input_name"] == "steps"


def test_guidance_where_it_cannot_act(server: Any, models: Path, works_afterwards: None) -> None:
    with pytest.raises(PromptFailed, match="one-step InstaFlow"):
        server.run_prompt(graph(guidance=1.5))
    with pytest.raises(PromptFailed, match="nothing is connected to `negative`"):
        server.run_prompt(graph("two-rf.safetensors", guidance=1.5))


def test_the_teacher_in_our_sampler(server: Any, models: Path, works_afterwards: None) -> None:
    with pytest.raises(PromptFailed, match="not an InstaFlow"):
        server.run_prompt(graph("teacher.safetensors"))
