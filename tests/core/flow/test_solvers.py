"""Solvers against equations with a known answer."""

import math

import pytest
import torch

from instaflow_core.flow.solvers import euler, time_grid


@pytest.mark.parametrize("steps", [1, 3, 7, 25, 1000])
def test_the_grid_is_uniform_and_exact(steps: int):
    assert time_grid(steps).tolist() == [i / steps for i in range(steps + 1)]


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_is_an_error(steps: int):
    with pytest.raises(ValueError, match="at least 1"):
        time_grid(steps)


def test_a_straight_flow_needs_one_step():
    x_0, x_1 = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(euler(lambda x, t: x_1 - x_0, x_0, time_grid(1)), x_1)


def test_the_error_falls_with_the_number_of_steps():
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    errors = [abs(euler(lambda x, t: -x * (1 + t), x, time_grid(n)).item() - math.exp(-1.5)) for n in (50, 100)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2)


def test_a_falling_grid_goes_backwards():
    x = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    there = euler(lambda x, t: 0.1 * x, x, time_grid(200))
    back = euler(lambda x, t: 0.1 * x, there, time_grid(200).flip(0))
    torch.testing.assert_close(back, x, rtol=1e-3, atol=0)


def test_the_callback_sees_every_step_and_may_cancel():
    seen = []

    def stop_at_two(i: int, x: torch.Tensor) -> None:
        seen.append((i, x.item()))
        if i == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        euler(lambda x, t: torch.ones_like(x), torch.zeros(1, 1, 1, 1), time_grid(4), stop_at_two)
    assert seen == [(0, 0.25), (1, 0.5), (2, 0.75)]
