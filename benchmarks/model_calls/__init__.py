"""A pack for the benchmarks' own server: how long its models themselves take.

GET /benchmark/model_calls answers with the seconds spent in text encoders, UNets and decoders since the last GET, and
with how many pictures were decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from aiohttp import web
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.sd1_clip import SDClipModel
from comfy.taesd.taesd import TAESD
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, Any] = {}
spent = {"seconds": 0.0, "pictures": 0}


def time_calls(owner: type, name: str, pictures: bool = False) -> None:
    """Add up what calls of this method take."""
    plain: Callable[..., Any] = getattr(owner, name)

    @wraps(plain)
    def timed(*args: Any, **kwargs: Any) -> Any:
        finish()
        began = time.perf_counter()
        result = plain(*args, **kwargs)
        finish()
        spent["seconds"] += time.perf_counter() - began
        if pictures:
            spent["pictures"] += len(result)
        return result

    setattr(owner, name, timed)


def finish() -> None:
    """Wait for the device: on a GPU, calls return before they are done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


time_calls(SDClipModel, "forward")
time_calls(UNetModel, "forward")
time_calls(TAESD, "decode", pictures=True)
time_calls(AutoencoderKL, "decode", pictures=True)


@PromptServer.instance.routes.get("/benchmark/model_calls")
async def model_calls(_: web.Request) -> web.Response:
    answer = dict(spent)
    spent.update(seconds=0.0, pictures=0)
    return web.json_response(answer)
