"""PeRFlow, the few-step flow in windows of time by the same authors."""

from typing import Any

from comfy_api.latest import io

from ..instaflow_core.flow.perflow import PREDICTIONS
from .host import perflow
from .host.inputs import checked
from .host.schema import schema


class InstaFlowPeRFlow(io.ComfyNode):
    """A Stable Diffusion 1.5 with PeRFlow's weights, sampled as a piecewise rectified flow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowPeRFlow",
            display_name="InstaFlow PeRFlow",
            category="InstaFlow/model",
            description="Samples a Stable Diffusion 1.5 that has PeRFlow's weights as what it is: a flow that is "
            "straight in each of a few windows of time. Add PeRFlow's delta weights to a base or a finetune with "
            "ModelMergeAdd first; give both outputs to SamplerCustom with the euler sampler.",
            search_aliases=[
                "instaflow",
                "perflow",
                "piecewise rectified flow",
                "few step",
                "turbo",
                "lcm",
                "model sampling",
                "delta weights",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Base + delta, for example from ModelMergeAdd."),
                io.Int.Input(
                    "steps", default=4, min=1, max=1000, tooltip="Shared out to the windows; one or more for each."
                ),
                io.Int.Input(
                    "windows", default=4, min=1, max=100, tooltip="Windows of time the model was trained with: 4."
                ),
                io.Combo.Input(
                    "prediction",
                    options=list(PREDICTIONS),
                    default=PREDICTIONS[0],
                    tooltip="What the UNet predicts, as its model card says: diff_eps for the released SD 1.5 weights.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The same weights, sampled as a PeRFlow."),
                io.Sigmas.Output(display_name="SIGMAS", tooltip="The steps, for SamplerCustom with euler."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, steps: int, windows: int, prediction: str) -> io.NodeOutput:
        return io.NodeOutput(*perflow.as_perflow(model, steps, windows, prediction))
