"""Files that take the place of mapped ones, which Windows refuses: ours let go of them, others' cost no work."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_checkpoint
from windows_files import mapped_in, refuse_what_windows_refuses

from instaflow_core.__main__ import main
from instaflow_core.atomic import remove_leftovers_of, replacing
from instaflow_core.weights.checkpoint import Checkpoint, load
from instaflow_core.weights.files import FormatError
from instaflow_core.weights.saving import save, save_folder, save_part

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what is mapped")


FLOW, TUNED, BASE, DELTA = (f"{name}.safetensors" for name in ("flow", "tuned", "base", "delta"))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return small_checkpoint()


@pytest.fixture(scope="module")
def files(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """flow, tuned and base, the difference of the two last, and the flow as a folder."""
    folder = tmp_path_factory.mktemp("files")
    save(checkpoint, folder / FLOW)
    for name in (TUNED, BASE):
        moved = {key: tensor + len(name) for key, tensor in checkpoint.unet.items()}
        save(replace(checkpoint, unet=moved), folder / name)
    save_folder(checkpoint, folder / "folder")
    assert main(["extract-delta", *(str(folder / name) for name in (TUNED, BASE, DELTA))]) == 0
    return folder


@pytest.fixture
def place(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, on a Windows that renames nothing that is mapped."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    refuse_what_windows_refuses(monkeypatch)
    return tmp_path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what this process has mapped itself ---


def test_the_stand_in_refuses(place: Path) -> None:
    held = load(place / FLOW)
    assert mapped_in(place) == [place / FLOW]
    with pytest.raises(PermissionError, match="Access is denied"):
        (place / FLOW).unlink()
    with pytest.raises(PermissionError, match="Access is denied"):
        (place / FLOW).replace(place / "other.safetensors")
    del held
    assert mapped_in(place) == []


@pytest.mark.parametrize(
    "command",
    [
        ["extract-delta", TUNED, BASE, TUNED],
        ["extract-delta", TUNED, BASE, BASE],
        ["merge-delta", FLOW, DELTA, FLOW],
        ["merge-delta", FLOW, DELTA, DELTA],
        ["merge-delta", FLOW, DELTA, TUNED, "--clip-vae", TUNED],
        ["convert", "folder", FLOW],
        ["convert", FLOW, "folder"],
        ["convert", "folder", "folder/unet/diffusion_pytorch_model.safetensors"],
        ["convert", "folder", "folder/unet"],
    ],
    ids=" ".join,
)
def test_commands_replace_what_they_read(command: list[str], place: Path) -> None:
    expected = place / "expected.safetensors"
    into_folder = "." not in Path(command[-1]).name
    arguments = [str(place / word) if (place / word).exists() else word for word in command]
    out = 2 if command[0] == "convert" else 3
    fresh = str(expected.with_suffix("")) if into_folder else str(expected)
    assert main([*arguments[:out], fresh, *arguments[out + 1 :]]) == 0
    before = names_in(place)
    assert main([*arguments, "--force"]) == 0
    if into_folder:
        made, wanted = Path(arguments[out]), Path(fresh)
        assert {p.relative_to(made): p.read_bytes() for p in made.rglob("*") if p.is_file()} == {
            p.relative_to(wanted): p.read_bytes() for p in wanted.rglob("*") if p.is_file()
        }
    else:
        assert Path(arguments[out]).read_bytes() == expected.read_bytes()
    assert names_in(place) == before and mapped_in(place) == []


def test_a_lora_is_converted_in_its_place(place: Path) -> None:
    names = [f"unet.mid_block.attentions.0.proj_in.lora_{half}.weight" for half in "AB"]
    path = place / "lora.safetensors"
    save_file({name: torch.ones(2, 2) for name in names}, path)
    assert main(["convert", str(path), str(path), "--force"]) == 0
    assert load_file(path).keys() == {
        f"lora_unet_mid_block_attentions_0_proj_in.lora_{half}.weight" for half in ("down", "up")
    }


@pytest.mark.parametrize("source, destination", [("flow.safetensors", save), ("folder", save_folder)])
def test_a_checkpoint_is_saved_over_itself(
    source: str, destination: Callable[[Checkpoint, Path], None], checkpoint: Checkpoint, place: Path
) -> None:
    loaded = load(place / source)
    loaded.unet["conv_in.bias"] = loaded.unet["conv_in.bias"] + 1
    destination(loaded, place / source)
    for there in (loaded, load(place / source)):
        assert torch.equal(there.unet["conv_in.bias"], checkpoint.unet["conv_in.bias"] + 1)
        assert torch.equal(there.unet["conv_out.weight"], checkpoint.unet["conv_out.weight"])


def test_a_part_in_a_file_of_its_own_is_saved_over_itself(checkpoint: Checkpoint, place: Path) -> None:
    """One that lies beside the file it is loaded with."""
    shared = place / "vae.safetensors"
    save_part(checkpoint, "vae", shared)
    save(checkpoint, place / FLOW, shared=[shared.name])
    loaded = load(place / FLOW)
    save_part(loaded, "vae", shared)
    assert mapped_in(place) == [place / FLOW]
    assert load(place / FLOW).vae.keys() == checkpoint.vae.keys()


def test_a_checkpoint_stays_on_disk_where_it_is_not_replaced(place: Path) -> None:
    loaded = load(place / FLOW)
    save(loaded, place / TUNED)
    save_part(loaded, "vae", place / DELTA)
    assert mapped_in(place) == [place / FLOW]


def test_a_folder_is_not_replaced_by_a_part_of_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("unet", "unet/diffusion_pytorch_model.safetensors"):
        assert main(["convert", str(place / "folder" / part), str(place / "folder"), "--force"]) == 2
        assert "folder holds the source" in capsys.readouterr().err
    assert (place / "folder" / "vae").is_dir()


# --- what somebody else has mapped ---


@pytest.mark.parametrize("source, new", [("flow.safetensors", "flow.new{}.safetensors"), ("folder", "folder.new{}")])
def test_work_is_kept_where_others_hold_the_file(source: str, new: str, checkpoint: Checkpoint, place: Path) -> None:
    held, other = load(place / source), replace(checkpoint, unet={k: w + 1 for k, w in checkpoint.unet.items()})
    for number in ("", "-2"):
        kept = new.format(number)
        with pytest.raises(PermissionError) as caught:
            (save if "." in source else save_folder)(other, place / source)
        said = str(caught.value)
        assert said.startswith(f"{place / source} is in use and cannot be replaced (Access is denied). The new one is")
        assert f"whole, at {place / kept}. On Windows a file is held by a model" in said
        assert said.endswith(f"then give {kept} the name {source}.")
        assert torch.equal(load(place / kept).unet["conv_in.bias"], other.unet["conv_in.bias"])
    assert torch.equal(held.unet["conv_in.bias"], checkpoint.unet["conv_in.bias"])
    assert torch.equal(load(place / source).unet["conv_in.bias"], checkpoint.unet["conv_in.bias"])
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


def test_a_command_says_where_its_work_lies(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = load(place / FLOW)
    assert main(["merge-delta", str(place / TUNED), str(place / DELTA), str(place / FLOW), "--force"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"The new one is whole, at {place / 'flow.new.safetensors'}." in said
    assert load(place / "flow.new.safetensors").unet.keys() == held.unet.keys()


@pytest.mark.parametrize("source", ["flow.safetensors", "folder"])
def test_a_mapped_file_is_moved_aside_where_that_is_possible(
    source: str, checkpoint: Checkpoint, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()
    refuse_what_windows_refuses(monkeypatch, renames=True)
    held, other = load(place / source), replace(checkpoint, unet={k: w + 1 for k, w in checkpoint.unet.items()})
    (save if "." in source else save_folder)(other, place / source)
    assert torch.equal(load(place / source).unet["conv_in.bias"], other.unet["conv_in.bias"])
    assert torch.equal(held.unet["conv_in.bias"], checkpoint.unet["conv_in.bias"])
    (old,) = (path for path in place.iterdir() if path.name.startswith("."))
    assert old.suffix == ".old" and f"the old one is still in use and lies at {old}" in caplog.text
    remove_leftovers_of(place / source)
    assert old.exists()
    del held
    remove_leftovers_of(place / source)
    assert not old.exists()


def test_what_made_a_writer_fail_is_what_is_said(place: Path) -> None:
    """And not that its unfinished file cannot be deleted, since the error holds what was read of it."""
    with pytest.raises(FormatError, match="is not a difference"), replacing(place / "new.safetensors") as temporary:
        temporary.write_bytes((place / FLOW).read_bytes())
        held = load(temporary)
        raise FormatError("This is not a difference", "one", f"{held.layout}")
