"""The host's progress bar of the running node, with Cancel and a picture beside it."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from PIL import Image
from torch import Tensor

_PREVIEW_SIDE = 512
_PREVIEW_EVERY = 5


class Progress:
    """The progress bar of `total` parts of the work, with a picture beside it where there is one.

    `at`, `add` and `moved` raise the host's own exception when Cancel was pressed.
    """

    def __init__(self, total: int, model: Any = None) -> None:
        """model: the MODEL whose latents `moved` gets; the host's setting of previews says how they are shown."""
        self.bar = comfy.utils.ProgressBar(total)
        self.total, self.done = total, 0
        self.preview: Any = None
        self.previewer = model and latent_preview.get_previewer(
            model.load_device, model.get_model_object("latent_format")
        )

    def at(self, done: int, *_: Any) -> None:
        """So many parts are done."""
        self.done = done
        preview, self.preview = self.preview, None
        self.bar.update_absolute(done, self.total, preview)
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
