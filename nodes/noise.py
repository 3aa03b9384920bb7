"""Noise nodes: a seed as ComfyUI or diffusers turns it into noise."""

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..instaflow_core.noise import DRAWS, draw_noise
from . import host


class SeedNoise:
    """A NOISE: what `RandomNoise` gives, with a choice of whose numbers a seed stands for.

    Attributes:
        seed: 0 to 2^64 - 1; the host reads it as well.
        draw: one of DRAWS.
    """

    def __init__(self, seed: int, draw: str) -> None:
        self.seed = seed
        self.draw = draw

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """N(0, 1) noise for a LATENT: (B, C, H, W) float32 on the CPU; a "batch_index" picks from a longer batch."""
        if self.draw == "comfyui":
            return host.host_noise(input_latent, self.seed)
        shape, index = input_latent["samples"].shape, input_latent.get("batch_index")
        if index is None:
            return draw_noise(self.seed, shape, self.draw)
        return draw_noise(self.seed, (max(index) + 1, *shape[1:]), self.draw)[index]


class InstaFlowSeedNoise(io.ComfyNode):
    """Seeded noise, drawn as ComfyUI or as a diffusers pipeline draws it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="InstaFlowSeedNoise",
            display_name="InstaFlow Seed Noise",
            category="InstaFlow/noise",
            description="Noise from a seed, drawn as ComfyUI or as a diffusers pipeline draws it, so that a picture "
            "made elsewhere can be made again here.",
            search_aliases=["random noise", "seed", "diffusers noise", "reproduce"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Which noise to draw. The same seed and draw give the same noise on every machine.",
                ),
                io.Combo.Input(
                    "draw",
                    options=list(DRAWS),
                    default=DRAWS[0],
                    tooltip="Whose numbers the seed stands for. comfyui: those of KSampler and RandomNoise. diffusers "
                    "fp32 / fp16: those of a pipeline run in that precision with torch.Generator('cpu').",
                ),
            ],
            outputs=[io.Noise.Output(display_name="noise", tooltip="For InstaFlow Sampler or SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, seed: int, draw: str) -> io.NodeOutput:
        if draw not in DRAWS:
            raise ValueError(f"Unknown draw {draw!r}; expected one of {', '.join(DRAWS)}. Choose it in the node.")
        return io.NodeOutput(SeedNoise(seed, draw))
