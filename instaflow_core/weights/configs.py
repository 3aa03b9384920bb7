"""Configs read off the shapes of the weights, for files that say nothing about themselves.

Shapes give everything but the number of attention heads; there Stable Diffusion 1.5's rule is assumed: eight heads in
the UNet, 64 channels a head in the text encoder. Keys come without the prefix of the file they were in.
"""

from collections.abc import Mapping

from .files import Config, FormatError
from .layouts import Shape

Shapes = Mapping[str, Shape]

_MOST_LEVELS = 8
_MOST_ENTRIES = 256

STABLE_DIFFUSION_TEXT_WIDTH = 768

# What shapes do not tell; the values of Stable Diffusion 1.5's unet/config.json.
_UNET_FIXED: Config = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "sample_size": 64,
}

_VAE_FIXED: Config = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}

TINY_VAE_CONFIG: Config = {
    "_class_name": "AutoencoderTiny",
    "in_channels": 3,
    "out_channels": 3,
    "encoder_block_out_channels": [64, 64, 64, 64],
    "decoder_block_out_channels": [64, 64, 64, 64],
    "act_fn": "relu",
    "latent_channels": 4,
    "upsampling_scaling_factor": 2,
    "num_encoder_blocks": [1, 3, 3, 3],
    "num_decoder_blocks": [3, 3, 3, 1],
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "scaling_factor": 1.0,
}


def infer_unet_config(shapes: Shapes, keys: str) -> Config:
    """The UNet2DConditionModel config of a bare UNet's shapes, `keys` being "diffusers" or "ldm".

    Raises FormatError where a tensor the answer depends on is missing, or where the text width is not that of
    Stable Diffusion 1.5: the number of heads would be a guess.
    """
    names = _DIFFUSERS_NAMES if keys == "diffusers" else _LDM_NAMES
    down = _down_levels_diffusers(shapes) if keys == "diffusers" else _down_levels_ldm(shapes)
    if not all(down):
        _shape(shapes, f"the first block of level {down.index([])}")
    up = _up_attention(shapes, keys, [len(level) for level in reversed(down)])
    middle = f"{names['middle']}.transformer_blocks"
    text_width = _shape(shapes, f"{middle}.0.attn2.to_k.weight")[1]
    if text_width != STABLE_DIFFUSION_TEXT_WIDTH:
        raise FormatError(
            f"The UNet reads text states {text_width} wide and carries no metadata that describes it",
            f"the {STABLE_DIFFUSION_TEXT_WIDTH} of Stable Diffusion 1.5, or instaflow.* metadata in the file",
            "Load the folder or the file it was made from; files written by this pack carry their metadata.",
        )
    layers = [len(level) for level in down]
    depth = _count(shapes, middle)
    config: Config = _UNET_FIXED | {
        "in_channels": _shape(shapes, f"{names['first']}.weight")[1],
        "out_channels": _shape(shapes, f"{names['last']}.weight")[0],
        "block_out_channels": [_shape(shapes, f"{level[0]}.{names['conv']}.weight")[0] for level in down],
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "cross_attention_dim": text_width,
        "down_block_types": [
            "CrossAttnDownBlock2D" if _has(shapes, _attention_of(level[0], keys)) else "DownBlock2D" for level in down
        ],
        "up_block_types": ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in up],
    }
    if len(_shape(shapes, f"{names['middle']}.proj_in.weight")) == 2:
        config["use_linear_projection"] = True
    if depth != 1:
        config["transformer_layers_per_block"] = depth
    return config


def infer_vae_config(shapes: Shapes) -> Config:
    """The AutoencoderKL or AutoencoderTiny config of an LDM checkpoint's autoencoder."""
    if _has(shapes, "taesd_decoder."):
        return dict(TINY_VAE_CONFIG)
    levels = _count(shapes, "encoder.down", _MOST_LEVELS)
    return _VAE_FIXED | {
        "in_channels": _shape(shapes, "encoder.conv_in.weight")[1],
        "out_channels": _shape(shapes, "decoder.conv_out.weight")[0],
        "latent_channels": _shape(shapes, "decoder.conv_in.weight")[1],
        "block_out_channels": [
            _shape(shapes, f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)
        ],
        "layers_per_block": _count(shapes, "encoder.down.0.block"),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def infer_text_config(shapes: Shapes) -> Config:
    """The CLIPTextModel config of a text encoder whose keys begin with `text_model.`."""
    vocabulary, width = _shape(shapes, "text_model.embeddings.token_embedding.weight")[:2]
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(shapes, "text_model.encoder.layers"),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": _shape(shapes, "text_model.embeddings.position_embedding.weight")[0],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-05,
        "projection_dim": width,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


_DIFFUSERS_NAMES = {
    "first": "conv_in",
    "last": "conv_out",
    "conv": "conv1",
    "middle": "mid_block.attentions.0",
}
_LDM_NAMES = {
    "first": "input_blocks.0.0",
    "last": "out.2",
    "conv": "in_layers.2",
    "middle": "middle_block.1",
}


def _down_levels_diffusers(shapes: Shapes) -> list[list[str]]:
    """The residual blocks of each level on the way down, by name."""
    levels = []
    for level in range(_count(shapes, "down_blocks", _MOST_LEVELS)):
        layers = range(_count(shapes, f"down_blocks.{level}.resnets"))
        levels.append([f"down_blocks.{level}.resnets.{layer}" for layer in layers])
    return levels


def _down_levels_ldm(shapes: Shapes) -> list[list[str]]:
    """The same for LDM's single row of entries, where a downsampling ends a level."""
    levels: list[list[str]] = [[]]
    for entry in range(1, _count(shapes, "input_blocks", _MOST_ENTRIES)):
        if _has(shapes, f"input_blocks.{entry}.0.op."):
            levels.append([])
        else:
            levels[-1].append(f"input_blocks.{entry}.0")
    return levels


def _up_attention(shapes: Shapes, keys: str, layers: list[int]) -> list[bool]:
    """Which blocks on the way up have cross-attention; `layers` counts residual blocks, coarsest level first."""
    found, entry = [], 0
    for block, count in enumerate(layers):
        name = f"up_blocks.{block}.attentions.0." if keys == "diffusers" else f"output_blocks.{entry}.1.norm."
        found.append(_has(shapes, name))
        entry += count + 1
    return found


def _attention_of(resnet: str, keys: str) -> str:
    return resnet.replace("resnets", "attentions") + "." if keys == "diffusers" else f"{resnet[:-1]}1."


def _has(shapes: Shapes, start: str) -> bool:
    return any(key.startswith(start) for key in shapes)


def _count(shapes: Shapes, parent: str, most: int = 1000) -> int:
    """How many numbered children `parent.0`, `parent.1`, … there are; FormatError for more than any model has."""
    start = len(parent) + 1
    count = len({key[start:].split(".", 1)[0] for key in shapes if key.startswith(f"{parent}.")})
    if count > most:
        raise FormatError(
            f"The model has {count:,} numbers under {parent}", f"at most {most}", "Check that this is the right file."
        )
    return count


def _shape(shapes: Shapes, key: str) -> Shape:
    shape = shapes.get(key, ())
    if len(shape) < 2:
        found = f"has {key} as a tensor of shape {tuple(shape)}" if key in shapes else f"lacks the tensor {key}"
        raise FormatError(
            f"The model is of Stable Diffusion's kind but {found}",
            "all of its tensors",
            "The file is incomplete: get it again from where it came.",
        )
    return shape
