"""Two that write in one place at once: trainings, makers of one set, savers of one name."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_models import small_checkpoint
from small_runs import content, training

from instaflow_core.__main__ import main
from instaflow_core.atomic import add, replacing
from instaflow_core.locks import LOCK_FILE, InUse, abandoned, alone_in, in_hand
from instaflow_core.training.config import LoopConfig, StageConfig
from instaflow_core.training.runs import train
from instaflow_core.triplets.storage import Storage
from instaflow_core.weights.files import read_weights

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")


@pytest.mark.slow
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_second_training_in_a_folder_is_refused_and_the_first_goes_on(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], resume: list[str]
) -> None:
    out = tmp_path / "one.safetensors"
    command = training("reflow", begun, "teacher", "x", "--iterations", "3", *resume, "--out", str(out))
    config = StageConfig("reflow", LoopConfig(3, 1e-3, 2, ema=0.9, checkpoint_every=1), batch_size=4)
    said = list[str]()

    def second(step: int, _: float) -> None:
        before = content(tmp_path)
        assert main(command) == 2
        said.append(capsys.readouterr().err)
        assert content(tmp_path) == before

    train(small_checkpoint("teacher", "epsilon"), [Storage(begun / "teacher-set")], config, out, progress=second)
    assert len(said) == 3
    for line in said:
        assert f"Another run is at work in {tmp_path / 'one.training'}. Wait for its end or stop it" in line
    assert read_weights(out)


@posix
def test_another_process_holds_a_folder_as_long_as_it_lives(tmp_path: Path) -> None:
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with alone_in(tmp_path / "run"):
            os.write(tell, b"held")
            signal.pause()
        os._exit(0)
    os.read(told, 4)
    with pytest.raises(InUse, match="Another run is at work"), alone_in(tmp_path / "run"):
        pass
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert (tmp_path / "run" / LOCK_FILE).exists()
    with alone_in(tmp_path / "run"):
        pass


def test_a_lock_file_that_was_copied_or_left_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).write_text("12345")
    for _ in range(2):
        with alone_in(tmp_path / "run"):
            pass


def test_many_writers_of_one_name_leave_one_of_theirs_whole(tmp_path: Path) -> None:
    def write(number: int) -> None:
        with replacing(tmp_path / "it") as temporary:
            temporary.write_bytes(bytes([number]) * 100_000)

    with ThreadPoolExecutor(4) as pool:
        [*pool.map(write, range(40))]
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    there = (tmp_path / "it").read_bytes()
    assert len(set(there)) == 1 and len(there) == 100_000


def test_many_who_save_under_one_prefix_get_a_name_each(tmp_path: Path) -> None:
    def save(number: int) -> Path:
        names = (tmp_path / f"saved_{i}" for i in range(100))
        return add(names, lambda temporary: temporary.write_bytes(bytes([number])) and None)

    with ThreadPoolExecutor(4) as pool:
        names = [*pool.map(save, range(40))]
    assert {path: path.read_bytes() for path in names} == {path: bytes([i]) for i, path in enumerate(names)}
    assert sorted(tmp_path.iterdir()) == sorted(tmp_path / f"saved_{i}" for i in range(40))


def test_where_no_name_is_left_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileExistsError, match="No name like a is free"):
        add([tmp_path / "a"], lambda temporary: temporary.write_text("new") and None)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.slow
def test_a_server_saves_beside_another_program_that_saves_under_the_same_name(
    host: Any, pack: Any, one_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have counted the files by the time that either writes."""
    import folder_paths

    folder, model = Path(folder_paths.get_output_directory()) / "checkpoints", one_step[0]
    saving, write = pack.nodes.host.saving, pack.nodes.host.saving.write_checkpoint
    save = partial(host.run, "InstaFlowSaveCheckpoint", model=model, filename_prefix="checkpoints/both")

    def write_late(path: Path, **parts: Any) -> None:
        monkeypatch.setattr(saving, "write_checkpoint", write)
        save()
        write(path, **parts)

    monkeypatch.setattr(saving, "write_checkpoint", write_late)
    save()
    assert sorted(p.name for p in folder.glob("*both*")) == ["both_00001_.safetensors", "both_00002_.safetensors"]


def is_abandoned(path: Path) -> bool:
    with abandoned(path) as nobody_has_it:
        return nobody_has_it


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_nobody_has_in_hand_is_abandoned(make: Any, tmp_path: Path) -> None:
    with in_hand(tmp_path / "a", make):
        assert not is_abandoned(tmp_path / "a")
    assert is_abandoned(tmp_path / "a") or sys.platform == "win32"
    assert not is_abandoned(tmp_path / "not there")


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_where_the_system_has_no_such_locks_a_minute_tells(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instaflow_core.locks.fcntl", None)
    with in_hand(tmp_path / "a", make):
        assert not is_abandoned(tmp_path / "a")
    os.utime(tmp_path / "a", (0, 0))
    assert is_abandoned(tmp_path / "a")
