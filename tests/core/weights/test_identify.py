"""Layouts: the tables against diffusers' own modules and converters; what each kind of file is said to be."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sd15 import TEXT as SD15_TEXT
from sd15 import UNET as SD15_UNET
from sd15 import VAE as SD15_VAE
from torch import Tensor

from instaflow_core.weights.configs import infer_text_config, infer_unet_config, infer_vae_config
from instaflow_core.weights.files import FormatError, read_weights
from instaflow_core.weights.identify import Layout, identify
from instaflow_core.weights.layouts import Row
from instaflow_core.weights.matching import match, rows_of, to_ldm, with_text_prefix

# Every way a UNet of this kind may differ from Stable Diffusion 1.5's: depth, layers, attention, linear projections.
UNETS: dict[str, dict[str, Any]] = {
    "SD 1.5": SD15_UNET,
    "one level": SD15_UNET
    | {
        "block_out_channels": [32],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
    },
    "two levels, attention at the finer": SD15_UNET
    | {
        "block_out_channels": [64, 96],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": 2,
    },
    "three levels, plain blocks between": SD15_UNET
    | {
        "block_out_channels": [32, 64, 64],
        "layers_per_block": 3,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
    },
    "linear projections": SD15_UNET | {"block_out_channels": [32, 64, 64, 96], "use_linear_projection": True},
    "layers by level": SD15_UNET | {"block_out_channels": [32, 32, 64, 64], "layers_per_block": [1, 2, 3, 1]},
    "transformers two deep": SD15_UNET | {"block_out_channels": [32, 64, 64, 64], "transformer_layers_per_block": 2},
}


def shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def required_rows(part: str, config: dict[str, Any]) -> list[Row]:
    return [row for row in rows_of(part, config) if not row.optional]


def meta(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def ldm_shapes(part: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {row.ldm: row.ldm_shape for row in required_rows(part, config)}


def diffusers_shapes(part: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {row.diffusers: row.shape for row in required_rows(part, config)}


def meta_unet(config: dict[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


# --- the tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNETS)
def test_unet_rows_are_the_tensors_diffusers_makes(name: str) -> None:
    assert diffusers_shapes("unet", UNETS[name]) == shapes_of(meta_unet(UNETS[name]))


@pytest.mark.parametrize(
    "config",
    [SD15_VAE, SD15_VAE | {"block_out_channels": [32, 64], "layers_per_block": 1, "latent_channels": 8}],
    ids=["SD 1.5", "small"],
)
def test_kl_rows_are_the_tensors_diffusers_makes(config: dict[str, Any]) -> None:
    from diffusers import AutoencoderKL

    levels = len(config["block_out_channels"])
    types = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    with torch.device("meta"):
        module = AutoencoderKL.from_config(config | types)
    assert diffusers_shapes("vae", config) == shapes_of(module)


def test_tiny_autoencoder_rows_are_the_tensors_diffusers_makes() -> None:
    from diffusers import AutoencoderTiny

    small = {"encoder_block_out_channels": (32, 32), "decoder_block_out_channels": (32, 32)}
    for options in ({}, small | {"num_encoder_blocks": (1, 2), "num_decoder_blocks": (2, 1)}):
        with torch.device("meta"):
            module = AutoencoderTiny(**options)
        assert diffusers_shapes("vae", dict(module.config, _class_name="AutoencoderTiny")) == shapes_of(module)


def test_text_rows_are_the_tensors_transformers_makes() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        module = CLIPTextModel(CLIPTextConfig.from_dict(dict(SD15_TEXT)))
    assert diffusers_shapes("text_encoder", SD15_TEXT) == shapes_of_with_prefix(module)


def shapes_of_with_prefix(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in with_text_prefix(module.state_dict()).items()}


def tagged(part: str, config: dict[str, Any], prefix: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Under every LDM name a tensor that holds a number of its own, and that number by diffusers name."""
    rows = required_rows(part, config)
    tensors = {prefix + row.ldm: torch.full([1] * len(row.ldm_shape), float(number)) for number, row in enumerate(rows)}
    return tensors, {row.diffusers: number for number, row in enumerate(rows)}


@pytest.mark.parametrize("name", [name for name in UNETS if name != "layers by level"])
def test_unet_names_agree_with_diffusers_own_converter(name: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    tensors, numbers = tagged("unet", UNETS[name], "model.diffusion_model.")
    module = meta_unet(UNETS[name])
    converted = convert_ldm_unet_checkpoint(tensors, dict(module.config))
    assert {key: int(tensor) for key, tensor in converted.items()} == numbers


def test_vae_names_agree_with_diffusers_own_converter() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    tensors, numbers = tagged("vae", SD15_VAE, "first_stage_model.")
    converted = convert_ldm_vae_checkpoint(tensors, SD15_VAE)
    assert {key: int(tensor) for key, tensor in converted.items()} == numbers


def test_text_names_agree_with_diffusers_own_converter() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint

    tensors, numbers = tagged("text_encoder", SD15_TEXT, "cond_stage_model.transformer.")
    converted = convert_ldm_clip_checkpoint(tensors)
    assert {key: int(tensor.flatten()[0]) for key, tensor in converted.items()} == numbers


@pytest.mark.parametrize("part, config", [("unet", SD15_UNET), ("vae", SD15_VAE), ("text_encoder", SD15_TEXT)])
def test_there_and_back_gives_every_tensor(part: str, config: dict[str, Any]) -> None:
    rows = rows_of(part, config)
    tensors = meta(diffusers_shapes(part, config))
    there = to_ldm(tensors, rows, "")
    assert {key: tuple(tensor.shape) for key, tensor in there.items()} == ldm_shapes(part, config)
    back = match(part, there, rows, "ldm")
    assert {key: tensor.shape for key, tensor in back.items()} == {key: t.shape for key, t in tensors.items()}


def test_no_two_rows_share_a_name() -> None:
    for part, config in (("unet", SD15_UNET), ("vae", SD15_VAE), ("text_encoder", SD15_TEXT)):
        rows = rows_of(part, config)
        assert len({row.ldm for row in rows}) == len({row.diffusers for row in rows}) == len(rows)


@pytest.mark.parametrize(
    "part, change, said",
    [
        ("unet", {"down_block_types": ["AttnDownBlock2D"] * 4}, "AttnDownBlock2D"),
        ("unet", {"up_block_types": []}, r"up_block_types = \[\]"),
        ("unet", {"block_out_channels": None}, "TypeError"),
        ("text_encoder", {"num_hidden_layers": None}, "TypeError"),
        ("vae", {"_class_name": "VQModel"}, "VQModel"),
    ],
)
def test_a_config_of_another_kind_is_refused(part: str, change: dict[str, Any], said: str) -> None:
    config = {"unet": SD15_UNET, "text_encoder": SD15_TEXT, "vae": SD15_VAE}[part]
    with pytest.raises(FormatError, match=said):
        rows_of(part, config | change)


def test_tensors_that_do_not_fit_are_named() -> None:
    rows = rows_of("unet", SD15_UNET)
    tensors = meta(diffusers_shapes("unet", SD15_UNET))
    del tensors["conv_in.bias"]
    tensors["conv_out.bias"] = torch.empty(5, device="meta")
    tensors["more.weight"] = torch.empty(1, device="meta")
    with pytest.raises(FormatError) as caught:
        match("unet", tensors, rows, "diffusers", "model.safetensors")
    for said in (
        "UNet weights of model.safetensors",
        "1 missing: conv_in.bias",
        "conv_out.bias has shape (5,), not (4,)",
        "1 not part of such a model: more.weight",
        "686 tensors",
    ):
        assert said in str(caught.value)


# --- configs from shapes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["diffusers", "ldm"])
@pytest.mark.parametrize("name", UNETS)
def test_a_unet_config_is_read_off_its_shapes(name: str, keys: str) -> None:
    config = UNETS[name]
    shapes = diffusers_shapes("unet", config) if keys == "diffusers" else ldm_shapes("unet", config)
    inferred = infer_unet_config(shapes, keys)
    assert rows_of("unet", inferred) == rows_of("unet", config)
    for key in ("block_out_channels", "layers_per_block", "down_block_types", "up_block_types", "cross_attention_dim"):
        assert inferred[key] == config[key]
    assert inferred["attention_head_dim"] == 8


def test_vae_and_text_configs_are_read_off_their_shapes() -> None:
    vae = infer_vae_config(ldm_shapes("vae", SD15_VAE))
    assert {key: vae[key] for key in SD15_VAE} == SD15_VAE
    assert vae["scaling_factor"] == 0.18215
    text = infer_text_config(ldm_shapes("text_encoder", SD15_TEXT))
    assert {key: text[key] for key in SD15_TEXT} == SD15_TEXT
    tiny = infer_vae_config({"taesd_decoder.1.weight": (64, 4, 3, 3)})
    assert tiny["_class_name"] == "AutoencoderTiny" and len(required_rows("vae", tiny)) == 134


def test_a_text_width_of_no_known_model_needs_metadata() -> None:
    with pytest.raises(FormatError, match=r"text states 64 wide .* instaflow\.\* metadata"):
        infer_unet_config(ldm_shapes("unet", SD15_UNET | {"cross_attention_dim": 64}), "ldm")


def test_a_unet_without_its_middle_is_incomplete() -> None:
    shapes = {key: shape for key, shape in ldm_shapes("unet", SD15_UNET).items() if not key.startswith("middle")}
    with pytest.raises(FormatError, match=r"lacks the tensor middle_block\.1\.transformer_blocks\.0\.attn2\.to_k"):
        infer_unet_config(shapes, "ldm")


# --- identify: what can be loaded -------------------------------------------------------------------------------------

SMALL = UNETS["one level"]
UNET_LDM = meta(ldm_shapes("unet", SMALL), "model.diffusion_model.")
UNET_DIFFUSERS = meta(diffusers_shapes("unet", SMALL))
TEXT = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.empty(768, device="meta")}
VAE = meta(ldm_shapes("vae", SD15_VAE), "first_stage_model.")

LOADABLE = {
    "checkpoint": (
        UNET_LDM | TEXT | VAE,
        Layout("file", "ldm", "model.diffusion_model.", "cond_stage_model.transformer.", "first_stage_model."),
    ),
    "checkpoint with what training left in it": (
        UNET_LDM | VAE | {"betas": torch.empty(1000, device="meta"), "model_ema.decay": torch.empty(1, device="meta")},
        Layout("file", "ldm", "model.diffusion_model.", None, "first_stage_model."),
    ),
    "LDM UNet with its prefix": (UNET_LDM, Layout("file", "ldm", "model.diffusion_model.")),
    "LDM UNet without a prefix": (meta(ldm_shapes("unet", SMALL)), Layout("file", "ldm", "")),
    "LDM UNet, short prefix": (
        meta(ldm_shapes("unet", SMALL), "diffusion_model."),
        Layout("file", "ldm", "diffusion_model."),
    ),
    "diffusers UNet": (UNET_DIFFUSERS, Layout("file", "diffusers", "")),
    "diffusers UNet, prefix": (
        meta(diffusers_shapes("unet", SMALL), "unet."),
        Layout("file", "diffusers", "unet."),
    ),
}


@pytest.mark.parametrize("name", LOADABLE)
def test_identify_names_the_layout(name: str) -> None:
    tensors, layout = LOADABLE[name]
    assert identify(tensors) == layout


def test_a_layout_says_itself_in_words() -> None:
    assert LOADABLE["checkpoint"][1].in_words == "single file, ldm names"
    assert LOADABLE["diffusers UNet"][1].in_words == "UNet alone, diffusers names"
    assert Layout("folder", "diffusers").in_words == "diffusers folder"


# --- identify: what cannot --------------------------------------------------------------------------------------------


def named(*names: str) -> dict[str, Tensor]:
    return {name: torch.empty(4, 4, device="meta") for name in names}


def widened(tensors: dict[str, Tensor], ending: str, axis: int, size: int) -> dict[str, Tensor]:
    """The same tensors, those whose names end so having another size along one axis."""
    changed = dict(tensors)
    for key, tensor in tensors.items():
        if key.endswith(ending):
            shape = list(tensor.shape)
            shape[axis] = size
            changed[key] = torch.empty(shape, device="meta")
    return changed


TO_K = "attn2.to_k.weight"
UNUSABLE: dict[str, tuple[dict[str, Tensor], str]] = {
    "empty": ({}, "not a single tensor"),
    "kohya LoRA": (
        named("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "lora_te_x.alpha"),
        r"a LoRA \(kohya",
    ),
    "kohya LoRA, text part first": (named("lora_te1_text_model_x.lora_up.weight"), r"a LoRA \(kohya"),
    "PEFT LoRA": (named("base_model.model.down_blocks.0.attentions.0.to_q.lora_A.weight"), r"a LoRA \(PEFT"),
    "PEFT LoRA as diffusers saves it": (
        named("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"),
        r"a LoRA \(PEFT",
    ),
    "diffusers LoRA": (
        named("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight"),
        r"a LoRA \(diffusers",
    ),
    "LoHa": (named("x_unet_y.hada_w1_a"), "LyCORIS"),
    "diffusers ControlNet": (
        meta(diffusers_shapes("unet", SMALL)) | named("controlnet_cond_embedding.conv_in.weight"),
        "a ControlNet",
    ),
    "LDM ControlNet": (named("control_model.input_blocks.0.0.weight"), "a ControlNet"),
    "LDM ControlNet, bare": (named("input_blocks.0.0.weight", "zero_convs.0.0.weight"), "a ControlNet"),
    "motion module": (named("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"), "AnimateDiff"),
    "IP-Adapter": (named("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "IP-Adapter"),
    "textual inversion": (named("emb_params"), "textual inversion"),
    "SDXL checkpoint": (
        UNET_LDM | named("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight"),
        "Stable Diffusion XL",
    ),
    "SDXL UNet, LDM": (UNET_LDM | named("model.diffusion_model.label_emb.0.0.weight"), "Stable Diffusion XL"),
    "SDXL UNet, diffusers": (UNET_DIFFUSERS | named("add_embedding.linear_1.weight"), "Stable Diffusion XL"),
    "SDXL by its text width": (widened(UNET_LDM, TO_K, 1, 2048), "Stable Diffusion XL UNet: .* 2048 wide"),
    "SD 2 by its text width": (widened(UNET_DIFFUSERS, TO_K, 1, 1024), "Stable Diffusion 2 UNet: .* 1024 wide"),
    "SD 2 checkpoint": (
        UNET_LDM | named("cond_stage_model.model.transformer.resblocks.0.ln_1.weight"),
        "Stable Diffusion 2 checkpoint",
    ),
    "inpainting": (
        widened(UNET_LDM, "input_blocks.0.0.weight", 1, 9),
        "inpainting UNet: it takes 9 channels. Expected 4",
    ),
    "InstructPix2Pix": (widened(UNET_DIFFUSERS, "conv_in.weight", 1, 8), "InstructPix2Pix"),
    "16 latent channels": (widened(UNET_DIFFUSERS, "conv_in.weight", 1, 16), "another model: it takes 16 channels"),
    "Flux": (named("double_blocks.0.img_attn.qkv.weight"), "diffusion transformer"),
    "SD 3": (named("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"), "diffusion transformer"),
    "PixArt": (named("transformer_blocks.0.attn1.to_q.weight", "pos_embed.proj.weight"), "diffusion transformer"),
    "latent consistency model": (UNET_DIFFUSERS | named("time_embedding.cond_proj.weight"), "latent consistency"),
    "scaled fp8": (UNET_LDM | named("model.diffusion_model.out.2.scale_weight"), "scaled fp8"),
    "VAE, diffusers": (meta(diffusers_shapes("vae", SD15_VAE)), "a VAE alone"),
    "VAE, LDM": (meta(ldm_shapes("vae", SD15_VAE)), "a VAE alone"),
    "VAE, with its prefix": (VAE, "a VAE alone"),
    "tiny VAE": (named("encoder.layers.0.weight", "decoder.layers.0.weight"), "a VAE alone"),
    "TAESD": (named("taesd_encoder.0.weight", "taesd_decoder.1.weight"), "a VAE alone"),
    "text encoder": (meta(diffusers_shapes("text_encoder", SD15_TEXT)), "a text encoder alone"),
    "text encoder without its prefix": (named("embeddings.token_embedding.weight"), "a text encoder alone"),
    "text encoder, LDM": (TEXT | named("cond_stage_model.transformer.text_model.encoder.layers.0.x"), "text encoder"),
    "T5": (named("shared.weight", "encoder.block.0.layer.0.layer_norm.weight"), "a text encoder alone"),
    "image encoder": (named("vision_model.embeddings.class_embedding"), "image encoder"),
    "two UNets": (UNET_LDM | UNET_DIFFUSERS, "two UNets"),
    "unknown": (named("some.weight", "other.bias"), r"2 tensors of an unknown kind \(other.bias, some.weight\)"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_identify_says_what_it_is_instead(name: str) -> None:
    tensors, said = UNUSABLE[name]
    with pytest.raises(FormatError, match=said) as caught:
        identify(tensors, "file.safetensors")
    assert str(caught.value).startswith("file.safetensors ")
    assert "Expected " in str(caught.value)


# --- files and folders ------------------------------------------------------------------------------------------------


def test_identify_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "unet.safetensors"
    save_file({key: torch.zeros(tensor.shape) for key, tensor in UNET_DIFFUSERS.items()}, path)
    assert identify(path) == Layout("file", "diffusers", "")


def test_identify_knows_folders(tmp_path: Path) -> None:
    unet = tmp_path / "model" / "unet"
    unet.mkdir(parents=True)
    assert identify(tmp_path / "model") == Layout("folder", "diffusers", "")
    (unet / "config.json").write_text("{}")
    assert identify(unet) == Layout("folder", "diffusers", "")
    (tmp_path / "model" / "vae").mkdir()
    assert identify(str(tmp_path / "model")) == Layout("folder", "diffusers", "", None, "")
    with pytest.raises(FormatError, match=r"The folder model has no unet/ in it \(it holds: vae\)"):
        unet.rename(tmp_path / "elsewhere")
        identify(tmp_path / "model")
    (tmp_path / "void").mkdir()
    with pytest.raises(FormatError, match="holds: nothing"):
        identify(tmp_path / "void")


def whole_file(path: Path) -> bytes:
    save_file({"x": torch.arange(64.0)}, path)
    return path.read_bytes()


def with_header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


BROKEN = {
    "empty": (lambda whole: b"", r"is empty \(0 bytes\)"),
    "cut in its tensors": (lambda whole: whole[:-100], "cut short: .* bytes, as its header says"),
    "cut in its header": (lambda whole: whole[:20], "cut short"),
    "damaged header": (lambda whole: whole[:9] + b"}" + whole[10:], "header is damaged"),
    "web page": (lambda whole: b"\n<!DOCTYPE html><html>", "a web page"),
    "web page without a doctype": (lambda whole: b"<HTML lang=en>", "a web page"),
    "git-lfs pointer": (
        lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167540\n",
        "a git-lfs pointer.*`git lfs pull",
    ),
    "something else": (lambda whole: b"GIF89a, a picture", "not a file of weights .*GIF89a"),
    "header of another kind": (lambda whole: with_header(b'{"x": 1}'), "header is damaged"),
    "unknown type of tensor": (
        lambda whole: with_header(b'{"x":{"dtype":"Q9","shape":[1],"data_offsets":[0,0]}}'),
        "is damaged",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_for_what_it_is(name: str, tmp_path: Path) -> None:
    change, said = BROKEN[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(change(whole_file(path)))
    with pytest.raises(FormatError, match=said) as caught:
        identify(path)
    assert "model.safetensors" in str(caught.value)


def test_a_header_is_no_longer_than_one_can_be(tmp_path: Path) -> None:
    """The file is as long as its header says, and a gigabyte is not read to find that out."""
    path = tmp_path / "long.safetensors"
    for length in (25_000_001, 2**30):
        with path.open("wb") as file:
            file.write(length.to_bytes(8, "little") + b"{")
            file.truncate(8 + length)
        with pytest.raises(FormatError, match=f"would be {length:,} bytes long. Expected at most 25,000,000"):
            read_weights(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="There is no file"):
        identify(tmp_path / "model.safetensors")


# --- pickles ----------------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("ending", [".bin", ".ckpt", ".safetensors"])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, zipped: bool, ending: str) -> None:
    path, trace = tmp_path / f"model{ending}", tmp_path / "it ran"
    torch.save({"x": torch.zeros(1), "y": Bomb(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(FormatError, match=r"holds Python objects or code; it was not run.*safetensors version"):
        read_weights(path)
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_in_a_pickle_are_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.bin"
    for content in ({"x": torch.arange(3)}, {"state_dict": {"x": torch.arange(3)}, "epoch": 7}):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        tensors, metadata = read_weights(path)
        assert list(tensors) == ["x"] and torch.equal(tensors["x"], torch.arange(3)) and metadata == {}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_half_a_pickle_is_said_to_be_half(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.bin"
    torch.save({"x": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(FormatError, match="damaged or cut short"):
        read_weights(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_never_end_in_another_error(kind: str, tmp_path: Path) -> None:
    """Any byte of a file may be wrong: it is read, or refused with a FormatError."""
    path, generator = tmp_path / "model.bin", random.Random(0)
    tensors = {"a": torch.arange(5.0), "b": torch.zeros(2, 2)}
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            assert read_weights(path)
        except FormatError:
            refused += 1
    assert refused > 20


def test_a_pickle_without_named_tensors_is_refused(tmp_path: Path) -> None:
    for content in ([torch.zeros(1)], {"epoch": 7}):
        torch.save(content, tmp_path / "model.bin")
        with pytest.raises(FormatError, match="holds no named tensors"):
            read_weights(tmp_path / "model.bin")


def test_metadata_comes_with_the_tensors(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", {"instaflow.unet_config": json.dumps({"a": 1})})
    assert read_weights(tmp_path / "model.safetensors")[1] == {"instaflow.unet_config": '{"a": 1}'}
