"""S(Z) of flows whose straightness is known in closed form."""

import math

import pytest
import torch
from no_float64 import on_device

from instaflow_core.flow.diffusion import noise_schedule
from instaflow_core.flow.noise import draw_noise
from instaflow_core.flow.solvers import time_grid
from instaflow_core.flow.straightness import (
    diffusion_trajectory,
    flow_trajectory,
    mean_straightness,
    straightness,
)

X_0 = draw_noise(1, (3, 4, 2, 2)).double()


def test_a_constant_velocity_is_straight():
    result = straightness(flow_trajectory(lambda x, t: torch.full_like(x, 2.0), X_0, time_grid(7)), time_grid(7))
    assert result.value == pytest.approx(0, abs=1e-12)
    assert result.curve.shape == result.times.shape == (7,)
    assert result.times.tolist() == pytest.approx([(i + 0.5) / 7 for i in range(7)])


def test_lines_at_changing_speed_are_not_straight():
    """v = 2t in every element: int (1 - 2t)^2 dt = 1/3, and the curve is its integrand."""
    times = time_grid(100)
    result = straightness([X_0 + t**2 for t in times.tolist()], times)
    assert result.value == pytest.approx(1 / 3, rel=1e-3)
    torch.testing.assert_close(result.curve, (1 - 2 * result.times) ** 2)


def test_a_rotation():
    """x(t) = R(w t) x_0 has the speed w |x_0|, so S = |x_0|^2 (w^2 - (2 - 2 cos w)) / number of elements."""
    w, x = 1.7, torch.tensor([[3.0, 4.0]], dtype=torch.float64)

    def turned(t):
        cosine, sine = math.cos(w * t), math.sin(w * t)
        return x @ torch.tensor([[cosine, sine], [-sine, cosine]], dtype=torch.float64)

    times = time_grid(400)
    result = straightness([turned(t) for t in times.tolist()], times)
    assert result.value == pytest.approx(25 * (w**2 - (2 - 2 * math.cos(w))) / 2, rel=1e-3)


def test_growth_by_eulers_method():
    """v = x: S = E x_0^2 ((e^2 - 1) / 2 - (e - 1)^2)."""
    times = time_grid(2000)
    result = straightness(flow_trajectory(lambda x, t: x, X_0, times), times)
    expected = X_0.square().mean() * ((math.e**2 - 1) / 2 - (math.e - 1) ** 2)
    assert result.value == pytest.approx(float(expected), rel=2e-3)


def test_uneven_times_and_a_late_start():
    """The straight part of a path stays straight; v = 2t over [0.5, 1] has int (1.5 - 2t)^2 dt / 0.5 = 1/12."""
    times = torch.cat([torch.linspace(0.5, 0.6, 40), torch.linspace(0.6, 1.0, 90)[1:]]).double()
    result = straightness([X_0 + t**2 for t in times.tolist()], times)
    assert result.value == pytest.approx(1 / 12, rel=2e-3)
    assert straightness([X_0 + t for t in times.tolist()], times).value == pytest.approx(0, abs=1e-12)


def test_the_callback_sees_every_step():
    seen = []
    flow_trajectory(lambda x, t: x, X_0, time_grid(3), lambda i, x: seen.append(i))
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 4])
def test_as_many_states_as_times(count):
    with pytest.raises(ValueError, match=rf"{count} states for {min(count, 3)} times"):
        straightness([X_0] * count, torch.linspace(0, 1, min(count, 3)))


# --- a diffusion teacher ---


def coefficients(timestep):
    signal = float(noise_schedule().alphas_cumprod[timestep])
    return math.sqrt(signal), math.sqrt(1 - signal)


def test_a_teacher_of_one_picture_is_straight_and_finds_it():
    """Where all data is one point m, the noise is (x - alpha m) / sigma, and every path leads straight to m."""
    picture = torch.full_like(X_0, 0.8)

    def predict(x, timestep):
        alpha, sigma = coefficients(timestep)
        return (x - alpha * picture) / sigma

    states, times = diffusion_trajectory(predict, X_0, steps=10)
    torch.testing.assert_close(states[-1], picture)
    assert len(states) == len(times) == 11
    assert times[0] == pytest.approx(0.064, abs=1e-3)
    assert times[-1] == 1
    assert (times.diff() > 0).all()
    assert straightness(states, times).value == pytest.approx(0, abs=1e-10)


def test_a_teacher_of_gaussian_data():
    """Data N(0, s^2): z_t is proportional to f(t) = sqrt(t^2 s^2 + (1 - t)^2), so S follows from f alone."""
    s = 0.5

    def predict(x, timestep):
        alpha, sigma = coefficients(timestep)
        return sigma * x / (alpha**2 * s**2 + sigma**2)

    states, times = diffusion_trajectory(predict, X_0, steps=1000)
    t = torch.linspace(float(times[0]), 1, 20001, dtype=torch.float64)
    f = (t**2 * s**2 + (1 - t) ** 2).sqrt()
    slope = f.diff() / t.diff()
    whole = (f[-1] - f[0]) / (t[-1] - t[0])
    expected = (slope - whole).square().mean() * states[0].square().mean() / f[0] ** 2
    assert straightness(states, times).value == pytest.approx(float(expected), rel=0.02)


# --- many paths, and devices ---


def test_paths_one_at_a_time_give_what_all_at_once_give():
    times = time_grid(9)
    together = straightness(flow_trajectory(lambda x, t: x.sin(), X_0, times), times)
    paths = (straightness(flow_trajectory(lambda x, t: x.sin(), x, times), times) for x in X_0.split(1))
    found = mean_straightness(paths)
    assert found.value == pytest.approx(together.value, rel=1e-12)
    torch.testing.assert_close(found.curve, together.curve)
    assert found.times.tolist() == together.times.tolist()
    with pytest.raises(ValueError, match="no paths"):
        mean_straightness([])


def test_a_device_without_float64_measures_the_same():
    times, x_0 = time_grid(9), X_0.float()
    with pytest.raises(TypeError, match="float64"):
        on_device(x_0).double()
    found = straightness(flow_trajectory(lambda x, t: x.sin(), on_device(x_0), times), times)
    wanted = straightness(flow_trajectory(lambda x, t: x.sin(), X_0, times), times)
    assert found.value == pytest.approx(wanted.value, rel=1e-4)
    assert (type(found.curve), found.curve.dtype) == (torch.Tensor, torch.float64)
    torch.testing.assert_close(found.curve, wanted.curve, rtol=1e-4, atol=1e-7)
