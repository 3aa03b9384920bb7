"""PeRFlow's windows next to its published scheduler's equations, written out here a number at a time."""

import math

import pytest
import torch
from no_float64 import on_device

from instaflow_core.flow.diffusion import noise_schedule
from instaflow_core.flow.perflow import PREDICTIONS, window_levels, window_velocity

ALPHAS = noise_schedule().alphas_cumprod.double()


def published_velocity(x: float, eps: float, timestep: int, windows: int, prediction: str) -> float:
    """The velocity at one timestep (PeRFlowScheduler.step)."""
    t_c = timestep / 1000
    starts = [i / windows for i in range(windows, 0, -1)]
    ends = [*starts[1:], 0.0]
    t_s, t_e = next((s, e) for s, e in zip(starts, ends, strict=True) if t_c - 1e-4 > e)
    a_s, a_e = float(ALPHAS[int(t_s * 1000 - 1 + 1e-9)]), float(ALPHAS[max(int(t_e * 1000 - 1 + 1e-9), 0)])
    if prediction == "ddim_eps":
        lambda_s = math.sqrt(a_e / a_s)
        eta_s = math.sqrt(1 - a_e) - math.sqrt(a_e / a_s * (1 - a_s))
    else:
        gamma = math.sqrt(a_s / a_e)
        lambda_s, eta_s = 1 / gamma, -math.sqrt(1 - gamma**2) / gamma
    below = lambda_s * (t_c - t_s) + (t_e - t_c)
    end = lambda_s * (t_e - t_s) / below * x + eta_s * (t_e - t_c) / below * eps
    return (end - x) / (t_e - t_c)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("windows", [1, 2, 4])
@pytest.mark.parametrize("timestep", [1000, 999, 876, 750, 749, 500, 251, 250, 125, 3])
def test_the_velocity_is_the_published_one(prediction, windows, timestep):
    x, eps = torch.tensor([[[[0.7, -1.3]]]], dtype=torch.float64), torch.tensor([[[[-0.4, 0.9]]]], dtype=torch.float64)
    level = torch.full((1, 1, 1, 1), timestep / 1000, dtype=torch.float64)
    found = window_velocity(x, eps, level, windows, ALPHAS, prediction).flatten().tolist()
    wanted = [published_velocity(a, b, timestep, windows, prediction) for a, b in ((0.7, -0.4), (-1.3, 0.9))]
    assert found == pytest.approx(wanted, rel=1e-9)


def test_each_latent_of_a_batch_has_its_own_window():
    x, eps = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([1.0, 0.6, 0.25]).view(3, 1, 1, 1)
    together = window_velocity(x, eps, levels, 4, ALPHAS, "diff_eps")
    for i in range(3):
        alone = window_velocity(x[i : i + 1], eps[i : i + 1], levels[i : i + 1], 4, ALPHAS, "diff_eps")
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_device_without_float64_has_the_same_velocity(prediction):
    x, eps = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([1.0, 0.6, 0.25]).view(3, 1, 1, 1)
    wanted = window_velocity(x.double(), eps.double(), levels, 4, ALPHAS, prediction)
    schedule = on_device(ALPHAS.float())
    found = window_velocity(on_device(x), on_device(eps), on_device(levels), 4, schedule, prediction)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.as_subclass(torch.Tensor).double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "windows", "timesteps"),
    [
        (4, 4, [1000, 750, 500, 250]),
        (5, 4, [1000, 875, 750, 500, 250]),
        (8, 4, [1000, 875, 750, 625, 500, 375, 250, 125]),
        (3, 3, [1000, 666, 333]),
        (3, 1, [1000, 666, 333]),
    ],
)
def test_steps_are_shared_out_to_windows(steps, windows, timesteps):
    assert window_levels(steps, windows) == [t / 1000 for t in timesteps] + [0.0]


def test_bad_numbers_and_predictions_are_errors():
    with pytest.raises(ValueError, match="3 steps are fewer than the 4 windows"):
        window_levels(3, 4)
    with pytest.raises(ValueError, match="number of windows is 0"):
        window_levels(3, 0)
    one = torch.ones(1, 1, 1, 1)
    with pytest.raises(ValueError, match="Unknown prediction 'v'"):
        window_velocity(one, one, one, 4, ALPHAS, "v")
