"""A diffusion model that was trained for few steps, sampled as its row says (`rules.Diffusion`).

Its states are counted as hosts count them: x = c (x_0 + sigma eps) at the level c (sigma - sigma_end), where sigma is
sqrt((1 - a) / a). In these coordinates every step of an ODE solver is a straight line in eps that ends at level 0. For
most rows c is 1 and sigma_end is 0; where a picture is the state at timestep 0, they are sqrt(a_0) and that timestep's
sigma, and x at level 0 is that state. The UNet is given sqrt(a) / c x, the state as it was trained on it.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..rules import Diffusion
from .convention import over

_TIMESTEPS = 1000
_BETA_START, _BETA_END = 0.00085, 0.012
_BOUNDARY_DATA, _BOUNDARY_SCALE = 0.5, 10.0
"""sigma_data and the scaling of timesteps in a latent consistency model's c_skip and c_out."""

Predict = Callable[[Tensor, int], Tensor]
"""predict(state, timestep): the noise in a state (B, C, H, W), as the UNet takes it, at a timestep 0..999."""


def signals(betas: str) -> Tensor:
    """alpha bar of each timestep, (1000,) float64, on betas from 0.00085 to 0.012 ("linear", or "scaled_linear": of
    their roots)."""
    if betas == "linear":
        steps = torch.linspace(_BETA_START, _BETA_END, _TIMESTEPS, dtype=torch.float64)
    else:
        steps = torch.linspace(_BETA_START**0.5, _BETA_END**0.5, _TIMESTEPS, dtype=torch.float64).square()
    return (1 - steps).cumprod(0)


class FewStep:
    """The equations of a row. Levels are numbers or (B,) tensors, states (B, C, H, W)."""

    def __init__(self, row: Diffusion) -> None:
        self.row = row
        signal = signals(row.betas)
        if row.signal is not None:
            signal[row.start] = row.signal
        self._sigmas = ((1 - signal) / signal).sqrt()
        self.end_signal, self.end_sigma = 1.0, 0.0
        if row.to_first_timestep:
            self.end_signal, self.end_sigma = signal[0].item(), self._sigmas[0].item()

    @cached_property
    def timesteps(self) -> Tensor:
        """Those a solver may ask at, rising to the row's start: int64."""
        return torch.arange(self.row.start % self.row.stride, self.row.start + 1, self.row.stride)

    @cached_property
    def levels(self) -> Tensor:
        """The level of each of `timesteps`, rising, float64."""
        return self.end_signal**0.5 * (self._sigmas[self.timesteps] - self.end_sigma)

    def trailing(self, steps: int) -> list[int]:
        """Places in `timesteps` of so many steps, from the last, evenly: "trailing" in diffusers, "simple" in hosts.

        Raises:
            ValueError: there are fewer timesteps, or no steps.
        """
        count = len(self.timesteps)
        if not 1 <= steps <= count:
            raise ValueError(f"{steps} steps were asked for. Give 1 to {count}, the timesteps there are to ask at.")
        return [count - 1 - i * count // steps for i in range(steps)]

    def sigma(self, level: float | Tensor) -> float | Tensor:
        """sqrt((1 - a) / a) at a level."""
        return level / self.end_signal**0.5 + self.end_sigma

    def start(self, noise: Tensor) -> Tensor:
        """The state of nothing but N(0, 1) noise, as the row starts."""
        sigma = self._sigmas[self.row.start].item()
        scale = (1 + sigma**2) ** 0.5 if self.row.whole_noise else sigma
        return self.end_signal**0.5 * scale * noise

    def noised(self, data: Tensor, noise: Tensor, level: float | Tensor) -> Tensor:
        """What ends at level 0, with N(0, 1) noise added up to this level."""
        sigma = self.sigma(over(level, data))
        return data + (self.end_signal * (sigma**2 - self.end_sigma**2)) ** 0.5 * noise

    def unet_state(self, x: Tensor, level: float | Tensor) -> Tensor:
        """What the UNet is given for the state x."""
        sigma = self.sigma(over(level, x))
        return x / (self.end_signal * (1 + sigma**2)) ** 0.5

    def denoised(self, x: Tensor, noise: Tensor, level: float | Tensor, timestep: float | Tensor) -> Tensor:
        """Where the state x goes in one step to level 0.

        Args:
            noise: what the UNet made of `unet_state(x, level)` at that timestep.
        """
        data = x - over(level, x) * noise
        if not self.row.boundary:
            return data
        scaled = _BOUNDARY_SCALE * over(timestep, x)
        skip = _BOUNDARY_DATA**2 / (scaled**2 + _BOUNDARY_DATA**2)
        out = scaled / (scaled**2 + _BOUNDARY_DATA**2) ** 0.5
        return out * data + skip * self.unet_state(x, level)


@torch.no_grad()
def few_step_solver(
    predict: Predict, noise: Tensor, steps: int, row: Diffusion, callback: Callable[[int, Tensor], None] | None = None
) -> Tensor:
    """Latents from N(0, 1) noise (B, C, H, W), as the row's authors make them.

    New noise is drawn for each latent from a generator that its first noise seeds: the same noise gives the same
    latents, in whatever batch.

    Args:
        callback: called after step i with (i, latents); may raise to cancel.

    Raises:
        ValueError: more steps than the row has timesteps, or none.
    """
    rule = FewStep(row)
    places = rule.trailing(steps)
    levels = [rule.levels[place].item() for place in places] + [0.0]
    generators = [_seeded_by(latent) for latent in noise] if row.renoised and steps > 1 else []
    x = rule.start(noise)
    for i, place in enumerate(places):
        level, after, timestep = levels[i], levels[i + 1], int(rule.timesteps[place])
        data = rule.denoised(x, predict(rule.unet_state(x, level), timestep), level, timestep)
        if after == 0:
            x = data
        elif row.renoised:
            x = rule.noised(data, _draw(generators, x), after)
        else:
            x = data + after / level * (x - data)
        if callback:
            callback(i, x)
    return x


def _seeded_by(latent: Tensor) -> torch.Generator:
    digest = hashlib.sha256(latent.detach().cpu().float().contiguous().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def _draw(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    drawn = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(drawn).to(like)
