"""Trainings as processes of their own: killed, stopped, two at a time."""

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import FSDP2, ROOT, content, start, start_two, training, triplets, wait_for

from instaflow_core.__main__ import main
from instaflow_core.weights.checkpoint import load

pytestmark = pytest.mark.slow


def changes(path: Path, count: int) -> Callable[[], bool]:
    """Whether a file has been written so many times from now on."""
    seen = {path.stat().st_mtime_ns if path.exists() else 0}

    def event() -> bool:
        if path.exists():
            seen.add(path.stat().st_mtime_ns)
        return len(seen) > count

    return event


def test_killed_runs_end_as_undisturbed_ones(folder, tmp_path):
    """SIGKILL in the middle of all three commands, twice each, and each started again until it is through."""
    delays = random.Random(0)

    def commands(place: Path) -> list[tuple[list[str], list[Callable[[], Callable[[], bool]]]]]:
        made = triplets(folder, "teacher", "x", "--count", "700", "--steps", "4", "--out", str(place / "set"))
        many = ("--iterations", "60", "--checkpoint-every", "5", "--sample-every", "20", "--resume")
        reflow = training("reflow", folder, "teacher", str(place / "2rf.safetensors"), *many, of=place / "set")
        many += ("--on-policy", "0.5")
        distill = training("distill", place, "2rf", "one.safetensors", *many, of="set")
        shards = [lambda name=name: (place / "set" / name).exists for name in ("set.json", "shard-000000.parquet")]

        def states(run: str) -> list[Callable[[], Callable[[], bool]]]:
            return [lambda n=n: changes(place / f"{run}.training" / "state.pt", n) for n in (1, 4)]

        return [(made, shards), (reflow, states("2rf")), (distill, states("one"))]

    for command, _ in commands(tmp_path / "whole"):
        assert main(command) == 0
    (tmp_path / "killed").mkdir()
    for command, events in commands(tmp_path / "killed"):
        for event in events:
            happened, process = event(), start("-m", "instaflow_core", *command)
            wait_for(happened, process)
            time.sleep(delays.uniform(0, 0.3))  # into the work of the next shard or steps
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert start("-m", "instaflow_core", *command).wait() == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def losses(place: Path, name: str) -> torch.Tensor:
    lines = (place / f"{name}.training" / "loss.csv").read_text().splitlines()[1:]
    return torch.tensor([float(line.split(",")[1]) for line in lines])


def test_two_processes_give_what_one_gives(folder, tmp_path):
    made = triplets(folder, "teacher", "shared-set", "--count", "600")
    assert main([*made, "--out", str(tmp_path / "one-set")]) == 0
    assert start_two("-m", "instaflow_core", *made, "--out", str(tmp_path / "two-set")).wait() == 0
    assert content(tmp_path / "one-set") == content(tmp_path / "two-set")
    for stage, init, more in (("reflow", "teacher", ()), ("distill", "flow", ("--on-policy", "0.5"))):
        command = training(stage, folder, init, "x", "--sample-every", "0", *more)
        assert main([*command, "--out", str(tmp_path / f"{stage}-1.safetensors")]) == 0
        two = start_two("-m", "instaflow_core", *command, "--out", str(tmp_path / f"{stage}-2.safetensors"))
        assert two.wait() == 0
        torch.testing.assert_close(losses(tmp_path, f"{stage}-2"), losses(tmp_path, f"{stage}-1"))
        one, two = (load(tmp_path / f"{stage}-{n}.safetensors").unet for n in (1, 2))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("more", "first"),
    [((), True), (("--method", "lora", "--rank", "4"), False)],
    ids=["full, begun in shards", "lora, ended in shards"],
)
def test_processes_that_shard_the_weights_give_what_one_gives(folder, tmp_path, more, first):
    """Two begin in shards what one ends, which has the weights whole, and the other way round."""
    command = training("reflow", folder, "teacher", "x", *more)

    def run(name: str, iterations: int, sharded: bool) -> None:
        arguments = [*command, "--iterations", str(iterations), "--resume", "--out", str(tmp_path / name)]
        if sharded:
            assert start_two("-m", "instaflow_core", *arguments, **FSDP2).wait() == 0
        else:
            assert main(arguments) == 0

    run("whole.safetensors", 6, sharded=False)
    run("both.safetensors", 3, sharded=first)
    (tmp_path / "both.safetensors").unlink()
    run("both.safetensors", 6, sharded=not first)
    torch.testing.assert_close(losses(tmp_path, "both"), losses(tmp_path, "whole"))
    one, two = (load(tmp_path / f"{name}.safetensors").unet for name in ("whole", "both"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-3)
    sheets = [sorted(p.name for p in (tmp_path / f"{name}.training/samples").iterdir()) for name in ("whole", "both")]
    assert sheets[0] == sheets[1] == ["000003.png", "000006.png"]


def test_two_processes_agree_on_when_to_stop_and_where_to_go_on(tmp_path):
    assert start_two(str(ROOT / "tests" / "support" / "agreeing_runs.py"), str(tmp_path)).wait() == 0
    for rank in range(2):
        met = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (met["stopped"], met["last"], met["same"]) == (6, 12, True)
        assert "checkpoints of different steps" in met["refused"] and "[12, 0]" in met["refused"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_checkpoint_of_that_step(folder: Path, number: signal.Signals) -> None:
    name = f"stopped-{number.name}"
    endless = (
        "--iterations",
        "100000",
        "--checkpoint-every",
        "0",
        "--checkpoint-minutes",
        "1000",
        "--sample-every",
        "2",
    )
    process = start("-m", "instaflow_core", *training("reflow", folder, "teacher", f"{name}.safetensors", *endless))
    work = folder / f"{name}.training"
    wait_for((work / "samples" / "000002.png").exists, process)
    assert not (work / "state.pt").exists()
    process.send_signal(number)
    assert process.wait() == 130
    state = torch.load(work / "state.pt", weights_only=True)
    assert state["step"] == len(state["losses"]) > 1


def test_a_second_ctrl_c_ends_at_once_even_where_a_step_hangs():
    code = (
        "import ctypes, sys\n"
        "from instaflow_core.commands.loop import stopping\n"
        "lock, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)\n"
        "with stopping():\n"
        "    library.pthread_mutex_lock(lock)\n"
        "    print('hangs', file=sys.stderr, flush=True)\n"
        "    library.pthread_mutex_lock(lock)\n"  # as in a library that waits for another process
    )
    process = start("-c", code, errors=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline() == b"hangs\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # as a launcher passes on what the terminal has sent
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(timeout=10) == 130
    finally:
        process.kill()
