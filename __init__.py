"""InstaFlow for ComfyUI: the entry point the host calls.

The host is imported only when it calls `comfy_entrypoint`, so that this folder can also be imported (and collected
by pytest) where there is no ComfyUI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """Return the extension whose `get_node_list` names every node of the pack."""
    from .nodes import InstaFlowExtension

    return InstaFlowExtension()
