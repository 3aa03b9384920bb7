"""The convention, checked in float64 and both ways."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instaflow_core.flow import convention

times = st.floats(0, 1, allow_nan=False)


def pair(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, 4, 8, 6, dtype=torch.float64, generator=generator) for _ in range(2))  # type: ignore[return-value]


def test_the_line_runs_from_noise_to_data():
    x_0, x_1 = pair()
    assert torch.equal(convention.interpolate(x_0, x_1, 0.0), x_0)
    assert torch.equal(convention.interpolate(x_0, x_1, 1.0), x_1)


@given(times)
def test_data_and_noise_come_back_from_any_point_of_the_line(t: float):
    x_0, x_1 = pair()
    x_t, v = convention.interpolate(x_0, x_1, t), convention.velocity(x_0, x_1)
    torch.testing.assert_close(convention.data_from_velocity(x_t, v, t), x_1)
    torch.testing.assert_close(x_t - t * v, x_0)


def test_one_euler_step_of_size_one_adds_the_velocity():
    x_0, x_1 = pair()
    assert torch.equal(convention.data_from_velocity(x_0, convention.velocity(x_0, x_1), 0.0), x_0 + (x_1 - x_0))


def test_the_velocity_is_the_derivative_of_the_line():
    x_0, x_1 = pair()
    slope = (convention.interpolate(x_0, x_1, 0.6) - convention.interpolate(x_0, x_1, 0.2)) / 0.4
    torch.testing.assert_close(slope, convention.velocity(x_0, x_1))


def test_a_batch_takes_one_time_for_each_latent():
    x_0, x_1 = pair()
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    x_t = convention.interpolate(x_0, x_1, t)
    for i in range(3):
        torch.testing.assert_close(x_t[i], convention.interpolate(x_0[i], x_1[i], t[i]))


def test_the_unet_is_asked_at_exactly_1000_for_noise():
    assert convention.unet_time(0.0) == 1000.0
    assert convention.unet_time(1.0) == 0.0


@given(times)
def test_times_and_noise_levels_invert(t: float):
    assert convention.time_from_unet(convention.unet_time(t)) == pytest.approx(t, abs=1e-12)
    assert convention.time_from_sigma(convention.sigma_from_time(t)) == pytest.approx(t, abs=1e-12)


@given(times)
def test_denoised_adds_sigma_times_the_velocity(t: float):
    x_0, x_1 = pair()
    x_t, v = convention.interpolate(x_0, x_1, t), convention.velocity(x_0, x_1)
    torch.testing.assert_close(convention.denoised_from_velocity(x_t, v, convention.sigma_from_time(t)), x_1)


@pytest.mark.parametrize("t", [0.0, 0.3, torch.tensor([0.0, 0.2, 0.9], dtype=torch.float64)])
def test_the_velocity_comes_back_from_what_a_host_calls_denoised(t):
    x_0, x_1 = pair()
    x_t = convention.interpolate(x_0, x_1, t)
    v = convention.velocity_from_denoised(x_t, x_1, convention.sigma_from_time(t))
    torch.testing.assert_close(v, convention.velocity(x_0, x_1))


def test_a_diffusion_state_lands_on_the_line():
    x_0, x_1 = pair()
    alpha = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    sigma = (1 - alpha**2).sqrt()
    x = alpha.reshape(-1, 1, 1, 1) * x_1 + sigma.reshape(-1, 1, 1, 1) * x_0
    x_t, t = convention.rectified_flow_coordinates(x, alpha, sigma)
    torch.testing.assert_close(x_t, convention.interpolate(x_0, x_1, t))
