"""Each row's rule next to its authors' equation and, where there is one, to diffusers' scheduler."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch
from authors import ONE, Ask, relative_distance, scheduled
from small_models import small_checkpoint
from torch import Tensor

from instaflow_core.flow.few_step import FewStep, few_step_solver, signals
from instaflow_core.flow.sampling import check_steps, sample_latents
from instaflow_core.rules import RULES, rule_of
from instaflow_core.text import encode_prompts
from instaflow_core.weights.modules import build_text_encoder, build_unet

DIFFUSIONS = [name for name, rule in RULES.items() if rule.diffusion]


@pytest.fixture(scope="module")
def unet() -> Any:
    return build_unet(small_checkpoint("teacher", "epsilon", seed=4))


@pytest.fixture(scope="module")
def states() -> Tensor:
    return encode_prompts(build_text_encoder(small_checkpoint("teacher", "epsilon", seed=4)), ["a red star"])


@pytest.fixture(scope="module")
def ask(unet: Any, states: Tensor) -> Ask:
    @torch.no_grad()
    def asked(x: Tensor, t: float) -> Tensor:
        return unet(x, float(t), encoder_hidden_states=states.expand(len(x), -1, -1), return_dict=False)[0]

    return asked


def noise(batch: int = 2, seed: int = 7) -> Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_every_row_has_its_authors_equation() -> None:
    assert set(ONE) == set(RULES)


@pytest.mark.parametrize("name", [name for name in RULES if name != "noise-minus-data"])
def test_one_step_is_the_authors(name: str, unet: Any, states: Tensor, ask: Ask) -> None:
    """noise-minus-data, too, is a velocity here: its weights have been negated when it was read (test_rows.py)."""
    rule = RULES[name]
    steps = max(1, rule.windows)
    with torch.no_grad():
        ours = sample_latents(unet, rule.prediction, states, states, noise(), steps, 1.0, rule=rule)
    assert relative_distance(ours, ONE[name](ask, noise())) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("name", ["rectified-diffusion", "rectified-diffusion-phased", "hyper-sd", "tcd"])
def test_steps_are_those_of_diffusers_scheduler(name: str, steps: int, ask: Ask) -> None:
    ours = few_step_solver(ask, noise(), steps, rule_of(name).diffusion)
    assert relative_distance(ours, scheduled(name, ask, noise(), steps)) < 1e-5


def test_hyper_sd_in_one_step_is_tcd_with_eta_1(ask: Ask) -> None:
    assert relative_distance(ONE["hyper-sd"](ask, noise()), scheduled("tcd of gamma 1", ask, noise(), 1)) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_steps_of_lcm_are_those_of_its_scheduler(steps: int, ask: Ask) -> None:
    """The scheduler is given the noise that ours draws: from a generator that the first noise seeds."""
    first = noise(1)
    seed = int.from_bytes(hashlib.sha256(first[0].numpy().tobytes()).digest()[:8], "little")
    generator = torch.Generator().manual_seed(seed)
    ours = few_step_solver(ask, first, steps, rule_of("lcm").diffusion)
    assert relative_distance(ours, scheduled("lcm", ask, first, steps, generator)) < 1e-5


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_a_latent_does_not_depend_on_its_batch(name: str) -> None:
    def pointwise(x: Tensor, t: float) -> Tensor:
        return torch.tanh(1.3 * x + t / 1000)

    both = few_step_solver(pointwise, noise(2), 3, rule_of(name).diffusion)
    alone = few_step_solver(pointwise, noise(2)[1:], 3, rule_of(name).diffusion)
    assert relative_distance(both[1:], alone) < 1e-6


@pytest.mark.parametrize("betas", ["scaled_linear", "linear"])
def test_the_schedule_is_diffusers(betas: str) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=betas).alphas_cumprod.double()
    assert (signals(betas) / theirs - 1).abs().max() < 1e-5


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_levels_rise_from_the_first_to_the_rows_start(name: str) -> None:
    rule = FewStep(rule_of(name).diffusion)
    assert (rule.levels.diff() > 0).all() and rule.timesteps[-1] == rule.row.start
    assert rule.trailing(1) == [len(rule.timesteps) - 1]
    assert rule.levels[0] == 0 or not (rule.row.to_first_timestep and rule.row.stride == 1)


@pytest.mark.parametrize("name", DIFFUSIONS)
@pytest.mark.parametrize("at", [0.3, 1.0])
def test_what_is_noised_is_found_again_from_its_own_noise(name: str, at: float) -> None:
    """x_0 and the noise mixed at a level, by the schedule's variances, go back to x_0 where the prediction is right."""
    rule = FewStep(rule_of(name).diffusion)
    place = int(at * (len(rule.timesteps) - 1))
    level, data, eps = rule.levels[place].item(), noise(seed=1), noise(seed=2)
    x = rule.end_signal**0.5 * (data + rule.sigma(level) * eps)
    expected = rule.end_signal**0.5 * (data + rule.end_sigma * eps)
    assert (rule.denoised(x, eps, level, rule.timesteps[place].item()) - expected).abs().max() < 1e-4
    signal = 1 / (1 + rule.sigma(level) ** 2)
    state = math.sqrt(signal) * data + math.sqrt(1 - signal) * eps
    assert (rule.unet_state(x, level) - state).abs().max() < 1e-5


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_noise_is_added_up_to_the_levels_variance(name: str) -> None:
    rule = FewStep(rule_of(name).diffusion)
    level = rule.levels[-1].item()
    signal = 1 / (1 + rule.sigma(level) ** 2)
    state = rule.unet_state(rule.noised(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), level), level)
    assert state.item() == pytest.approx(math.sqrt(1 - signal / rule.end_signal), rel=1e-5)


@pytest.mark.parametrize("steps, words", [(0, "Give 1 to 50"), (51, "51 steps were asked for. Give 1 to 50")])
def test_more_steps_than_timesteps(steps: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_steps(rule_of("tcd"), steps)


def test_fewer_steps_than_windows() -> None:
    with pytest.raises(ValueError, match="3 steps are fewer than the 4 windows"):
        check_steps(rule_of("perflow"), 3)
    check_steps(None, 1)
    check_steps(rule_of("instaflow"), 1)


def test_a_step_can_be_watched_and_stopped(ask: Ask) -> None:
    seen: list[int] = []
    for name in ("lcm", "tcd"):
        few_step_solver(ask, noise(), 3, rule_of(name).diffusion, lambda i, x: seen.append(i))
    assert seen == [0, 1, 2, 0, 1, 2]


def test_a_rule_that_is_unknown() -> None:
    with pytest.raises(ValueError, match="Unknown rule 'dmd3'; expected one of instaflow, 2-rectified flow"):
        rule_of("dmd3")
