"""Sampling nodes: Euler steps from noise to image on the exact uniform grid."""

from typing import Any

from comfy_api.latest import io

from .guidance import conditions
from .host import rows, sampling
from .host.inputs import checked
from .host.schema import schema, seed_input


def _denoise_input(tooltip: str) -> Any:
    return io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


class InstaFlowSampler(io.ComfyNode):
    """Euler steps of an InstaFlow, one by default: `sampling.sample` says which equation they are. A few-step
    model of another row takes its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowSampler",
            display_name="InstaFlow Sampler",
            category="InstaFlow/sampling",
            description="Goes from noise to image along the flow in straight, equal Euler steps: one for InstaFlow, "
            "one to 25 for a 2-rectified flow. The same seed gives the same picture as KSampler (euler, simple).",
            search_aliases=[
                "instaflow",
                "rectified flow",
                "ksampler",
                "sampler",
                "one step",
                "single step",
                "few step",
                "turbo",
                "fast",
                "lcm",
                "euler",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An InstaFlow or 2-rectified flow, from InstaFlow Load Checkpoint, or a few-step model "
                    "loaded there by its rule.",
                ),
                io.Conditioning.Input("positive", tooltip="What the picture should show, from CLIP Text Encode."),
                io.Latent.Input(
                    "latent_image", tooltip="An Empty Latent Image for its size, or a picture to change (denoise < 1)."
                ),
                seed_input("seed", "Which noise to start from. Not used where `noise` is connected."),
                io.Int.Input(
                    "steps",
                    default=1,
                    min=1,
                    max=10000,
                    tooltip="Evaluations of the UNet, at exactly 1000 (1 - i / steps). 1 is what InstaFlow is for; "
                    "a 2-rectified flow gets better up to about 25.",
                ),
                io.Float.Input(
                    "guidance",
                    default=1.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How far to push away from the negative prompt; acts above 1 only. 1.0 for InstaFlow, "
                    "1.0 to 2.0 for a 2-rectified flow (1.5 is good). Twice the work per step.",
                ),
                _denoise_input(
                    "1.0 starts from pure noise. Less starts part of the way, from latent_image with noise."
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to avoid. Needed for guidance above 1; up to 1 only patches on the MODEL that ask "
                    "for it use it.",
                ),
                io.Noise.Input(
                    "noise", optional=True, tooltip="Noise to start from, in place of the seed's. InstaFlow Seed Noise."
                ),
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="The picture as a latent, for VAE Decode.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        positive: Any,
        latent_image: dict[str, Any],
        seed: int = 0,
        steps: int = 1,
        guidance: float = 1.0,
        denoise: float = 1.0,
        negative: Any | None = None,
        noise: Any | None = None,
    ) -> io.NodeOutput:
        conditioning = conditions(model, positive, latent_image, guidance, negative, any_row=True)
        start, seed = sampling.connected_noise(latent_image, seed, noise)
        samples = rows.sample_by_row(model, conditioning, max(guidance, 1.0), latent_image, start, steps, denoise, seed)
        return io.NodeOutput(sampling.with_samples(latent_image, samples))


class InstaFlowScheduler(io.ComfyNode):
    """The exact uniform grid as SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowScheduler",
            display_name="InstaFlow Scheduler",
            category="InstaFlow/sampling",
            description="InstaFlow's exact uniform noise levels 1 - i / steps for SamplerCustom and "
            "SamplerCustomAdvanced, also where the number of steps does not divide 1000.",
            search_aliases=["instaflow", "rectified flow", "sigmas", "basic scheduler", "uniform", "simple"],
            inputs=[
                io.Model.Input("model", tooltip="The InstaFlow that will be sampled."),
                io.Int.Input("steps", default=1, min=1, max=10000, tooltip="Number of steps; 1 for InstaFlow."),
                _denoise_input("1.0 is the whole way from noise. Less begins at that noise level, with as many steps."),
            ],
            outputs=[io.Sigmas.Output(display_name="SIGMAS", tooltip="Noise levels from 1.0 down to 0.0.")],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, steps: int = 1, denoise: float = 1.0) -> io.NodeOutput:
        return io.NodeOutput(rows.row_sampling(model).steps(steps, denoise))
