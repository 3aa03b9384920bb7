"""What a file or folder of weights is: `identify`, and what it knows files by.

A layout that can be loaded gives a `Layout`; everything else gives a FormatError that names what it is. A new kind of
file is a new row.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .diffusers_folder import UNET_CLASS, read_json
from .files import FormatError, read_weights
from .layouts import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX

_EXPECTED = "an InstaFlow: a diffusers folder, a checkpoint, or a UNet of Stable Diffusion 1.5's shape"


@dataclass(frozen=True)
class Layout:
    """How a source keeps its models.

    kind: "folder" (diffusers) or "file".
    unet_keys: "diffusers" or "ldm".
    unet_prefix, text_prefix, vae_prefix: what stands before each model's own names; None where it has no such model.
    """

    kind: str
    unet_keys: str
    unet_prefix: str = ""
    text_prefix: str | None = None
    vae_prefix: str | None = None

    @property
    def in_words(self) -> str:
        """For people: "diffusers folder", "single file, ldm names", "UNet alone, diffusers names"."""
        if self.kind == "folder":
            return "diffusers folder"
        alone = self.text_prefix is None and self.vae_prefix is None
        return f"{'UNet alone' if alone else 'single file'}, {self.unet_keys} names"


# --- what a single file may be ----------------------------------------------------------------------------------------

# (layout of the keys, what a UNet's keys begin with after the prefix)
_UNET_STARTS = (("ldm", "input_blocks."), ("diffusers", "down_blocks."))
_UNET_PREFIXES = (UNET_PREFIX, "diffusion_model.", "unet.", "model.", "")


@dataclass(frozen=True)
class _Other:
    """A kind of file this pack cannot use as an InstaFlow, known by a pattern some key of it matches."""

    pattern: str
    name: str
    advice: str


_LORA_ADVICE = "Load an InstaFlow first, then apply this with the LoraLoader node."
_RENAME_ADVICE = (
    f"{_LORA_ADVICE} Where the host's log says `lora key not loaded`, bring it under names it reads first: "
    "`python -m instaflow_core convert LORA DESTINATION.safetensors`."
)
_OTHER_FOLDER_ADVICE = "Load it with the loader made for it; an InstaFlow's folder has unet/ in it, or is a UNet's own."
_OTHER_MODEL_ADVICE = "Load it with the loader made for it; only Stable Diffusion 1.5's shape can be an InstaFlow."

_OTHERS = (
    _Other(
        r"\.diff(_b)?$",
        "a difference of weights",
        "Apply it to an InstaFlow with the LoraLoaderModelOnly node, or merge it with "
        "`python -m instaflow_core merge-delta`.",
    ),
    _Other(r"^lora_(unet|te\d?|transformer)_", "a LoRA (kohya's layout)", _LORA_ADVICE),
    _Other(r"\.lora_[AB]\.|\.lora_embedding_[AB]|^base_model\.model\.", "a LoRA (PEFT's layout)", _RENAME_ADVICE),
    _Other(r"lora\.(up|down)\.|\.lora_linear_layer\.|lora_(up|down)\.", "a LoRA (diffusers' layout)", _RENAME_ADVICE),
    _Other(r"\.(hada_w1_a|lokr_w1|lokr_w1_a|oft_blocks|oft_diag)", "a LyCORIS adapter", _LORA_ADVICE),
    _Other(
        r"^control_model\.|controlnet_|^zero_convs\.|input_hint_block\.",
        "a ControlNet",
        "Load it with the ControlNetLoader node and apply it to an InstaFlow's conditioning.",
    ),
    _Other(r"motion_modules\.", "an AnimateDiff motion module", _OTHER_MODEL_ADVICE),
    _Other(r"^ip_adapter\.|^image_proj\.", "an IP-Adapter", _OTHER_MODEL_ADVICE),
    _Other(
        r"^(string_to_param|string_to_token|emb_params|clip_l|clip_g)$",
        "a textual inversion embedding",
        "Put it in models/embeddings and name it in the prompt as embedding:name.",
    ),
    _Other(r"^conditioner\.|add_embedding\.|label_emb\.", "a Stable Diffusion XL model", _OTHER_MODEL_ADVICE),
    _Other(r"^cond_stage_model\.model\.", "a Stable Diffusion 2 checkpoint", _OTHER_MODEL_ADVICE),
    _Other(
        r"joint_blocks\.|double_blocks\.|single_blocks\.|^single_transformer_blocks\.|^transformer_blocks\.|^blocks\.\d",
        "a diffusion transformer (Flux, SD3 or the like)",
        _OTHER_MODEL_ADVICE,
    ),
    _Other(
        r"time_embed(ding)?\.cond_proj\.",
        "a latent consistency model that is told its guidance by a layer of its own (time_cond_proj)",
        "Take one without that layer, by the rule lcm: Stable Diffusion 1.5 with LCM's LoRA, or both merged.",
    ),
    _Other(
        r"(^|\.)scaled_fp8$|\.scale_(weight|input)$",
        "a UNet in scaled fp8 weights",
        "Use the fp16 or plain fp8 version, or load it here in fp16 and choose fp8 as weight_dtype.",
    ),
)

# Asked only where there is no UNet.
_PARTS = (
    _Other(
        r"^(first_stage_model\.)?((encoder|decoder)\.conv_in\.|decoder\.layers\.0\.|taesd_(en|de)coder\.)",
        "a VAE alone, without a UNet",
        "Load it with the VAELoader node, next to an InstaFlow.",
    ),
    _Other(
        r"^(cond_stage_model\.)?(transformer\.)?(text_model\.)?(embeddings\.token_embedding|encoder\.layers\.0\.)|^shared\.",
        "a text encoder alone, without a UNet",
        "Load it with the CLIPLoader node, next to an InstaFlow.",
    ),
    _Other(r"vision_model\.", "an image encoder", _OTHER_MODEL_ADVICE),
)

# Widths of the text states a UNet reads, and latents it takes, that belong to other models.
_OTHER_TEXT_WIDTHS = {
    1024: "a Stable Diffusion 2 UNet",
    2048: "a Stable Diffusion XL UNet",
    1280: "an SDXL refiner UNet",
}
_OTHER_CHANNELS = {8: "an InstructPix2Pix UNet", 9: "a Stable Diffusion inpainting UNet"}
_LATENT_CHANNELS = 4


def identify(source: Mapping[str, Tensor] | str | Path, name: str = "this state dict") -> Layout:
    """The layout of a state dict, of a weight file, or of a diffusers folder.

    Only names and shapes are looked at, so tensors on the meta device will do. A path may be a diffusers folder, a
    UNet's own (the `unet` of one, or a repository of nothing else), or a file. `name` is what messages call a state
    dict.

    Raises FormatError, naming what the source is, for everything that is not a model of Stable Diffusion 1.5's kind.
    """
    if isinstance(source, Mapping):
        return _identify_tensors(source, name)
    path = Path(source)
    if not path.is_dir():
        return _identify_tensors(read_weights(path)[0], path.name)
    if (path / "unet").is_dir():
        present = {part: (path / part).is_dir() for part in ("text_encoder", "vae")}
        return Layout("folder", "diffusers", "", *("" if there else None for there in present.values()))
    if (path / "config.json").is_file():
        kind = read_json(path / "config.json").get("_class_name", UNET_CLASS if path.name == "unet" else "")
        if kind == UNET_CLASS:
            return Layout("folder", "diffusers")
        if kind:
            raise FormatError(f"The folder {path.name} is a {str(kind)[:60]}", _EXPECTED, _OTHER_FOLDER_ADVICE)
    inside = ", ".join(sorted(item.name for item in path.iterdir())[:6]) or "nothing"
    raise FormatError(
        f"The folder {path.name} has no unet/ in it (it holds: {inside})",
        "a diffusers folder with unet/, text_encoder/, vae/ and model_index.json, or a UNet's with its config.json",
        "Download the whole model folder, or name the folder above or below this one.",
    )


def _identify_tensors(tensors: Mapping[str, Tensor], name: str) -> Layout:
    if not tensors:
        raise FormatError(f"{name} holds not a single tensor", _EXPECTED, "Check that this is the right file.")
    _refuse(tensors, _OTHERS, name)
    unets = [
        (keys, prefix)
        for prefix in _UNET_PREFIXES
        for keys, start in _UNET_STARTS
        if any(key.startswith(prefix + start) for key in tensors)
    ]
    if not unets:
        _refuse(tensors, _PARTS, name)
        example = ", ".join(sorted(tensors)[:3])
        raise FormatError(
            f"{name} holds {len(tensors)} tensors of an unknown kind ({example})", _EXPECTED, "Choose another file."
        )
    if len(unets) > 1:
        names = " and ".join(f"{prefix or 'no prefix'} ({keys} names)" for keys, prefix in unets)
        raise FormatError(f"{name} holds two UNets: {names}", "one", "Save the one you mean to a file of its own.")
    keys, prefix = unets[0]
    _refuse_other_shapes(tensors, keys, prefix, name)
    text, vae = (start if _any_starts(tensors, start) else None for start in (TEXT_PREFIX, VAE_PREFIX))
    return Layout("file", keys, prefix, text, vae)


def _refuse(keys: Iterable[str], others: Iterable[_Other], name: str) -> None:
    keys = list(keys)
    for other in others:
        pattern = re.compile(other.pattern)
        for key in keys:
            if pattern.search(key):
                raise FormatError(f"{name} is {other.name}: it holds {key}", _EXPECTED, other.advice)


def _refuse_other_shapes(tensors: Mapping[str, Tensor], keys: str, prefix: str, name: str) -> None:
    first = tensors.get(prefix + ("input_blocks.0.0.weight" if keys == "ldm" else "conv_in.weight"))
    if first is not None and first.ndim > 1 and first.shape[1] != _LATENT_CHANNELS:
        channels = first.shape[1]
        found = _OTHER_CHANNELS.get(channels, "a UNet of another model")
        raise FormatError(
            f"{name} is {found}: it takes {channels} channels",
            f"{_LATENT_CHANNELS} latent channels",
            _OTHER_MODEL_ADVICE,
        )
    for key, tensor in tensors.items():
        if key.startswith(prefix) and key.endswith(".attn2.to_k.weight") and tensor.ndim > 1:
            if tensor.shape[1] in _OTHER_TEXT_WIDTHS:
                found = _OTHER_TEXT_WIDTHS[tensor.shape[1]]
                raise FormatError(
                    f"{name} is {found}: it reads text states {tensor.shape[1]} wide", _EXPECTED, _OTHER_MODEL_ADVICE
                )
            return


def _any_starts(names: Iterable[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)
