"""The training loop and the paper's losses, on real small models."""

import importlib.util
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from instaflow_core.flow.convention import interpolate
from instaflow_core.flow.noise import indexed_generator
from instaflow_core.shapes.making.anatomy import new_text_encoder, new_unet
from instaflow_core.training.loop import NonFiniteLoss, TrainConfig, fit
from instaflow_core.training.losses import l2_loss, pseudo_huber_loss, reflow_loss, sample_times
from instaflow_core.training.objectives import (
    PairBatches,
    ReflowBatches,
    TextStates,
    distill_step,
    on_policy_step,
    reflow_step,
)
from instaflow_core.training.share import Share
from instaflow_core.triplets.format import SetInfo, write_triplets
from instaflow_core.triplets.reading import Triplets
from instaflow_core.triplets.storage import Folder

CONFIG = TrainConfig(iterations=12, learning_rate=1e-3, warmup=2, ema=0.9, checkpoint_every=5)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def batch(step: int, share: Share) -> torch.Tensor:
    return torch.randn(8, 3, generator=indexed_generator(1, step))[share.rows(8)]


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
    assert resumed.losses == losses
    assert (tmp_path / "parts" / "loss.csv").read_bytes() == (tmp_path / "whole" / "loss.csv").read_bytes()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name])


def test_the_result_is_the_moving_average(tmp_path):
    module, seen = linear(), []
    fit(module, batch, loss, CONFIG, tmp_path, progress=lambda *_: seen.append(module.weight.detach().clone()))
    assert not torch.equal(module.weight, seen[-1])


def test_cancelling_keeps_the_step_it_happened_at(tmp_path):
    def cancel(step: int, _: float) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(linear(), batch, loss, CONFIG, tmp_path, progress=cancel)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 8


def test_a_leftover_of_a_killed_writer_is_removed(tmp_path):
    (tmp_path / ".state.pt.abc.tmp").write_bytes(b"half a checkpoint")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / ".000020.png.abc.tmp").write_bytes(b"half a picture")
    (tmp_path / ".model.abc.tmp").mkdir()
    (tmp_path / ".model.abc.tmp" / ".unet.abc.tmp").write_bytes(b"half a file of half a folder")
    fit(linear(), batch, loss, CONFIG, tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["loss.csv", "samples", "state.pt"]


@pytest.mark.parametrize(
    ("settings", "about"), [({"learning_rate": 2e-3}, None), ({"iterations": 4}, None), ({}, {"data": "other"})]
)
def test_resuming_with_other_settings_is_an_error(tmp_path, settings, about):
    fit(linear(), batch, loss, CONFIG, tmp_path)
    with pytest.raises(ValueError, match="Resume with the same settings"):
        fit(linear(), batch, loss, replace(CONFIG, **settings), tmp_path, resume=True, about=about)


def test_a_run_at_a_constant_rate_can_be_made_longer(tmp_path):
    whole, parts = linear(), linear()
    fit(whole, batch, loss, replace(CONFIG, iterations=20), tmp_path / "whole")
    fit(linear(), batch, loss, CONFIG, tmp_path / "parts")
    fit(parts, batch, loss, replace(CONFIG, iterations=20), tmp_path / "parts", resume=True)
    assert torch.equal(whole.weight, parts.weight)


def test_accumulation_does_not_change_the_result(tmp_path):
    whole, parts = linear(), linear()
    losses = fit(whole, batch, loss, CONFIG, tmp_path / "whole").losses
    shared = fit(parts, batch, loss, replace(CONFIG, accumulate=4), tmp_path / "parts").losses
    torch.testing.assert_close(torch.tensor(shared), torch.tensor(losses))
    torch.testing.assert_close(parts.weight, whole.weight)


def test_a_batch_that_cannot_be_shared_out_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="multiple of 3"):
        fit(linear(), batch, loss, replace(CONFIG, accumulate=3), tmp_path)


def test_snapshots_see_the_average_and_leave_the_training_alone(tmp_path):
    plain, watched, seen = linear(), linear(), dict[int, torch.Tensor]()
    fit(plain, batch, loss, CONFIG, tmp_path / "plain")
    config = replace(CONFIG, snapshot_every=5)
    fit(watched, batch, loss, config, tmp_path / "w", snapshot=lambda i: seen.update({i: watched.weight.clone()}))
    assert sorted(seen) == [5, 10, 12]
    assert torch.equal(seen[12], plain.weight)
    assert torch.equal(watched.weight, plain.weight)


def test_one_process_can_train_in_one_precision_and_then_in_another(tmp_path):
    fit(linear(), batch, loss, replace(CONFIG, precision="bf16"), tmp_path / "bf16")
    fit(linear(), batch, loss, CONFIG, tmp_path / "fp32")


@pytest.mark.parametrize("name", ["optimizer", "log"])
def test_an_unknown_optimizer_or_log_is_an_error(tmp_path, name):
    with pytest.raises(ValueError, match=f"Unknown {name} 'new'; expected one of"):
        fit(linear(), batch, loss, replace(CONFIG, **{name: "new"}), tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "package"), [("optimizer", "adamw8bit", "bitsandbytes"), ("log", "tensorboard", "tensorboard")]
)
def test_a_missing_package_is_named(tmp_path, name, value, package):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is here")
    with pytest.raises(ValueError, match=f"pip install {package}"):
        fit(linear(), batch, loss, replace(CONFIG, **{name: value}), tmp_path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    def broken(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return loss(module, x) * (float("nan") if torch.equal(x, batch(7, Share())) else 1)

    with pytest.raises(NonFiniteLoss, match="nan at iteration 7"):
        fit(linear(), batch, broken, CONFIG, tmp_path)
    kept = torch.load(tmp_path / "state.pt", weights_only=True)
    assert kept["step"] == 5
    assert all(torch.isfinite(t).all() for t in kept["trained"].values())


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Triplets:
    folder = Folder(tmp_path_factory.mktemp("set"))

    def draw(texts: list[str], noise: torch.Tensor) -> torch.Tensor:
        return noise.flip(0) + len(texts)

    write_triplets(folder, SetInfo(6, 0, (4, 8, 8), shard_size=4), ["a", "b", "c"], draw, batch_size=6)
    return Triplets(folder)


@pytest.fixture(scope="module")
def encoder() -> Any:
    return new_text_encoder(0).eval()


def test_text_is_encoded_once_for_each_prompt(encoder):
    states = TextStates(encoder, ["a", "b", "c", "a", "b", "c"])
    assert len(states.unique) == 3
    rows = states[torch.tensor([0, 3, 1])]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_shares_of_a_batch_make_up_the_batch(triplets, encoder):
    batches = ReflowBatches(triplets, encoder, 4, seed=0)
    whole = batches(5, Share())
    parts = zip(*(batches(5, Share(part, 2)) for part in range(2)), strict=True)
    for tensor, shares in zip(whole, parts, strict=True):
        torch.testing.assert_close(torch.cat(shares), tensor)


def test_reflow_is_zero_for_the_true_velocity_and_asks_the_unet_at_the_right_time(triplets, encoder):
    batches = ReflowBatches(triplets, encoder, 4, seed=0)
    x_0, x_1, text, t = batches(3, Share())
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
def test_distillation_is_zero_for_the_flows_end_and_asks_at_1000(triplets, encoder, distance):
    batch = PairBatches(triplets, encoder, 4)(1, Share())
    x_0, x_1, _ = batch

    def oracle(x, timestep, **_):
        assert torch.equal(x, x_0)
        assert timestep.tolist() == [1000.0] * 4
        return (x_1 - x_0,)

    assert distill_step(distance)(oracle, batch).abs() < 1e-6
    assert distance(x_1 + 0.5, x_1) > distance(x_1 + 0.1, x_1) > 0


def test_on_policy_targets_are_where_the_flow_leads_from_the_students_draft(triplets, encoder):
    batch = ReflowBatches(triplets, encoder, 64, seed=0)(0, Share())
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


@pytest.mark.parametrize(("how", "near_an_end"), [("uniform", 0.2), ("u-shaped", 1 - math.sinh(1.6) / math.sinh(2))])
def test_times_follow_their_density(how, near_an_end):
    """near_an_end: the share of all times below 0.1 or above 0.9, the integral of the density."""
    times = sample_times(20000, torch.Generator().manual_seed(0), how)
    assert 0 <= times.min() <= times.max() <= 1
    for end in (times, 1 - times):
        assert (end < 0.1).float().mean() == pytest.approx(near_an_end / 2, abs=0.01)


def test_reflow_loss_is_the_mean_squared_error_of_the_velocity():
    x_0, x_1 = torch.zeros(2, 4, 2, 2), torch.ones(2, 4, 2, 2)
    assert reflow_loss(torch.full_like(x_0, 3.0), x_0, x_1) == 4.0


def test_both_stages_learn_on_a_real_unet(triplets, encoder, tmp_path):
    config = TrainConfig(iterations=30, learning_rate=1e-3, warmup=2, ema=0.5)
    distill = PairBatches(triplets, encoder, 4)
    losses = fit(new_unet(0), distill, distill_step(l2_loss), config, tmp_path / "distill").losses
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    batches = ReflowBatches(triplets, encoder, 4, 0)
    answered = on_policy_step(l2_loss, new_unet(1), 0.5)
    losses = fit(new_unet(0), batches, answered, config, tmp_path / "on policy").losses
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    reflow = fit(new_unet(0), batches, reflow_step, config, tmp_path / "reflow").losses
    assert sum(reflow[-5:]) < 0.9 * sum(reflow[:5])
