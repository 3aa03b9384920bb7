"""A diffusers UNet asked for a text and guided away from another, as a velocity field or as a noise prediction."""

from typing import Any

import torch
from torch import Tensor

from .convention import unet_time


class GuidedUNet:
    """What a UNet predicts for a text, with guidance: p_neg + g (p_text - p_neg), and only when g > 1.

    The prediction is a rectified flow's velocity (section 3 of the paper) or a diffusion model's noise. With guidance
    the UNet is asked for both texts in one batch.

    Args:
        unet: a diffusers UNet2DConditionModel.
        text_states: (B, 77, width) states of the prompts, or (1, 77, width) for one prompt over a batch.
        negative_states: the same for the negative prompts; needed when guidance > 1.
        guidance: 1.0 is no guidance. InstaFlow-0.9B wants at most 1.0, 2-Rectified Flow 1.0 to 2.0, the teacher of the
            paper 5.0.

    Raises:
        ValueError: guidance is above 1 and there are no negative states.
    """

    def __init__(self, unet: Any, text_states: Tensor, negative_states: Tensor | None = None, guidance: float = 1.0):
        if guidance > 1 and negative_states is None:
            raise ValueError(
                f"Guidance is {guidance}, which needs negative text states, and there are none. "
                "Give the states of a negative prompt (the empty prompt will do), or set guidance to 1.0."
            )
        self.unet, self.guidance = unet, guidance
        self.text_states, self.negative_states = text_states, negative_states

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """The velocity at x (B, C, H, W), t in [0, 1]; the shape and dtype of x."""
        return self(x, unet_time(t))

    def __call__(self, x: Tensor, timestep: float | Tensor) -> Tensor:
        """The prediction at x (B, C, H, W) and a timestep of the UNet, 0 to 1000; the shape and dtype of x."""
        text = self.text_states.expand(len(x), -1, -1)
        if self.guidance <= 1:
            return self._ask(x, timestep, text)
        assert self.negative_states is not None
        negative = self.negative_states.expand(len(x), -1, -1)
        p_negative, p_text = self._ask(torch.cat([x, x]), timestep, torch.cat([negative, text])).chunk(2)
        return p_negative + self.guidance * (p_text - p_negative)

    def _ask(self, x: Tensor, timestep: float | Tensor, text: Tensor) -> Tensor:
        timesteps = torch.full((len(x),), float(timestep), device=x.device)
        return self.unet(x, timesteps, encoder_hidden_states=text, return_dict=False)[0]
