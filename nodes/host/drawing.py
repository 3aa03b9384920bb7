"""MODEL, CLIP and VAE as a model that draws, for what measures models: the host runs all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...instaflow_core.evaluation.drawing import PATH_STEPS, each_straightness
from ...instaflow_core.flow.diffusion import dpm_solver
from ...instaflow_core.flow.solvers import euler, time_grid
from ...instaflow_core.flow.straightness import diffusion_trajectory, flow_trajectory
from ...instaflow_core.pictures.images import image_pictures
from ...instaflow_core.weights.checkpoint import Checkpoint
from . import fitting, rows, sampling, saving
from .memory import advising
from .velocity import with_noise_prediction, with_velocity

_SMALLER = "A picture at a time is too much: make width and height smaller."


class HostDrawing:
    """What `evaluation.drawing.Drawer` asks for, of the host's objects with all their patches.

    Attributes:
        checkpoint: what the MODEL says of itself, without weights.
        identity: nothing: the host's objects have no names, so what they draw is kept for no other run.

    Raises:
        ValueError: the MODEL is neither an InstaFlow nor a Stable Diffusion 1.5, or CLIP or VAE do not fit it.
    """

    def __init__(self, model: Any, clip: Any, vae: Any, name: str = "model") -> None:
        """name: of the MODEL's input."""
        self.model, self.clip, self.vae = model, clip, vae
        self.checkpoint: Checkpoint = saving.described(model, name)
        self.identity: dict[str, Any] = {}
        fitting.check_vae(vae, model)
        fitting.check_prompt("clip", self._encoded(""), model, name)

    def pictures(self, texts: Sequence[str], noise: Tensor, steps: int, guidance: float) -> list[Image.Image]:
        """As `Drawer` says, one after the other."""
        drawn = []
        for text, x_0 in zip(texts, noise.split(1), strict=True):
            drawn += image_pictures(self.vae.decode(self._latents(text, x_0, steps, guidance)))
        return drawn

    def straightness(self, texts: Sequence[str], noise: Tensor, guidance: float) -> Tensor:
        """As `Drawer` says, one after the other."""
        found = []
        for text, x_0 in zip(texts, noise.split(1), strict=True):
            if self.checkpoint.is_flow:
                times = time_grid(PATH_STEPS)
                path = self._followed(text, guidance, x_0, lambda v, x, times=times: flow_trajectory(v, x, times))
            else:
                path, times = self._followed(
                    text, guidance, x_0, lambda predict, x: diffusion_trajectory(predict, x, PATH_STEPS)
                )
            found.append(each_straightness(path, times))
        return torch.cat(found)

    def _encoded(self, text: str) -> Any:
        """As CLIP Text Encode does."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def _conditioning(self, text: str) -> dict[str, Any]:
        return {"positive": self._encoded(text), "negative": self._encoded("")}

    def _latents(self, text: str, noise: Tensor, steps: int, guidance: float) -> Tensor:
        """A LATENT's samples."""
        if rows.few_step_sampling(self.model):
            empty = {"samples": torch.zeros_like(noise)}
            with advising(_SMALLER):
                return rows.sample_by_row(
                    self.model, self._conditioning(text), guidance, empty, noise, steps, 1.0, seed=0
                )
        if self.checkpoint.is_flow:
            x_1 = self._followed(text, guidance, noise, lambda v, x: euler(v, x, time_grid(steps)))
        else:
            x_1 = self._followed(text, guidance, noise, lambda predict, x: dpm_solver(predict, x, steps))
        sampling.check_result(x_1)
        return sampling.out_of_flow(self.model, x_1)

    def _followed(self, text: str, guidance: float, noise: Tensor, work: Callable[..., Any]) -> Any:
        """work(the MODEL's velocity or noise prediction, noise), guided away from the empty prompt."""
        run = with_velocity if self.checkpoint.is_flow else with_noise_prediction
        return run(self.model, self._conditioning(text), guidance, noise, work, advice=_SMALLER)
