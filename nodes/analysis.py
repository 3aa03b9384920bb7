"""The node that measures how straight a flow is."""

from functools import partial
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..instaflow_core.flow.solvers import time_grid
from ..instaflow_core.flow.straightness import Straightness, flow_trajectory, mean_straightness, straightness
from ..instaflow_core.pictures.charts import draw_curve
from ..instaflow_core.pictures.images import image_tensor
from .guidance import conditions, guidance_inputs
from .host import sampling
from .host.inputs import checked
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
            search_aliases=["instaflow", "rectified flow", "straightness", "S(Z)", "how straight", "measure", "curve"],
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
    @checked
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
        conditioning = conditions(model, positive, latent_image, guidance, negative)
        noise = sampling.host_noise({"samples": torch.zeros(samples, *latent_image["samples"].shape[1:])}, seed)
        result = measure_straightness(model, conditioning, guidance, noise, steps)
        points = {"S": (result.times.tolist(), result.curve.tolist())}
        title = f"Straightness S = {result.value:.4g} (0 is straight)"
        curve = draw_curve(points, title, "t (0 is noise, 1 is the image)", "mean squared deviation", y_from=0)
        return io.NodeOutput(result.value, image_tensor([curve]), straightness_report(result, samples))
