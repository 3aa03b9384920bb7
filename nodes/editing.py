"""Nodes that work on the noise behind a picture: find it, and move it towards a picture that is wanted."""

import logging
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..instaflow_core.flow.control import Control, control
from ..instaflow_core.flow.inversion import ITERATIONS, Inversion, invert
from ..instaflow_core.flow.solvers import VelocityField
from .guidance import conditions, guidance_inputs
from .host import sampling
from .host.inputs import checked, refused
from .host.progress import Progress
from .host.schema import report_output, schema
from .host.velocity import with_velocity
from .noise import FixedNoise

_log = logging.getLogger(__name__)


def inversion_report(result: Inversion) -> str:
    """One line a picture on how well its noise gives it back."""
    lines = [
        f"Picture {i + 1}: error {ours:.4f} (reversing the steps naively: {naive:.4f})"
        for i, (ours, naive) in enumerate(zip(result.residual.tolist(), result.naive_residual.tolist(), strict=True))
    ]
    return "\n".join(lines)


def latent_mask(mask: Tensor, shape: torch.Size) -> Tensor:
    """A MASK (n, H, W) or (H, W) as (B, 1, h, w) for B latents of that shape: the share of each latent's pixels.

    Fewer masks than latents are used again from the first on, more are left out, as the host's samplers do.
    """
    pixels = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    shares = torch.nn.functional.interpolate(pixels, shape[-2:], mode="area")
    return shares.repeat(-(-shape[0] // len(shares)), 1, 1, 1)[: shape[0]]


def matching(target: dict[str, Any], latent: dict[str, Any]) -> Tensor:
    """The target's samples (B, C, H, W) for that latent; a single target serves a batch.

    Raises:
        ValueError: it has another size or number.
    """
    wanted, shape = target["samples"], latent["samples"].shape
    if wanted.shape[1:] != shape[1:] or len(wanted) not in (1, shape[0]):
        raise refused(
            "target",
            f"has the shape {tuple(wanted.shape)}",
            f"`latent_image` has {tuple(shape)}",
            "Give both the same size, and one target or as many as there are latents.",
        )
    return wanted.expand(shape)


def control_report(result: Control) -> str:
    """One line a picture on how near it came."""
    lines = [
        f"Picture {i + 1}: distance to the target {before:.4f} to {after:.4f}"
        for i, (before, after) in enumerate(zip(result.before.tolist(), result.after.tolist(), strict=True))
    ]
    return "\n".join(lines)


class InstaFlowInvert(io.ComfyNode):
    """The noise that makes a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowInvert",
            display_name="InstaFlow Invert",
            category="InstaFlow/editing",
            description="Finds the noise from which the flow makes this picture, in the same number of steps. Sample "
            "with it again under another prompt to change what the picture shows and keep the rest.",
            search_aliases=[
                "instaflow",
                "invert",
                "inversion",
                "image to noise",
                "unsampler",
                "edit",
                "reverse",
                "ddim inversion",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The InstaFlow that will sample from the noise."),
                io.Conditioning.Input("positive", tooltip="A prompt that says what the picture shows."),
                io.Latent.Input("latent_image", tooltip="The picture, from VAE Encode with InstaFlow's own VAE."),
                io.Int.Input(
                    "steps",
                    default=1,
                    min=1,
                    max=100,
                    tooltip="The steps the sampler will take: 1 for InstaFlow, a few for a 2-rectified flow.",
                ),
                *guidance_inputs("The guidance that the sampler will use."),
            ],
            outputs=[
                io.Noise.Output(
                    display_name="NOISE", tooltip="The noise, for InstaFlow Sampler or SamplerCustomAdvanced."
                ),
                io.Latent.Output(
                    display_name="LATENT",
                    tooltip="The same noise as a latent: the latent_image that goes with NOISE, or to save. Alone it "
                    "starts no sampler: at pure noise a flow takes its noise from NOISE or a seed.",
                ),
                report_output("How well each picture's noise gives it back: the error that is left, one line each."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        positive: Any,
        latent_image: dict[str, Any],
        steps: int = 1,
        guidance: float = 1.0,
        negative: Any | None = None,
    ) -> io.NodeOutput:
        conditioning = conditions(model, positive, latent_image, guidance, negative)
        x_1 = sampling.into_flow(model, latent_image["samples"])
        work = partial(invert, steps=steps, progress=Progress(steps + ITERATIONS, model).moved)
        result = with_velocity(model, conditioning, guidance, x_1, work, gradients=True)
        noise = FixedNoise(result.noise.cpu(), 0, latent_image.get("batch_index"))
        report = inversion_report(result)
        _log.info("InstaFlow Invert: %s", report)
        return io.NodeOutput(noise, noise.latent(), report, ui=ui.PreviewText(report))


class InstaFlowControl(io.ComfyNode):
    """Noise moved by gradients until the picture agrees with a target."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowControl",
            display_name="InstaFlow Control",
            category="InstaFlow/editing",
            description="Moves the noise, by gradients through the flow's few steps (FlowGrad), until the picture "
            "agrees with a target inside a mask. Outside the flow makes what fits. No training.",
            search_aliases=[
                "instaflow",
                "flowgrad",
                "control",
                "gradient guidance",
                "steer",
                "optimize noise",
                "edit",
                "inpaint",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The InstaFlow or 2-rectified flow to steer."),
                io.Conditioning.Input("positive", tooltip="What the picture should show, from CLIP Text Encode."),
                io.Latent.Input("latent_image", tooltip="An Empty Latent Image: the size and number of pictures."),
                io.Latent.Input(
                    "target", tooltip="What to agree with, from VAE Encode. One for all pictures, or one for each."
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Where to agree (white). Without a mask the whole picture counts."
                ),
                io.Int.Input(
                    "iterations",
                    default=30,
                    min=0,
                    max=10000,
                    tooltip="How often the noise is moved. Each costs about four evaluations of the UNet a step.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.1,
                    min=0.0001,
                    max=10.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="How far a move may go; the noise's own deviation is 1. Less is slower and steadier.",
                ),
                io.Int.Input(
                    "steps", default=1, min=1, max=100, tooltip="Euler steps from noise to picture: 1 for InstaFlow."
                ),
                io.Noise.Input(
                    "noise", optional=True, tooltip="The noise to begin with. Without one it is that of seed 0."
                ),
                *guidance_inputs("The guidance that the sampler will use with the noise."),
            ],
            outputs=[
                io.Latent.Output(display_name="LATENT", tooltip="The picture as a latent, for VAE Decode."),
                io.Noise.Output(display_name="NOISE", tooltip="The noise it comes from, to sample from it again."),
                report_output(
                    "How near each picture came: its distance to the target before and after, one line each."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        positive: Any,
        latent_image: dict[str, Any],
        target: dict[str, Any],
        mask: Tensor | None = None,
        iterations: int = 30,
        learning_rate: float = 0.1,
        steps: int = 1,
        noise: Any | None = None,
        guidance: float = 1.0,
        negative: Any | None = None,
    ) -> io.NodeOutput:
        conditioning = conditions(model, positive, latent_image, guidance, negative)
        connected, seed = sampling.connected_noise(latent_image, 0, noise)
        start = sampling.host_noise(latent_image, seed) if connected is None else connected
        goal, tell = sampling.into_flow(model, matching(target, latent_image)), Progress(iterations, model).moved
        where = None if mask is None else latent_mask(mask, start.shape)

        def work(velocity: VelocityField, x_0: Tensor) -> Control:
            there = None if where is None else where.to(x_0)
            return control(velocity, x_0, goal.to(x_0), steps, iterations, learning_rate, there, tell)

        result = with_velocity(model, conditioning, guidance, start, work, gradients=True)
        picture = sampling.with_samples(latent_image, sampling.out_of_flow(model, result.x_1))
        report = control_report(result)
        moved = FixedNoise(result.noise.cpu(), seed, latent_image.get("batch_index"))
        _log.info("InstaFlow Control: %s", report)
        return io.NodeOutput(picture, moved, report, ui=ui.PreviewText(report))
