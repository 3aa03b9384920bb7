import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from instaflow_core.flow.diffusion import SD_SCHEDULE, diffusion_loss, dpm_solver, noise_prediction, noise_schedule
from instaflow_core.flow.guidance import GuidedUNet
from instaflow_core.flow.sampling import sample_latents

MEAN, DEVIATION = 0.7, 0.4


class GaussianTeacher:
    """The exact noise prediction for data N(MEAN, DEVIATION^2), whatever the text; it records what it was asked."""

    def __init__(self) -> None:
        self.alphas, self.asked = noise_schedule().alphas_cumprod, []

    def __call__(self, x, timestep, encoder_hidden_states, return_dict):
        self.asked.append(len(x))
        level = self.alphas[timestep.long()].reshape(-1, 1, 1, 1)
        variance = level * DEVIATION**2 + 1 - level
        return ((1 - level).sqrt() * (x - level.sqrt() * MEAN) / variance,)


def test_dpm_solver_carries_noise_to_the_data_it_was_trained_on():
    noise = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    states = torch.zeros(1, 77, 8)
    # The probability flow of a Gaussian is linear: x_1 = mean + deviation * (noise standardised at the last level).
    level = noise_schedule().alphas_cumprod[-1]
    exact = MEAN + DEVIATION * (noise - level.sqrt() * MEAN) / (level * DEVIATION**2 + 1 - level).sqrt()
    errors = [
        (dpm_solver(GuidedUNet(GaussianTeacher(), states), noise, steps) - exact).abs().mean().item()
        for steps in (25, 100, 400)
    ]
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


class GaussianVTeacher(GaussianTeacher):
    """The exact v = alpha noise - sigma data for the same data."""

    def __call__(self, x, timestep, encoder_hidden_states, return_dict):
        (noise,) = super().__call__(x, timestep, encoder_hidden_states, return_dict)
        level = self.alphas[timestep.long()].reshape(-1, 1, 1, 1)
        alpha, sigma = level.sqrt(), (1 - level).sqrt()
        return (alpha * noise - sigma * (x - sigma * noise) / alpha,)


def test_a_teacher_that_predicts_v_draws_the_same():
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    states = torch.zeros(1, 77, 8)
    by_noise = sample_latents(GaussianTeacher(), "epsilon", states, states, noise, 20, 1.0)
    by_v = sample_latents(GaussianVTeacher(), "v", states, states, noise, 20, 1.0)
    torch.testing.assert_close(by_v, by_noise, atol=1e-3, rtol=0)
    assert not torch.allclose(
        sample_latents(GaussianVTeacher(), "epsilon", states, states, noise, 20, 1.0), by_v, atol=0.1
    )


# --- zero terminal SNR ---

# What the scheduler_config.json of such a model says.
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}


class ZeroSnrTeacher:
    """The exact v for data N(MEAN, DEVIATION^2) on the schedule that ends in nothing but noise."""

    def __init__(self) -> None:
        self.alphas = noise_schedule(zero_snr=True).alphas_cumprod

    def __call__(self, x, timestep, encoder_hidden_states=None, return_dict=False):
        level = self.alphas[torch.as_tensor(timestep).long()].reshape(-1, 1, 1, 1)
        alpha, sigma = level.sqrt(), (1 - level).sqrt()
        data = MEAN + alpha * DEVIATION**2 * (x - alpha * MEAN) / (level * DEVIATION**2 + 1 - level)
        return (alpha * (x - alpha * data) / sigma - sigma * data,)


def by_diffusers(scheduler, noise, steps):
    scheduler.set_timesteps(steps)
    x, teacher = noise, ZeroSnrTeacher()
    for timestep in scheduler.timesteps:
        x = scheduler.step(teacher(x, timestep)[0], timestep, x).prev_sample
    return x


def zero_snr_latents(noise, steps, zero_snr=True):
    states = torch.zeros(1, 77, 8)
    return sample_latents(ZeroSnrTeacher(), "v", states, states, noise, steps, 1.0, zero_snr=zero_snr)


def test_a_teacher_with_zero_terminal_snr_starts_from_nothing_but_noise():
    assert noise_schedule(zero_snr=True).alphas_cumprod[-1] == 0
    noise = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = MEAN + DEVIATION * noise
    errors = [(zero_snr_latents(noise, steps) - exact).abs().mean().item() for steps in (25, 100, 400)]
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 2
    plain = (zero_snr_latents(noise, 400, zero_snr=False) - exact).abs().mean().item()
    assert plain > 4 * errors[2]


def test_a_teacher_with_zero_terminal_snr_is_sampled_as_diffusers_samples_it():
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ddim = DDIMScheduler(**SD_SCHEDULE, **ZERO_SNR, clip_sample=False)
    same = by_diffusers(DPMSolverMultistepScheduler.from_config(ddim.config), noise, 25)
    torch.testing.assert_close(zero_snr_latents(noise, 25), same, rtol=0, atol=1e-6)
    torch.testing.assert_close(zero_snr_latents(noise, 999), by_diffusers(ddim, noise, 999), rtol=0, atol=1e-2)


def test_noise_alone_tells_nothing_by_its_prediction():
    with pytest.raises(ValueError, match=r"zero terminal SNR, and predicts epsilon.*Say --prediction v if"):
        dpm_solver(ZeroSnrTeacher(), torch.zeros(1, 4, 8, 8), 4, zero_snr=True)


def test_guidance_asks_for_both_texts_in_one_batch():
    teacher, states = GaussianTeacher(), torch.zeros(1, 77, 8)
    seen = []
    dpm_solver(GuidedUNet(teacher, states, states, 5.0), torch.randn(3, 4, 8, 8), 4, lambda i, x: seen.append(i))
    assert teacher.asked == [6] * 4
    assert seen == [0, 1, 2, 3]


def test_the_exact_prediction_beats_others_in_the_loss():
    generator = torch.Generator().manual_seed(0)
    x_1 = MEAN + DEVIATION * torch.randn(256, 4, 8, 8, generator=generator)
    noise = torch.randn(x_1.shape, generator=generator)
    timesteps = torch.randint(1000, (256,), generator=generator)
    exact = GaussianTeacher()

    def biased(*args, **kwargs):
        return (exact(*args, **kwargs)[0] + 0.1,)

    losses = [
        diffusion_loss(unet, noise_schedule(), x_1, noise, timesteps, torch.zeros(256, 77, 8))
        for unet in (exact, biased)
    ]
    assert losses[1].item() - losses[0].item() == pytest.approx(0.01, abs=2e-3)


@pytest.mark.parametrize("timestep", [0, 400, 999])
def test_the_noise_follows_from_v(timestep: int):
    x, states = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 77, 8)
    noise = GuidedUNet(GaussianTeacher(), states)(x, timestep)
    from_v = noise_prediction(GuidedUNet(GaussianVTeacher(), states), "v")(x, timestep)
    torch.testing.assert_close(from_v, noise, rtol=1e-4, atol=1e-5)
