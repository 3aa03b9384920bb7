"""The host's progress bar of the running node, with Cancel."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image

_PREVIEW_SIDE = 512


class Progress:
    """The progress bar of `total` parts of the work, with a picture beside it where there is one.

    `at` and `add` raise the host's own exception when Cancel was pressed.
    """

    def __init__(self, total: int) -> None:
        self.bar = comfy.utils.ProgressBar(total)
        self.total, self.done = total, 0
        self.picture: Image.Image | None = None

    def at(self, done: int, *_: Any) -> None:
        """So many parts are done."""
        self.done = done
        preview = ("JPEG", self.picture, _PREVIEW_SIDE) if self.picture else None
        self.picture = None
        self.bar.update_absolute(done, self.total, preview)
        comfy.model_management.throw_exception_if_processing_interrupted()

    def add(self, count: int = 1) -> None:
        """So many more parts are done."""
        self.at(self.done + count)

    def show(self, picture: Image.Image) -> None:
        """Send this picture with the next step."""
        self.picture = picture
