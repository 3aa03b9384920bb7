"""Names and shapes of every tensor of the three models, in both layouts, derived from their configs.

Two layouts are in the world: diffusers' (a folder a model) and the one Stable Diffusion was published in, called LDM
here (all models in one file). A row is one tensor: its name in each, and its shape. Reading, writing and
checking a checkpoint are loops over rows, and a UNet of another depth or width is only another config.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
Shape = tuple[int, ...]

PARTS = ("unet", "text_encoder", "vae")
UNET_PREFIX = "model.diffusion_model."
TEXT_PREFIX = "cond_stage_model.transformer."
VAE_PREFIX = "first_stage_model."
PREFIXES = {"unet": UNET_PREFIX, "text_encoder": TEXT_PREFIX, "vae": VAE_PREFIX}
"""What the names of each part begin with in an LDM file."""

LATENT_SCALE = 0.18215
"""What Stable Diffusion's autoencoder multiplies its latents by; the VAE decodes `latents / LATENT_SCALE`."""


@dataclass(frozen=True)
class Row:
    """One tensor. `ldm_shape` differs from `shape` only where LDM keeps a linear layer as a 1x1 convolution."""

    diffusers: str
    ldm: str
    shape: Shape
    ldm_shape: Shape
    optional: bool = False


def _row(diffusers: str, ldm: str, shape: Shape, ldm_shape: Shape | None = None, optional: bool = False) -> Row:
    return Row(diffusers, ldm, shape, shape if ldm_shape is None else ldm_shape, optional)


def _layer(diffusers: str, ldm: str, shape: Shape, bias: bool = True, ldm_shape: Shape | None = None) -> Iterator[Row]:
    """A linear layer, convolution or norm: its weight and, as a rule, a bias as long as its first axis."""
    yield _row(f"{diffusers}.weight", f"{ldm}.weight", shape, ldm_shape)
    if bias:
        yield _row(f"{diffusers}.bias", f"{ldm}.bias", shape[:1])


def per_level(value: int | Sequence[int], levels: int) -> list[int]:
    """A config value that may be one number for all levels, or one for each."""
    return [value] * levels if isinstance(value, int) else list(value)


# --- UNet2DConditionModel <-> model.diffusion_model.* -----------------------------------------------------------------

# name in a diffusers residual block, name in an LDM one, shape from (channels in, channels out, time embedding width)
_UNET_RESNET = (
    ("norm1", "in_layers.0", lambda i, o, t: (i,)),
    ("conv1", "in_layers.2", lambda i, o, t: (o, i, 3, 3)),
    ("time_emb_proj", "emb_layers.1", lambda i, o, t: (o, t)),
    ("norm2", "out_layers.0", lambda i, o, t: (o,)),
    ("conv2", "out_layers.3", lambda i, o, t: (o, o, 3, 3)),
)

# Both layouts name the inside of a transformer block alike: name, shape from (channels, text width), has a bias.
_TRANSFORMER_BLOCK = (
    ("norm1", lambda c, x: (c,), True),
    ("attn1.to_q", lambda c, x: (c, c), False),
    ("attn1.to_k", lambda c, x: (c, c), False),
    ("attn1.to_v", lambda c, x: (c, c), False),
    ("attn1.to_out.0", lambda c, x: (c, c), True),
    ("norm2", lambda c, x: (c,), True),
    ("attn2.to_q", lambda c, x: (c, c), False),
    ("attn2.to_k", lambda c, x: (c, x), False),
    ("attn2.to_v", lambda c, x: (c, x), False),
    ("attn2.to_out.0", lambda c, x: (c, c), True),
    ("norm3", lambda c, x: (c,), True),
    ("ff.net.0.proj", lambda c, x: (8 * c, c), True),
    ("ff.net.2", lambda c, x: (c, 4 * c), True),
)

UNET_DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # block type: has cross-attention
UNET_UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


def _unet_resnet(diffusers: str, ldm: str, channels_in: int, channels_out: int, time_width: int) -> Iterator[Row]:
    for name, ldm_name, shape in _UNET_RESNET:
        yield from _layer(f"{diffusers}.{name}", f"{ldm}.{ldm_name}", shape(channels_in, channels_out, time_width))
    if channels_in != channels_out:
        shortcut = (channels_out, channels_in, 1, 1)
        yield from _layer(f"{diffusers}.conv_shortcut", f"{ldm}.skip_connection", shortcut)


def _unet_attention(diffusers: str, ldm: str, channels: int, depth: int, config: Config) -> Iterator[Row]:
    projection: Shape = (channels, channels) if config.get("use_linear_projection") else (channels, channels, 1, 1)
    yield from _layer(f"{diffusers}.norm", f"{ldm}.norm", (channels,))
    yield from _layer(f"{diffusers}.proj_in", f"{ldm}.proj_in", projection)
    for block in range(depth):
        inside = f"transformer_blocks.{block}"
        for name, shape, bias in _TRANSFORMER_BLOCK:
            width = shape(channels, config["cross_attention_dim"])
            yield from _layer(f"{diffusers}.{inside}.{name}", f"{ldm}.{inside}.{name}", width, bias)
    yield from _layer(f"{diffusers}.proj_out", f"{ldm}.proj_out", projection)


def unet_rows(config: Config) -> list[Row]:
    """All tensors of a UNet2DConditionModel of Stable Diffusion's kind, of any depth and width.

    LDM numbers its blocks in one row: `input_blocks.0` is the first convolution, then every residual block and every
    downsampling is one entry; `output_blocks` counts residual blocks, and an upsampling is the last part of its entry.
    """
    channels = list(config["block_out_channels"])
    levels = len(channels)
    layers = per_level(config["layers_per_block"], levels)
    depths = per_level(config.get("transformer_layers_per_block", 1), levels)
    time_width = 4 * channels[0]
    rows: list[Row] = []

    rows += _layer("conv_in", "input_blocks.0.0", (channels[0], config["in_channels"], 3, 3))
    rows += _layer("time_embedding.linear_1", "time_embed.0", (time_width, channels[0]))
    rows += _layer("time_embedding.linear_2", "time_embed.2", (time_width, time_width))

    entry, width = 1, channels[0]
    skips = [width]  # channel counts the way up takes over, last one first
    for level in range(levels):
        for layer in range(layers[level]):
            ours, ldm = f"down_blocks.{level}", f"input_blocks.{entry}"
            rows += _unet_resnet(f"{ours}.resnets.{layer}", f"{ldm}.0", width, channels[level], time_width)
            width = channels[level]
            if UNET_DOWN_BLOCKS[config["down_block_types"][level]]:
                rows += _unet_attention(f"{ours}.attentions.{layer}", f"{ldm}.1", width, depths[level], config)
            skips.append(width)
            entry += 1
        if level < levels - 1:
            name = f"down_blocks.{level}.downsamplers.0.conv"
            rows += _layer(name, f"input_blocks.{entry}.0.op", (width, width, 3, 3))
            skips.append(width)
            entry += 1

    rows += _unet_resnet("mid_block.resnets.0", "middle_block.0", width, width, time_width)
    rows += _unet_attention("mid_block.attentions.0", "middle_block.1", width, depths[-1], config)
    rows += _unet_resnet("mid_block.resnets.1", "middle_block.2", width, width, time_width)

    entry = 0
    for block, level in enumerate(reversed(range(levels))):
        attention = UNET_UP_BLOCKS[config["up_block_types"][block]]
        for layer in range(layers[level] + 1):
            ours, ldm = f"up_blocks.{block}", f"output_blocks.{entry}"
            rows += _unet_resnet(
                f"{ours}.resnets.{layer}", f"{ldm}.0", width + skips.pop(), channels[level], time_width
            )
            width = channels[level]
            if attention:
                rows += _unet_attention(f"{ours}.attentions.{layer}", f"{ldm}.1", width, depths[level], config)
            entry += 1
        if level > 0:
            last = f"output_blocks.{entry - 1}.{2 if attention else 1}.conv"
            rows += _layer(f"up_blocks.{block}.upsamplers.0.conv", last, (width, width, 3, 3))

    rows += _layer("conv_norm_out", "out.0", (channels[0],))
    rows += _layer("conv_out", "out.2", (config["out_channels"], channels[0], 3, 3))
    return rows


# --- AutoencoderKL <-> first_stage_model.* ----------------------------------------------------------------------------

_VAE_ATTENTION = (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))

# Names the same four layers had in diffusers folders saved before version 0.17.
OLD_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _vae_resnet(diffusers: str, ldm: str, channels_in: int, channels_out: int) -> Iterator[Row]:
    shapes: dict[str, Shape] = {
        "norm1": (channels_in,),
        "conv1": (channels_out, channels_in, 3, 3),
        "norm2": (channels_out,),
        "conv2": (channels_out, channels_out, 3, 3),
    }
    for name, shape in shapes.items():
        yield from _layer(f"{diffusers}.{name}", f"{ldm}.{name}", shape)
    if channels_in != channels_out:
        shortcut = (channels_out, channels_in, 1, 1)
        yield from _layer(f"{diffusers}.conv_shortcut", f"{ldm}.nin_shortcut", shortcut)


def _vae_middle(half: str, width: int, attention: bool) -> Iterator[Row]:
    yield from _vae_resnet(f"{half}.mid_block.resnets.0", f"{half}.mid.block_1", width, width)
    if attention:
        ours, ldm = f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1"
        yield from _layer(f"{ours}.group_norm", f"{ldm}.norm", (width,))
        for name, ldm_name in _VAE_ATTENTION:
            yield from _layer(f"{ours}.{name}", f"{ldm}.{ldm_name}", (width, width), ldm_shape=(width, width, 1, 1))
    yield from _vae_resnet(f"{half}.mid_block.resnets.1", f"{half}.mid.block_2", width, width)


def kl_rows(config: Config) -> list[Row]:
    """All tensors of an AutoencoderKL. LDM counts the decoder's levels from the finest, diffusers from the coarsest."""
    channels = list(config["block_out_channels"])
    levels, latent = len(channels), config["latent_channels"]
    attention = config.get("mid_block_add_attention", True)
    rows: list[Row] = []

    rows += _layer("encoder.conv_in", "encoder.conv_in", (channels[0], config["in_channels"], 3, 3))
    width = channels[0]
    for level in range(levels):
        for layer in range(config["layers_per_block"]):
            ours, ldm = f"encoder.down_blocks.{level}.resnets.{layer}", f"encoder.down.{level}.block.{layer}"
            rows += _vae_resnet(ours, ldm, width, channels[level])
            width = channels[level]
        if level < levels - 1:
            ours, ldm = f"encoder.down_blocks.{level}.downsamplers.0.conv", f"encoder.down.{level}.downsample.conv"
            rows += _layer(ours, ldm, (width, width, 3, 3))
    rows += _vae_middle("encoder", width, attention)
    rows += _layer("encoder.conv_norm_out", "encoder.norm_out", (width,))
    rows += _layer("encoder.conv_out", "encoder.conv_out", (2 * latent, width, 3, 3))
    if config.get("use_quant_conv", True):
        rows += _layer("quant_conv", "quant_conv", (2 * latent, 2 * latent, 1, 1))

    if config.get("use_post_quant_conv", True):
        rows += _layer("post_quant_conv", "post_quant_conv", (latent, latent, 1, 1))
    rows += _layer("decoder.conv_in", "decoder.conv_in", (width, latent, 3, 3))
    rows += _vae_middle("decoder", width, attention)
    for block, level in enumerate(reversed(range(levels))):
        for layer in range(config["layers_per_block"] + 1):
            ours, ldm = f"decoder.up_blocks.{block}.resnets.{layer}", f"decoder.up.{level}.block.{layer}"
            rows += _vae_resnet(ours, ldm, width, channels[level])
            width = channels[level]
        if level > 0:
            ours, ldm = f"decoder.up_blocks.{block}.upsamplers.0.conv", f"decoder.up.{level}.upsample.conv"
            rows += _layer(ours, ldm, (width, width, 3, 3))
    rows += _layer("decoder.conv_norm_out", "decoder.norm_out", (width,))
    rows += _layer("decoder.conv_out", "decoder.conv_out", (config["out_channels"], width, 3, 3))
    return rows


# --- AutoencoderTiny (TAESD) <-> first_stage_model.taesd_* ------------------------------------------------------------


def _tiny_block(diffusers: str, ldm: str, width: int) -> Iterator[Row]:
    for index in (0, 2, 4):
        yield from _layer(f"{diffusers}.conv.{index}", f"{ldm}.conv.{index}", (width, width, 3, 3))


def _tiny_half(half: str, ldm: str, shift: int, layers: Iterable[int | tuple[Shape, bool] | None]) -> Iterator[Row]:
    """One half of TAESD, a row of layers: a block's width, a convolution's shape and bias, or None (no weights)."""
    for index, layer in enumerate(layers):
        ours, theirs = f"{half}.layers.{index}", f"{ldm}.{index + shift}"
        if isinstance(layer, int):
            yield from _tiny_block(ours, theirs, layer)
        elif layer is not None:
            yield from _layer(ours, theirs, layer[0], bias=layer[1])


def tiny_rows(config: Config) -> list[Row]:
    """All tensors of an AutoencoderTiny. TAESD's decoder begins with a clamp layer, so its numbers are one higher."""
    latent = config["latent_channels"]

    down: list[int | tuple[Shape, bool] | None] = []
    widths = config["encoder_block_out_channels"]
    for level, (width, blocks) in enumerate(zip(widths, config["num_encoder_blocks"], strict=True)):
        down.append(((width, width, 3, 3), False) if level else ((width, config["in_channels"], 3, 3), True))
        down += [width] * blocks
    down.append(((latent, widths[-1], 3, 3), True))

    widths = config["decoder_block_out_channels"]
    up: list[int | tuple[Shape, bool] | None] = [((widths[0], latent, 3, 3), True), None]  # None: the activation
    for level, (width, blocks) in enumerate(zip(widths, config["num_decoder_blocks"], strict=True)):
        up += [width] * blocks
        last = level == len(widths) - 1
        up += [((config["out_channels"], width, 3, 3), True)] if last else [None, ((width, width, 3, 3), False)]
    return [*_tiny_half("encoder", "taesd_encoder", 0, down), *_tiny_half("decoder", "taesd_decoder", 1, up)]


VAE_ROWS = {"AutoencoderKL": kl_rows, "AutoencoderTiny": tiny_rows}


# --- CLIPTextModel <-> cond_stage_model.transformer.* -----------------------------------------------------------------


def text_rows(config: Config) -> list[Row]:
    """All tensors of a CLIPTextModel, named alike in both layouts and always under `text_model.`."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, Shape] = {
        "embeddings.token_embedding.weight": (config["vocab_size"], width),
        "embeddings.position_embedding.weight": (config["max_position_embeddings"], width),
    }
    layer_shapes: dict[str, Shape] = {
        **{f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")},
        "layer_norm1": (width,),
        "layer_norm2": (width,),
        "mlp.fc1": (inner, width),
        "mlp.fc2": (width, inner),
    }
    for layer in range(config["num_hidden_layers"]):
        for name, shape in layer_shapes.items():
            shapes[f"encoder.layers.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layers.{layer}.{name}.bias"] = shape[:1]
    shapes["final_layer_norm.weight"] = (width,)
    shapes["final_layer_norm.bias"] = (width,)
    rows = [_row(f"text_model.{name}", f"text_model.{name}", shape) for name, shape in shapes.items()]
    # A counter 0, 1, 2, … that older versions saved along with the weights.
    ids = "text_model.embeddings.position_ids"
    rows.append(_row(ids, ids, (1, config["max_position_embeddings"]), optional=True))
    return rows
