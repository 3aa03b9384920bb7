"""Nodes that write, where Windows would refuse to replace or delete a mapped file."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from windows_files import mapped_in, refuse_what_windows_refuses

from instaflow_core.weights.checkpoint import load

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what is mapped")


def test_a_saved_checkpoint_is_let_go_of(host: Any, one_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    refuse_what_windows_refuses(monkeypatch)
    model, clip, vae = one_step
    prefix = f"checkpoints/mapped-{uuid.uuid4().hex}"
    for _ in range(2):
        host.run("InstaFlowSaveCheckpoint", model=model, clip=clip, vae=vae, filename_prefix=prefix)
    output = Path(folder_paths.get_output_directory())
    assert len(list(output.glob(f"{prefix}*.safetensors"))) == 2
    assert mapped_in(output) == []


def test_an_error_while_reading_back_is_what_is_said(
    host: Any, pack: Any, one_step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that the file, mapped by the error itself, cannot be deleted."""
    refuse_what_windows_refuses(monkeypatch)
    described = {"instaflow.shared": '["gone.safetensors"]'}
    with pytest.raises(ValueError, match="There is no file"):
        pack.nodes.host.saving.write_checkpoint(tmp_path / "x.safetensors", one_step[0], None, one_step[2], described)


def test_so_is_one_in_what_a_training_starts_from(pack: Any, one_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    refuse_what_windows_refuses(monkeypatch)
    Path(folder_paths.get_temp_directory()).mkdir(parents=True, exist_ok=True)
    model, clip, vae = one_step[0].clone(), *one_step[1:]
    key = pack.nodes.host.checkpoints.METADATA
    model.set_attachments(key, model.get_attachment(key) | {"instaflow.shared": '["gone.safetensors"]'})
    with pytest.raises(ValueError, match="There is no file"):
        pack.nodes.host.training.as_checkpoint(model, clip, vae)


def test_what_a_training_starts_from_is_copied(pack: Any, one_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    refuse_what_windows_refuses(monkeypatch)
    temporary = Path(folder_paths.get_temp_directory())
    temporary.mkdir(parents=True, exist_ok=True)
    before = set(temporary.iterdir())
    checkpoint = pack.nodes.host.training.as_checkpoint(*one_step)
    assert mapped_in(temporary) == [] and set(temporary.iterdir()) == before
    assert all(tensor.isfinite().all() for tensor in checkpoint.unet.values())


def test_a_result_that_a_loaded_model_holds(host: Any, teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a newer host's MODEL does with dynamic VRAM: its weights are the file."""
    import folder_paths

    Path(folder_paths.get_temp_directory()).mkdir(parents=True, exist_ok=True)
    path = Path(folder_paths.get_output_directory()) / "checkpoints" / f"held-{uuid.uuid4().hex}.safetensors"
    sizes = {"steps": 2, "guidance": 2.0, "width": 64, "height": 64, "batch_size": 4, "seed": 7}
    (made,) = host.run(
        "InstaFlowTriplets", model=teacher[0], clip=teacher[1], prompts="a\nb", count=4, name=path.stem, **sizes
    )

    def train(iterations: int) -> None:
        numbers = {"iterations": iterations, "batch_size": 4, "learning_rate": 1e-3, "seed": 0, "ema": 0.9}
        host.run(
            "InstaFlowReflow", model=teacher[0], triplets=made, name=path.stem, resume=True, method="full", **numbers
        )

    train(2)
    held = load(path)
    refuse_what_windows_refuses(monkeypatch)
    kept = path.with_name(f"{path.stem}.new.safetensors")
    with pytest.raises(PermissionError, match=rf"in use .* whole, at {kept}\. .* in ComfyUI until that is unloaded"):
        train(3)
    assert not torch.equal(load(kept).unet["conv_in.bias"], held.unet["conv_in.bias"])
    del held
    train(4)
    assert load(path).stage == "2-rectified-flow"
