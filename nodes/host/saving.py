"""Weights of several models added up by the host, and MODEL, CLIP and VAE written to a file."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_sampling
import comfy.sd
from comfy.cli_args import args

from . import fitting
from .checkpoints import METADATA
from .model_sampling import InstaFlowSampling, check_sd15
from .paths import numbered_output_paths
from .rows import few_step_sampling

if TYPE_CHECKING:
    from ...instaflow_core.weights.checkpoint import Checkpoint

_UNET = "diffusion_model."
_SAVE_ADVICE = "Save it with ComfyUI's own Save Checkpoint."


def merge_delta(model: Any, finetuned: Any, base: Any, strength: float) -> Any:
    """W + strength (W_finetuned - W_base) as a clone of `model` with the host's own weight patches.

    No weight is copied: the host adds them up when it loads the clone, as it does for ModelMergeSubtract and
    ModelMergeAdd. Patches of the three, such as a LoRA's, take part.

    Raises:
        FormatError: the UNets do not have the same tensors.
    """
    from ...instaflow_core.weights.deltas import check_same, combined_licence

    unets = {name: m.model_state_dict(_UNET) for name, m in (("base", base), ("model", model))}
    advice = "Connect three of the same architecture: an InstaFlow, a finetune, and the model it was made from."
    for name, unet in unets.items():
        check_same(finetuned.model_state_dict(_UNET), unet, ("`finetuned`", f"`{name}`"), advice)
    difference = finetuned.clone()
    difference.add_patches(base.get_key_patches(_UNET), -1.0, 1.0)
    merged = model.clone()
    merged.add_patches(difference.get_key_patches(_UNET), strength, 1.0)
    metadata = [_metadata(patcher) for patcher in (model, finetuned, base)]
    merged.set_attachments(METADATA, metadata[0] | combined_licence(*metadata))
    return merged


def save_checkpoint(model: Any, clip: Any, vae: Any, filename_prefix: str, hidden: Any) -> Path:
    """Write MODEL, and CLIP and VAE where they are given, to one file in the host's output folder.

    Args:
        hidden: the running node's `hidden`, for the prompt and the workflow.

    Raises:
        CannotWrite: the disk is full, or may not be written to.
        ValueError: as `numbered_output_paths` and `write_checkpoint`.
    """
    from ...instaflow_core.atomic import add

    # Another program may save under this name meanwhile.
    paths = numbered_output_paths(filename_prefix, ".safetensors")
    return add(paths, partial(write_checkpoint, model=model, clip=clip, vae=vae, more=_prompt_metadata(hidden)))


def write_checkpoint(
    path: Path, model: Any, clip: Any, vae: Any, more: dict[str, str] | None = None, clip_of: str = "clip"
) -> None:
    """Write MODEL, and CLIP and VAE where they are given, to a file that InstaFlow Load Checkpoint can read, and read
    it back. The host bakes all patches in.

    Args:
        path: where nobody looks before this is done.
        more: metadata beside what says what the model is.
        clip_of: the name of the input that the CLIP came with.

    Raises:
        ValueError: they are not parts of an InstaFlow or of a Stable Diffusion 1.5.
    """
    from ...instaflow_core.weights.deltas import combined_licence
    from ...instaflow_core.weights.reading import read_source

    check_sd15(model)
    if clip is not None:
        fitting.check_clip(clip_of, clip, model)
    if vae is not None:
        fitting.check_vae(vae, model)
    described = _described_model(model)
    beside = [_metadata(part.patcher) for part in (clip, vae) if part is not None]
    configs = {key: known[key] for known in beside for key in known if key.endswith("_config")}
    metadata = {"format": "pt"} | (more or {}) | configs | described | combined_licence(described, *beside)
    comfy.sd.save_checkpoint(str(path), model, clip, vae, metadata=metadata)
    read_source(path)


def described(model: Any, name: str = "model") -> Checkpoint:
    """A MODEL as a checkpoint without weights: what it predicts, how it was made, and its pictures' size.

    name: of the MODEL's input.

    Raises:
        ValueError: it is neither an InstaFlow nor a Stable Diffusion 1.5 that predicts noise or v.
    """
    from ...instaflow_core.weights.checkpoint import Checkpoint

    advice = "Connect one of these, from before the nodes that change how it is sampled."
    check_sd15(model, advice, name)
    said = _described_model(model, name, advice)
    return Checkpoint({}, json.loads(said["instaflow.unet_config"]), metadata=said)


def _metadata(patcher: Any) -> dict[str, str]:
    """What is known of a patcher's checkpoint; nothing where another loader made it."""
    return patcher.get_attachment(METADATA) or {}


def _described_model(model: Any, name: str = "model", advice: str = _SAVE_ADVICE) -> dict[str, str]:
    """The metadata of a MODEL's UNet: that of its checkpoint, as far as it is still sampled in the same way."""
    from ...instaflow_core.weights.checkpoint import Checkpoint
    from ...instaflow_core.weights.configs import infer_unet_config
    from ...instaflow_core.weights.metadata import RULE_KEY, ZERO_SNR_KEY
    from ...instaflow_core.weights.saving import describe

    known = _metadata(model)
    said = _sampled_as(model, name, advice)
    if said == {key: known[key] for key in ("instaflow.prediction", ZERO_SNR_KEY, RULE_KEY) if key in known}:
        return known
    kept = {key: known[key] for key in known if "license" in key or key == "instaflow.native_size"}
    if "instaflow.unet_config" in known:
        config = json.loads(known["instaflow.unet_config"])
    else:
        weights = model.model_state_dict(_UNET)
        config = infer_unet_config({key.removeprefix(_UNET): tuple(w.shape) for key, w in weights.items()}, "ldm")
    return describe(Checkpoint({}, config, metadata=kept | said))


def _sampled_as(model: Any, name: str, advice: str) -> dict[str, str]:
    """The metadata of what a MODEL is sampled as: its prediction, a noise schedule of zero terminal SNR, its rule."""
    from ...instaflow_core.weights.metadata import RULE_KEY, ZERO_SNR_KEY

    kind = model.get_model_object("model_sampling")
    if isinstance(kind, InstaFlowSampling):
        return {"instaflow.prediction": "velocity"}
    if (few_step := few_step_sampling(model)) and few_step.rule:
        return {"instaflow.prediction": few_step.rule.prediction, RULE_KEY: few_step.rule.name}
    zero_snr = bool(getattr(kind, "zsnr", False))
    # The host's other predictions are subclasses of these with a calculation of their own.
    for prediction, known in (("epsilon", comfy.model_sampling.EPS), ("v", comfy.model_sampling.V_PREDICTION)):
        same = getattr(type(kind), "calculate_denoised", None) is known.calculate_denoised
        if same and (prediction == "v" or not zero_snr):
            return {"instaflow.prediction": prediction} | ({ZERO_SNR_KEY: "true"} if zero_snr else {})
    kinds = " + ".join(base.__name__ for base in type(kind).__bases__)
    kinds += " with zero terminal SNR" if zero_snr else ""
    raise ValueError(
        f"`{name}` is sampled as {kinds}, which an InstaFlow checkpoint cannot say. Expected an InstaFlow or a "
        f"Stable Diffusion 1.5 that predicts noise or v. {advice}"
    )


def _prompt_metadata(hidden: Any) -> dict[str, str]:
    """What ran, as the host's own nodes save it; nothing under --disable-metadata."""
    if args.disable_metadata or hidden is None:
        return {}
    extra = hidden.extra_pnginfo or {}
    return {"prompt": json.dumps(hidden.prompt), **{key: json.dumps(value) for key, value in extra.items()}}
