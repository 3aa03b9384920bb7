"""What a UNet computes again and again for one time and one caption, kept while neither changes.

One step asks the UNet at one time, t = 0, whatever the noise and the caption. So the embedding of the time and its
projections, one in each residual block, are constants that are added like biases; the keys and values of the text are
constants while the caption stays. Both come out of the layers themselves, with all that is patched on them, and are
what these would compute.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor
from torch.nn import Module

Forward = Callable[..., Tensor]

_MOST_TIMES = 32
"""As many as the steps of a long sampling; a time's tensors are small."""
_MOST_CAPTIONS = 4
_MOST_ROWS = 2
"""Captions in one batch: with guidance the host asks for the negative one beside the other."""


class Folded:
    """The constants of one MODEL and the clones of it, by the weights that gave them."""

    def __init__(self) -> None:
        self._layers: weakref.WeakKeyDictionary[Module, _Layers] = weakref.WeakKeyDictionary()
        self._times: OrderedDict[Hashable, dict[Module, Tensor]] = OrderedDict()
        self._captions: list[_Caption] = []

    def clear(self) -> None:
        """Give the memory back; the next evaluation computes everything anew."""
        self._times.clear()
        self._captions.clear()

    @contextmanager
    def applied(
        self,
        unet: Module,
        weights: Hashable,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None,
        options: dict[str, Any],
    ) -> Iterator[None]:
        """Inside it the UNet's layers give what is kept of them; what is not kept yet they compute, and it is kept.

        Args:
            weights: says which weights the UNet has now.
            x, timesteps, context: (B, C, H, W), (B,) and (B, tokens, width) as the UNet gets them.
            options: the host's transformer_options.
        """
        layers = self._layers.get(unet)
        if layers is None:
            layers = self._layers[unet] = _Layers(unet)
        forwards: dict[Module, Forward] = {}
        patches = options.get("patches", {})
        if "emb_patch" not in patches and not layers.time_is_changed():
            forwards |= self._folded_time(layers, (weights, x.dtype, x.device), timesteps)
        # A patch may write into what it is handed, and would write into what is kept.
        if context is not None and "attn2_patch" not in patches and "attn2" not in options.get("patches_replace", {}):
            forwards |= self._kept_text(layers, weights, context)
        with shadowed(forwards):
            yield

    def _folded_time(self, layers: _Layers, weights: Hashable, timesteps: Tensor) -> dict[Module, Forward]:
        times = set(timesteps.tolist())
        if len(times) != 1:
            return {}
        key = (weights, times.pop())
        kept = self._times.setdefault(key, {})
        self._times.move_to_end(key)
        while len(self._times) > _MOST_TIMES:
            self._times.popitem(last=False)
        embedded: list[Tensor] = []

        def embed(wave: Tensor) -> Tensor:
            # By this tensor the projections know that what they get is the time's embedding and nothing else.
            embedded[:] = [_kept(kept, layers.time_embed, wave, one_row=True).clone()]
            return embedded[0]

        def projected(layer: Module) -> Forward:
            plain = layer.forward

            def forward(embedding: Tensor) -> Tensor:
                if not embedded or embedding is not embedded[0]:
                    return plain(embedding)
                return _kept(kept, layer, embedding, one_row=True)

            return forward

        return {layers.time_embed: embed} | {layer: projected(layer) for layer in layers.projections}

    def _kept_text(self, layers: _Layers, weights: Hashable, context: Tensor) -> dict[Module, Forward]:
        same = len(context) == 1 or bool((context == context[:1]).all())
        rows = context[:1] if same else context
        if len(rows) > _MOST_ROWS:
            return {}
        caption = next((known for known in self._captions if known.is_of(weights, rows)), None)
        if caption is None:
            caption = _Caption(weights, rows.clone())
        others = [known for known in self._captions if known is not caption]
        self._captions[:] = [*others[1 - _MOST_CAPTIONS :], caption]

        def projected(layer: Module) -> Forward:
            plain = layer.forward
            return lambda text: _kept(caption.kept, layer, text, same) if text is context else plain(text)

        return {layer: projected(layer) for layer in layers.of_text if not is_changed(layer)}


class _Caption:
    """The keys and values of a caption."""

    def __init__(self, weights: Hashable, context: Tensor) -> None:
        self.weights, self.context = weights, context
        self.kept: dict[Module, Tensor] = {}

    def is_of(self, weights: Hashable, context: Tensor) -> bool:
        of = self.context
        same_kind = weights == self.weights and (of.dtype, of.device) == (context.dtype, context.device)
        return same_kind and torch.equal(of, context)


class _Layers:
    """Which layers of a UNet depend on nothing but the time or the text."""

    def __init__(self, unet: Module) -> None:
        blocks = [module for module in unet.modules() if isinstance(module, ResBlock)]
        attentions = [m.attn2 for m in unet.modules() if isinstance(m, BasicTransformerBlock) and m.attn2 is not None]
        self.time_embed: Any = unet.time_embed
        self.projections = [block.emb_layers for block in blocks if not block.use_scale_shift_norm]
        self.of_text = [layer for attention in attentions for layer in (attention.to_k, attention.to_v)]
        self._of_time = [part for layer in (self.time_embed, *self.projections) for part in layer.modules()]

    def time_is_changed(self) -> bool:
        return any(map(is_changed, self._of_time))


def is_changed(layer: Module) -> bool:
    """Whether somebody else has put something in the place of what the layer computes, or around it.

    Nodes that make pictures tile without a seam put another `_conv_forward` or `padding_mode` into convolutions.
    """
    own = vars(layer)  # asked of hundreds of layers an evaluation: what a module lacks takes it long to say
    if "forward" in own or "_conv_forward" in own or own.get("padding_mode", "zeros") != "zeros":
        return True
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _kept(kept: dict[Module, Tensor], layer: Module, given: Tensor, one_row: bool) -> Tensor:
    """What a layer gives for a batch, computed once.

    one_row: all rows of `given` are the same.
    """
    found = kept.get(layer)
    if found is None:
        found = kept[layer] = type(layer).forward(layer, given[:1] if one_row else given)
    return found.expand(len(given), *found.shape[1:])


@contextmanager
def shadowed(forwards: dict[Module, Forward]) -> Iterator[None]:
    """Inside it each of these layers computes what its function here says; none of them has a `forward` of its own."""
    try:
        for layer, forward in forwards.items():
            vars(layer)["forward"] = forward
        yield
    finally:
        for layer in forwards:
            vars(layer).pop("forward", None)
