"""Gradients through a field and its Euler steps, checked against autograd's own in float64."""

import pytest
import torch

from instaflow_core.flow.gradients import euler_gradient, linearize
from instaflow_core.flow.solvers import euler, time_grid

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
COTANGENT = torch.randn(X.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def bend(x, t):
    """A field that is not linear in x, and changes with t."""
    return torch.sin(2 * x) * x.roll(1, -1) + (1 + t) * x


def test_linearize_gives_the_value_and_autograds_product():
    value, pull_back = linearize(bend, X, 0.3)
    assert torch.equal(value, bend(X, 0.3))
    _, expected = torch.autograd.functional.vjp(lambda x: bend(x, 0.3), X, COTANGENT)
    torch.testing.assert_close(pull_back(COTANGENT), expected)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_gradient_of_the_end_is_autograds(steps):
    times, x = time_grid(steps), X.clone().requires_grad_()
    expected_end = euler(bend, x, times)
    expected_end.sin().sum().backward()
    end, gradient = euler_gradient(bend, X, times, lambda end: end.cos())
    torch.testing.assert_close(end, expected_end.detach())
    torch.testing.assert_close(gradient, x.grad)


def test_one_step_asks_the_field_once():
    asked = []
    euler_gradient(lambda x, t: (asked.append(t), bend(x, t))[1], X, time_grid(1), torch.ones_like)
    assert asked == [0.0]


def test_small_gradients_do_not_vanish_in_a_float16_model():
    x = X.float()
    _, pull_back = linearize(lambda x, t: x.half().square().float(), x, 0.0)
    torch.testing.assert_close(pull_back(torch.full_like(x, 1e-9)), 2e-9 * x, rtol=5e-3, atol=0)


def test_nothing_pulled_back_is_nothing():
    assert torch.equal(linearize(bend, X, 0.0)[1](torch.zeros_like(X)), torch.zeros_like(X))


def test_a_model_made_in_inference_mode():
    """As a host makes them: autograd alone refuses to save such weights."""
    with torch.inference_mode():
        layer = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.GroupNorm(32, 32)).double()
        x = X.clone()
        value, pull_back = linearize(lambda x, t: layer(x).tanh()[:, :3], x, 0.0)
        gradient = pull_back(COTANGENT.clone())
        assert not gradient.requires_grad
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        layer(X.clone().requires_grad_())
    weights = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    plain = X.clone().requires_grad_()
    expected = torch.func.functional_call(layer, weights, plain).tanh()[:, :3]
    (expected_gradient,) = torch.autograd.grad(expected, plain, COTANGENT)
    torch.testing.assert_close(value.clone(), expected.detach())
    torch.testing.assert_close(gradient, expected_gradient)


LAYERS = [torch.randn(3, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)]


def through_layers(x, weight_of=lambda weight: weight):
    """Three layers with a bend between them; weight_of says where each finds its weight."""
    for weight in LAYERS:
        x = torch.nn.functional.linear(x, weight_of(weight)).sin()
    return x


def assert_as_with_weights_of_its_own(weight_of):
    x, cotangent = X[..., :3], COTANGENT[..., :3]
    value, pull_back = linearize(lambda x, t: through_layers(x, weight_of), x, 0.0)
    with torch.inference_mode(False):
        expected, gradient = torch.autograd.functional.vjp(through_layers, x, cotangent)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(pull_back(cotangent), gradient)


@pytest.mark.parametrize("before", [True, False], ids=["made by a sampling", "made by the gradient"])
def test_weights_in_a_buffer_that_the_next_layer_writes_into(before):
    """As hosts offload: every layer's weight is copied into one buffer, which lives on in the host."""
    buffers = []

    def weight_of(weight):
        if not buffers:
            buffers.append(torch.zeros(16, dtype=weight.dtype))
        place = buffers[0][4 : 4 + weight.numel()].view(weight.shape)
        place.copy_(weight)
        return place

    with torch.inference_mode():
        if before:
            weight_of(LAYERS[0])
        assert_as_with_weights_of_its_own(weight_of)
    assert torch.equal(buffers[0][4:13].view(3, 3), LAYERS[-1])


def test_writes_into_what_was_made_in_inference_mode_are_not_lost():
    with torch.inference_mode():
        kept = torch.zeros_like(X)
        linearize(lambda x, t: x + kept.add_(1), X, 0.0)
        assert torch.equal(kept, torch.ones_like(X))
        with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
            linearize(lambda x, t: kept.copy_(x), X, 0.0)


def test_results_written_where_out_says():
    """As sub-quadratic attention does where memory is short; autograd alone refuses."""

    def field(x, t):
        y = 2 * x
        torch.exp(y, out=y)
        return y * x

    value, pull_back = linearize(field, X, 0.0)
    expected, gradient = torch.autograd.functional.vjp(lambda x: (2 * x).exp() * x, X, COTANGENT)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(pull_back(COTANGENT), gradient)


def test_what_a_model_computes_without_a_gradient_has_none():
    def field(x: torch.Tensor, t: float) -> torch.Tensor:
        with torch.no_grad():
            slope = x.sin()
        return slope * x

    value, pull_back = linearize(field, X, 0.0)
    assert torch.equal(value, X.sin() * X)
    torch.testing.assert_close(pull_back(COTANGENT), X.sin() * COTANGENT)
