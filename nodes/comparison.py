"""The node that compares models in time and looks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..instaflow_core.pictures.images import image_pictures, image_tensor
from ..instaflow_core.pictures.labels import labelled_row
from .guidance import conditions, guidance_inputs
from .host import fitting, memory, model_sampling, sampling
from .host.inputs import checked
from .host.schema import advanced, schema, seed_input

MORE_MODELS = [f"model_{number}" for number in range(3, 7)]
_MORE = (
    "One more model from the same noise. A one-step InstaFlow takes one step, another flow `more_steps`, a diffusion "
    "model the teacher's steps, guidance and sampler."
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


@dataclass(frozen=True, kw_only=True)
class ComparisonInputs:
    """The node's inputs, by their names in the schema."""

    model: Any
    teacher: Any
    positive: Any
    negative: Any
    latent_image: dict[str, Any]
    vae: Any
    seed: int = 0
    teacher_steps: int = 25
    teacher_guidance: float = 5.0
    teacher_sampler: str = "dpmpp_2m"
    steps: int = 1
    guidance: float = 1.0
    model_3: Any = None
    model_4: Any = None
    model_5: Any = None
    model_6: Any = None
    more_steps: int = 4
    more_guidance: float = 1.5


@dataclass(frozen=True)
class Run:
    """One model's sampling: what stands under its pictures, latents of a number of steps, and that number."""

    label: str
    sample: Callable[[int], Tensor]
    steps: int


class Start:
    """The noise and the prompts that all models start from."""

    def __init__(self, taken: ComparisonInputs) -> None:
        self.taken, self.noise = taken, sampling.host_noise(taken.latent_image, taken.seed)
        self.both = {"positive": taken.positive, "negative": taken.negative}

    def flow(self, of: str, model: Any, conditioning: dict[str, Any], guidance: float, steps: int) -> Run:
        """Euler's steps of a flow."""
        empty = {"samples": torch.zeros_like(self.taken.latent_image["samples"])}

        def sample(number: int) -> Tensor:
            sigmas = model_sampling.uniform_sigmas(number)
            return sampling.sample(model, conditioning, guidance, empty, self.noise, sigmas, self.taken.seed)

        return Run(f"{of}1 step" if steps == 1 else f"{of}{steps} steps", sample, steps)

    def diffusion(self, of: str, model: Any) -> Run:
        """Steps of the host's sampler."""
        taken = self.taken

        def sample(number: int) -> Tensor:
            return sampling.sample_as_ksampler(
                model, self.both, taken.teacher_guidance, self.noise, number, taken.teacher_sampler, taken.seed
            )

        return Run(f"{of}{taken.teacher_steps} steps of {taken.teacher_sampler}", sample, taken.teacher_steps)


class InstaFlowCompare(io.ComfyNode):
    """One step of InstaFlow, or few, beside many of a diffusion model and up to four more models, with the time each
    takes."""

    Inputs = ComparisonInputs

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowCompare",
            display_name="InstaFlow Compare",
            category="InstaFlow/analysis",
            description="One step of InstaFlow, or few of a 2-rectified flow, beside many steps of a diffusion model "
            "from the same seed, with the seconds each takes from noise to picture under it; up to four more models "
            "beside them. Loading and text encoding are not counted.",
            search_aliases=[
                "instaflow",
                "compare",
                "comparison",
                "benchmark",
                "side by side",
                "speed",
                "timing",
                "stable diffusion",
                "A/B",
            ],
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
                *(io.Model.Input(name, optional=True, tooltip=_MORE) for name in MORE_MODELS),
                advanced(
                    io.Int.Input(
                        "more_steps",
                        optional=True,
                        default=4,
                        min=1,
                        max=1000,
                        tooltip="Euler steps of the flows among `model_3` to `model_6` that are not one-step.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "more_guidance",
                        optional=True,
                        default=1.5,
                        min=0.0,
                        max=30.0,
                        step=0.1,
                        round=0.01,
                        tooltip="The guidance of these flows. Acts above 1 only.",
                    )
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="comparison",
                    tooltip="InstaFlow on the left, the teacher and more models on the right, seconds below.",
                ),
                io.Float.Output(display_name="speed_up", tooltip="The teacher's seconds over InstaFlow's."),
                *(
                    io.Image.Output(display_name=name, tooltip=f"{whose} pictures alone, for Compare Images' slider.")
                    for name, whose in (("pictures", "InstaFlow's"), ("teacher_pictures", "The teacher's"))
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        taken = cls.Inputs(**inputs)
        runs = _runs(taken)
        with memory.advising(memory.FEWER_PICTURES):
            made = [stopwatch(taken.vae, run.sample, run.steps) for run in runs]
        labels = [f"{run.label}\n{seconds:.3g} s" for run, (_, seconds) in zip(runs, made, strict=True)]
        rows = zip(*(image_pictures(images) for images, _ in made), strict=True)
        pictures = image_tensor([labelled_row(row, labels) for row in rows])
        return io.NodeOutput(pictures, made[1][1] / made[0][1], made[0][0], made[1][0])


def _runs(taken: ComparisonInputs) -> list[Run]:
    """What is compared: `model`, `teacher`, and what more there is.

    Raises:
        ValueError: inputs do not fit each other.
    """
    negative = taken.negative if taken.guidance > 1 else None
    guided = conditions(taken.model, taken.positive, taken.latent_image, taken.guidance, negative)
    more = {name: getattr(taken, name) for name in MORE_MODELS if getattr(taken, name) is not None}
    for name, other in {"teacher": taken.teacher, **more}.items():
        _check_other(name, other, taken)
    fitting.check_vae(taken.vae, taken.model)
    start = Start(taken)
    runs = [
        start.flow("InstaFlow, ", taken.model, guided, taken.guidance, taken.steps),
        start.diffusion("", taken.teacher),
    ]
    for name, other in more.items():
        kind = other.get_model_object("model_sampling")
        if not isinstance(kind, model_sampling.InstaFlowSampling):
            runs.append(start.diffusion(f"{name}, ", other))
        elif kind.stage == "one-step":
            runs.append(start.flow(f"{name}, ", other, start.both, 1.0, 1))
        else:
            runs.append(start.flow(f"{name}, ", other, start.both, taken.more_guidance, taken.more_steps))
    return runs


def _check_other(name: str, model: Any, taken: ComparisonInputs) -> None:
    """Raise ValueError unless the MODEL of this input takes the prompts that `model` takes."""
    advice = f"Connect a Stable Diffusion 1.5 as `{name}`: all get the same conditioning."
    model_sampling.check_sd15(model, advice, name)
    for said, prompt in (("positive", taken.positive), ("negative", taken.negative)):
        fitting.check_prompt(said, prompt, model, name)
