"""Stable Diffusion 1.5's own sizes, and random weights for them: for tests and benchmarks without a download."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from instaflow_core.weights.checkpoint import Checkpoint
from instaflow_core.weights.layouts import Row
from instaflow_core.weights.matching import rows_of

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
TEXT: dict[str, Any] = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "eos_token_id": 2,
}


def random_weights(rows: Iterable[Row], seed: int = 0) -> dict[str, Tensor]:
    """Half-precision weights, by diffusers name, that keep activations at a deviation of about 1."""
    # A billion draws would take a minute; these repeat, at a length that no layer's width divides.
    draws = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed))
    tensors = {}
    for row in (row for row in rows if not row.optional):
        if len(row.shape) == 1:
            fill = 1.0 if row.diffusers.endswith(".weight") else 0.0  # norms; biases
            tensors[row.diffusers] = torch.full(row.shape, fill, dtype=torch.float16)
        else:
            count = math.prod(row.shape)
            scaled = (draws / math.sqrt(count / row.shape[0])).half()
            tensors[row.diffusers] = scaled.repeat(-(-count // len(draws)))[:count].reshape(row.shape)
    return tensors


def random_checkpoint() -> Checkpoint:
    """Random weights in half precision: UNet, text encoder and VAE. It does not say what it predicts."""
    configs = {"unet": UNET, "text_encoder": TEXT, "vae": VAE}
    unet, text, vae = (random_weights(rows_of(part, config)) for part, config in configs.items())
    return Checkpoint(unet, UNET, text, TEXT, vae, VAE)
