"""`download`: the released weights from a hub to the folder they belong in, whatever happens on the way."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub import Hub, files_of, serving
from small_models import small_checkpoint

from instaflow_core import __main__ as cli
from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.saving import save_folder

ROOT = Path(__file__).resolve().parents[3]
NAME = "instaflow_0_9B_from_sd_1_5"
UNET = "unet/diffusion_pytorch_model.safetensors"
NOT_NEEDED = ("README.md", "safety_checker/model.safetensors", "unet/diffusion_pytorch_model.bin", ".gitattributes")


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository laid out as the released one, its weights small and random."""
    folder = tmp_path_factory.mktemp("repository") / NAME
    save_folder(small_checkpoint(), folder)
    return files_of(folder) | dict.fromkeys(NOT_NEEDED, b"nobody needs this")


@pytest.fixture
def hub(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that the library asks: what HF_ENDPOINT says to a program of its own."""
    with serving(Hub(f"XCLiu/{NAME}", dict(contents))) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


@pytest.fixture
def large(hub: Hub) -> Hub:
    """A file of weights that takes several of the blocks in which the library writes them."""
    hub.files[UNET] = random.Random(0).randbytes(3 * huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE)
    return hub


def download(folder: Path, *more: str) -> int:
    return cli.main(["download", "instaflow", "--accept-licence", "--to", str(folder), *more])


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "instaflow_core", "download", "instaflow", *map(str, arguments)]


def needed(hub: Hub) -> dict[str, bytes]:
    return {name: content for name, content in hub.files.items() if name not in NOT_NEEDED}


def test_the_folder_holds_what_is_needed_and_nothing_else(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models" / "diffusers" / NAME
    assert download(folder) == 0
    said = capsys.readouterr()
    assert said.out == f"{folder}\n", "a command ends with what it wrote"
    assert "CC-BY-NC-4.0" in said.err and "creativecommons.org" in said.err
    assert files_of(folder) == needed(hub)
    assert [path.name for path in folder.parent.iterdir()] == [NAME], "nothing half-written stays"
    assert hub.asked[-1][0] == "model_index.json", "until it is whole, it is no model for ComfyUI"
    assert load(folder).stage == "one-step"


def test_one_that_is_there_is_verified_and_not_fetched_again(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / NAME
    download(folder)
    hub.asked.clear()
    capsys.readouterr()
    assert cli.main(["download", "instaflow", "--to", str(folder)]) == 0, "the licence was accepted before"
    said = capsys.readouterr()
    assert (said.out, hub.asked) == (f"{folder}\n", [])
    assert "already there, verified" in said.err


@pytest.mark.parametrize("name", [UNET, "tokenizer/merges.txt"])
def test_one_that_is_there_and_damaged_is_said_and_left_alone(
    name: str, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / NAME
    download(folder)
    content = (folder / name).read_bytes()
    damaged = bytes([content[0] ^ 1]) + content[1:]
    (folder / name).write_bytes(damaged)
    (folder / "vae" / "config.json").unlink()
    message = refused(capsys, folder)
    assert name in message and "vae/config.json" in message and "Move the folder away" in message
    assert (folder / name).read_bytes() == damaged


def test_a_connection_that_is_cut_is_taken_up_again(large: Hub, tmp_path: Path) -> None:
    large.cut.add(UNET)
    assert download(tmp_path / NAME) == 0
    first, second = (start for name, start in large.asked if name == UNET)
    assert first == 0 < second < len(large.files[UNET])
    assert files_of(tmp_path / NAME) == needed(large)


@pytest.mark.slow
def test_a_download_that_was_killed_goes_on_in_the_middle_of_a_file(large: Hub, tmp_path: Path) -> None:
    """A program of its own, which finds the hub by HF_ENDPOINT."""
    folder = tmp_path / NAME
    command, environment = program("--accept-licence", "--to", folder), os.environ | {"HF_ENDPOINT": large.url}
    large.stalled.add(UNET)
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    part = tmp_path / f".{NAME}.part" / UNET
    try:
        assert large.halfway.wait(60)
        while not (part.is_file() and part.stat().st_size):  # what was sent is also to be written
            assert running.poll() is None
            time.sleep(0.02)
    finally:
        running.kill()
        running.wait()
    assert not folder.exists()
    kept = part.stat().st_size
    large.stalled.clear()
    large.release.set()
    large.asked.clear()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{folder}\n")
    assert (UNET, kept) in large.asked and 0 < kept < len(large.files[UNET])
    names = [name for name, _ in large.asked]
    assert "text_encoder/model.safetensors" not in names and len(names) == len(set(names)), "no file is fetched twice"
    assert files_of(folder) == needed(large)


def test_what_arrives_damaged_is_removed_and_fetched_again(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / NAME
    hub.damaged |= {UNET, "unet/config.json"}
    message = refused(capsys, folder)
    assert UNET in message and "unet/config.json" in message and "checksum" in message
    assert not folder.exists()
    hub.damaged.clear()
    hub.asked.clear()
    assert download(folder) == 0
    assert sorted(hub.asked) == [("unet/config.json", 0), (UNET, 0)]
    assert files_of(folder) == needed(hub)


def test_what_is_left_of_a_larger_state_of_the_repository_is_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    left = tmp_path / f".{NAME}.part" / UNET
    left.parent.mkdir(parents=True)
    left.write_bytes(hub.files[UNET] + b"more")
    assert download(tmp_path / NAME) == 0
    assert files_of(tmp_path / NAME) == needed(hub)


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "hf auth login"), (403, "its terms"), (404, "does not give"), (503, "HTTP 503"), (429, "run this again")],
)
def test_a_hub_that_refuses(
    status: int, says: str, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.status = status
    assert says in refused(capsys, tmp_path / NAME)
    assert list(tmp_path.iterdir()) == []


def test_no_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "No connection to http://127.0.0.1:1" in refused(capsys, tmp_path / NAME)


def test_a_repository_without_safetensors(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del hub.files[UNET]
    message = refused(capsys, tmp_path / NAME)
    assert f"has no {UNET}" in message
    assert hub.asked == []


def test_too_little_room_is_seen_before_anything_is_fetched(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.sizes[UNET] = shutil.disk_usage(tmp_path).total * 2
    message = refused(capsys, tmp_path / NAME)
    assert "GB are free" in message and "--to" in message
    assert hub.asked == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_disk_that_fills_up_on_the_way(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = tmp_path / f".{NAME}.part" / UNET
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    message = refused(capsys, tmp_path / NAME)
    assert "The disk is full" in message and "is kept" in message
    assert not (tmp_path / NAME).exists()


def test_a_folder_of_something_else_is_left_alone(hub: Hub, tmp_path: Path, capsys) -> None:
    (tmp_path / "another model").mkdir()
    message = refused(capsys, tmp_path)
    assert "holds something else" in message and str(tmp_path / NAME) in message
    assert [path.name for path in tmp_path.iterdir()] == ["another model"]


# --- the licence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("Yes\n", 0), ("n\n", 2), ("\n", 2)])
def test_the_licence_is_asked_on_a_terminal(
    answer: str,
    code: int,
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pty = pytest.importorskip("pty", reason="Windows has no such terminals")
    terminal, inside = pty.openpty()
    os.write(terminal, answer.encode())
    with open(inside, encoding="utf-8") as keyboard:
        monkeypatch.setattr(sys, "stdin", keyboard)
        assert cli.main(["download", "instaflow", "--to", str(tmp_path / NAME)]) == code
    os.close(terminal)
    said = capsys.readouterr()
    assert "CC-BY-NC-4.0" in said.err and "[y/N]" in said.err
    assert said.out == (f"{tmp_path / NAME}\n" if code == 0 else "")
    assert (tmp_path / NAME).is_dir() == bool(hub.asked) == (code == 0)


def test_without_a_terminal_the_licence_has_to_be_accepted_by_name(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull, encoding="utf-8") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert cli.main(["download", "instaflow", "--to", str(tmp_path / NAME)]) == 2
    said = capsys.readouterr().err
    assert "--accept-licence" in said.splitlines()[-1] and "CC-BY-NC-4.0" in said
    assert hub.asked == []


# --- where it belongs -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_in_custom_nodes_the_folder_goes_to_that_comfyuis_models(hub: Hub, tmp_path: Path) -> None:
    pack = tmp_path / "ComfyUI" / "custom_nodes" / "any name"
    shutil.copytree(ROOT / "instaflow_core", pack / "instaflow_core", ignore=shutil.ignore_patterns("__pycache__"))
    (pack / "models").symlink_to(ROOT / "models")
    (tmp_path / "ComfyUI" / "models").mkdir()
    environment = os.environ | {"HF_ENDPOINT": hub.url, "PYTHONPATH": ""}
    done = subprocess.run(
        program("--accept-licence"), cwd=pack, env=environment, capture_output=True, text=True, check=True
    )
    folder = tmp_path / "ComfyUI" / "models" / "diffusers" / NAME
    assert done.stdout == f"{folder}\n"
    assert files_of(folder) == needed(hub)


def test_elsewhere_a_folder_has_to_be_given(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["download", "2rf", "--accept-licence"]) == 2
    message = capsys.readouterr().err
    assert "--to COMFYUI/models/diffusers/2_rectified_flow_from_sd_1_5" in message
    assert hub.asked == []


def refused(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """What `download` to the folder says in its last line, which must be all that went wrong."""
    capsys.readouterr()
    assert download(folder) == 2
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    return said.err.strip().splitlines()[-1]
