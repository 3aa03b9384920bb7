"""Tensors against the rows of a layout: what is missing or unknown is said, the rest gets diffusers' names."""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from .files import WEIGHT_TYPES, FormatError, Weights
from .layouts import VAE_ROWS, Config, Row, per_level, text_rows, unet_rows
from .limits import check_numbers

# Tensors old files carry along that belong to no model here: losses, a temperature, a projection nothing uses.
_IGNORED = {
    "text_encoder": r"^text_model\.(text_projection|logit_scale)|^(text_projection|logit_scale)",
    "vae": r"^(loss|model_ema)\.",
}

# What adds weights to a UNet that Stable Diffusion 1.5's has not, and its value there.
_PLAIN_UNET = {
    "addition_embed_type": None,
    "attention_type": "default",
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "time_cond_proj_dim": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
}

_WORDS = {"unet": "UNet", "text_encoder": "text encoder", "vae": "VAE"}


def rows_of(part: str, config: Config) -> list[Row]:
    """The rows of one model, `part` being "unet", "text_encoder" or "vae" (which reads the config's `_class_name`).

    Raises FormatError where the config is incomplete or names building blocks Stable Diffusion 1.5 does not have.
    """
    check_numbers(config, f"{_WORDS[part]} config")
    if part == "unet":
        for name, plain in _PLAIN_UNET.items():
            if config.get(name, plain) != plain:
                raise FormatError(
                    f"The UNet config says {name} = {repr(config[name])[:60]}",
                    f"{plain!r}, or nothing, as in a Stable Diffusion 1.5 model",
                    "The config belongs to another kind of model: get the one that came with these weights.",
                )
    makers: dict[str, Callable[[Config], list[Row]]] = {"unet": unet_rows, "text_encoder": text_rows}
    if part == "vae":
        kind = config.get("_class_name", "AutoencoderKL")
        if not isinstance(kind, str) or kind not in VAE_ROWS:
            advice = "Use the VAE the model came with."
            raise FormatError(f"The VAE is of the class {str(kind)[:60]}", " or ".join(VAE_ROWS), advice)
        makers["vae"] = VAE_ROWS[kind]
    try:
        rows = makers[part](config)
        _check_heads(part, config)
        return rows
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {str(error)[:100]}"
        raise FormatError(
            f"The {_WORDS[part]} config is incomplete or of another kind of model ({reason})",
            "the config.json of a Stable Diffusion 1.5 model",
            "Get the config from where the weights came.",
        ) from error


def _check_heads(part: str, config: Config) -> None:
    """Raise ValueError where a layer cannot be divided among its heads: no tensor's shape shows how many there are."""
    if part == "vae":
        return
    if part == "unet":
        widths = list(config["block_out_channels"])
        # diffusers' `attention_head_dim` is, for old models' sake, the number of heads.
        heads = per_level(config.get("num_attention_heads") or config.get("attention_head_dim", 8), len(widths))
    else:
        widths, heads = [config["hidden_size"]], [config["num_attention_heads"]]
    for width, count in zip(widths, heads, strict=True):
        if width % count:
            raise ValueError(f"{count} heads for {width} channels")


def match(part: str, tensors: Mapping[str, Tensor], rows: list[Row], keys: str, name: str = "this model") -> Weights:
    """The tensors of one model under their diffusers names and in their diffusers shapes; views, never copies.

    Args:
        tensors: named as `keys` ("diffusers" or "ldm") says, without a prefix.
        name: what messages call the source.

    Raises FormatError where a tensor is missing, has another shape, or belongs to no model of this config.
    """
    named: dict[str, Tensor] = {}
    missing, wrong, whole_numbers = [], [], []
    known = set()
    for row in rows:
        key, shape = (row.ldm, row.ldm_shape) if keys == "ldm" else (row.diffusers, row.shape)
        known.add(key)
        if key not in tensors:
            if not row.optional:
                missing.append(key)
        elif tuple(tensors[key].shape) != shape and not row.optional:
            wrong.append(f"{key} has shape {tuple(tensors[key].shape)}, not {shape}")
        elif not (tensors[key].dtype in WEIGHT_TYPES or row.optional):
            whole_numbers.append(f"{key} is {str(tensors[key].dtype).removeprefix('torch.')}")
        elif row.shape != row.ldm_shape:
            named[row.diffusers] = tensors[key].reshape(row.shape)
        else:
            named[row.diffusers] = tensors[key]
    ignored = re.compile(_IGNORED.get(part, r"(?!)"))
    unknown = [key for key in tensors if key not in known and not ignored.search(key)]
    problems = {
        "missing": missing,
        "of another shape": wrong,
        "of a type that no weights have": whole_numbers,
        "not part of such a model": unknown,
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{len(found)} {what}: {', '.join(text[:200] for text in found[:3])}{', …' if len(found) > 3 else ''}"
            for what, found in problems.items()
            if found
        )
        raise FormatError(
            f"The {_WORDS[part]} weights of {name} do not fit their config ({listed})",
            f"{len(rows)} tensors",
            "The file is incomplete or belongs to another model: get it again, with its own config.",
        )
    return named


def text_name(name: str) -> str:
    """A text encoder's tensor under `text_model.`, which transformers leaves out from version 5 on."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def with_text_prefix(tensors: Mapping[str, Tensor]) -> Weights:
    """A text encoder's tensors all under `text_model.`; one that is there under both names counts once."""
    bare = {text_name(name): tensor for name, tensor in tensors.items() if not name.startswith("text_model.")}
    return bare | {name: tensor for name, tensor in tensors.items() if name.startswith("text_model.")}


def to_ldm(tensors: Mapping[str, Tensor], rows: list[Row], prefix: str) -> Weights:
    """Tensors in diffusers names put in LDM names under `prefix`; views, never copies."""
    return {
        prefix + row.ldm: tensors[row.diffusers].reshape(row.ldm_shape)
        if row.shape != row.ldm_shape
        else tensors[row.diffusers]
        for row in rows
        if row.diffusers in tensors
    }
