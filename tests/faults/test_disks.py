"""Disks that are full or read-only while something is written: nothing is corrupt, nothing half-written is left, and
with room again it ends as if there had always been."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_jobs import JOBS
from small_runs import content

from instaflow_core.training.state import read_state
from instaflow_core.triplets import writing
from instaflow_core.weights.files import read_weights

if sys.platform == "win32":
    pytest.skip("Windows has neither mounts nor limits of a process", allow_module_level=True)

from small_disks import Limited, Tmpfs, may_mount

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place where all jobs are done."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "SetInfo", partial(writing.SetInfo, shard_size=3))  # several shards of few
        for job in JOBS.values():
            assert job(begun, place) == 0
        yield place


@pytest.fixture(params=[Tmpfs, Limited], ids=["a small disk", "a limit of the process"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tmpfs | Limited]:
    if request.param is Tmpfs and not may_mount(tmp_path / "tried"):
        pytest.skip("this user may not mount: the limit of the process stands in for a small disk")
    with request.param(tmp_path / "disk") as made:
        yield made


def check_whole(place: Path) -> None:
    """Whatever is there under its own name can be read, and there is nothing else."""
    assert not [*place.rglob(".*.tmp"), *place.rglob(".*.old")]
    for path in place.rglob("*.safetensors"):
        read_weights(path)
    for path in place.rglob("state.pt"):
        assert read_state(path)["step"]


@pytest.mark.parametrize("name", JOBS)
def test_what_a_full_disk_refused_is_told_and_gone_on_with(
    begun: Path, whole: Path, disk: Tmpfs | Limited, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = disk.folder
    if name == "merge":
        assert JOBS["extract"](begun, place) == 0
    results = {*content(whole)} - {*content(place)}
    largest = max((whole / key).stat().st_size for key in results if key.split("/")[0].split(".")[0] in RESULTS[name])
    refused = 0
    for size in (0, largest // 2, largest + 4096) if isinstance(disk, Tmpfs) else (largest // 2,):
        disk.holds(size)
        ended = JOBS[name](begun, place)
        said = capsys.readouterr().err.strip().splitlines()
        check_whole(place)
        if ended == 0:
            continue
        refused += 1
        assert ended == 2
        assert f"error: {place}" in said[-1], said
        assert ("the disk is full" if isinstance(disk, Tmpfs) else "no file may be that large there") in said[-1]
        assert "run it again" in said[-1]
    disk.holds(1 << 30)
    assert JOBS[name](begun, place) == 0
    assert refused
    there = content(place)
    assert there == {key: value for key, value in content(whole).items() if key in there}
    assert {key for key in content(whole) if key.split("/")[0].split(".")[0] in RESULTS[name]} <= there.keys()


RESULTS = {
    "triplets": {"set"},
    "reflow": {"2rf"},
    "lora": {"lora"},
    "folder": {"one-step"},
    "convert": {"converted"},
    "extract": {"d"},
    "merge": {"m"},
    "generate": {"a-1", "a-2"},
}
"""What each job writes, by the names' beginnings."""


@pytest.mark.parametrize("name", JOBS)
def test_a_read_only_folder_keeps_what_it_has_and_is_told(
    begun: Path, whole: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not may_mount(tmp_path / "tried"):
        pytest.skip("this user may not mount, and there is no other way that root's writing is refused")
    with Tmpfs(tmp_path / "disk") as disk:
        assert JOBS["extract"](begun, disk.folder) == 0
        if name == "generate":
            assert JOBS[name](begun, disk.folder) == 0
        before = content(disk.folder)
        disk.closes()
        assert JOBS[name](begun, disk.folder) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"error: {disk.folder}" in said and "that place is read-only" in said
        assert content(disk.folder) == before
        disk.holds(1 << 30)
        assert JOBS[name](begun, disk.folder) == 0


def test_a_node_saves_whole_or_not_at_all(host: Any, one_step: Any, disk: Tmpfs | Limited) -> None:
    """The library that the host writes with has errors of its own."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(disk.folder))

    def save() -> None:
        model, clip, vae = one_step
        host.run("InstaFlowSaveCheckpoint", model=model, clip=clip, vae=vae, filename_prefix="checkpoints/saved")

    try:
        save()
        for size in (4096, 1 << 20):
            disk.holds(size)
            with pytest.raises(OSError, match=r"saved_0000._.safetensors could not be written: .* run it again"):
                save()
            check_whole(disk.folder)
            assert len(content(disk.folder)) == 1
        disk.holds(1 << 30)
        save()
    finally:
        folder_paths.set_output_directory(before)
    names = sorted(path.name for path in (disk.folder / "checkpoints").iterdir())
    assert names == ["saved_00001_.safetensors", "saved_00002_.safetensors"]
