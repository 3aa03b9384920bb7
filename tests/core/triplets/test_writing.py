"""Making sets: the same however often it is stopped and however many make it."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from datasets import load_dataset
from fsspec.implementations.memory import MemoryFileSystem
from small_models import small_checkpoint
from torch import nn

from instaflow_core import locks
from instaflow_core.flow.noise import indexed_noise
from instaflow_core.shapes.making.anatomy import new_text_encoder
from instaflow_core.triplets.format import SET_FILE, SetInfo, format_info, read_info
from instaflow_core.triplets.storage import Storage
from instaflow_core.triplets.writing import (
    SetConfig,
    SetWriter,
    describe_set,
    digest,
    latent_maker,
    make_set,
    native_guidance,
)

INFO = SetInfo(count=23, seed=4, latent_shape=(4, 2, 3), shard_size=5, source={"teacher": "test"})
PROMPTS = ["one", "two, with a comma", "drei Ü"]


def double(prompts: list[str], noise: torch.Tensor) -> torch.Tensor:
    return 2 * noise + torch.tensor([len(p) for p in prompts]).reshape(-1, 1, 1, 1)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows(folder) -> list[dict]:
    """All records, read as anybody would read them."""
    return list(load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", streaming=True))


def test_a_set_is_read_back_by_datasets(tmp_path):
    seen = []
    SetWriter(Storage(tmp_path), INFO).write(PROMPTS, double, batch_size=2, progress=seen.append)
    assert sum(seen) == 23
    assert read_info(Storage(tmp_path)) == INFO
    read = rows(tmp_path)
    assert [row["index"] for row in read] == list(range(23))
    assert [row["text"] for row in read] == [PROMPTS[i % 3] for i in range(23)]
    assert {row["seed"] for row in read} == {4}
    noise = torch.stack([indexed_noise(4, i, (4, 2, 3)) for i in range(23)])
    latents = torch.tensor([row["latent"] for row in read]).reshape(23, 4, 2, 3)
    torch.testing.assert_close(latents, double([row["text"] for row in read], noise), atol=2e-2, rtol=1e-3)


def test_an_interrupted_set_goes_on_and_ends_the_same(tmp_path):
    SetWriter(Storage(tmp_path / "whole"), INFO).write(PROMPTS, double, batch_size=2)

    calls = 0

    def interrupted(prompts: list[str], noise: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return double(prompts, noise)

    for _ in range(6):
        calls = 0
        try:
            SetWriter(Storage(tmp_path / "parts"), INFO).write(PROMPTS, interrupted, batch_size=2)
        except KeyboardInterrupt:
            with pytest.raises(ValueError, match="Run the command that makes this set again"):
                read_info(Storage(tmp_path / "parts"))
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_the_batch_size_does_not_change_the_set(tmp_path):
    for batch_size in (1, 4):
        SetWriter(Storage(tmp_path / str(batch_size)), INFO).write(PROMPTS, double, batch_size)
    assert files(tmp_path / "1") == files(tmp_path / "4")


def test_another_set_is_not_overwritten(tmp_path):
    SetWriter(Storage(tmp_path), INFO).write(PROMPTS, double, 8)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="Choose another folder"):
        SetWriter(Storage(tmp_path), replace(INFO, seed=5)).write(PROMPTS, double, 8)
    assert files(tmp_path) == before


def test_a_set_goes_on_with_another_batch_size(tmp_path):
    """After an out-of-memory error, say."""
    info = replace(INFO, source={"teacher": "test", "batch_size": 8})
    SetWriter(Storage(tmp_path), info)
    smaller = replace(INFO, source={"teacher": "test", "batch_size": 2})
    SetWriter(Storage(tmp_path), smaller).write(PROMPTS, double, 2)
    assert read_info(Storage(tmp_path)) == info


def test_the_teacher_decides_on_the_set_and_a_share_of_empty_prompts_is_told(tmp_path):
    teacher = small_checkpoint("teacher", "epsilon")
    config = SetConfig(count=20, steps=1, guidance=2.0)
    plain = describe_set(teacher, config, PROMPTS)
    assert "empty_share" not in plain.source
    config = replace(config, empty_share=0.1)
    info = describe_set(teacher, config, PROMPTS)
    assert info.source == plain.source | {"empty_share": 0.1}
    make_set(SetWriter(Storage(tmp_path), info), teacher, config, PROMPTS)
    texts = [row["text"] for row in rows(tmp_path)]
    assert [i for i, text in enumerate(texts) if not text] == [9, 19]
    with pytest.raises(ValueError, match="Give a share from 0 to 1"):
        describe_set(teacher, replace(config, empty_share=1.0), PROMPTS)


def test_the_solver_keeps_float32_whatever_the_network_computes_in():
    """In bfloat16 a thousand steps of 0.001 would be rounded away."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=torch.bfloat16))
            self.asked = set[torch.dtype]()

        def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
            self.asked.add(x.dtype)
            return (torch.ones_like(x) * self.weight,)

    unet, noise = Constant(), INFO.noise([0, 1])
    latents = latent_maker(new_text_encoder(0).eval(), unet, "velocity", 1000, 1.0)(["a", "b"], noise)
    torch.testing.assert_close(latents, noise + 1, atol=1e-4, rtol=0)
    assert unet.asked == {torch.bfloat16}


@pytest.mark.parametrize("sides", [{"width": 0}, {"height": 0}, {"width": -8}, {"height": 60}])
def test_a_size_the_autoencoder_cannot_make_is_an_error(sides):
    with pytest.raises(ValueError, match=r"does not fit this autoencoder. Give a multiple of 8, 8 or more"):
        describe_set(small_checkpoint("teacher", "epsilon"), SetConfig(count=1, **sides), PROMPTS)


def test_no_prompts_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        SetWriter(Storage(tmp_path), INFO).write([], double, 8)


def test_an_empty_folder_is_no_set(tmp_path):
    with pytest.raises(ValueError, match="no set of triplets"):
        read_info(Storage(tmp_path))


@pytest.mark.parametrize("processes", [2, 3])
def test_the_number_of_processes_does_not_change_the_set(tmp_path, processes):
    SetWriter(Storage(tmp_path / "one"), INFO).write(PROMPTS, double, 2)
    for part in range(processes):
        SetWriter(Storage(tmp_path / "more"), INFO).write(PROMPTS, double, 2, None, part, processes)
    assert files(tmp_path / "one") == files(tmp_path / "more")


def test_a_set_can_live_on_any_filesystem(tmp_path):
    SetWriter(Storage(tmp_path), INFO).write(PROMPTS, double, 8)
    remote = Storage("memory://bucket/set")
    SetWriter(remote, INFO).write(PROMPTS, double, 8)
    assert read_info(remote) == INFO
    assert {name: remote.read(name) for name in remote.names()} == files(tmp_path)


def test_a_half_written_shard_is_replaced(tmp_path):
    """What a killed writer left goes; what another writer has in hand stays."""
    SetWriter(Storage(tmp_path / "whole"), INFO).write(PROMPTS, double, 2)
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / ".shard-000002.parquet.k3.tmp").write_bytes(b"half a shard")
    in_hand = parts / ".shard-000002.parquet.x7.tmp"
    with locks.in_hand(in_hand, Path.touch):
        in_hand.write_bytes(b"half a shard")
        SetWriter(Storage(parts), INFO).write(PROMPTS, double, 2)
        assert in_hand.read_bytes() == b"half a shard"
    in_hand.unlink()
    assert files(tmp_path / "whole") == files(parts)


def test_a_shard_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a machine that stops may keep the name of a shard and not its content."""
    done, sync, replace_file = list[str](), os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("name"), replace_file(a, b)))
    Storage(tmp_path).write("a", b"content")
    assert done == ["sync", "name"]


@pytest.mark.parametrize("place", ["{}", "memory://together", "renaming://together"])
def test_many_writers_of_one_name_do_not_meet(tmp_path, place):
    """Two commands that were started together on one folder."""
    contents = [bytes([number]) * 200_000 for number in range(4)]
    storage = Storage(place.format(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        for writing in [pool.submit(storage.write, "set.json", contents[i % 4]) for i in range(200)]:
            writing.result()
    assert storage.read("set.json") in contents
    assert storage.names() == {"set.json"}


def test_of_two_sets_begun_at_once_in_one_place_one_gives_up(tmp_path):
    first = SetWriter(Storage(tmp_path), INFO)
    # The second, too, found the place empty, and wrote later.
    Storage(tmp_path).write(SET_FILE, format_info(replace(INFO, seed=5)))
    with pytest.raises(ValueError, match="Choose another folder"):
        first.write(PROMPTS, double, 2)
    assert set(files(tmp_path)) == {SET_FILE}


def test_an_object_store_is_written_to_once(monkeypatch):
    """Its files appear whole, and what it calls moving is a copy and a removal."""

    def moved(*_: Any, **__: Any) -> None:
        raise AssertionError("an object store was asked to move")

    monkeypatch.setattr(MemoryFileSystem, "copy", moved)
    monkeypatch.setattr(MemoryFileSystem, "cp_file", moved)
    storage = Storage("memory://once")
    SetWriter(storage, INFO).write(PROMPTS, double, 8)
    assert read_info(storage) == INFO


class Renaming(MemoryFileSystem):
    """A server of files: it renames, and shows what is written while it is written."""

    protocol = "renaming"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def pipe_file(self, path: str, value: bytes, *_: Any, **__: Any) -> None:
        super().pipe_file(path, value[:1])
        super().pipe_file(path, value)

    def mv(self, path1: str, path2: str, *_: Any, **__: Any) -> None:
        self.store[path2] = self.store.pop(path1)


fsspec.register_implementation("renaming", Renaming, clobber=True)


def test_a_server_of_files_shows_a_shard_when_it_is_whole(monkeypatch):
    storage, write = Storage("renaming://server"), MemoryFileSystem.pipe_file

    def killed(self: Any, path: str, value: bytes, *more: Any) -> None:
        write(self, path, value, *more)
        assert "whole" not in storage.names()
        if len(value) > 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MemoryFileSystem, "pipe_file", killed)
        storage.write("whole", b"content")
    assert "whole" not in storage.names()
    storage.write("whole", b"content")
    assert storage.read("whole") == b"content"


def test_an_unknown_filesystem_is_an_error():
    with pytest.raises(ValueError, match="nowhere://set cannot be opened"):
        Storage("nowhere://set")


def test_other_prompts_have_another_digest():
    assert digest(["a", "b"]) == digest(["a", "b"]) != digest(["a", "c"])


@pytest.mark.parametrize(
    ("stage", "prediction", "said", "guidance"),
    [
        ("teacher", "epsilon", None, 5.0),
        ("teacher", "epsilon", "1.0", 5.0),
        ("teacher", "v", "2.0", 2.0),
        ("2-rectified-flow", "velocity", None, 1.5),
        ("one-step", "velocity", None, 1.0),
    ],
)
def test_a_teachers_own_guidance(stage, prediction, said, guidance):
    teacher = small_checkpoint(stage, prediction)
    teacher.metadata.pop("instaflow.guidance", None)
    teacher.metadata |= {"instaflow.guidance": said} if said else {}
    assert native_guidance(teacher) == guidance
