"""Pictures over the host's websocket, to the page that asked for them."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

from comfy_execution.utils import get_executing_context
from PIL import Image
from protocol import BinaryEventTypes
from server import PromptServer

EVENT = "instaflow.live"
_JPEG = struct.pack(">I", 1)  # how the host marks a PREVIEW_IMAGE that is one
_QUALITY = 90
_LARGEST = 2048  # pixels; a larger picture only costs time on the way to a node


def asked_by() -> str | None:
    """The client whose prompt is running, if it has an open websocket; the host itself would send to all for None."""
    host = getattr(PromptServer, "instance", None)  # none where nodes are run without a server
    return host.client_id if host and host.client_id in host.sockets else None


def send_frames(pictures: Sequence[Image.Image], client: str) -> None:
    """Send each picture (RGB) as a JPEG frame to `client`.

    A frame is two messages: EVENT, JSON with `node`, `prompt_id`, `index`, `count` and the picture's `width` and
    `height`, then the host's own binary PREVIEW_IMAGE. The host sends a thread's messages in order.
    """
    running = get_executing_context()
    for index, picture in enumerate(pictures):
        width, height = picture.size
        about = {"node": running.node_id, "prompt_id": running.prompt_id, "index": index, "count": len(pictures)}
        PromptServer.instance.send_sync(EVENT, {**about, "width": width, "height": height}, client)
        PromptServer.instance.send_sync(BinaryEventTypes.PREVIEW_IMAGE, _JPEG + encoded(picture), client)


def encoded(picture: Image.Image) -> bytes:
    """A picture (RGB) as JPEG with full colour resolution, its longer side at most 2048 pixels."""
    if max(picture.size) > _LARGEST:
        picture = picture.copy()
        picture.thumbnail((_LARGEST, _LARGEST))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()
