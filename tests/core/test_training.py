"""The training loop and the paper's losses, on real small models."""

import pytest
import torch
from torch import nn

from instaflow_core.flow import interpolate
from instaflow_core.losses import l2_loss, pseudo_huber_loss, reflow_loss
from instaflow_core.noise import indexed_generator
from instaflow_core.shapes.anatomy import new_text_encoder, new_unet
from instaflow_core.stages import DistillBatches, ReflowBatches, TextStates, distill_step, reflow_step
from instaflow_core.training import NonFiniteLoss, TrainConfig, fit
from instaflow_core.triplets import SetInfo, Triplets

CONFIG = TrainConfig(iterations=12, learning_rate=1e-3, warmup=2, ema=0.9, checkpoint_every=5)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def batch(step: int) -> torch.Tensor:
    return torch.randn(8, 3, generator=indexed_generator(1, step))


def loss(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (module(x) - x[:, :2]).square().mean()


def test_training_lowers_the_loss(tmp_path):
    result = fit(linear(), batch, loss, TrainConfig(400, learning_rate=1e-2, warmup=1, ema=0.9), tmp_path)
    assert result.step == 400
    assert result.losses[-1] < 0.05 * result.losses[0]


def test_a_resumed_run_is_the_undisturbed_run_bit_for_bit(tmp_path):
    whole = linear()
    losses = fit(whole, batch, loss, CONFIG, tmp_path / "whole").losses

    def cancel(step: int, _: float) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(linear(), batch, loss, CONFIG, tmp_path / "parts", progress=cancel)
    parts = linear()
    resumed = fit(parts, batch, loss, CONFIG, tmp_path / "parts", resume=True)
    assert resumed.losses == losses[5:]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name])


def test_the_result_is_the_moving_average(tmp_path):
    module, seen = linear(), []
    fit(module, batch, loss, CONFIG, tmp_path, progress=lambda *_: seen.append(module.weight.detach().clone()))
    assert not torch.equal(module.weight, seen[-1])


def test_resuming_with_other_settings_is_an_error(tmp_path):
    fit(linear(), batch, loss, CONFIG, tmp_path)
    with pytest.raises(ValueError, match="Resume with the same settings"):
        fit(linear(), batch, loss, TrainConfig(iterations=13), tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    def broken(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return loss(module, x) * (float("nan") if torch.equal(x, batch(7)) else 1)

    with pytest.raises(NonFiniteLoss, match="nan at iteration 7"):
        fit(linear(), batch, broken, CONFIG, tmp_path)
    kept = torch.load(tmp_path / "state.pt", weights_only=True)
    assert kept["step"] == 5
    assert all(torch.isfinite(t).all() for t in kept["module"].values())


@pytest.fixture(scope="module")
def triplets() -> Triplets:
    latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(3)).half()
    return Triplets(SetInfo(6, 0, (4, 8, 8), 6, "test"), ["a", "b", "c", "a", "b", "c"], latents)


@pytest.fixture(scope="module")
def states(triplets: Triplets) -> TextStates:
    return TextStates(new_text_encoder(0).eval(), triplets.texts)


def test_text_is_encoded_once_for_each_prompt(states: TextStates):
    assert len(states.unique) == 3
    rows = states[torch.tensor([0, 3, 1])]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_reflow_is_zero_for_the_true_velocity_and_asks_the_unet_at_the_right_time(triplets, states):
    batches = ReflowBatches(triplets, states, 4, seed=0)
    x_0, x_1, text, t = batches(3)
    asked = []

    def oracle(x_t, timestep, encoder_hidden_states, return_dict):
        asked.append((x_t, timestep, encoder_hidden_states))
        return (x_1 - x_0,)

    assert reflow_step(oracle, (x_0, x_1, text, t)) == 0
    x_t, timestep, used = asked[0]
    assert torch.equal(x_t, interpolate(x_0, x_1, t))
    assert torch.equal(timestep, 1000 * (1 - t))
    assert torch.equal(used, text)
    assert t.min() >= 0
    assert t.max() < 1


@pytest.mark.parametrize("distance", [l2_loss, pseudo_huber_loss])
def test_distillation_is_zero_for_the_flows_end_and_asks_at_1000(triplets, states, distance):
    batch = DistillBatches(triplets, states, 4, seed=0)(1)
    x_0, x_1, _ = batch

    def oracle(x, timestep, **_):
        assert torch.equal(x, x_0)
        assert timestep.tolist() == [1000.0] * 4
        return (x_1 - x_0,)

    assert distill_step(distance)(oracle, batch).abs() < 1e-6
    assert distance(x_1 + 0.5, x_1) > distance(x_1 + 0.1, x_1) > 0


def test_reflow_loss_is_the_mean_squared_error_of_the_velocity():
    x_0, x_1 = torch.zeros(2, 4, 2, 2), torch.ones(2, 4, 2, 2)
    assert reflow_loss(torch.full_like(x_0, 3.0), x_0, x_1) == 4.0


def test_both_stages_learn_on_a_real_unet(triplets, states, tmp_path):
    config = TrainConfig(iterations=30, learning_rate=1e-3, warmup=2, ema=0.5)
    distill = DistillBatches(triplets, states, 4, seed=0)
    losses = fit(new_unet(0), distill, distill_step(l2_loss), config, tmp_path / "distill").losses
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    reflow = fit(new_unet(0), ReflowBatches(triplets, states, 4, 0), reflow_step, config, tmp_path / "reflow").losses
    assert sum(reflow[-5:]) < 0.9 * sum(reflow[:5])
