"""A MODEL that computes the same picture in less time, by wrappers of the host on a clone."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor, bfloat16, is_grad_enabled

from . import compiling, on_cpu
from .folding import Folded, shadowed
from .patches import ACCELERATED
from .progress import said_on_the_running_node

_COMPILED_BY_THE_HOST = "torch.compile"
_UNET = "diffusion_model"

MODES = ("exact", "bf16", "compile")


def accelerated(model: Any, vae: Any, mode: str) -> tuple[Any, Any, str]:
    """A clone of a MODEL of Stable Diffusion 1.5's shape that computes its picture in less time, and the VAE, where
    there is one.

    It keeps what only a new time, a new caption or new weights change, see `Folded`, and its attention on a CPU is
    PyTorch's own. In the mode "compile" its blocks are compiled, and the decoder's, see `Compiled`; in the mode "bf16"
    it computes in bfloat16 where a CPU gains by it.

    What it keeps goes when the host unloads the model, what it has compiled with the last clone.

    Returns:
        the clone, the VAE to decode with, and what is to be said of them.
    """
    clone = model.clone()
    for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL):
        clone.remove_wrappers_with_key(kind, ACCELERATED)
    clone.remove_callbacks_with_key(CallbacksMP.ON_DETACH, ACCELERATED)
    said, compiled = "", None
    if mode == "compile":
        trouble = compiling.check(model.load_device)
        said = trouble or "Each size of a picture is compiled when it is first drawn, which takes minutes on a CPU."
        if not trouble:
            tell = said_on_the_running_node()
            compiled = compiling.Compiled(tell)
            if vae is not None:
                vae = compiling.with_compiled_decoder(vae, compiling.Compiled(tell))
    if mode == "bf16":
        said = on_cpu.no_bfloat16(model.load_device) or ""
        if not said:
            clone.set_model_compute_dtype(bfloat16)
    kept = _Acceleration(compiled)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, ACCELERATED, kept.apply_model)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, ACCELERATED, kept.unet)
    clone.add_callback_with_key(CallbacksMP.ON_DETACH, ACCELERATED, kept.detached)
    return clone, vae, said


class _Acceleration:
    """The host's wrappers around an evaluation, and what they keep."""

    def __init__(self, compiled: compiling.Compiled | None) -> None:
        self.folded, self.compiled = Folded(), compiled

    def detached(self, _: Any, unpatch_all: bool) -> None:
        """The host unloads the model, or only puts another clone in its place, or the same one again."""
        if unpatch_all:
            self.folded.clear()

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Any:
        """Around the host's model, which knows whose patches are on the weights: tells it the UNet's wrapper."""
        options = {**(transformer_options or {}), ACCELERATED: _patched_weights(executor.class_obj)}
        return executor(x, t, c_concat, c_crossattn, control, options, **more)

    def unet(
        self,
        executor: Any,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Any:
        """Around the host's UNet. Where gradients are wanted it computes everything."""
        options = transformer_options or {}
        weights = options.get(ACCELERATED)
        if weights is None or is_grad_enabled():
            return executor(x, timesteps, context, y, control, options, **more)
        unet = executor.class_obj
        blocks = self.compiled.forwards(unet, options) if self.compiled else {}
        options = on_cpu.attention_in_one_pass(options, x.device)
        with self.folded.applied(unet, weights, x, timesteps, context, options), shadowed(blocks):
            return executor(x, timesteps, context, y, control, options, **more)


def _patched_weights(model: Any) -> Hashable | None:
    """What says which patches are on a model's weights; None where nothing of the host does.

    Hooks change weights from one conditioning and from one step to the next, injections and object patches the layers
    themselves, and torch.compile has its own idea of them.
    """
    patcher = model.current_patcher
    if patcher is None or patcher.current_hooks is not None or patcher.injections:
        return None
    if any(name.startswith(_UNET) for name in patcher.object_patches):
        return None
    if patcher.get_wrappers(WrappersMP.APPLY_MODEL, _COMPILED_BY_THE_HOST):
        return None
    return patcher.patches_uuid
