"""A checkpoint's models as modules of diffusers and transformers."""

from collections.abc import Callable
from typing import Any

import torch

from .checkpoint import Checkpoint
from .files import Config, FormatError, Weights, check_finite

_TEXT_CONFIG = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""What of a text encoder's config its module is made from."""


def build_unet(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """A diffusers UNet2DConditionModel with the checkpoint's weights, in eval mode. The weights are copied."""
    from diffusers import UNet2DConditionModel

    config = checkpoint.unet_config
    return _filled("UNet", checkpoint, lambda: UNet2DConditionModel.from_config(config), checkpoint.unet, dtype)


def build_vae(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """A diffusers AutoencoderKL or AutoencoderTiny, in eval mode; ValueError where the checkpoint has no VAE."""
    import diffusers

    tensors, config = needed_part(checkpoint, "vae", "VAE")
    # AutoencoderTiny saves its decoder's widths a second time, under a name it does not take back.
    config = {
        k: v for k, v in config.items() if config["_class_name"] != "AutoencoderTiny" or k != "block_out_channels"
    }
    return _filled(
        "VAE", checkpoint, lambda: getattr(diffusers, config["_class_name"]).from_config(config), tensors, dtype
    )


def build_text_encoder(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """A transformers CLIPTextModel, in eval mode; ValueError where the checkpoint has no text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tensors, config = needed_part(checkpoint, "text_encoder", "text encoder")
    # The rest of a config is not for us: it may name code to fetch, such as an attention of the hub.
    known = {name: value for name, value in config.items() if name in _TEXT_CONFIG}
    return _filled("text encoder", checkpoint, lambda: CLIPTextModel(CLIPTextConfig(**known)), tensors, dtype)


def needed_part(checkpoint: Checkpoint, part: str, name: str) -> tuple[Weights, Config]:
    """One part's tensors and config; ValueError, which calls it `name`, where the checkpoint has none."""
    held = checkpoint.part(part)
    if held is None:
        alone = checkpoint.part("text_encoder") is None and checkpoint.part("vae") is None
        found = "holds a UNet only" if alone else f"has no {name}"
        raise ValueError(
            f"This checkpoint {found}, and the {name} is needed. Give the whole model; a UNet in diffusers' layout "
            "becomes one where its folder takes the place of unet/ in a folder of Stable Diffusion 1.5."
        )
    return held


def _filled(part: str, checkpoint: Checkpoint, make: Callable[[], Any], tensors: Weights, dtype: torch.dtype) -> Any:
    """A module made without memory for its weights, then given copies of `tensors`.

    Raises FormatError where they are not finite, or the library knows no module of such a config.
    """
    from accelerate import init_empty_weights

    check_finite(tensors, checkpoint.name)
    try:
        with init_empty_weights(include_buffers=False):
            module = make()
    except (ArithmeticError, AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise FormatError(
            f"No {part} can be built from the config in {checkpoint.name} ({type(error).__name__}: {str(error)[:200]})",
            f"that of a {part} of Stable Diffusion 1.5's kind",
            "Get the config from where the weights came.",
        ) from error
    names = module.state_dict()
    # transformers names the text encoder's tensors with or without `text_model.`, as its version goes.
    bare = not any(name.startswith("text_model.") for name in names)
    own = {name.removeprefix("text_model.") if bare else name: tensor for name, tensor in tensors.items()}
    copies = {name: tensor.to(dtype, copy=True) for name, tensor in own.items() if not name.endswith("position_ids")}
    module.load_state_dict(copies, assign=True)
    return module.eval()
