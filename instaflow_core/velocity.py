"""A diffusers UNet and text states as a velocity field, with guidance on velocities."""

from typing import Any

import torch
from torch import Tensor

from .flow import unet_time


class GuidedVelocity:
    """velocity(x, t) of a rectified flow whose UNet predicts data minus noise (section 3 of the paper).

    Guidance is v_neg + g (v_text - v_neg), and only when g > 1: the UNet is then asked for both in one batch.

    Args:
        unet: a diffusers UNet2DConditionModel.
        text_states: (B, 77, width) states of the prompts, or (1, 77, width) for one prompt over a batch.
        negative_states: the same for the negative prompts; needed when guidance > 1.
        guidance: 1.0 is no guidance. InstaFlow-0.9B wants at most 1.0, 2-Rectified Flow 1.0 to 2.0.

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

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """The velocity at x (B, C, H, W), t in [0, 1]; the shape and dtype of x."""
        text = self.text_states.expand(len(x), -1, -1)
        if self.guidance <= 1:
            return self._ask(x, t, text)
        assert self.negative_states is not None
        negative = self.negative_states.expand(len(x), -1, -1)
        v_negative, v_text = self._ask(torch.cat([x, x]), t, torch.cat([negative, text])).chunk(2)
        return v_negative + self.guidance * (v_text - v_negative)

    def _ask(self, x: Tensor, t: float, text: Tensor) -> Tensor:
        timestep = torch.full((len(x),), float(unet_time(t)), device=x.device)
        return self.unet(x, timestep, encoder_hidden_states=text, return_dict=False)[0]
