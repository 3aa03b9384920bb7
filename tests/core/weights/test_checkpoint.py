"""Checkpoints: what is written comes back, from every layout and in every type, and what is unusable says so."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import small_checkpoint
from torch import Tensor

from instaflow_core.text import encode_prompts
from instaflow_core.weights.checkpoint import Checkpoint, load
from instaflow_core.weights.conversion import convert
from instaflow_core.weights.files import FormatError
from instaflow_core.weights.layouts import OLD_VAE_ATTENTION
from instaflow_core.weights.matching import rows_of, to_ldm
from instaflow_core.weights.modules import build_text_encoder, build_unet, build_vae
from instaflow_core.weights.saving import save, save_folder, save_part

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def one_step() -> Checkpoint:
    return small_checkpoint(vae="kl")


@pytest.fixture(scope="module")
def tiny_vae() -> Checkpoint:
    return small_checkpoint(vae="tiny")


@pytest.fixture
def folder(one_step: Checkpoint, tmp_path: Path) -> Path:
    """A folder as diffusers and transformers themselves save one, nothing in it from this pack."""
    return released_folder(one_step, tmp_path / "instaflow_0_9B_from_sd_1_5")


def released_folder(checkpoint: Checkpoint, path: Path, pipeline: str = "RectifiedFlowPipeline") -> Path:
    build_unet(checkpoint).save_pretrained(path / "unet")
    build_vae(checkpoint).save_pretrained(path / "vae")
    build_text_encoder(checkpoint).save_pretrained(path / "text_encoder")
    index = {
        "_class_name": pipeline,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    }
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def same_bytes(left: Weights | None, right: Weights | None) -> bool:
    assert left is not None and right is not None
    return left.keys() == right.keys() and all(
        tensor.dtype == right[key].dtype
        and tensor.shape == right[key].shape
        and torch.equal(tensor.flatten().view(torch.uint8), right[key].flatten().view(torch.uint8))
        for key, tensor in left.items()
    )


def same_models(left: Checkpoint, right: Checkpoint) -> bool:
    return (
        same_bytes(left.unet, right.unet)
        and same_bytes(left.vae, right.vae)
        and same_bytes(left.text_encoder, right.text_encoder)
    )


def tensors_in(folder: Path) -> dict[str, Weights]:
    return {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*")]


# --- one file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vae", ["kl", "tiny"])
def test_a_saved_file_comes_back(vae: str, one_step: Checkpoint, tiny_vae: Checkpoint, tmp_path: Path) -> None:
    checkpoint = one_step if vae == "kl" else tiny_vae
    save(checkpoint, tmp_path / "new" / "model.safetensors")
    loaded = load(tmp_path / "new" / "model.safetensors")
    assert same_models(loaded, checkpoint)
    assert (loaded.stage, loaded.prediction, loaded.native_size, loaded.guidance) == ("one-step", "velocity", 64, 1.0)
    assert loaded.layout == "single file, ldm names"
    assert loaded.unet_config == json.loads(json.dumps(checkpoint.unet_config))
    assert leftovers(tmp_path) == []


def test_a_file_carries_the_standard_metadata(one_step: Checkpoint, tmp_path: Path) -> None:
    one_step = Checkpoint(**vars(one_step) | {"metadata": one_step.metadata | {"instaflow.license": "GPL-3.0"}})
    save(one_step, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    expected = {
        "format": "pt",
        "instaflow.format": "1",
        "instaflow.prediction": "velocity",
        "instaflow.stage": "one-step",
        "instaflow.native_size": "64",
        "instaflow.guidance": "1.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.title": "InstaFlow",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "velocity",
        "modelspec.license": "GPL-3.0",
    }
    assert {key: metadata[key] for key in expected} == expected
    assert json.loads(metadata["instaflow.vae_config"])["_class_name"] == "AutoencoderKL"


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=lambda dtype: str(dtype)
)
def test_other_types_are_written_and_read(dtype: torch.dtype, one_step: Checkpoint, tmp_path: Path) -> None:
    save(one_step, tmp_path / "model.safetensors", dtype)
    loaded = load(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in loaded.unet.values()} == {dtype}
    key = "conv_in.weight"
    assert torch.equal(loaded.unet[key].float(), one_step.unet[key].to(dtype).float())
    assert build_unet(loaded).conv_in.weight.dtype == torch.float32


def test_a_teacher_stays_a_teacher(tmp_path: Path) -> None:
    save(small_checkpoint("teacher", "epsilon"), tmp_path / "teacher.safetensors")
    teacher = load(tmp_path / "teacher.safetensors")
    assert (teacher.prediction, teacher.stage) == ("epsilon", "teacher")
    save_folder(teacher, tmp_path / "teacher")
    teacher = load(tmp_path / "teacher")
    assert (teacher.prediction, teacher.stage) == ("epsilon", "teacher")
    assert (
        json.loads((tmp_path / "teacher" / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    )


def test_shared_parts_are_kept_once(tiny_vae: Checkpoint, tmp_path: Path) -> None:
    save_part(tiny_vae, "text_encoder", tmp_path / "text.safetensors")
    save_part(tiny_vae, "vae", tmp_path / "vae.safetensors")
    save(tiny_vae, tmp_path / "model.safetensors", shared=["text.safetensors", "vae.safetensors"])
    assert all(key.startswith("model.diffusion_model.") for key in load_file(tmp_path / "model.safetensors"))
    loaded = load(tmp_path / "model.safetensors")
    assert same_models(loaded, tiny_vae)
    assert loaded.text_config == tiny_vae.text_config
    save(loaded, tmp_path / "whole.safetensors")
    (tmp_path / "text.safetensors").unlink()
    assert same_models(load(tmp_path / "whole.safetensors"), tiny_vae)
    with pytest.raises(FormatError, match=r"There is no file .*text\.safetensors"):
        load(tmp_path / "model.safetensors")


def test_a_shared_part_alone_is_no_model(tiny_vae: Checkpoint, tmp_path: Path) -> None:
    for part, said in (("text_encoder", "a text encoder alone"), ("vae", "a VAE alone")):
        save_part(tiny_vae, part, tmp_path / "part.safetensors")
        with pytest.raises(FormatError, match=said):
            load(tmp_path / "part.safetensors")


def test_a_part_that_is_not_there_cannot_be_saved(one_step: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no vae to save"):
        save_part(Checkpoint(one_step.unet, one_step.unet_config), "vae", tmp_path / "vae.safetensors")


def test_a_shared_name_may_not_leave_the_folder(one_step: Checkpoint, tmp_path: Path) -> None:
    metadata = {"instaflow.unet_config": json.dumps(one_step.unet_config), "instaflow.shared": '["../x.safetensors"]'}
    save_file(one_step.unet, tmp_path / "model.safetensors", metadata)
    with pytest.raises(FormatError, match=r"names the file '\.\./x\.safetensors'"):
        load(tmp_path / "model.safetensors")


def test_a_failed_save_leaves_the_old_file(one_step: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    broken = Checkpoint(one_step.unet | {"conv_in.weight": torch.zeros(1)}, one_step.unet_config)
    with pytest.raises(FormatError, match=r"conv_in\.weight has shape \(1,\)"):
        save(broken, path)
    assert path.read_bytes() == b"old" and leftovers(tmp_path) == []


def test_the_same_checkpoint_gives_the_same_bytes(one_step: Checkpoint, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shuffled = dict(sorted(one_step.metadata.items(), reverse=name == "b"))
        save(replace(one_step, metadata=shuffled), tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_file_may_be_saved_over_itself(one_step: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(one_step, path)
    before = os.stat(path).st_ino
    save(load(path), path)
    assert same_models(load(path), one_step) and os.stat(path).st_ino != before


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("instaflow.unet_config", "{", "instaflow.unet_config of model.safetensors is '{', which is not JSON"),
        ("instaflow.prediction", "x_0", "Expected velocity, epsilon or v"),
        ("instaflow.native_size", "large", "Expected a number from 8 to 16,384"),
        ("instaflow.guidance", "", "Expected a number"),
    ],
)
def test_damaged_metadata_is_named(key: str, value: str, said: str, one_step: Checkpoint, tmp_path: Path) -> None:
    metadata = {"instaflow.unet_config": json.dumps(one_step.unet_config)} | {key: value}
    save_file(one_step.unet, tmp_path / "model.safetensors", metadata)
    with pytest.raises(FormatError) as caught:
        load(tmp_path / "model.safetensors")
    assert said in str(caught.value)


# --- files of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("keys", ["diffusers", "ldm"])
def test_a_bare_unet_with_metadata(keys: str, prefix: str, one_step: Checkpoint, tmp_path: Path) -> None:
    rows = rows_of("unet", one_step.unet_config)
    tensors = to_ldm(one_step.unet, rows, "") if keys == "ldm" else one_step.unet
    metadata = one_step.metadata | {"instaflow.unet_config": json.dumps(one_step.unet_config)}
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, tmp_path / "unet.safetensors", metadata)
    loaded = load(tmp_path / "unet.safetensors")
    assert same_bytes(loaded.unet, one_step.unet)
    assert loaded.layout == f"UNet alone, {keys} names" and loaded.vae is None and loaded.text_encoder is None
    for build in (build_vae, build_text_encoder):
        with pytest.raises(ValueError, match="holds a UNet only"):
            build(loaded)


@pytest.mark.parametrize("build", [build_unet, build_vae, build_text_encoder])
def test_building_leaves_the_configs_as_they_are(build: Any, one_step: Checkpoint) -> None:
    """They are saved again: libraries write into a config that they are given (transformers 4 does)."""
    configs = (one_step.unet_config, one_step.vae_config, one_step.text_config)
    before = json.dumps(configs)
    build(one_step)
    assert json.dumps(configs) == before


def foreign_unet() -> tuple[Any, Weights]:
    """A UNet of SD1.5's text width and heads, narrow and shallow."""
    from diffusers import UNet2DConditionModel

    options: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = UNet2DConditionModel(sample_size=64, **options).eval()
    return module, module.state_dict()


@torch.no_grad()
@pytest.mark.parametrize("keys", ["diffusers", "ldm"])
def test_a_bare_unet_without_metadata_computes_the_same(keys: str, tmp_path: Path) -> None:
    module, tensors = foreign_unet()
    if keys == "ldm":
        tensors = to_ldm(tensors, rows_of("unet", dict(module.config)), "")
    save_file(tensors, tmp_path / "unet.safetensors")
    loaded = load(tmp_path / "unet.safetensors")
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 768)
    ours = build_unet(loaded)(x, 1000.0, encoder_hidden_states=text).sample
    assert torch.equal(ours, module(x, 1000.0, encoder_hidden_states=text).sample)
    assert (loaded.prediction, loaded.stage, loaded.native_size) == ("velocity", "unknown", 512)
    assert load(tmp_path / "unet.safetensors", prediction="epsilon").stage == "teacher"


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("text_prefix", ["text_model.", ""])
def test_an_old_single_file_without_metadata(
    ending: str, text_prefix: str, one_step: Checkpoint, tmp_path: Path
) -> None:
    module, unet = foreign_unet()
    assert one_step.vae and one_step.vae_config and one_step.text_encoder
    text = {key.replace("text_model.", text_prefix, 1): tensor for key, tensor in one_step.text_encoder.items()}
    tensors = {
        **to_ldm(unet, rows_of("unet", dict(module.config)), "model.diffusion_model."),
        **to_ldm(one_step.vae, rows_of("vae", one_step.vae_config), "first_stage_model."),
        **{f"cond_stage_model.transformer.{key}": tensor for key, tensor in text.items()},
        f"cond_stage_model.transformer.{text_prefix}embeddings.position_ids": torch.arange(77)[None],
        "cond_stage_model.logit_scale": torch.tensor(4.6),
        "cond_stage_model.transformer.text_projection.weight": torch.eye(64),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "alphas_cumprod": torch.linspace(1, 0, 1000),
    }
    path = tmp_path / f"old{ending}"
    if ending == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 1}, path)
    else:
        save_file(tensors, path)
    loaded = load(path)
    assert same_bytes(loaded.unet, unet) and same_bytes(loaded.vae, one_step.vae)
    ids = "text_model.embeddings.position_ids"
    assert same_bytes(loaded.text_encoder, one_step.text_encoder | {ids: torch.arange(77)[None]})
    assert loaded.vae_config and loaded.vae_config["block_out_channels"] == [32, 32, 64, 64]
    assert torch.equal(build_vae(loaded).decoder.conv_in.weight, one_step.vae["decoder.conv_in.weight"])
    assert encode_prompts(build_text_encoder(loaded), ["a cat"]).shape == (1, 77, 64)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_released_folder_is_recognised(folder: Path, one_step: Checkpoint) -> None:
    loaded = load(folder)
    assert same_models(loaded, one_step)
    assert (loaded.prediction, loaded.stage) == ("velocity", "one-step")
    assert loaded.metadata["instaflow.license"] == "CC-BY-NC-4.0"
    assert loaded.native_size == 64 and loaded.layout == "diffusers folder"


def test_the_other_released_folder_is_told_by_its_name(folder: Path) -> None:
    loaded = load(folder.rename(folder.with_name("2_rectified_flow_from_sd_1_5")))
    assert (loaded.stage, loaded.guidance) == ("2-rectified-flow", 1.5)


@pytest.mark.parametrize(
    "prediction_type, prediction, stage",
    [("epsilon", "epsilon", "teacher"), ("flow_prediction", "velocity", "unknown")],
)
def test_a_scheduler_says_what_a_plain_folder_predicts(
    prediction_type: str, prediction: str, stage: str, folder: Path
) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": prediction_type}))
    loaded = load(folder)
    assert (loaded.prediction, loaded.stage) == (prediction, stage)
    assert "instaflow.license" not in loaded.metadata


def test_a_folder_that_says_nothing_is_what_the_caller_says(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    assert load(folder).prediction == "velocity"
    assert load(folder, prediction="epsilon").prediction == "epsilon"


def test_another_prediction_is_refused_unless_the_caller_knows_better(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "sample"}')
    with pytest.raises(FormatError, match=r"predicts 'sample'\. Expected epsilon, v or velocity\. .*--prediction"):
        load(folder)
    assert load(folder, "epsilon").prediction == "epsilon"


def test_the_unet_of_a_folder_is_a_model(folder: Path, one_step: Checkpoint) -> None:
    loaded = load(folder / "unet")
    assert same_bytes(loaded.unet, one_step.unet) and loaded.vae is None
    assert loaded.metadata["instaflow.license"] == "CC-BY-NC-4.0"


def test_weights_in_pieces(folder: Path, one_step: Checkpoint) -> None:
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    keys = sorted(one_step.unet)
    pieces = {"a.safetensors": keys[:50], "b.safetensors": keys[50:]}
    for name, inside in pieces.items():
        save_file({key: one_step.unet[key] for key in inside}, whole.with_name(name))
    whole.unlink()
    weight_map = {key: name for name, inside in pieces.items() for key in inside}
    index = whole.with_name(whole.name + ".index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert same_bytes(load(folder).unet, one_step.unet)
    whole.with_name("b.safetensors").unlink()
    with pytest.raises(FormatError, match=r"There is no file .*b\.safetensors"):
        load(folder)


def test_old_pickles_and_half_precision_variants(folder: Path, one_step: Checkpoint) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(one_step.unet, folder / "unet" / "diffusion_pytorch_model.bin")
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert same_models(load(folder), one_step)


@pytest.mark.parametrize(
    "missing, said",
    [
        ("unet/config.json", "The folder unet has no config.json"),
        ("vae/config.json", "The folder vae has no config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "unet has no weights"),
        ("text_encoder/model.safetensors", "text_encoder has no weights"),
    ],
)
def test_a_folder_with_a_file_missing(missing: str, said: str, folder: Path) -> None:
    (folder / missing).unlink()
    with pytest.raises(FormatError, match=said):
        load(folder)


@pytest.mark.parametrize("text, said", [("{", "is not JSON"), ("[]", "holds a list. Expected a JSON object")])
def test_a_config_that_is_not_json(text: str, said: str, folder: Path) -> None:
    (folder / "unet" / "config.json").write_text(text)
    with pytest.raises(FormatError, match=said):
        load(folder)


def test_a_folder_without_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    with pytest.raises(FormatError, match="has no unet/ in it"):
        load(folder)


def test_a_lora_in_the_place_of_the_unet(folder: Path) -> None:
    save_file({"unet.x.lora_A.weight": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(FormatError, match=r"instaflow_0_9B_from_sd_1_5/unet is a LoRA"):
        load(folder)


def test_a_written_folder_is_a_pipeline(one_step: Checkpoint, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    save_folder(one_step, tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    assert same_bytes(pipeline.unet.state_dict(), one_step.unet)
    assert same_bytes(pipeline.vae.state_dict(), one_step.vae)
    assert pipeline.tokenizer("a cat").input_ids == [49406, 320, 2368, 49407]
    ours = encode_prompts(build_text_encoder(one_step), ["a cat"])
    assert torch.equal(encode_prompts(pipeline.text_encoder, ["a cat"]), ours)
    assert leftovers(tmp_path) == []


# --- convert ----------------------------------------------------------------------------------------------------------


def test_a_folder_goes_into_one_file_and_comes_back_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / "back")
    before, after = tensors_in(folder), tensors_in(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(same_bytes(before[name], after[name]) for name in before)
    for name in ("unet/config.json", "vae/config.json", "text_encoder/config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "back" / name).read_bytes()
    loaded = load(tmp_path / "back")
    assert loaded.metadata["instaflow.license"] == "CC-BY-NC-4.0" and loaded.stage == "one-step"
    index = json.loads((tmp_path / "back" / "model_index.json").read_text())
    assert index["_class_name"] == "RectifiedFlowPipeline"
    assert index["safety_checker"] == [None, None] and index["requires_safety_checker"] is False


def test_names_of_older_libraries_come_back(folder: Path, tmp_path: Path) -> None:
    """Attention called query, key, value, proj_attn; a position_ids buffer; names under text_model.; half precision."""
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {key: tensor.half() for key, tensor in load_file(vae).items()}
    for new_name, old_name in OLD_VAE_ATTENTION.items():
        old = {key.replace(f"attentions.0.{new_name}.", f"attentions.0.{old_name}."): t for key, t in old.items()}
    save_file(old, vae, {"format": "pt"})
    text = folder / "text_encoder" / "model.safetensors"
    named = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in load_file(text).items()}
    save_file(named | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, text, {"format": "pt"})
    convert(folder, tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / "back")
    before, after = tensors_in(folder), tensors_in(tmp_path / "back")
    assert all(same_bytes(before[name], after[name]) for name in before)
    assert any(".query." in key for key in after["vae/diffusion_pytorch_model.safetensors"])
    build_text_encoder(load(tmp_path / "back"))
    build_vae(load(tmp_path / "back"))


def test_tokenizer_files_come_back(folder: Path, one_step: Checkpoint, tmp_path: Path) -> None:
    save_folder(one_step, tmp_path / "written")
    shutil.copytree(tmp_path / "written" / "tokenizer", folder / "tokenizer")
    convert(folder, tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / "back")
    for path in (folder / "tokenizer").iterdir():
        assert path.read_bytes() == (tmp_path / "back" / "tokenizer" / path.name).read_bytes()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert len(file.metadata()["instaflow.folder"]) < 20_000, "the vocabulary every pack has is not stored again"
    (folder / "tokenizer" / "vocab.json").write_text('{"own": 0}')
    convert(folder, tmp_path / "model.safetensors", force=True)
    convert(tmp_path / "model.safetensors", tmp_path / "back", force=True)
    assert (tmp_path / "back" / "tokenizer" / "vocab.json").read_text() == '{"own": 0}'


def test_a_newer_tokenizer_file_is_known_for_the_same_vocabulary(folder: Path, tmp_path: Path) -> None:
    from instaflow_core.text import load_tokenizer

    load_tokenizer().save_pretrained(folder / "tokenizer")
    convert(folder, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert len(file.metadata()["instaflow.folder"]) < 20_000


def test_a_file_goes_into_a_folder_and_comes_back(tiny_vae: Checkpoint, tmp_path: Path) -> None:
    save(tiny_vae, tmp_path / "model.safetensors", torch.bfloat16)
    convert(tmp_path / "model.safetensors", tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "again.safetensors")
    assert same_bytes(load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "again.safetensors"))
    loaded = load(tmp_path / "again.safetensors")
    assert loaded.native_size == 64 and "instaflow.license" not in loaded.metadata


def test_convert_changes_the_type_where_asked(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "model.safetensors", torch.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}


def test_convert_says_how_far_it_is(folder: Path, tmp_path: Path) -> None:
    """In bytes of all parts, be they in one file or in several; and an interrupt leaves nothing."""
    for source, destination in (
        (folder, tmp_path / "model.safetensors"),
        (tmp_path / "model.safetensors", tmp_path / "back"),
    ):
        told: list[tuple[int, int]] = []
        convert(source, destination, torch.float16, progress=lambda *sizes, told=told: told.append(sizes))
        checkpoint = load(destination)
        parts = (checkpoint.unet, checkpoint.text_encoder or {}, checkpoint.vae or {})
        (total,) = {total for _, total in told}
        assert sum(size for size, _ in told) == total == sum(t.nbytes for part in parts for t in part.values())

        def interrupt(*_: int) -> None:
            raise KeyboardInterrupt

        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / f"other{destination.suffix}", progress=interrupt)
        assert sorted(tmp_path.rglob("*")) == before


def test_convert_does_not_overwrite_unasked(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"old")
    with pytest.raises(FileExistsError, match="exists already"):
        convert(folder, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == b"old"
    convert(folder, tmp_path / "model.safetensors", force=True)
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine.txt").write_text("old")
    convert(tmp_path / "model.safetensors", tmp_path / "back", force=True)
    assert not (tmp_path / "back" / "mine.txt").exists() and leftovers(tmp_path) == []


def test_convert_needs_another_place(folder: Path) -> None:
    with pytest.raises(FormatError, match="both source and destination"):
        convert(folder, folder / ".." / folder.name, force=True)


def test_convert_writes_safetensors_only(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"called model\.ckpt. Expected a name ending in \.safetensors"):
        convert(folder, tmp_path / "model.ckpt")


# --- names and modules ------------------------------------------------------------------------------------------------


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match=r"No built-in model is called 'built-in: cats'\. Expected built-in: shapes"):
        load("built-in: cats")
    with pytest.raises(FormatError, match="There is nothing at"):
        load(tmp_path / "none.safetensors")
    monkeypatch.setattr("instaflow_core.weights.checkpoint.MODELS", tmp_path)
    with pytest.raises(FormatError, match="make models"):
        load("built-in: shapes")


def test_a_built_in_name_is_a_file_in_models(
    tiny_vae: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instaflow_core.weights.checkpoint.MODELS", tmp_path)
    save(tiny_vae, tmp_path / "shapes-2rf.safetensors")
    assert same_models(load("built-in: shapes-2rf"), tiny_vae)


@torch.no_grad()
def test_modules_are_filled_and_their_weights_are_their_own(tiny_vae: Checkpoint, tmp_path: Path) -> None:
    save(tiny_vae, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    unet, text_encoder, vae = build_unet(loaded), build_text_encoder(loaded), build_vae(loaded)
    for module in (unet, text_encoder, vae):
        assert not module.training
        assert not any(parameter.is_meta for parameter in module.parameters())
        assert not any(buffer.is_meta for buffer in module.buffers())
    assert same_bytes(dict(unet.state_dict()), tiny_vae.unet) and same_bytes(dict(vae.state_dict()), tiny_vae.vae)
    unet.conv_in.weight.zero_()
    assert torch.equal(loaded.unet["conv_in.weight"], tiny_vae.unet["conv_in.weight"])
    assert next(build_unet(loaded, torch.bfloat16).parameters()).dtype == torch.bfloat16
    assert next(iter(unet.parameters())).requires_grad, "a trainer takes it as it is"


def test_a_checkpoint_describes_itself() -> None:
    bare = Checkpoint({}, {"sample_size": 96})
    assert (bare.native_size, bare.latent_downscale, bare.prediction, bare.stage) == (768, 8, "velocity", "unknown")
    assert Checkpoint({}, {"sample_size": [32, 64]}).native_size == 512
    assert Checkpoint({}, {}).native_size == 512
    assert bare.part("vae") is None
