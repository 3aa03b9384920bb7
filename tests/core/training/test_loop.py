"""The training loop, on a linear model."""

import contextlib
import gc
import importlib.util
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel

from instaflow_core.flow.noise import indexed_generator
from instaflow_core.training import loop, trainee
from instaflow_core.training.accelerator import LOGGERS, own_state
from instaflow_core.training.batches import BatchPart
from instaflow_core.training.config import LoopConfig
from instaflow_core.training.loop import fit
from instaflow_core.training.trainee import NonFiniteLoss

# Each trains something.
pytestmark = pytest.mark.slow

CONFIG = LoopConfig(iterations=12, learning_rate=1e-3, warmup=2, ema=0.9, checkpoint_every=5)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def batch(step: int, part: BatchPart) -> torch.Tensor:
    return torch.randn(8, 3, generator=indexed_generator(1, step))[part.rows(8)]


def loss(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (module(x) - x[:, :2]).square().mean()


def test_training_lowers_the_loss(tmp_path):
    result = fit(linear(), batch, loss, LoopConfig(400, learning_rate=1e-2, warmup=1, ema=0.9), tmp_path)
    assert len(result.losses) == 400
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


def timed(step: int, part: BatchPart) -> tuple[torch.Tensor, torch.Tensor]:
    return batch(step, part), torch.rand(8, generator=indexed_generator(2, step))[part.rows(8)]


def each_loss(module: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, t = inputs
    return (module(x) - x[:, :2]).square().mean(1) + 10 * (t < 0.1)


def test_losses_by_time_are_those_of_each_row_and_resume_bit_for_bit(tmp_path):
    config = replace(CONFIG, iterations=120)
    whole = fit(linear(), timed, each_loss, config, tmp_path / "whole", times=lambda inputs: inputs[1])
    assert [done for done, _ in whole.by_time] == list(range(2, 121, 2))
    means = torch.tensor([row for _, row in whole.by_time]).nanmean(0)
    assert means[0] > 10 > 2 > means[1:].max()
    fit(linear(), timed, each_loss, replace(config, iterations=51), tmp_path / "parts", times=lambda inputs: inputs[1])
    fit(linear(), timed, each_loss, config, tmp_path / "parts", resume=True, times=lambda inputs: inputs[1])
    lines = [(tmp_path / name / "loss_by_time.csv").read_text().splitlines() for name in ("whole", "parts")]
    assert len(lines[0]) == 61
    assert lines[1][-30:] == lines[0][-30:]  # before, the shorter run had shorter rows


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler on the CPU, and there is none")
def test_a_compiled_run_is_the_run(tmp_path):
    plain, compiled = linear(), linear()
    losses = fit(plain, batch, loss, CONFIG, tmp_path / "plain").losses
    made = fit(compiled, batch, loss, replace(CONFIG, compile=True), tmp_path / "compiled").losses
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(made, losses)
    torch.testing.assert_close(compiled.weight, plain.weight)
    assert "_orig_mod" not in "".join(torch.load(tmp_path / "compiled" / "state.pt", weights_only=True)["trained"])


def test_the_result_is_the_moving_average_of_the_decay_given(tmp_path):
    module, seen = linear(), []
    fit(module, batch, loss, CONFIG, tmp_path, progress=lambda *_: seen.append(module.weight.detach().clone()))
    assert not torch.equal(module.weight, seen[-1])
    average = seen[0]
    for weight in seen[1:]:
        average = 0.9 * average + 0.1 * weight
    torch.testing.assert_close(module.weight, average)


def test_only_what_is_trained_is_averaged(tmp_path):
    module = nn.Sequential(linear().requires_grad_(False), nn.Linear(2, 2))
    fit(module, batch, loss, CONFIG, tmp_path)
    average = torch.load(tmp_path / "state.pt", weights_only=True)["average"]
    assert [tuple(tensor.shape) for name, tensor in average.items() if name != "n_averaged"] == [(2, 2), (2,)]


def test_a_checkpoint_of_the_former_format_is_refused_with_words(tmp_path):
    old = {"optimizer": {}, "schedule": {}, "average": {"shadow_params": []}, "trained": {}, "config": {}, "step": 5}
    torch.save(old, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="is of another version of this pack"):
        fit(linear(), batch, loss, CONFIG, tmp_path, resume=True)


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
    ("settings", "origin"), [({"learning_rate": 2e-3}, None), ({"iterations": 4}, None), ({}, {"data": "other"})]
)
def test_resuming_with_other_settings_is_an_error(tmp_path, settings, origin):
    fit(linear(), batch, loss, CONFIG, tmp_path)
    with pytest.raises(ValueError, match="Resume with the same settings"):
        fit(linear(), batch, loss, replace(CONFIG, **settings), tmp_path, resume=True, origin=origin)


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
    computed = list[torch.dtype]()

    def watched(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        computed.append((x @ torch.ones(3, 1)).dtype)
        return loss(module, x)

    fit(linear(), batch, watched, replace(CONFIG, precision="bf16"), tmp_path / "bf16")
    fit(linear(), batch, watched, CONFIG, tmp_path / "fp32")
    assert computed == [torch.bfloat16] * 12 + [torch.float32] * 12


def test_what_the_launcher_says_is_obeyed(tmp_path, monkeypatch):
    """Its precision where none is given; its accumulation is not taken off the loss a second time."""
    computed = list[torch.dtype]()

    def watched(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        computed.append((x @ torch.ones(3, 1)).dtype)
        return loss(module, x)

    plain, launched = linear(), linear()
    fit(plain, batch, watched, replace(CONFIG, precision="bf16"), tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    fit(launched, batch, watched, CONFIG, tmp_path / "launched")
    assert computed == [torch.bfloat16] * 24
    assert torch.equal(plain.weight, launched.weight)
    fit(linear(), batch, watched, replace(CONFIG, precision="no"), tmp_path / "said")
    assert computed[24:] == [torch.float32] * 12


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "launched with DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP's first version"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP's first version"),
    ],
)
def test_a_launch_that_shards_the_weights_otherwise_is_refused_by_name(tmp_path, monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        fit(linear(), batch, loss, CONFIG, tmp_path)


def test_half_precision_on_the_cpu_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="The CPU does not train in fp16"):
        fit(linear(), batch, loss, replace(CONFIG, precision="fp16"), tmp_path, device="cpu")


def test_a_run_in_half_precision_resumes_bit_for_bit_and_leaves_a_module_that_computes_in_float32(tmp_path):
    config, whole, parts = replace(CONFIG, precision="bf16"), linear(), linear()
    fit(whole, batch, loss, config, tmp_path / "whole")
    fit(linear(), batch, loss, replace(config, iterations=5), tmp_path / "parts")
    fit(parts, batch, loss, config, tmp_path / "parts", resume=True)
    assert torch.equal(whole.weight, parts.weight)
    assert set(vars(whole)) == set(vars(linear())) | {"_is_accelerate_prepared"}
    x = batch(0, BatchPart())
    with torch.no_grad():
        assert torch.equal(whole(x), nn.functional.linear(x, whole.weight, whole.bias))


@pytest.mark.parametrize("cancelled", [False, True])
def test_nothing_of_a_run_is_alive_after_it(tmp_path, monkeypatch, cancelled):
    alive = list[weakref.ref[Any]]()

    def watched(make: Any) -> Any:
        def made(*arguments: Any, **more: Any) -> Any:
            alive.append(weakref.ref(new := make(*arguments, **more)))
            return new

        return made

    def cancel(*_: Any) -> None:
        if cancelled:
            raise KeyboardInterrupt

    class Batches:
        def make(self, step: int, part: BatchPart) -> torch.Tensor:
            return batch(step, part)

    monkeypatch.setattr(trainee, "new_optimizer", watched(trainee.new_optimizer))
    monkeypatch.setattr(trainee, "AveragedModel", watched(AveragedModel))

    def train() -> None:
        module, batches = linear(), Batches()
        alive.extend(map(weakref.ref, (module, module.weight, batches)))
        with contextlib.suppress(KeyboardInterrupt):
            fit(module, batches.make, loss, CONFIG, tmp_path, progress=cancel)

    train()
    assert len(alive) == 5
    assert [ref() for ref in alive] == [None] * 5


def test_a_checkpoint_is_written_after_so_many_minutes(tmp_path):
    stored = []

    def look(step: int, _: float) -> None:
        stored.append((tmp_path / "state.pt").exists())

    config = replace(CONFIG, checkpoint_every=0)
    fit(linear(), batch, loss, config, tmp_path, progress=look)
    assert stored == [False] * 12
    (tmp_path / "state.pt").unlink()
    stored.clear()
    fit(linear(), batch, loss, replace(config, checkpoint_minutes=1e-9), tmp_path, progress=look)
    assert stored == [False] + [True] * 11


def test_a_run_killed_between_sheet_and_checkpoint_shows_the_sheet_again(tmp_path):
    class Killed(BaseException):
        pass

    def kill(step: int) -> None:
        """At the checkpoint of step 5, which would follow its sheet."""
        raise Killed

    shown, config = list[int](), replace(CONFIG, snapshot_every=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "store", lambda run: kill(run.done))
        with pytest.raises(Killed):
            fit(linear(), batch, loss, config, tmp_path, snapshot=shown.append)
    fit(linear(), batch, loss, config, tmp_path, resume=True, snapshot=shown.append)
    assert shown == [5, 5, 10, 12]


def test_a_sheet_that_fails_leaves_a_checkpoint(tmp_path):
    def fail(step: int) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        fit(linear(), batch, loss, replace(CONFIG, snapshot_every=4), tmp_path, snapshot=fail)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4
    shown = list[int]()
    fit(linear(), batch, loss, replace(CONFIG, snapshot_every=4), tmp_path, True, snapshot=shown.append)
    assert shown == [4, 8, 12]


def test_asked_to_stop_a_run_ends_with_a_checkpoint_of_that_step(tmp_path):
    steps = list[int]()
    with pytest.raises(KeyboardInterrupt):
        fit(
            linear(), batch, loss, CONFIG, tmp_path,
            progress=lambda step, _: steps.append(step), stop=lambda: len(steps) == 6,
        )  # fmt: skip
    assert steps[-1] == torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 7


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_no_view_of_the_checkpoint_is_left_after_resuming(tmp_path):
    """Where a mapped file cannot be replaced, the next checkpoint could not be written."""
    fit(linear(), batch, loss, replace(CONFIG, iterations=6), tmp_path)
    mapped = []

    def look(*_: Any) -> None:
        gc.collect()
        mapped.append(str(tmp_path / "state.pt") in Path("/proc/self/maps").read_text())

    fit(linear(), batch, loss, CONFIG, tmp_path, resume=True, progress=look)
    assert mapped == [False] * 6


def test_a_checkpoint_that_knows_fewer_settings_goes_on(tmp_path):
    """An older version of this pack wrote it: what it did not know was as it is by default."""
    fit(linear(), batch, loss, replace(CONFIG, iterations=6), tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["settings"]["grad_clip"]
    torch.save(state, tmp_path / "state.pt")
    assert len(fit(linear(), batch, loss, CONFIG, tmp_path, resume=True).losses) == 12
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"made with grad_clip 1\.0, and this run has grad_clip 2\.0"):
        fit(linear(), batch, loss, replace(CONFIG, grad_clip=2.0), tmp_path, resume=True)


def test_another_users_state_of_accelerate_is_as_it_was(tmp_path):
    with own_state():
        theirs = Accelerator(mixed_precision="bf16", cpu=True)
        state = dict(theirs.state.__dict__)
        fit(linear(), batch, loss, CONFIG, tmp_path)
        assert theirs.state.__dict__ == state
        assert theirs.mixed_precision == "bf16"


@pytest.mark.parametrize("name", ["optimizer", "log"])
def test_an_unknown_optimizer_or_log_is_an_error(tmp_path, name):
    with pytest.raises(ValueError, match=f"Unknown {name} 'new'; expected one of"):
        fit(linear(), batch, loss, replace(CONFIG, **{name: "new"}), tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "package"),
    [("optimizer", "adamw8bit", "bitsandbytes"), *(("log", name, name) for name in LOGGERS[1:])],
)
def test_a_missing_package_is_named(tmp_path, name, value, package):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is here")
    with pytest.raises(ValueError, match=f"pip install {package}"):
        fit(linear(), batch, loss, replace(CONFIG, **{name: value}), tmp_path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    def broken(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return loss(module, x) * (float("nan") if torch.equal(x, batch(7, BatchPart())) else 1)

    with pytest.raises(NonFiniteLoss, match="nan at iteration 7"):
        fit(linear(), batch, broken, CONFIG, tmp_path)
    kept = torch.load(tmp_path / "state.pt", weights_only=True)
    assert kept["step"] == 5
    assert all(torch.isfinite(t).all() for t in kept["trained"].values())
