"""The live node: pictures straight to the page."""

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..instaflow_core.pictures.images import image_pictures
from .host import live
from .host.inputs import checked
from .host.schema import schema


class InstaFlowLivePreview(io.ComfyNode):
    """Sends pictures to the page that asked, and to no disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowLivePreview",
            display_name="InstaFlow Live Preview",
            category="InstaFlow/live",
            description="Draws while you type: with Live on, every change of the graph that leads here gives a new "
            "picture at once. Pictures go straight to this page and to no disk, until you save one.",
            search_aliases=["instaflow", "live", "real time", "preview image", "websocket", "auto queue", "on change"],
            inputs=[
                io.Image.Input(
                    "images", tooltip="The pictures to show, from VAE Decode or any other node; all of a batch."
                )
            ],
            outputs=[],
            is_output_node=True,
            is_input_list=True,
        )

    @classmethod
    def fingerprint_inputs(cls, images: Any) -> float:
        """Never the same: a page that asks again, or another one, is to get its frames."""
        return float("nan")

    @classmethod
    @checked
    def execute(cls, images: list[Tensor]) -> io.NodeOutput:
        client = live.asked_by()
        if client is not None:
            live.send_frames([picture for batch in images for picture in image_pictures(batch[..., :3])], client)
        return io.NodeOutput()
