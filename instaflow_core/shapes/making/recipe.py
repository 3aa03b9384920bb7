"""The numbers that the built-in models are made by: sizes of data, iterations, learning rates, seeds."""

from dataclasses import dataclass, field
from typing import Any

from ...training.config import LoopConfig


def _small(iterations: int, learning_rate: float, **more: Any) -> LoopConfig:
    """A configuration for models of this size: large steps that fall along a cosine."""
    settings = {"warmup": 200, "schedule": "cosine", "weight_decay": 0.0, "ema": 0.999, "precision": "bf16"}
    return LoopConfig(iterations=iterations, learning_rate=learning_rate, **{**settings, **more})


@dataclass(frozen=True)
class Recipe:
    """Every number that the built-in models depend on."""

    seed: int = 0
    pictures: int = 6000
    busy_pictures: int = 12000
    autoencoder: LoopConfig = field(default_factory=lambda: _small(14000, 1e-3, ema=0.995))
    autoencoder_batch: int = 4
    decoder: LoopConfig = field(default_factory=lambda: _small(4000, 6e-4, ema=0.995))
    decoder_batch: int = 8
    outlines: LoopConfig = field(default_factory=lambda: _small(3500, 6e-4, ema=0.995))
    outlines_drawn: int = 3500
    outlines_one_step: int = 20000
    text: LoopConfig = field(default_factory=lambda: _small(400, 2e-3, ema=0.98))
    text_batch: int = 64
    latents: int = 24000
    teacher: LoopConfig = field(default_factory=lambda: _small(18000, 1e-3))
    batch: int = 64
    caption_dropout: float = 0.1
    teacher_steps: int = 25
    teacher_guidance: float = 2.0
    often: dict[str, int] = field(default_factory=lambda: {"star": 3, "ring": 2})
    reflow_triplets: int = 32768
    reflow: LoopConfig = field(default_factory=lambda: _small(31000, 8e-4))
    reflow_times: str = "u-shaped"
    flow_steps: int = 6
    flow_guidance: float = 1.0
    distill_triplets: int = 201728
    distill: LoopConfig = field(default_factory=lambda: _small(19400, 8e-4))
    distill_loss: str = "huber"
    on_policy: LoopConfig = field(default_factory=lambda: _small(10000, 4e-4))
    on_policy_share: float = 0.75
