"""Noise nodes: a seed as ComfyUI or diffusers turns it into noise, and the way from one seed's noise to another's."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..instaflow_core.flow.noise import DRAWS, draw_noise, great_circle
from .host import sampling
from .host.inputs import checked
from .host.schema import schema, seed_input


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
            return sampling.host_noise(input_latent, self.seed)
        shape, index = input_latent["samples"].shape, input_latent.get("batch_index")
        if index is None:
            return draw_noise(self.seed, shape, self.draw)
        return draw_noise(self.seed, (max(index) + 1, *shape[1:]), self.draw)[index]


class FixedNoise:
    """A NOISE that was made before, one for each latent of a batch.

    Attributes:
        noise: (B, C, H, W).
        seed: what the host reads besides, for samplers that draw more noise on the way.
        places: (B,), where in its batch each noise's latent stood: that one's "batch_index", where it had one.
    """

    def __init__(self, noise: Tensor, seed: int, places: Sequence[int] | None = None) -> None:
        self.noise = noise
        self.seed = seed
        self.places = list(range(len(noise)) if places is None else places)

    def latent(self) -> dict[str, Any]:
        """The same noise as a LATENT, whose batch has the same places."""
        plain = self.places == list(range(len(self.noise)))
        return {"samples": self.noise} if plain else {"samples": self.noise, "batch_index": self.places}

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """The noise for a LATENT (B, C, H, W) of the batch it was made for; a "batch_index" picks from that batch.

        Raises:
            ValueError: the LATENT has another size, or more latents than there is noise.
        """
        shape = tuple(input_latent["samples"].shape)
        wanted = list(input_latent.get("batch_index") or self.places)
        if (len(wanted), *self.noise.shape[1:]) != shape or not set(wanted) <= set(self.places):
            raise ValueError(
                f"This NOISE is for latents of the shape {tuple(self.noise.shape)}, and `latent_image` has the "
                f"shape {shape}. Connect the LATENT that came with the NOISE, or one of the same size and batch."
            )
        return self.noise[[self.places.index(place) for place in wanted]]


class InstaFlowSeedNoise(io.ComfyNode):
    """Seeded noise, drawn as ComfyUI or as a diffusers pipeline draws it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowSeedNoise",
            display_name="InstaFlow Seed Noise",
            category="InstaFlow/noise",
            description="Noise from a seed, drawn as ComfyUI or as a diffusers pipeline draws it, so that a picture "
            "made elsewhere can be made again here.",
            search_aliases=["instaflow", "noise", "random noise", "seed", "diffusers noise", "reproduce"],
            inputs=[
                seed_input("seed", "Which noise to draw. The same seed and draw give the same noise on every machine."),
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
    @checked
    def execute(cls, seed: int, draw: str) -> io.NodeOutput:
        return io.NodeOutput(SeedNoise(seed, draw))


class InstaFlowInterpolateNoise(io.ComfyNode):
    """The frames of a way from one seed's noise to another's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowInterpolateNoise",
            display_name="InstaFlow Interpolate Noise",
            category="InstaFlow/noise",
            description="A batch of noises along the great circle from one seed's to another's, one for each frame of "
            "a video: every frame is as good a noise as the ends, and the flow turns neighbours into neighbours.",
            search_aliases=[
                "instaflow",
                "slerp",
                "interpolation",
                "interpolate",
                "noise travel",
                "video frames",
                "animation",
                "seed blend",
                "latent walk",
            ],
            inputs=[
                seed_input(
                    "seed_from",
                    "The seed of the first frame; its picture is that of this seed in InstaFlow Sampler.",
                    control=None,
                ),
                seed_input(
                    "seed_to",
                    "The seed of the last frame. The next stretch of a longer way begins with it.",
                    default=1,
                    control=None,
                ),
                io.Int.Input(
                    "frames", default=16, min=1, max=4096, tooltip="How many frames, both ends counted. 1 is seed_from."
                ),
                io.Latent.Input("latent_image", tooltip="An Empty Latent Image: only its width and height are used."),
            ],
            outputs=[
                io.Noise.Output(
                    display_name="NOISE", tooltip="One noise a frame, for InstaFlow Sampler or SamplerCustomAdvanced."
                ),
                io.Latent.Output(
                    display_name="LATENT",
                    tooltip="The same noises as a batch of latents: the latent_image that goes with NOISE. Alone it "
                    "starts no sampler: at pure noise a flow takes its noise from NOISE or a seed.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, seed_from: int, seed_to: int, frames: int, latent_image: dict[str, Any]) -> io.NodeOutput:
        first = {"samples": latent_image["samples"][:1]}
        start, end = (sampling.host_noise(first, seed)[0] for seed in (seed_from, seed_to))
        # Angles in half precision, in which a host may keep its latents, are too coarse.
        noise = FixedNoise(great_circle(start.float(), end.float(), frames).to(start.dtype), seed_from)
        return io.NodeOutput(noise, noise.latent())
