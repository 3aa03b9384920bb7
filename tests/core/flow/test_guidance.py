import pytest
import torch
from diffusers import UNet2DConditionModel

from instaflow_core.flow.guidance import GuidedUNet
from instaflow_core.flow.solvers import euler, time_grid
from instaflow_core.shapes.making.anatomy import UNET_CONFIG


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**UNET_CONFIG).double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=generator)
    text, negative = torch.randn(2, 2, 77, 64, dtype=torch.float64, generator=generator)
    return x, text, negative


def test_one_step_is_noise_plus_the_unet_at_1000(unet, inputs):
    x, text, _ = inputs
    expected = x + unet(x, torch.tensor(1000.0), encoder_hidden_states=text).sample
    torch.testing.assert_close(euler(GuidedUNet(unet, text).velocity, x, time_grid(1)), expected)


def test_three_steps_ask_at_the_exact_uniform_times(unet, inputs):
    x, text, _ = inputs
    expected = x
    for i in range(3):
        timestep = torch.tensor(1000 * (1 - i / 3))
        expected = expected + unet(expected, timestep, encoder_hidden_states=text).sample / 3
    got = euler(GuidedUNet(unet, text).velocity, x, time_grid(3))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_guidance_acts_on_velocities(unet, inputs):
    x, text, negative = inputs
    v_text, v_negative = GuidedUNet(unet, text).velocity(x, 0.4), GuidedUNet(unet, negative).velocity(x, 0.4)
    guided = GuidedUNet(unet, text, negative, guidance=1.5).velocity(x, 0.4)
    torch.testing.assert_close(guided, v_negative + 1.5 * (v_text - v_negative))


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_guidance_of_at_most_one_ignores_the_negative(unet, inputs, guidance: float):
    x, text, negative = inputs
    assert torch.equal(
        GuidedUNet(unet, text, negative, guidance).velocity(x, 0.2), GuidedUNet(unet, text).velocity(x, 0.2)
    )


def test_one_prompt_serves_a_batch(unet, inputs):
    x, text, negative = inputs
    one = GuidedUNet(unet, text[:1], negative[:1], 2.0).velocity(x, 0.0)
    both = GuidedUNet(unet, text[:1].repeat(2, 1, 1), negative[:1].repeat(2, 1, 1), 2.0).velocity(x, 0.0)
    torch.testing.assert_close(one, both)


def test_guidance_without_a_negative_is_an_error(unet, inputs):
    with pytest.raises(ValueError, match=r"Guidance is 1\.5.*set guidance to 1\.0"):
        GuidedUNet(unet, inputs[1], None, 1.5)
