"""Files and folders as they come: wrapped names, left-overs, pieces and variants, hub caches, any name on disk."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_checkpoint
from torch import Tensor

from instaflow_core.__main__ import main
from instaflow_core.weights.checkpoint import Checkpoint, load
from instaflow_core.weights.conversion import convert
from instaflow_core.weights.files import FormatError, read_weights
from instaflow_core.weights.matching import _PLAIN_UNET, rows_of
from instaflow_core.weights.modules import build_vae
from instaflow_core.weights.saving import save, save_folder, single_file

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return small_checkpoint(vae="kl")


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    save_folder(checkpoint, tmp_path / "model")
    return tmp_path / "model"


def configs(checkpoint: Checkpoint) -> dict[str, str]:
    parts = {"unet": checkpoint.unet_config, "text": checkpoint.text_config, "vae": checkpoint.vae_config}
    return {f"instaflow.{part}_config": json.dumps(config) for part, config in parts.items()}


def same(left: Weights | None, right: Weights | None) -> bool:
    assert left is not None and right is not None
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def same_models(left: Checkpoint, right: Checkpoint) -> bool:
    return same(left.unet, right.unet) and same(left.vae, right.vae) and same(left.text_encoder, right.text_encoder)


# --- names of tensors ---


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapped_modules_are_what_they_are(wrapper: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    header = configs(checkpoint)
    whole = {wrapper + name: tensor for name, tensor in single_file(checkpoint).items()}
    save_file(whole, tmp_path / "whole.safetensors", header)
    save_file({wrapper + name: w for name, w in checkpoint.unet.items()}, tmp_path / "unet.safetensors", header)
    torch.save({"state_dict": whole}, tmp_path / "whole.ckpt")
    assert same_models(load(tmp_path / "whole.safetensors"), checkpoint)
    assert same(load(tmp_path / "unet.safetensors").unet, checkpoint.unet)
    assert same(read_weights(tmp_path / "whole.ckpt")[0], single_file(checkpoint))


def test_a_module_compiled_inside_another(checkpoint: Checkpoint, tmp_path: Path) -> None:
    named = {name.replace("mid_block.", "mid_block._orig_mod.", 1): w for name, w in checkpoint.unet.items()}
    save_file({f"unet.{name}": w for name, w in named.items()}, tmp_path / "unet.safetensors", configs(checkpoint))
    assert same(load(tmp_path / "unet.safetensors").unet, checkpoint.unet)


def test_a_wrapped_folder_is_written_unwrapped(folder: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({f"_orig_mod.{name}": w for name, w in load_file(unet).items()}, unet, {"format": "pt"})
    convert(folder, tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / "back")
    assert same(load_file(tmp_path / "back" / "unet" / unet.name), checkpoint.unet)


def test_a_name_both_wrapped_and_not_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1), "module.a": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(FormatError, match=r"two\.safetensors holds a twice"):
        read_weights(tmp_path / "two.safetensors")


@pytest.mark.parametrize("nested", [("state_dict",), ("model",), ("module",), ("module", "state_dict")])
def test_a_state_dict_nested_in_a_pickle(nested: tuple[str, ...], checkpoint: Checkpoint, tmp_path: Path) -> None:
    content: dict[str, Any] = dict(checkpoint.unet)
    for key in nested:
        content = {key: content, "optimizer": {"state": {}}, "global_step": 840000}
    torch.save(content, tmp_path / "unet.ckpt")
    assert same(read_weights(tmp_path / "unet.ckpt")[0], checkpoint.unet)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_left_overs_of_training_and_merging_are_ignored(
    dtype: torch.dtype, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """LDM's EMA beside the weights and inside the VAE, and a buffer under the text encoder's old name."""
    tensors = {name: tensor.to(dtype) for name, tensor in single_file(checkpoint).items()}
    tensors |= {
        "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(4),
        "model_ema.num_updates": torch.tensor(0),
        "first_stage_model.model_ema.decay": torch.tensor(0.9),
        "cond_stage_model.transformer.embeddings.position_ids": torch.arange(77)[None],
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    save_file(tensors, tmp_path / "model.safetensors", configs(checkpoint))
    loaded = load(tmp_path / "model.safetensors")
    assert loaded.unet.keys() == checkpoint.unet.keys()
    assert loaded.unet["conv_in.weight"].dtype == dtype


def test_an_old_torch_reads_no_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "model.ckpt")
    monkeypatch.setattr("instaflow_core.weights.files._TORCH", (2, 5))
    with pytest.raises(FormatError, match=r"model\.ckpt is a pickle, and PyTorch before 2\.6"):
        read_weights(tmp_path / "model.ckpt")


# --- configs that ask for more than there is ---


@pytest.mark.parametrize("name, value", [("time_cond_proj_dim", 256), ("class_embed_type", "timestep")])
def test_a_config_that_names_what_the_weights_lack(name: str, value: Any, folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(FormatError, match=f"The UNet config says {name} = {value!r}. Expected None"):
        load(folder)


def test_the_plain_values_are_those_of_diffusers() -> None:
    from diffusers import UNet2DConditionModel

    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
    assert {name: parameters[name].default for name in _PLAIN_UNET} == _PLAIN_UNET
    assert rows_of("unet", small_checkpoint().unet_config)


# --- pieces and variants ---


def in_pieces(whole: Path, index: str, piece: str) -> None:
    """Keep a file's tensors in two pieces with an index instead."""
    tensors = load_file(whole)
    names = sorted(tensors)
    weight_map = {}
    for number, inside in enumerate((names[:50], names[50:]), 1):
        save_file({name: tensors[name] for name in inside}, whole.with_name(piece.format(number)))
        weight_map |= dict.fromkeys(inside, piece.format(number))
    whole.with_name(index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    whole.unlink()


@pytest.mark.parametrize(
    "index, piece",
    [
        ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-0000{}-of-00002.safetensors"),
        (
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
        ),
        (
            "diffusion_pytorch_model.fp16.safetensors.index.json",
            "diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors",
        ),
    ],
)
def test_weights_in_pieces_with_variants(
    index: str, piece: str, folder: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    in_pieces(folder / "unet" / "diffusion_pytorch_model.safetensors", index, piece)
    assert same(load(folder).unet, checkpoint.unet)
    convert(folder, tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back" / "unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_the_best_of_several_files_is_taken(folder: Path, checkpoint: Checkpoint) -> None:
    """Whole safetensors first, then half precision, then a pickle; weights without EMA only where nothing else is."""
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    other = {name: torch.zeros_like(tensor) for name, tensor in checkpoint.unet.items()}
    half = {name: tensor.half() for name, tensor in checkpoint.unet.items()}
    torch.save(other, unet.with_suffix(".bin"))
    save_file(other, unet.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    save_file(half, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert same(load(folder).unet, checkpoint.unet)
    unet.unlink()
    assert same(load(folder).unet, half)


def test_a_text_encoder_in_pickled_pieces(folder: Path, checkpoint: Checkpoint) -> None:
    whole = folder / "text_encoder" / "model.safetensors"
    names = sorted(tensors := load_file(whole))
    weight_map = {}
    for number, inside in enumerate((names[:10], names[10:]), 1):
        piece = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({f"module.{name}": tensors[name] for name in inside}, whole.with_name(piece))
        weight_map |= dict.fromkeys(inside, piece)
    whole.with_name("pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    whole.unlink()
    assert same_models(load(folder), checkpoint)


@pytest.mark.parametrize("weight_map", [["a.safetensors"], {"conv_in.weight": 5}, "a.safetensors", None])
def test_an_index_that_names_no_files(weight_map: Any, folder: Path) -> None:
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    unet.unlink()
    unet.with_name(unet.name + ".index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FormatError, match=r"safetensors\.index\.json lists no files of weights"):
        load(folder)


def test_an_index_in_place_of_the_weights_is_told(folder: Path) -> None:
    in_pieces(
        folder / "unet" / "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model-0000{}-of-00002.safetensors",
    )
    for name in ("diffusion_pytorch_model.safetensors.index.json", "config.json"):
        with pytest.raises(FormatError, match=rf"{name} is a JSON file, not weights.* Name the folder it lies in"):
            load(folder / "unet" / name)


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_folder_of_variants(variant: str, folder: Path, checkpoint: Checkpoint) -> None:
    """As `from_pretrained(..., variant="fp16")` loads it: every part's file says so in its name."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[variant]
    for path in list(folder.glob("*/*.safetensors")):
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
        save_file(tensors, path.with_suffix(f".{variant}.safetensors"), {"format": "pt"})
        path.unlink()
    loaded = load(folder)
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = loaded.part(part), checkpoint.part(part)
        assert ours and theirs and same(ours[0], {name: tensor.to(dtype) for name, tensor in theirs[0].items()})


# --- a UNet's own folder ---


@pytest.fixture
def unet_repository(folder: Path, checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A repository of a UNet alone, as `save_pretrained` writes it: nothing in it from this pack."""
    root = tmp_path / "someones-unet"
    shutil.copytree(folder / "unet", root)
    save_file(checkpoint.unet, root / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return root


def test_a_repository_of_a_unet_alone(
    unet_repository: Path, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(unet_repository)
    assert same(loaded.unet, checkpoint.unet) and loaded.vae is None and loaded.text_encoder is None
    assert (loaded.prediction, loaded.prediction_is_assumed) == ("velocity", True)
    assert load(unet_repository, "epsilon").prediction == "epsilon"
    monkeypatch.chdir(unet_repository)
    assert same(load(".").unet, checkpoint.unet)
    convert(unet_repository, tmp_path / "unet.safetensors")
    convert(tmp_path / "unet.safetensors", tmp_path / "back")
    assert same(load(tmp_path / "unet.safetensors").unet, checkpoint.unet)
    assert same(load(tmp_path / "back" / "unet").unet, checkpoint.unet)


def test_any_unet_in_a_pipeline_is_what_the_pipeline_says(
    unet_repository: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own unet/, named from within too, and the average that diffusers' trainers keep beside it."""
    shutil.copytree(unet_repository, folder / "unet_ema")
    shutil.copy(unet_repository / "diffusion_pytorch_model.safetensors", folder / "unet")
    for path in (folder / "unet", folder / "unet_ema"):
        monkeypatch.chdir(path)
        for loaded in (load(path), load(".")):
            assert loaded.said_by == "model_index.json, which names a RectifiedFlowPipeline"


@pytest.mark.parametrize("kind", ["AutoencoderKL", "ControlNetModel"])
def test_a_folder_of_another_model_is_named(kind: str, unet_repository: Path) -> None:
    (unet_repository / "config.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(FormatError, match=f"The folder someones-unet is a {kind}"):
        load(unet_repository)


def test_a_teacher_without_text_encoder_is_told_so(
    unet_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle")
    names = [
        "--teacher",
        str(unet_repository),
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--out",
        str(tmp_path / "s"),
    ]
    assert main(["triplets", *names, "--count", "1", "--prediction", "epsilon", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "holds a UNet only, and the text encoder is needed. Give the whole model" in said


def test_what_a_model_lacks_is_what_is_said(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="has no VAE, and the VAE is needed"):
        build_vae(replace(checkpoint, vae=None))


# --- hub caches ---


def hub_snapshot(folder: Path, cache: Path, repository: str) -> Path:
    """The folder as huggingface_hub keeps it: files are links to blobs, under the repository's name and a commit."""
    root = cache / f"models--XCLiu--{repository}"
    snapshot = root / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    (root / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = root / "blobs" / f"{number:040x}"
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.relative_to(root).parts) - 1), "blobs", blob.name))
    return snapshot


@pytest.mark.parametrize(
    "repository, stage, guidance",
    [("2_rectified_flow_from_sd_1_5", "2-rectified-flow", 1.5), ("instaflow_0_9B_from_sd_1_5", "one-step", 1.0)],
)
def test_a_hub_snapshot_is_known_by_its_repository(
    repository: str, stage: str, guidance: float, folder: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(unet), unet, {"format": "pt"})
    snapshot = hub_snapshot(folder, tmp_path / "hub", repository)
    linked = tmp_path / "here"
    linked.symlink_to(snapshot, target_is_directory=True)
    for path in (snapshot, linked, snapshot / "unet"):
        loaded = load(path)
        assert (loaded.prediction, loaded.stage, loaded.guidance) == ("velocity", stage, guidance)
        assert loaded.metadata["instaflow.license"] == "CC-BY-NC-4.0"
    assert same_models(load(snapshot), checkpoint)


def test_a_link_called_after_the_model_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(unet), unet, {"format": "pt"})
    (tmp_path / "2_rectified_flow_from_sd_1_5").symlink_to(folder, target_is_directory=True)
    assert load(tmp_path / "2_rectified_flow_from_sd_1_5").stage == "2-rectified-flow"


def test_a_hub_snapshot_that_is_not_whole(folder: Path, tmp_path: Path) -> None:
    snapshot = hub_snapshot(folder, tmp_path / "hub", "instaflow_0_9B_from_sd_1_5")
    weights = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    weights.resolve().unlink()
    assert weights.is_symlink()
    with pytest.raises(FormatError, match=r"unet has no weights.*Download the whole folder"):
        load(snapshot)


# --- names on disk ---


@pytest.mark.parametrize(
    "name", ["instaflow_0.9B", "stable-diffusion-v1.5", "a model v2.0 (mine)", "模型.九", ".hidden"]
)
def test_a_folder_may_have_any_name(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    save(checkpoint, tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / name)
    assert (tmp_path / name / "unet" / "config.json").is_file()
    assert same_models(load(tmp_path / name), checkpoint)


@pytest.mark.parametrize(
    "name", ["MODEL.SAFETENSORS", "instaflow 0.9B.SafeTensors", "ein Modell für 图.v1.safetensors"]
)
def test_a_file_may_have_any_name(name: str, folder: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    convert(folder, tmp_path / name)
    assert (tmp_path / name).is_file() and same_models(load(tmp_path / name), checkpoint)


def test_every_command_reads_and_writes_any_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    place = tmp_path / "ein Ordner [v1.5] 图"
    flow, base, delta, merged = (
        str(place / name) for name in ("A.B.SAFETENSORS", "模型", "Δ.Safetensors", "a b.SAFETENSORS")
    )
    save(checkpoint, flow)
    save_folder(checkpoint, base)
    assert main(["info", flow]) == 0
    assert main(["extract-delta", flow, base, delta]) == 0
    assert main(["merge-delta", base, delta, merged, "--clip-vae", flow]) == 0
    assert main(["merge-delta", base, delta, merged, "--force"]) == 0
    assert same_models(load(merged), checkpoint)
    assert sorted(path.name for path in place.iterdir()) == sorted(Path(p).name for p in (flow, base, delta, merged))


@pytest.mark.parametrize("ending", [".ckpt", ".PT", ".bin", ".Pth"])
def test_pickles_are_not_written(ending: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"Expected a name ending in \.safetensors, or a folder's name"):
        convert(folder, tmp_path / f"model{ending}")
    assert not (tmp_path / f"model{ending}").exists()


def test_a_folder_that_cannot_be_replaced_stays(
    folder: Path, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.replace

    def refuse(source: Path, destination: Path) -> None:
        if Path(destination) == folder and Path(source).suffix == ".tmp":
            raise PermissionError("in use")
        rename(source, destination)

    monkeypatch.setattr(os, "replace", refuse)
    changed = replace(checkpoint, unet={name: tensor + 1 for name, tensor in checkpoint.unet.items()})
    with pytest.raises(
        PermissionError, match=r"cannot be replaced \(in use\)\. The new one is whole, at .*model\.new\."
    ):
        save_folder(changed, folder)
    assert same_models(load(folder), checkpoint)
    assert same_models(load(tmp_path / "model.new"), changed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.new"]
