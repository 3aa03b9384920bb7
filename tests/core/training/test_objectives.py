"""The paper's losses: zero for the true answer, asked at the right time, and learned from by a real UNet."""

import pytest
import torch
from torch import nn

from instaflow_core.flow.convention import interpolate
from instaflow_core.shapes.making.anatomy import new_unet
from instaflow_core.training.batches import BatchPart, SetBatches
from instaflow_core.training.config import LoopConfig
from instaflow_core.training.loop import fit
from instaflow_core.training.objectives import (
    distill_step,
    l2_loss,
    on_policy_step,
    pseudo_huber_loss,
    reflow_loss,
    reflow_step,
)


def test_reflow_is_zero_for_the_true_velocity_and_asks_the_unet_at_the_right_time(reader, encoder):
    batches = SetBatches(reader, encoder, 4)
    x_0, x_1, text, t = batches.timed_pairs(3, BatchPart())
    asked = []

    def oracle(x_t, timestep, encoder_hidden_states, return_dict):
        asked.append((x_t, timestep, encoder_hidden_states))
        return (x_1 - x_0,)

    assert reflow_step(oracle, (x_0, x_1, text, t)).tolist() == [0] * 4
    x_t, timestep, used = asked[0]
    assert torch.equal(x_t, interpolate(x_0, x_1, t))
    assert torch.equal(timestep, 1000 * (1 - t))
    assert torch.equal(used, text)
    assert t.min() >= 0
    assert t.max() < 1


@pytest.mark.parametrize("distance", [l2_loss, pseudo_huber_loss])
def test_distillation_is_zero_for_the_flows_end_and_asks_at_1000(reader, encoder, distance):
    batch = SetBatches(reader, encoder, 4).pairs(1, BatchPart())
    x_0, x_1, _ = batch

    def oracle(x, timestep, **_):
        assert torch.equal(x, x_0)
        assert timestep.tolist() == [1000.0] * 4
        return (x_1 - x_0,)

    assert distill_step(distance)(oracle, batch).abs() < 1e-6
    assert distance(x_1 + 0.5, x_1) > distance(x_1 + 0.1, x_1) > 0


def test_on_policy_targets_are_where_the_flow_leads_from_the_students_draft(reader, encoder):
    batch = SetBatches(reader, encoder, 64).timed_pairs(0, BatchPart())
    x_0, x_1, _, times = batch
    drafts, end, asked = x_0 + 1, torch.full_like(x_0, 0.5), []

    class Flow(nn.Module):
        """All its lines end at one point, so each of its steps goes straight there."""

        def forward(self, x_t, timestep, encoder_hidden_states, return_dict):
            asked.append((x_t, 1 - timestep / 1000))
            return ((end[: len(x_t)] - x_t) / (timestep / 1000).view(-1, 1, 1, 1),)

    def student(x, timestep, **_):
        assert timestep.tolist() == [1000.0] * 64
        return (drafts - x,)

    targets = []

    def distance(predicted, wanted):
        torch.testing.assert_close(predicted, drafts)
        targets.append(wanted)
        return (predicted - wanted).square().mean()

    on_policy_step(distance, Flow(), 0.5)(student, batch)
    answered = times < 0.5
    assert 16 < answered.sum() < 48
    torch.testing.assert_close(targets[0][answered], end[answered])
    assert torch.equal(targets[0][~answered], x_1[~answered])
    x_t, t = asked[0]
    torch.testing.assert_close(x_t, interpolate(x_0, drafts, torch.zeros(64).masked_scatter(answered, t))[answered])
    assert 0.35 <= t.min() < t.max() <= 0.65
    assert len(asked) == 2


def test_reflow_loss_is_the_mean_squared_error_of_the_velocity():
    x_0, x_1 = torch.zeros(2, 4, 2, 2), torch.ones(2, 4, 2, 2)
    predicted = torch.stack([torch.full((4, 2, 2), 3.0), torch.ones(4, 2, 2)])
    assert reflow_loss(predicted, x_0, x_1).tolist() == [4.0, 0.0]


@pytest.mark.slow
def test_both_stages_learn_on_a_real_unet(reader, encoder, tmp_path):
    config = LoopConfig(iterations=30, learning_rate=1e-3, warmup=2, ema=0.5)
    batches = SetBatches(reader, encoder, 4)
    losses = fit(new_unet(0), batches.pairs, distill_step(l2_loss), config, tmp_path / "distill").losses
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    answered = on_policy_step(l2_loss, new_unet(1), 0.5)
    losses = fit(new_unet(0), batches.timed_pairs, answered, config, tmp_path / "on policy").losses
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    reflow = fit(new_unet(0), batches.timed_pairs, reflow_step, config, tmp_path / "reflow").losses
    assert sum(reflow[-5:]) < 0.9 * sum(reflow[:5])
