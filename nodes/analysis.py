"""Nodes that measure: how straight a flow is, and how it compares with a diffusion model in time and looks."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..instaflow_core.flow.solvers import time_grid
from ..instaflow_core.flow.straightness import Straightness, flow_trajectory, mean_straightness, straightness
from ..instaflow_core.pictures.charts import draw_curve
from ..instaflow_core.pictures.images import image_pictures, image_tensor
from ..instaflow_core.pictures.labels import labelled_row
from .guidance import conditions, guidance_inputs
from .host import model_sampling, sampling
from .host.progress import Progress
from .host.schema import report_output, schema, seed_input
from .host.velocity import with_velocity


def measure_straightness(
    model: Any, conditioning: dict[str, Any], guidance: float, noise: Tensor, steps: int
) -> Straightness:
    """S of the flow from each of these noises (B, 4, H, W), one after the other, in `steps` Euler steps each."""
    tell, times = Progress(len(noise) * steps).add, time_grid(steps)
    solve = partial(flow_trajectory, times=times, callback=lambda i, x: tell())
    paths = (with_velocity(model, conditioning, guidance, x_0, solve) for x_0 in noise.split(1))
    return mean_straightness(straightness(states, times) for states in paths)


def straightness_report(result: Straightness, samples: int) -> str:
    """S in a line, with what it is a mean over and the time at which most comes to it."""
    worst = int(result.curve.argmax())
    return (
        f"Straightness S = {result.value:.4g} (0 is straight), over {samples} paths of {len(result.curve)} steps; "
        f"least straight at t = {float(result.times[worst]):.2g} ({float(result.curve[worst]):.4g})"
    )


RUNS = 3
"""How often a work is timed at most; the fastest counts."""

LONG = 2.0
"""Seconds after which a work is not timed again."""


def fastest(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What the work makes, and its seconds: those of the fastest of a few runs."""
    times: list[float] = []
    while len(times) < RUNS and sum(times) < LONG:
        start = time.perf_counter()
        result = work().cpu()  # there when it is on the CPU
        times.append(time.perf_counter() - start)
    return result, min(times)


def stopwatch(vae: Any, sample: Callable[[int], Tensor], steps: int) -> tuple[Tensor, float]:
    """The pictures of `sample(steps)` and the seconds from noise to pictures, decoding included.

    Each is done once before it is timed, sampling in two steps at most, so that no loading and no first-time set-up is
    counted: also where the UNet and the VAE do not both fit, and the host takes one out for the other.
    """
    sample(min(steps, 2))
    samples, sampling_time = fastest(lambda: sample(steps))
    vae.decode(samples)
    images, decoding_time = fastest(lambda: vae.decode(samples))
    return images, sampling_time + decoding_time


class InstaFlowStraightness(io.ComfyNode):
    """S(Z) of a flow and its curve over time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowStraightness",
            display_name="InstaFlow Straightness",
            category="InstaFlow/analysis",
            description="How straight the paths from noise to image are: the mean squared difference between the "
            "velocity on the way and the straight line from end to end. 0 means that one step is exact.",
            search_aliases=["straightness", "S(Z)", "rectified flow quality", "curve", "measure"],
            inputs=[
                io.Model.Input("model", tooltip="The InstaFlow or 2-rectified flow to measure."),
                io.Conditioning.Input("positive", tooltip="The prompt whose pictures the paths lead to."),
                io.Latent.Input("latent_image", tooltip="An Empty Latent Image: only its width and height are used."),
                seed_input("seed", "Which noises the paths start from. Keep it when you compare models."),
                io.Int.Input(
                    "samples", default=4, min=1, max=1024, tooltip="How many paths to average over. More is steadier."
                ),
                io.Int.Input(
                    "steps",
                    default=25,
                    min=2,
                    max=1000,
                    tooltip="Euler steps along each path. 25 shows the shape of the curve; more resolve its ends.",
                ),
                *guidance_inputs("The guidance of the paths."),
            ],
            outputs=[
                io.Float.Output(display_name="S", tooltip="The straightness, a mean over elements; 0 is straight."),
                io.Image.Output(display_name="curve", tooltip="The same over time, from noise (t = 0) to image."),
                report_output("S in words, and where on the way the paths are least straight."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        latent_image: dict[str, Any],
        seed: int = 0,
        samples: int = 4,
        steps: int = 25,
        guidance: float = 1.0,
        negative: Any | None = None,
    ) -> io.NodeOutput:
        stage = model_sampling.instaflow_sampling(model).stage
        sampling.check_latent(model, latent_image)
        conditioning = conditions(stage, guidance, positive, negative)
        noise = sampling.host_noise({"samples": torch.zeros(samples, *latent_image["samples"].shape[1:])}, seed)
        result = measure_straightness(model, conditioning, guidance, noise, steps)
        points = {"S": (result.times.tolist(), result.curve.tolist())}
        title = f"Straightness S = {result.value:.4g} (0 is straight)"
        curve = draw_curve(points, title, "t (0 is noise, 1 is the image)", "mean squared deviation", y_from=0)
        return io.NodeOutput(result.value, image_tensor([curve]), straightness_report(result, samples))


class InstaFlowCompare(io.ComfyNode):
    """One step of InstaFlow, or few, beside many of a diffusion model, with the time each takes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowCompare",
            display_name="InstaFlow Compare",
            category="InstaFlow/analysis",
            description="One step of InstaFlow, or few of a 2-rectified flow, beside many steps of a diffusion model "
            "from the same seed, with the seconds each takes from noise to picture under it. Loading and text encoding "
            "are not counted.",
            search_aliases=["compare", "benchmark", "side by side", "speed", "timing", "stable diffusion"],
            inputs=[
                io.Model.Input("model", tooltip="The InstaFlow, or the 2-rectified flow it was distilled from."),
                io.Model.Input(
                    "teacher", tooltip="The model to compare with, such as Stable Diffusion 1.5 from a stock loader."
                ),
                io.Conditioning.Input("positive", tooltip="The prompt for both. They share Stable Diffusion's CLIP."),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt wherever guidance is above 1; an empty one will do."
                ),
                io.Latent.Input("latent_image", tooltip="An Empty Latent Image: the size and number of pictures."),
                io.Vae.Input("vae", tooltip="Decodes both; decoding counts in both times."),
                seed_input("seed", "The noise both start from."),
                io.Int.Input(
                    "teacher_steps", default=25, min=1, max=1000, tooltip="Steps of the teacher; the paper takes 25."
                ),
                io.Float.Input(
                    "teacher_guidance",
                    default=5.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    tooltip="The teacher's guidance (cfg); 5.0 made the data InstaFlow learned from. Above 1 each "
                    "step costs two evaluations.",
                ),
                io.Combo.Input(
                    "teacher_sampler",
                    options=list(sampling.SAMPLERS),
                    default="dpmpp_2m",
                    tooltip="The teacher's sampler; dpmpp_2m is the second-order DPM-Solver++ of the paper.",
                ),
                io.Int.Input(
                    "steps",
                    optional=True,
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Euler steps of `model`: 1 for InstaFlow, a few for a 2-rectified flow.",
                ),
                guidance_inputs("The guidance of `model`, away from `negative`.")[0],
            ],
            outputs=[
                io.Image.Output(
                    display_name="comparison", tooltip="InstaFlow on the left, the teacher on the right, seconds below."
                ),
                io.Float.Output(display_name="speed_up", tooltip="The teacher's seconds over InstaFlow's."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        teacher: Any,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        vae: Any,
        seed: int = 0,
        teacher_steps: int = 25,
        teacher_guidance: float = 5.0,
        teacher_sampler: str = "dpmpp_2m",
        steps: int = 1,
        guidance: float = 1.0,
    ) -> io.NodeOutput:
        stage = model_sampling.instaflow_sampling(model).stage
        model_sampling.check_sd15(
            teacher, "Connect a Stable Diffusion 1.5 as `teacher`: both get the same conditioning."
        )
        sampling.check_latent(model, latent_image)
        sampling.check_sampler(teacher_sampler)
        empty = {"samples": torch.zeros_like(latent_image["samples"])}
        noise, both = sampling.host_noise(latent_image, seed), {"positive": positive, "negative": negative}
        guided = conditions(stage, guidance, positive, negative if guidance > 1 else None)

        def flow(steps: int) -> Tensor:
            sigmas = model_sampling.uniform_sigmas(steps)
            return sampling.sample_euler(model, guided, guidance, empty, noise, sigmas, seed)

        def diffusion(steps: int) -> Tensor:
            return sampling.sample_as_ksampler(teacher, both, teacher_guidance, noise, steps, teacher_sampler, seed)

        (ours, fast), (theirs, slow) = stopwatch(vae, flow, steps), stopwatch(vae, diffusion, teacher_steps)
        taken = "1 step" if steps == 1 else f"{steps} steps"
        labels = [f"InstaFlow, {taken}\n{fast:.3g} s", f"{teacher_steps} steps of {teacher_sampler}\n{slow:.3g} s"]
        pairs = zip(image_pictures(ours), image_pictures(theirs), strict=True)
        return io.NodeOutput(image_tensor([labelled_row(pair, labels) for pair in pairs]), slow / fast)
