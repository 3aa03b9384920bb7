"""The host's progress bar of the running node, with Cancel, the time that is left and a picture beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer
from torch import Tensor
from tqdm import tqdm

from .live import asked_by

_PREVIEW_SIDE = 512
_PREVIEW_EVERY = 5
_WORDS_EVERY = 1.0  # seconds


class Progress:
    """The progress bar of `total` parts of the work, with a picture beside it where there is one.

    `at`, `add` and `moved` raise the host's own exception when Cancel was pressed.
    """

    def __init__(self, total: int, model: Any = None) -> None:
        """model: the MODEL whose latents `moved` gets; the host's setting of previews says how they are shown."""
        self.bar = comfy.utils.ProgressBar(total)
        self.total, self.done = total, 0
        self.words = TimeLeft(total)
        self.preview: Any = None
        self.previewer = model and latent_preview.get_previewer(
            model.load_device, model.get_model_object("latent_format")
        )

    def at(self, done: int, *_: Any) -> None:
        """So many parts are done."""
        self.done = done
        preview, self.preview = self.preview, None
        self.bar.update_absolute(done, self.total, preview)
        self.words.at(done)
        comfy.model_management.throw_exception_if_processing_interrupted()

    def add(self, count: int = 1) -> None:
        """So many more parts are done."""
        self.at(self.done + count)

    def moved(self, x_1: Tensor | None) -> None:
        """One more part is done, and it has come to these latents (B, 4, H, W), as the UNet takes them.

        Every few parts they are shown as the host's samplers show theirs.
        """
        if x_1 is not None and self.previewer and (self.done + 1) % _PREVIEW_EVERY == 0:
            with torch.inference_mode():  # a previewer's weights were made in it
                self.preview = self.previewer.decode_latent_to_preview_image("JPEG", x_1)
        self.add()

    def show(self, picture: Image.Image) -> None:
        """Send this picture with the next step."""
        self.preview = ("JPEG", picture, _PREVIEW_SIDE)


class TimeLeft:
    """The host's progress text under the running node: how many parts are done, and the time the others take.

    Nothing is said of work that is over within a second, or where no page asked for it.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._first: tuple[int, float] | None = None  # parts of an earlier run, and the first, which sets things up
        self._said = 0.0
        self._say = said_on_the_running_node()

    def at(self, done: int) -> None:
        """So many parts are done."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._said = (done, now), now
        before, began = self._first
        over = done >= self.total and self._said > began  # the last word is how long it took
        if over or (done > before and now - self._said >= _WORDS_EVERY):
            self._said = now
            form = "{n_fmt} of {total_fmt}, " + ("{elapsed}" if over else "{remaining} left")
            self._say(tqdm.format_meter(done, self.total, now - began, initial=before, bar_format=form))


def said_on_the_running_node() -> Callable[[str], None]:
    """What writes a text on the node that is running now, also later, while another runs; on the page that asked."""
    running = get_executing_context()

    def say(text: str) -> None:
        client = asked_by()
        if client is not None and running is not None:
            PromptServer.instance.send_progress_text(text, running.node_id, client)

    return say
