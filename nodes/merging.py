"""Nodes that add up the weights of several models."""

from typing import Any

from comfy_api.latest import io

from .host import saving
from .host.inputs import checked
from .host.schema import schema


class InstaFlowMergeDelta(io.ComfyNode):
    """A finetune's difference from its base, added to an InstaFlow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowMergeDelta",
            display_name="InstaFlow Merge Delta",
            category="InstaFlow/model",
            description="Gives an InstaFlow what a finetune of Stable Diffusion 1.5 has learned: model + strength x "
            "(finetuned - base), UNet only. Use the finetune's own CLIP and VAE with the result, as the InstaFlow "
            "authors do.",
            search_aliases=[
                "instaflow",
                "merge",
                "model merge",
                "dreamshaper",
                "finetune",
                "add difference",
                "delta weights",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The InstaFlow that gets the difference; its sampling stays as it is."),
                io.Model.Input("finetuned", tooltip="A finetune of the base, such as DreamShaper."),
                io.Model.Input(
                    "base", tooltip="What both were made from: Stable Diffusion 1.5 for the released InstaFlow."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How much of the difference to add: 0 leaves the model as it is, 1 adds all of it.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL",
                    tooltip="The InstaFlow with the difference as weight patches. The inputs are not changed.",
                )
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, finetuned: Any, base: Any, strength: float) -> io.NodeOutput:
        return io.NodeOutput(saving.merge_delta(model, finetuned, base, strength))
