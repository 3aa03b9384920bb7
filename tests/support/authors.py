"""What the authors of each few-step model compute, as their own code has it, and not as this pack does.

`ONE[name](ask, noise)` is the one-step picture of the row `name` of `instaflow_core.rules` (that of its fewest steps,
where one is too few); ask(x, t) is the network's output at the state x (B, C, H, W) and timestep t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Ask = Callable[[Tensor, float], Tensor]


def signals(start: float = 0.00085, end: float = 0.012, roots: bool = True) -> Tensor:
    """alpha bar of Stable Diffusion's 1000 timesteps: prod (1 - beta), the roots of beta (or beta itself) evenly
    spaced."""
    betas = torch.linspace(start**0.5, end**0.5, 1000).square() if roots else torch.linspace(start, end, 1000)
    return torch.cumprod(1 - betas, 0)


def flow(ask: Ask, noise: Tensor) -> Tensor:
    """InstaFlow, code of RectifiedFlowPipeline: one Euler step of size 1 at t = 1000."""
    return noise + ask(noise, 1000.0)


def other_sign(ask: Ask, noise: Tensor) -> Tensor:
    """A flow that predicts noise minus data, such as diffusers' FlowMatchEuler: x - v."""
    return noise - ask(noise, 1000.0)


def dmd2(ask: Ask, noise: Tensor) -> Tensor:
    """DMD2, main/test_folder_sd.py, get_x0_from_noise: alpha bar is the constant 0.0047, t = 999."""
    signal = 0.0047
    return (noise - (1 - signal) ** 0.5 * ask(noise, 999)) / signal**0.5


def sid_lsg(ask: Ask, noise: Tensor) -> Tensor:
    """SiD-LSG, training/sid_sd_util.py, sid_sd_sampler: add_noise(0, z, 625), then pred_original_sample."""
    signal = signals()[625]
    x = signal.sqrt() * torch.zeros_like(noise) + (1 - signal).sqrt() * noise
    return (x - (1 - signal).sqrt() * ask(x, 625)) / signal.sqrt()


def _ddim(ask: Ask, noise: Tensor, signal: Tensor, steps: int = 1) -> Tensor:
    """DDIM at 999, 999 - 1000 / n, …, ending at the signal of timestep 0 (set_alpha_to_one=False)."""
    x = noise
    for i in range(steps):
        t = 999 - i * 1000 // steps
        after = t - 1000 // steps
        eps = ask(x, t)
        data = (x - (1 - signal[t]).sqrt() * eps) / signal[t].sqrt()
        ends = signal[after] if after >= 0 else signal[0]
        x = ends.sqrt() * data + (1 - ends).sqrt() * eps
    return x


def rectified_diffusion(ask: Ask, noise: Tensor) -> Tensor:
    """Rectified Diffusion, generate_5k.py, load_pipeline: DDIM, trailing, on linear betas."""
    return _ddim(ask, noise, signals(roots=False))


def rectified_diffusion_phased(ask: Ask, noise: Tensor) -> Tensor:
    """The same, load_pipeline_phased: on Stable Diffusion's betas."""
    return _ddim(ask, noise, signals())


def lcm(ask: Ask, noise: Tensor) -> Tensor:
    """LCM: c_out x_0 + c_skip x with sigma_data 0.5 and timesteps times 10 (arXiv 2310.04378, section 4)."""
    t, signal = 999, signals()[999]
    data = (noise - (1 - signal).sqrt() * ask(noise, t)) / signal.sqrt()
    skip = 0.5**2 / ((10 * t) ** 2 + 0.5**2)
    out = 10 * t / ((10 * t) ** 2 + 0.5**2) ** 0.5
    return out * data + skip * noise


def tcd(ask: Ask, noise: Tensor) -> Tensor:
    """TCD in one step goes from 999 to s = 0: sqrt(a_s) x_0 + sqrt(1 - a_s) eps (arXiv 2402.19159, algorithm 2).
    Hyper-SD's one-step LoRA is sampled by the same, with eta 1."""
    signal = signals()
    eps = ask(noise, 999)
    data = (noise - (1 - signal[999]).sqrt() * eps) / signal[999].sqrt()
    return signal[0].sqrt() * data + (1 - signal[0]).sqrt() * eps


def perflow(ask: Ask, noise: Tensor) -> Tensor:
    """PeRFlow, scheduler_perflow.py with diff_eps: in each of four windows from t_s to t_e, one step to
    x_e = sqrt(a_e / a_s) x - sqrt(a_e / a_s) sqrt(1 - a_s / a_e) eps."""
    signal, x = signals(), noise
    for window in (4, 3, 2, 1):
        start = signal[250 * window - 1]
        end = signal[max(0, 250 * (window - 1) - 1)]
        ratio = (end / start).sqrt()
        x = ratio * x - ratio * (1 - start / end).sqrt() * ask(x, 250.0 * window)
    return x


ONE: dict[str, Callable[[Ask, Tensor], Tensor]] = {
    "instaflow": flow,
    "2-rectified flow": flow,
    "noise-minus-data": other_sign,
    "dmd2": dmd2,
    "sid-lsg": sid_lsg,
    "rectified-diffusion": rectified_diffusion,
    "rectified-diffusion-phased": rectified_diffusion_phased,
    "lcm": lcm,
    "hyper-sd": tcd,
    "tcd": tcd,
    "perflow": perflow,
}

STABLE_DIFFUSION: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def scheduler_of(name: str) -> tuple[Any, dict[str, Any]]:
    """diffusers' scheduler of a row, as its authors configure it, and what its step takes beside."""
    from diffusers import DDIMScheduler, LCMScheduler, TCDScheduler

    trailing = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": False}
    linear = STABLE_DIFFUSION | {"beta_schedule": "linear"}
    return {
        "rectified-diffusion": lambda: (DDIMScheduler(**linear, **trailing), {}),
        "rectified-diffusion-phased": lambda: (DDIMScheduler(**STABLE_DIFFUSION, **trailing), {}),
        "hyper-sd": lambda: (DDIMScheduler(**STABLE_DIFFUSION, **trailing), {}),
        "lcm": lambda: (LCMScheduler(**STABLE_DIFFUSION), {}),
        "tcd": lambda: (TCDScheduler(**STABLE_DIFFUSION), {"eta": 0.0}),
        "tcd of gamma 1": lambda: (TCDScheduler(**STABLE_DIFFUSION), {"eta": 1.0}),
    }[name]()


def scheduled(name: str, ask: Ask, noise: Tensor, steps: int, generator: torch.Generator | None = None) -> Tensor:
    """The picture of diffusers' scheduler of a row; the noise that steps add is drawn from the generator."""
    scheduler, options = scheduler_of(name)
    scheduler.set_timesteps(steps)
    if "eta" in options or name == "lcm":
        options = options | {"generator": generator}
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(ask(x, t.item()), t, x, return_dict=False, **options)[0]
    return x


def relative_distance(x: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest value: no one-step picture of random weights is of size 1."""
    return float((x - expected).abs().max() / expected.abs().max())
