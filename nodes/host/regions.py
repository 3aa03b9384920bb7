"""The blocks that UNets and decoders of Stable Diffusion's kind repeat, as functions of tensors, for torch.compile.

What is compiled of the host's own modules is compiled again for whatever they look at: another caption, a patch, a
weight that has moved. These look at nothing but what they are given: weights come in at each call, as the host has
patched, moved and cast them, and one compilation serves for all tensors of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules.attention import GEGLU, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.model import ResnetBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.taesd.taesd import Block
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import conv2d, group_norm, layer_norm, linear, relu, scaled_dot_product_attention, silu

Weights = list[Any]
"""Weight and bias of one layer after another; None where it has no bias."""
Region = Callable[..., Tensor]
"""(x, tensors that come beside it, Weights) -> what the block gives."""

_PATCHES = {"attn1_patch", "attn2_patch", "attn1_output_patch", "attn2_output_patch", "middle_patch"}
"""What the host lets others do inside a transformer."""


def residual(groups: int, eps: float) -> Region:
    """A residual block, whose time is a bias (1 or B, C); an autoencoder's has none."""

    def block(x: Tensor, beside: list[Tensor], weights: Weights) -> Tensor:
        norm_in, shift_in, conv_in, bias_in, norm_out, shift_out, conv_out, bias_out, *skip = weights
        h = conv2d(silu(group_norm(x, groups, norm_in, shift_in, eps)), conv_in, bias_in, padding=1)
        for bias in beside:
            h = h + bias[..., None, None]
        h = conv2d(silu(group_norm(h, groups, norm_out, shift_out, eps)), conv_out, bias_out, padding=1)
        return h + (conv2d(x, *skip) if skip else x)

    return block


def tiny() -> Region:
    """A block of a decoder of TAESD's shape."""

    def block(x: Tensor, beside: list[Tensor], weights: Weights) -> Tensor:
        first, bias_1, second, bias_2, third, bias_3, *skip = weights
        h = relu(conv2d(x, first, bias_1, padding=1))
        h = relu(conv2d(h, second, bias_2, padding=1))
        h = conv2d(h, third, bias_3, padding=1)
        return relu(h + (conv2d(x, *skip) if skip else x))

    return block


def transformer(groups: int, eps: float, heads: int, by_linear: bool, norm_eps: float) -> Region:
    """Attention to the picture itself and to the text, whose keys and values come in, in turn for each layer."""

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        width = query.shape[-1]
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
        return scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(len(query), -1, width)

    def layer(x: Tensor, text_key: Tensor, text_value: Tensor, weights: Weights) -> Tensor:
        norm_1, shift_1, query_1, _, key_1, _, value_1, _, out_1, bias_1, *others = weights
        norm_2, shift_2, query_2, _, out_2, bias_2, *others = others
        norm_3, shift_3, wide, wide_bias, narrow, narrow_bias = others
        shape = x.shape[-1:]
        n = layer_norm(x, shape, norm_1, shift_1, norm_eps)
        x = x + linear(attention(linear(n, query_1), linear(n, key_1), linear(n, value_1)), out_1, bias_1)
        n = layer_norm(x, shape, norm_2, shift_2, norm_eps)
        x = x + linear(attention(linear(n, query_2), text_key, text_value), out_2, bias_2)
        n, gate = linear(layer_norm(x, shape, norm_3, shift_3, norm_eps), wide, wide_bias).chunk(2, dim=-1)
        return x + linear(n * functional.gelu(gate), narrow, narrow_bias)

    def block(x: Tensor, beside: list[Tensor], weights: Weights) -> Tensor:
        norm, shift, proj_in, bias_in, *layers, proj_out, bias_out = weights
        height, width = x.shape[2:]
        h = group_norm(x, groups, norm, shift, eps)
        if not by_linear:
            h = conv2d(h, proj_in, bias_in)
        h = h.flatten(2).transpose(1, 2)
        if by_linear:
            h = linear(h, proj_in, bias_in)
        keys, values = beside[::2], beside[1::2]
        each = len(layers) // len(keys)
        for number, (key, value) in enumerate(zip(keys, values, strict=True)):
            h = layer(h, key, value, layers[each * number : each * (number + 1)])
        if by_linear:
            h = linear(h, proj_out, bias_out)
        h = h.transpose(1, 2).unflatten(2, (height, width))
        return x + (h if by_linear else conv2d(h, proj_out, bias_out))

    return block


def residual_layers(block: ResBlock) -> list[Any] | None:
    """The layers whose weights `residual` takes, in order; None where the block is of another kind."""
    if block.updown or block.use_scale_shift_norm or block.skip_t_emb or block.exchange_temb_dims:
        return None
    norm_in, _, conv_in = block.in_layers
    norm_out, _, _, conv_out = block.out_layers
    skip = [] if isinstance(block.skip_connection, torch.nn.Identity) else [block.skip_connection]
    return _of_residual(norm_in, conv_in, norm_out, conv_out, *skip)


def autoencoder_layers(block: ResnetBlock) -> list[Any] | None:
    """The same of an autoencoder's residual block."""
    skip = [getattr(block, name) for name in ("conv_shortcut", "nin_shortcut") if hasattr(block, name)]
    return _of_residual(block.norm1, block.conv1, block.norm2, block.conv2, *skip)


def _of_residual(norm_in: Any, conv_in: Any, norm_out: Any, conv_out: Any, *skip: Any) -> list[Any] | None:
    # Autoencoders of video have the same block with other layers in it.
    sizes = [getattr(layer, "kernel_size", None) for layer in (conv_in, conv_out, *skip)]
    norms = {(norm.num_groups, norm.eps) for norm in (norm_in, norm_out) if isinstance(norm, torch.nn.GroupNorm)}
    if sizes != [(3, 3), (3, 3), (1, 1)][: len(sizes)] or len(norms) != 1:
        return None
    return [norm_in, conv_in, norm_out, conv_out, *skip]


def tiny_layers(block: Block) -> list[Any] | None:
    """The same for `tiny`."""
    if getattr(block, "pool", None) is not None:
        return None
    skip = [] if isinstance(block.skip, torch.nn.Identity) else [block.skip]
    return [*block.conv[::2], *skip]


def transformer_layers(block: SpatialTransformer) -> list[Any] | None:
    """The same for `transformer`."""
    layers = [block.norm, block.proj_in]
    for inner in block.transformer_blocks:
        gated = isinstance(inner.ff.net[0], GEGLU)
        if inner.disable_self_attn or inner.ff_in or inner.attn2 is None or inner.switch_temporal_ca_to_sa or not gated:
            return None
        mine, text = inner.attn1, inner.attn2
        layers += [inner.norm1, mine.to_q, mine.to_k, mine.to_v, mine.to_out[0]]
        layers += [inner.norm2, text.to_q, text.to_out[0]]
        layers += [inner.norm3, inner.ff.net[0].proj, inner.ff.net[2]]
    return [*layers, block.proj_out]


def is_patched(options: dict[str, Any]) -> bool:
    """Whether somebody has a patch inside the transformers, by the host's transformer_options."""
    replaced = options.get("patches_replace", {})
    inside = _PATCHES & options.get("patches", {}).keys() or replaced.get("attn1") or replaced.get("attn2")
    return bool(inside) or "optimized_attention_override" in options


@contextmanager
def ready_weights(layers: list[Any], x: Tensor) -> Iterator[Weights]:
    """Weight and bias of each layer, patched, contiguous, where and in the type that the layer would use for x."""
    with ExitStack() as stack:
        found: Weights = []
        for layer in layers:
            if layer.comfy_cast_weights or layer.weight_function or layer.bias_function:
                weight, bias, stream = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
                stack.callback(comfy.ops.uncast_bias_weight, layer, weight, bias, stream)
            else:
                weight, bias = layer.weight, layer.bias
            found += [weight.contiguous(), None if bias is None else bias.contiguous()]
        yield found
