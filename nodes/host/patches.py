"""What a MODEL or a CLIP of the host carries beyond weights: that which a checkpoint of the core cannot hold."""

from __future__ import annotations

from typing import Any

ACCELERATED = "instaflow.accelerate"
"""The key of InstaFlowAccelerate's wrappers."""

# How fast a MODEL computes, not what.
_COMPILED = ("torch.compile", "torch_compile_kwargs", ACCELERATED)
# What becomes of these is said otherwise: by the checkpoint's prediction, and by the type its weights are kept in.
_SAID_OTHERWISE = ("model_sampling", "manual_cast_dtype")


def check_only_weights(model: Any, clip: Any) -> None:
    """Raise ValueError for patches that are not weights: a set or a training made without them would be of another
    model than the graph shows. LoRAs and merges are weights."""
    carried = [f"MODEL: {name}" for name in _beyond_weights(model)] + [f"CLIP: {name}" for name in _beyond_text(clip)]
    if carried:
        raise ValueError(
            f"What comes in carries more than weights ({', '.join(carried)}), and only weights are read here. Connect "
            "MODEL and CLIP from before the nodes that add it, or take those nodes out."
        )


def _beyond_weights(patcher: Any) -> list[str]:
    """The names of a ModelPatcher's patches, as the host files them, other than weights."""
    options = {name: value for name, value in patcher.model_options.items() if name != "transformer_options"}
    kept = (
        options,
        patcher.model_options.get("transformer_options", {}),
        {name: value for name, value in patcher.object_patches.items() if name not in _SAID_OTHERWISE},
        patcher.injections,
        patcher.additional_models,
        patcher.hook_patches,
        getattr(patcher, "weight_wrapper_patches", {}),
        *patcher.wrappers.values(),
    )
    return [str(name) for some in kept for name, value in some.items() if name not in _COMPILED and _is_there(value)]


def _beyond_text(clip: Any) -> list[str]:
    """The same of a CLIP, and what it does with a text: skipped layers, a tokenizer's options, scheduled hooks."""
    skips = clip.layer_idx not in (None, -1)
    more = {"last layer set": skips, "tokenizer options": clip.tokenizer_options, "hooks": clip.patcher.forced_hooks}
    return _beyond_weights(clip.patcher) + [name for name, value in more.items() if _is_there(value)]


def _is_there(value: Any) -> bool:
    """Whether a patch is more than empty containers, which nodes leave behind."""
    if isinstance(value, dict):
        return any(map(_is_there, value.values()))
    return bool(value) if isinstance(value, (bool, list, tuple)) else value is not None
