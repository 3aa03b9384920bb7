"""What the graphs of the tables are put together from: good inputs of every node, and what else a graph can bring."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_checkpoint
from torch import Tensor

from instaflow_core.weights.matching import rows_of, to_ldm
from instaflow_core.weights.saving import save

CPU = torch.device("cpu")


class Parts:
    """A host's nodes, and small models of every kind, each made when a graph first asks for it.

    Attributes:
        host: the host in this process.
        model, clip, vae: those of a random 2-rectified flow, which takes guidance and any number of steps.
        teacher: a random Stable Diffusion.
    """

    def __init__(self, host: Any, flow: Any, teacher: Any) -> None:
        self.host = host
        self.model, self.clip, self.vae = flow
        self.teacher, self.teacher_clip, _ = teacher
        self._made: dict[Any, Any] = {}

    def made(self, make: Callable[[Parts], Any]) -> Any:
        """What a row of a table makes, once for all graphs that it comes into."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]

    def run(self, node: str, **inputs: Any) -> Any:
        """The first output of a node."""
        return (self.host.run(node, **inputs) or (None,))[0]

    # --- prompts ---

    def encode(self, text: str, clip: Any = None) -> Any:
        return self.run("CLIPTextEncode", clip=clip or self.clip, text=text)

    @cached_property
    def text(self) -> Any:
        return self.encode("a red circle on a blue background")

    @cached_property
    def other(self) -> Any:
        return self.encode("a small green star")

    @cached_property
    def blurry(self) -> Any:
        return self.encode("blurry")

    def states(self, *shape: int, fill: float = 0.1, **options: Any) -> Any:
        """A conditioning whose states are all the same number."""
        return [[torch.full(shape, fill), options]]

    # --- latents, masks, noise ---

    def latent(self, *shape: int, **more: Any) -> dict[str, Any]:
        """Latents of a picture, made up."""
        generator = torch.Generator().manual_seed(5)
        return {"samples": torch.randn(shape or (1, 4, 8, 8), generator=generator), **more}

    def mask(self, *shape: int) -> Tensor:
        """A mask whose left half is black."""
        mask = torch.ones(shape)
        mask[..., : shape[-1] // 2] = 0
        return mask

    def noise(self, seed: int = 3) -> Any:
        return self.run("RandomNoise", noise_seed=seed)

    # --- models of other kinds ---

    def of_kind(self, name: str, **config: Any) -> Any:
        """A MODEL of another of the host's architectures, with no weights worth the name."""
        import comfy.model_patcher
        import comfy.supported_models

        kind = getattr(comfy.supported_models, name)(config)
        kind.set_inference_dtype(torch.float32, None)
        return comfy.model_patcher.ModelPatcher(kind.get_model({}, ""), load_device=CPU, offload_device=CPU)

    def unet_of_kind(self, name: str, **config: Any) -> Any:
        """One with the UNet of ours, as far as the config says nothing else."""
        own = dict(self.model.model.model_config.unet_config)
        for key in ("dtype", "device"):
            own.pop(key, None)
        return self.of_kind(name, **{**own, "num_head_channels": 32, "num_heads": -1, **config})

    @cached_property
    def sd20(self) -> Any:
        return self.unet_of_kind("SD20")

    @cached_property
    def sdxl(self) -> Any:
        return self.unet_of_kind("SDXL", adm_in_channels=2816, num_classes="sequential")

    @cached_property
    def sd3(self) -> Any:
        return self.of_kind("SD3", in_channels=16, depth=1, patch_size=2, adm_in_channels=2048, pos_embed_max_size=8)

    @cached_property
    def flux(self) -> Any:
        from comfy.ldm.flux.model import FluxParams

        newer = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__annotations__ else {}
        return self.of_kind(
            "FluxSchnell",
            **newer,
            image_model="flux",
            in_channels=16,
            out_channels=16,
            vec_in_dim=32,
            context_in_dim=64,
            hidden_size=32,
            mlp_ratio=1.0,
            num_heads=1,
            depth=1,
            depth_single_blocks=1,
            axes_dim=[8, 12, 12],
            theta=10000,
            patch_size=2,
            qkv_bias=True,
            guidance_embed=False,
        )

    @cached_property
    def wide(self) -> Any:
        """MODEL, CLIP and VAE of a flow whose prompts are 128 wide: ours are 64."""
        name = save_wide(self.host.base / "models")
        return self.host.run("InstaFlowLoadCheckpoint", checkpoint=name, weight_dtype="fp32")

    def with_more_channels(self, channels: int) -> Any:
        """A random SD1.5 that gets more than latents: a mask and a picture (9), or a picture (8), beside them."""
        model = self.unet_of_kind("SD15", in_channels=channels)
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            torch.manual_seed(0)
            for name, weight in model.model.diffusion_model.state_dict().items():
                torch.nn.init.normal_(weight, std=0.05) if weight.ndim > 1 else weight.fill_(name.endswith("weight"))
        return model

    # --- autoencoders of other kinds ---

    def vae_of(self, tensors: dict[str, Tensor]) -> Any:
        import comfy.sd

        return comfy.sd.VAE(sd=tensors)

    @cached_property
    def vae_of_16_channels(self) -> Any:
        rows = rows_of("vae", dict(small_checkpoint().vae_config or {}) | {"latent_channels": 16})
        return self.vae_of(to_ldm({row.diffusers: torch.zeros(row.shape) for row in rows}, rows, ""))

    @cached_property
    def vae_of_pixels(self) -> Any:
        return self.vae_of({"pixel_space_vae": torch.tensor(1.0)})

    @cached_property
    def vae_of_videos(self) -> Any:
        """The small autoencoder of Wan's videos, its weights left as the host makes them."""
        return self.vae_of({"decoder.22.bias": torch.zeros(12), "decoder.1.weight": torch.zeros(256, 48, 3, 3)})

    @cached_property
    def vae_of_nothing(self) -> Any:
        """What the stock loader gives for a checkpoint without one."""
        return self.vae_of({})

    # --- sets of triplets ---

    @cached_property
    def triplets(self) -> Any:
        """One triplet of the teacher's."""
        return self.run("InstaFlowTriplets", **GOOD["InstaFlowTriplets"](self) | {"name": "small"})

    @cached_property
    def triplets_of_16_channels(self) -> Any:
        """A set that says of itself that its latents have 16 channels."""
        folder = self.triplets.folder.with_name("sixteen")
        shutil.copytree(self.triplets.folder, folder)
        said = json.loads((folder / "set.json").read_text(encoding="utf-8"))
        (folder / "set.json").write_text(json.dumps(said | {"latent_shape": [16, 4, 4]}), encoding="utf-8")
        return self.run("InstaFlowLoadTriplets", name=folder.name, clip=self.clip)


def save_wide(models: Path) -> str:
    """Write a flow whose prompts are 128 wide into a host's models/checkpoints; its name there."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    checkpoint = small_checkpoint("2-rectified-flow")
    text_config = dict(checkpoint.text_config or {}) | {"hidden_size": 128}
    config = checkpoint.unet_config | {"cross_attention_dim": 128}
    with torch.random.fork_rng(devices=[]):
        text = CLIPTextModel(CLIPTextConfig.from_dict(text_config)).state_dict()
        unet = UNet2DConditionModel.from_config(config).state_dict()
    text = {name if name.startswith("text_model.") else f"text_model.{name}": w for name, w in text.items()}
    whole = dataclasses.replace(checkpoint, unet=unet, unet_config=config, text_encoder=text, text_config=text_config)
    save(whole, models / "checkpoints" / "wide-text.safetensors")
    return "wide-text.safetensors"


_TRAINING = {"iterations": 1, "batch_size": 1, "learning_rate": 1e-4, "ema": 0.5, "method": "full", "resume": True}

GOOD: dict[str, Callable[[Parts], dict[str, Any]]] = {
    "InstaFlowLoadCheckpoint": lambda p: {"checkpoint": "two-rf.safetensors", "weight_dtype": "fp32"},
    "InstaFlowLoadUNet": lambda p: {"unet_name": "bare.safetensors", "weight_dtype": "fp32"},
    "InstaFlowModelSampling": lambda p: {"model": p.model},
    "InstaFlowSaveCheckpoint": lambda p: {
        "model": p.model,
        "clip": p.clip,
        "vae": p.vae,
        "filename_prefix": "checkpoints/graphs",
    },
    "InstaFlowMergeDelta": lambda p: {"model": p.model, "finetuned": p.teacher, "base": p.teacher, "strength": 1.0},
    "InstaFlowPeRFlow": lambda p: {"model": p.teacher, "steps": 4, "windows": 4, "prediction": "diff_eps"},
    "InstaFlowAccelerate": lambda p: {"model": p.model, "vae": p.vae, "mode": "exact", "decoder": "full"},
    "InstaFlowSampler": lambda p: {
        "model": p.model,
        "positive": p.text,
        "latent_image": p.latent(),
        "seed": 1,
        "steps": 1,
        "guidance": 1.0,
        "denoise": 1.0,
    },
    "InstaFlowScheduler": lambda p: {"model": p.model, "steps": 1, "denoise": 1.0},
    "InstaFlowLivePreview": lambda p: {"images": [torch.zeros(1, 8, 8, 3)]},
    "InstaFlowSeedNoise": lambda p: {"seed": 0, "draw": "comfyui"},
    "InstaFlowInterpolateNoise": lambda p: {"seed_from": 0, "seed_to": 1, "frames": 2, "latent_image": p.latent()},
    "InstaFlowInvert": lambda p: {"model": p.model, "positive": p.text, "latent_image": p.latent(), "steps": 1},
    "InstaFlowControl": lambda p: {
        "model": p.model,
        "positive": p.text,
        "latent_image": p.latent(),
        "target": p.latent(),
        "iterations": 1,
    },
    "InstaFlowStraightness": lambda p: {
        "model": p.model,
        "positive": p.text,
        "latent_image": p.latent(),
        "seed": 0,
        "samples": 1,
        "steps": 2,
    },
    "InstaFlowCompare": lambda p: {
        "model": p.model,
        "teacher": p.teacher,
        "positive": p.text,
        "negative": p.blurry,
        "latent_image": p.latent(),
        "vae": p.vae,
        "seed": 0,
        "teacher_steps": 2,
        "teacher_guidance": 2.0,
        "teacher_sampler": "euler",
    },
    "InstaFlowEvaluate": lambda p: {
        "model": p.model,
        "clip": p.clip,
        "vae": p.vae,
        "prompts": "a red circle",
        "count": 2,
        "steps": 1,
        "guidance": 0.0,
        "seed": 0,
        "width": 64,
        "height": 64,
        "networks": "built-in",
    },
    "InstaFlowTriplets": lambda p: {
        "model": p.teacher,
        "clip": p.teacher_clip,
        "prompts": "a red circle",
        "count": 1,
        "steps": 1,
        "guidance": 2.0,
        "width": 64,
        "height": 64,
        "batch_size": 1,
        "seed": 0,
        "name": "graphs",
    },
    "InstaFlowLoadTriplets": lambda p: {"name": p.triplets.folder.name, "clip": p.teacher_clip},
    "InstaFlowReflow": lambda p: {
        "model": p.teacher,
        "triplets": p.triplets,
        "seed": 0,
        "name": "graphs-reflow",
        **_TRAINING,
    },
    "InstaFlowDistill": lambda p: {
        "model": p.model,
        "triplets": p.triplets,
        "loss": "l2",
        "seed": 0,
        "name": "graphs-distill",
        **_TRAINING,
    },
}
"""Inputs of every node that it takes: the least work that it can be given."""


_TO_DO = r"[.] (Change|Choose|Connect|Encode|Give|Load|Look|Make|Paint|Pick|Put|Set|Train) [^.]+.*[.]$"


def check_refused(parts: Parts, node: str, changed: dict[str, Any], name: str, found: str) -> None:
    """Run a node with other inputs than its good ones: its error names the input, what came, and what to do."""
    with pytest.raises(ValueError) as refused:
        parts.run(node, **GOOD[node](parts) | changed)
    message = str(refused.value)
    assert re.search(rf"\b({name})\b", message, re.IGNORECASE), message  # also a NOISE
    assert found in message, message
    assert re.search(_TO_DO, message, re.DOTALL), message
