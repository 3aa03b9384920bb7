"""torch.compile for the repeated blocks of a UNet and of a decoder, once for each of their shapes."""

from __future__ import annotations

import copy
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from types import FunctionType
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.model import ResnetBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.taesd.taesd import Block
from torch import Tensor
from torch.nn import Module

from . import regions
from .folding import is_changed, shadowed

_log = logging.getLogger(__name__)

_MOST_REGIONS = 256
"""Compiled blocks that are kept: those of about ten sizes of the picture."""


class Compiled:
    """The compiled blocks of one MODEL and the clones of it, or of one VAE.

    Attributes:
        trouble: why nothing is compiled any more, in words; None while all is well.
        count: of compilations so far.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        """tell: gets the words, once."""
        self.trouble: str | None = None
        self.count = 0
        self._tell = tell
        self._regions: OrderedDict[Hashable, regions.Region] = OrderedDict()
        self._blocks: weakref.WeakKeyDictionary[Module, list[_Block]] = weakref.WeakKeyDictionary()

    def forwards(self, network: Module, options: dict[str, Any]) -> dict[Module, Callable[..., Tensor]]:
        """For each block of a UNet or a decoder that can be compiled the function that computes it.

        options: the host's transformer_options.
        """
        if self.trouble:
            return {}
        blocks = self._blocks.get(network)
        if blocks is None:
            blocks = self._blocks[network] = list(_blocks(network))
        patched = regions.is_patched(options)
        made = {ResBlock: self._residual, SpatialTransformer: self._transformer}
        return {
            block.module: made.get(type(block.module), self._alone)(block)
            for block in blocks
            if not (patched and type(block.module) is SpatialTransformer) and not any(map(is_changed, block.parts))
        }

    def _residual(self, block: _Block) -> Callable[..., Tensor]:
        module: Any = block.module

        def forward(x: Tensor, emb: Tensor) -> Tensor:
            bias = module.emb_layers(emb).to(x.dtype).contiguous()
            return self._run(block, x, [bias], lambda: type(module).forward(module, x, emb))

        return forward

    def _transformer(self, block: _Block) -> Callable[..., Tensor]:
        module: Any = block.module

        def forward(x: Tensor, context: Any = None, transformer_options: Any = None) -> Tensor:
            inner = [each.attn2 for each in module.transformer_blocks]
            contexts = context if isinstance(context, list) else [context] * len(inner)
            text = []
            for attention, states in zip(inner, contexts, strict=True):
                text += [attention.to_k(states).contiguous(), attention.to_v(states).contiguous()]
            return self._run(block, x, text, lambda: type(module).forward(module, x, context, transformer_options))

        return forward

    def _alone(self, block: _Block) -> Callable[..., Tensor]:
        module: Any = block.module

        def forward(x: Tensor, *beside: Any, **more: Any) -> Tensor:
            """A decoder's block: what comes beside x is there for autoencoders of video."""

            def plain() -> Tensor:
                return type(module).forward(module, x, *beside, **more)

            if any(value is not None for value in (*beside, *more.values())):
                return plain()
            return self._run(block, x, [], plain)

        return forward

    def _run(self, block: _Block, x: Tensor, beside: list[Tensor], plain: Callable[[], Tensor]) -> Tensor:
        if self.trouble:
            return plain()
        x = x.contiguous()
        # All that what is compiled depends on: weights are contiguous and of x's type.
        kind = (x.shape, x.dtype, x.device, torch.is_inference_mode_enabled(), *(each.shape for each in beside))
        compiled = self._regions.get((block.kind, kind))
        with regions.ready_weights(block.layers, x) as weights:
            if compiled is not None:
                self._regions.move_to_end((block.kind, kind))
                return compiled(x, beside, weights)
            try:
                compiled = compiled_region(block.region(), x.device)
                result = compiled(x, beside, weights)
            except comfy.model_management.OOM_EXCEPTION:
                raise
            except Exception as error:
                self._give_up(error)
                return plain()
        self.count += 1
        self._regions[block.kind, kind] = compiled
        while len(self._regions) > _MOST_REGIONS:
            self._regions.popitem(last=False)
        return result

    def _give_up(self, error: Exception) -> None:
        """What one block cannot, others cannot either: a compiler is missing, or does not know this device."""
        self._regions.clear()
        self.trouble = _words(error)
        _log.warning("InstaFlow Accelerate: %s", self.trouble, exc_info=error)
        self._tell(self.trouble)


def with_compiled_decoder(vae: Any, compiled: Compiled) -> Any:
    """The same VAE, whose blocks are compiled while it decodes, unless gradients are wanted; the given one does not
    change."""

    def decoding(decode: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(decode)
        def decoded(*arguments: Any, **more: Any) -> Any:
            blocks = {} if torch.is_grad_enabled() else compiled.forwards(vae.first_stage_model, {})
            with shadowed(blocks):
                return decode(*arguments, **more)

        return decoded

    faster = copy.copy(vae)
    faster.decode, faster.decode_tiled = decoding(vae.decode), decoding(vae.decode_tiled)
    return faster


def check(device: torch.device) -> str | None:
    """Compile a sum on a device: why that does not work here, in words; None where it does."""
    with torch.no_grad():
        x = torch.zeros(8, device=device)
        try:
            compiled_region(lambda x, beside, weights: torch.relu(x + 1) * 2, device)(x, [x], [x])
        except Exception as error:
            _log.warning("InstaFlow Accelerate: torch.compile does not work here", exc_info=error)
            return _words(error)
    return None


def compiled_region(region: Any, device: torch.device) -> regions.Region:
    """A region, to be compiled when it is first called, for tensors of one kind alone."""
    # torch keeps what it has compiled with a function's code, and gives up where that has become too much.
    own = FunctionType(
        region.__code__.replace(), region.__globals__, region.__name__, region.__defaults__, region.__closure__
    )
    options: dict[str, Any] = {"max_autotune": True} if device.type == "cuda" else {}
    if hasattr(torch.compiler, "skip_all_guards_unsafe"):
        # Who calls knows for what kinds of tensors this is, and a LoRA's weights differ in nothing else that matters.
        options["guard_filter_fn"] = torch.compiler.skip_all_guards_unsafe
    return torch.compile(own, fullgraph=True, dynamic=False, options=options)


def _words(error: Exception) -> str:
    # The first line names who could not, the second what it was.
    said = " ".join(str(error).split("\n")[:2]).strip()
    reason = f"{type(error).__name__}: {said}"[:300]
    return f"torch.compile does not work here ({reason}). The picture is computed without it, as in the mode exact."


@dataclass(frozen=True)
class _Block:
    """A block that can be compiled.

    Attributes:
        layers: those whose weights its region takes, in order.
        parts: all modules in it, which are the host's own as long as nobody changes one.
        kind: what it has in common with the blocks that one compilation serves.
        region: makes its region.
    """

    module: Module
    layers: list[Any]
    parts: list[Module]
    kind: Hashable
    region: Callable[[], regions.Region]


_REGIONS: dict[type, tuple[Callable[[Any], list[Any] | None], Callable[..., regions.Region]]] = {
    ResBlock: (regions.residual_layers, regions.residual),
    SpatialTransformer: (regions.transformer_layers, regions.transformer),
    ResnetBlock: (regions.autoencoder_layers, regions.residual),
    Block: (regions.tiny_layers, regions.tiny),
}
"""For the host's classes, and not for those made of them, which compute something else: the layers of a block, and what
makes its region."""


def _blocks(network: Module) -> Iterator[_Block]:
    for module in network.modules():
        if type(module) not in _REGIONS:
            continue
        layers_of, make = _REGIONS[type(module)]
        layers = layers_of(module)
        if layers is not None:
            constants = _constants(module, layers[0])
            kind = (make, constants, tuple(layer.weight.shape for layer in layers))
            yield _Block(module, layers, list(module.modules()), kind, partial(make, *constants))


def _constants(block: Any, first: Any) -> tuple[Any, ...]:
    """What the region of a block is made with, whose first layer this is."""
    if isinstance(block, Block):
        return ()
    if isinstance(block, SpatialTransformer):
        inner = block.transformer_blocks[0]
        return (first.num_groups, first.eps, inner.n_heads, block.use_linear, inner.norm1.eps)
    return (first.num_groups, first.eps)
