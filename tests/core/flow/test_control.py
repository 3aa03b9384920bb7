"""Steering a field whose answer is known."""

import pytest
import torch

from instaflow_core.flow.control import control
from instaflow_core.flow.noise import draw_noise
from instaflow_core.flow.solvers import euler, time_grid

NOISE, OTHER = draw_noise(1, (2, 4, 8, 8)), draw_noise(2, (2, 4, 8, 8))


def field(x, t):
    """Neighbours mix, and the velocity changes on the way."""
    return 0.3 * x.roll(1, -1) - (0.2 + 0.2 * t) * torch.sin(x)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_end_comes_to_the_target(steps):
    target = euler(field, OTHER, time_grid(steps))
    result = control(field, NOISE, target, steps, iterations=100, learning_rate=0.1)
    assert (result.after < result.before / 100).all()
    torch.testing.assert_close(result.x_1, euler(field, result.noise, time_grid(steps)))
    torch.testing.assert_close((result.x_1 - target).square().mean((1, 2, 3)), result.after)
    assert (result.noise.square().mean((1, 2, 3)) - 1).abs().max() < 0.3


def test_a_mask_leaves_the_rest_alone():
    target = euler(field, OTHER, time_grid(1))
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1
    result = control(field, NOISE, target, 1, 100, 0.1, mask)
    off = (result.x_1 - target).square()
    assert off[..., :4].mean() < 0.02
    moved = (result.noise - NOISE).abs()
    assert moved[..., 4:7].mean() < moved[..., :4].mean() / 10  # the last column is the first one's neighbour
    torch.testing.assert_close(off[..., :4].mean((1, 2, 3)), result.after)


def test_no_move_keeps_the_noise():
    result = control(field, NOISE, OTHER, 1, iterations=0, learning_rate=0.1)
    assert torch.equal(result.noise, NOISE)
    assert torch.equal(result.before, result.after)


def test_moves_that_lead_away_are_not_taken():
    result = control(field, NOISE, euler(field, NOISE, time_grid(1)) + 1e-4, 1, iterations=3, learning_rate=50.0)
    assert torch.equal(result.noise, NOISE)


def test_every_move_is_told_and_may_cancel():
    told = []
    target = euler(field, OTHER, time_grid(2))
    result = control(field, NOISE, target, 2, 4, 0.1, progress=told.append)
    assert len(told) == 4
    torch.testing.assert_close(told[-1], result.x_1)  # the last move came nearest

    def cancel(x_1):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        control(field, NOISE, OTHER, 1, 4, 0.1, progress=cancel)


def test_a_mask_of_nothing():
    mask = torch.ones(2, 1, 8, 8)
    mask[1] = 0
    with pytest.raises(ValueError, match="mask is 0 everywhere"):
        control(field, NOISE, OTHER, 1, 4, 0.1, mask)
