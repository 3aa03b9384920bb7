"""Noise found back: of fields whose inverse is known, and of the built-in models' own pictures."""

from __future__ import annotations

import pytest
import torch

from instaflow_core.flow.control import control
from instaflow_core.flow.guidance import GuidedUNet
from instaflow_core.flow.inversion import (
    GAUSSIAN_WEIGHT,
    TOLERANCE,
    distance,
    invert,
    naive_reverse,
    refine,
    reverse,
    round_trip_error,
    solve_step,
    unlikeness,
)
from instaflow_core.flow.noise import draw_noise
from instaflow_core.flow.solvers import euler, time_grid
from instaflow_core.text import encode_prompts
from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.modules import build_text_encoder, build_unet, build_vae

NOISE = draw_noise(3, (2, 4, 8, 8))
CAPTIONS = [
    "a large red circle in the center on a white background",
    "a small yellow star at the top left on a purple background",
    "a green square on a black background",
]


def bend(x, t):
    """A field whose steps contract, and whose velocity changes on the way."""
    return 0.2 * torch.sin(x) - 0.3 * (1 - 0.5 * t) * x


def fold(x, t):
    """A step to -x, where no damping makes the fixed-point iteration converge."""
    return -2 * x


# --- fields with a known inverse ---


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_every_step_is_solved(steps):
    times = time_grid(steps)
    x_1 = euler(bend, NOISE, times)
    found = reverse(bend, x_1, times)
    naive = naive_reverse(bend, x_1, times)
    ours, theirs = (round_trip_error(bend, x_0, x_1, times) for x_0 in (found, naive))
    assert ours.max() < TOLERANCE
    assert theirs.min() > 2 * ours.max()
    torch.testing.assert_close(found, NOISE, rtol=0, atol=3 * TOLERANCE)


def test_naive_reversing_takes_the_velocity_where_the_step_ended():
    assert torch.equal(naive_reverse(bend, NOISE, time_grid(1)), NOISE - bend(NOISE, 0.0))


def test_a_step_that_expands_is_damped():
    found = solve_step(lambda x, t: 3 * x, 4 * NOISE, 0.0, 1.0, iterations=30)
    torch.testing.assert_close(found, NOISE, rtol=0, atol=1e-2)


def test_where_iterating_fails_the_gradient_succeeds():
    times, x_1 = time_grid(1), -NOISE
    stuck = reverse(fold, x_1, times)
    assert round_trip_error(fold, stuck, x_1, times).min() > 0.5
    result = invert(fold, x_1, steps=1)
    assert result.residual.max() < TOLERANCE
    assert torch.allclose(result.noise, NOISE, atol=0.2)
    assert (result.residual <= result.naive_residual).all()


def test_a_picture_that_hardly_shows_its_noise_gets_gaussian_noise():
    """Two channels leave 3 % of themselves in the picture, too little for iterating to bring them back to size."""

    def fade(x, t):
        return torch.cat([torch.zeros_like(x[:, :2]), -0.97 * x[:, 2:]], dim=1)

    x_1 = euler(fade, NOISE, time_grid(1))
    start = reverse(fade, x_1, time_grid(1))
    assert round_trip_error(fade, start, x_1, time_grid(1)).max() < TOLERANCE
    assert unlikeness(start)[0] > 0.1
    result = invert(fade, x_1, steps=1)
    assert result.residual.max() < TOLERANCE
    assert unlikeness(result.noise)[0] == 0


def test_unlikeness_is_small_for_noise_and_large_for_the_rest():
    assert unlikeness(draw_noise(5, (1, 4, 32, 32)))[0] == 0
    assert unlikeness(draw_noise(6, (8, 4, 8, 8)))[0] < 0.2
    blurred = torch.nn.functional.avg_pool2d(draw_noise(5, (1, 4, 32, 32)), 3, 1, 1) * 3
    for odd in (torch.zeros(1, 4, 32, 32), 2 * draw_noise(5, (1, 4, 32, 32)), blurred):
        assert unlikeness(odd)[0] > 0.2


def inversion_loss(velocity, x, target, times):
    """What refining makes small."""
    _, error, penalty, _ = distance(velocity, x, target, times)
    return error.sum() + GAUSSIAN_WEIGHT * penalty


def test_refining_stops_when_it_is_done_and_when_it_is_told():
    counted = []
    times = time_grid(1)
    refine(bend, NOISE, euler(bend, NOISE, times), times, 60, counted.append)
    assert len(counted) < 15
    counted.clear()
    asked = []

    def hard(x, t):
        asked.append(x.detach().clone())
        return 30 * torch.sin(5 * x)

    for iterations in (1, 3, 8, 20):
        asked.clear()
        counted.clear()
        found = refine(hard, NOISE, NOISE, times, iterations, counted.append)
        assert 0 < len(asked) <= iterations
        assert len(counted) == len(asked) - 1
        losses = [float(inversion_loss(hard, x, NOISE, times)) for x in list(asked)]
        assert float(inversion_loss(hard, found, NOISE, times)) <= min(losses)
    assert torch.equal(refine(hard, NOISE, NOISE, times, 0), NOISE)


def test_a_caller_is_told_of_every_step_and_shown_every_move():
    told = []
    result = invert(fold, -NOISE, steps=1, progress=told.append)
    assert told[0] is None
    assert all(x_1.shape == NOISE.shape for x_1 in told[1:])
    assert not told[-1].requires_grad
    assert (told[-1] + NOISE).square().mean().sqrt() < TOLERANCE
    assert result.residual.max() < TOLERANCE


def test_a_caller_can_cancel():
    def cancel(x_1):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        invert(bend, NOISE, steps=2, progress=cancel)


def test_no_steps():
    with pytest.raises(ValueError, match="steps is 0"):
        invert(bend, NOISE, steps=0)


def test_no_graph_is_kept_of_a_model_whose_weights_can_learn():
    """In a plain script, outside no_grad: only the gradient with respect to the noise remembers anything."""
    scale, times, remembered = torch.full((1,), 0.3, requires_grad=True), time_grid(2), []

    def field(x, t):
        value = -scale * (1 + t) * torch.sin(x)
        if value.requires_grad and not x.requires_grad:
            remembered.append(t)
        return value

    made = [
        naive_reverse(field, NOISE, times),
        reverse(field, NOISE, times),
        solve_step(field, NOISE, 0.0, 1.0),
        round_trip_error(field, NOISE, NOISE, times),
        refine(field, NOISE, 2 * NOISE, times, 3),
        *vars(invert(field, 2 * NOISE, 2, iterations=3)).values(),
        *vars(control(field, NOISE, NOISE, 2, iterations=2, learning_rate=0.1)).values(),
    ]
    assert not remembered
    assert not any(tensor.requires_grad for tensor in made)


def test_inside_inference_mode():
    with torch.inference_mode():
        result = invert(fold, -NOISE.clone(), steps=1)
    assert result.residual.max() < TOLERANCE


# --- the built-in models' own pictures ---


@pytest.mark.parametrize(("name", "steps"), [("built-in: shapes", 1), ("built-in: shapes-2rf", 4)])
@pytest.mark.slow
def test_pictures_come_back(name, steps):
    """Round trip of pictures that the model itself made: at least 30 dB, where naive reversing loses the picture."""
    checkpoint = load(name)
    encoder, unet, vae = build_text_encoder(checkpoint), build_unet(checkpoint), build_vae(checkpoint)
    with torch.inference_mode():
        velocity = GuidedUNet(unet, encode_prompts(encoder, CAPTIONS)).velocity
        x_1 = euler(velocity, draw_noise(11, (len(CAPTIONS), 4, 8, 8)), time_grid(steps))

        def pictures(noise):
            decoded = vae.decode(euler(velocity, noise, time_grid(steps)) / vae.config.scaling_factor).sample
            return (decoded / 2 + 0.5).clamp(0, 1)

        result = invert(velocity, x_1, steps)
        made = vae.decode(x_1 / vae.config.scaling_factor).sample.div(2).add(0.5).clamp(0, 1)
        ours = psnr(pictures(result.noise), made)
        naive = psnr(pictures(naive_reverse(velocity, x_1, time_grid(steps))), made)
    assert ours.min() > 30
    assert ours.mean() > naive.mean() + 6
    assert result.noise.square().mean((1, 2, 3)).sub(1).abs().max() < 0.6


def psnr(a, b):
    return -10 * (a - b).square().mean((1, 2, 3)).log10()
