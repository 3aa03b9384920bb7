"""The configs of our models as the host writes them: what its UNet and its autoencoder are built from."""

from collections.abc import Sequence
from typing import Any

Config = dict[str, Any]

# What diffusers and transformers leave to the config and the host's modules have built in: name, values they can take.
# With another value the weights would fit and the pictures be wrong.
_BUILT_INTO_THE_HOST: dict[str, dict[str, tuple[Any, ...]]] = {
    "UNet": {
        "act_fn": ("silu",),
        "center_input_sample": (False,),
        "downsample_padding": (1,),
        "dual_cross_attention": (False,),
        "flip_sin_to_cos": (True,),
        "freq_shift": (0,),
        "mid_block_scale_factor": (1,),
        "norm_eps": (1e-5,),
        "norm_num_groups": (32,),
        "only_cross_attention": (False,),
        "resnet_out_scale_factor": (1,),
        "resnet_time_scale_shift": ("default",),
        "time_embedding_type": ("positional",),
    },
    "text encoder": {
        "hidden_act": ("quick_gelu", "gelu"),
        "layer_norm_eps": (1e-5,),
        "max_position_embeddings": (77,),
    },
    "AutoencoderKL": {
        "act_fn": ("silu",),
        "norm_num_groups": (32,),
        "scaling_factor": (0.18215,),
        "shift_factor": (None, 0),
    },
    "AutoencoderTiny": {
        "act_fn": ("relu",),
        "scaling_factor": (1,),
        "shift_factor": (None, 0),
        "upsampling_scaling_factor": (2,),
    },
}


def check_config(part: str, config: Config) -> None:
    """Raise FormatError for a config the host has no modules for; `part` is a key of the table above."""
    from ...instaflow_core.weights.files import FormatError

    for name, allowed in _BUILT_INTO_THE_HOST[part].items():
        if name in config and config[name] not in allowed:
            raise FormatError(
                f"The {part} has {name} = {config[name]!r}",
                f"{' or '.join(map(repr, allowed))}, which is what ComfyUI has built in",
                "Only models of Stable Diffusion 1.5's anatomy can be loaded here.",
            )


class _Multiple(float):
    """A level's width over the first level's. The host multiplies it by a width and needs a whole number back."""

    def __mul__(self, width: float) -> int:
        return round(float(self) * width)

    __rmul__ = __mul__


def _multiples(widths: Sequence[int]) -> list[_Multiple]:
    return [_Multiple(width / widths[0]) for width in widths]


def unet_config(config: Config) -> Config:
    """The host's UNet configuration for diffusers' one, as model_detection writes it for Stable Diffusion 1.5."""
    from ...instaflow_core.weights.layouts import per_level

    check_config("UNet", config)
    widths = list(config["block_out_channels"])
    layers = per_level(config["layers_per_block"], len(widths))
    depths = per_level(config.get("transformer_layers_per_block", 1), len(widths))
    attends = ["CrossAttn" in kind for kind in config["down_block_types"]]
    depth = [d if attends[i] else 0 for i, d in enumerate(depths)]
    return {
        "use_checkpoint": False,
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "use_spatial_transformer": True,
        "legacy": False,
        "adm_in_channels": None,
        "model_channels": widths[0],
        "num_res_blocks": layers,
        "transformer_depth": [d for d, n in zip(depth, layers, strict=True) for _ in range(n)],
        "transformer_depth_output": [d for d, n in zip(depth, layers, strict=True) for _ in range(n + 1)],
        "transformer_depth_middle": depths[-1],
        "channel_mult": _multiples(widths),
        "use_linear_in_transformer": bool(config.get("use_linear_projection")),
        "context_dim": config["cross_attention_dim"],
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        **_heads(config, widths),
    }


def _heads(config: Config, widths: list[int]) -> dict[str, int]:
    """Attention heads: diffusers' `attention_head_dim` is, for old models' sake, the number of heads."""
    from ...instaflow_core.weights.files import FormatError
    from ...instaflow_core.weights.layouts import per_level

    heads = per_level(config.get("num_attention_heads") or config["attention_head_dim"], len(widths))
    if len(set(heads)) == 1:
        return {"num_heads": heads[0], "num_head_channels": -1}
    head_widths = {width // count for width, count in zip(widths, heads, strict=True)}
    if len(head_widths) > 1:
        raise FormatError(
            f"The UNet has {heads} attention heads on levels {widths} wide",
            "as many heads on every level, or heads of the same width",
            "Only models of Stable Diffusion 1.5's anatomy can be loaded here.",
        )
    return {"num_heads": -1, "num_head_channels": head_widths.pop()}


def vae_config(config: Config) -> Config | None:
    """The host's configuration of an AutoencoderKL; None for AutoencoderTiny, which it knows by its weights."""
    check_config(config["_class_name"], config)
    if config["_class_name"] == "AutoencoderTiny":
        return None
    widths, latent = config["block_out_channels"], config["latent_channels"]
    ddconfig = {
        "double_z": True,
        "z_channels": latent,
        "resolution": 256,
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": _multiples(widths),
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return {"params": {"ddconfig": ddconfig, "embed_dim": latent}}
