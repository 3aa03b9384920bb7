"""Weights of several models added up by the host, and MODEL, CLIP and VAE written to a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.model_sampling
import comfy.sd
import folder_paths
import torch
from comfy.cli_args import args

from .checkpoints import METADATA
from .model_sampling import InstaFlowSampling, check_sd15

_UNET = "diffusion_model."


def merge_delta(model: Any, finetuned: Any, base: Any, strength: float) -> Any:
    """W + strength (W_finetuned - W_base) as a clone of `model` with the host's own weight patches.

    No weight is copied: the host adds them up when it loads the clone, as it does for ModelMergeSubtract and
    ModelMergeAdd. Patches of the three, such as a LoRA's, take part.

    Raises:
        FormatError: the UNets do not have the same tensors.
    """
    from ...instaflow_core.weights.deltas import check_same, combined_licence

    unets = {name: m.model_state_dict(_UNET) for name, m in (("base", base), ("model", model))}
    advice = "All three have to be of the same architecture: an InstaFlow, a finetune, and the model it was made from."
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
        ValueError: as `write_checkpoint`.
    """
    folder, name, counter, *_ = folder_paths.get_save_image_path(filename_prefix, folder_paths.get_output_directory())
    path = Path(folder) / f"{name}_{counter:05}_.safetensors"
    write_checkpoint(path, model, clip, vae, _prompt_metadata(hidden))
    return path


def write_checkpoint(path: Path, model: Any, clip: Any, vae: Any, more: dict[str, str] | None = None) -> None:
    """Write MODEL, and CLIP and VAE where they are given, to a file that InstaFlow Load Checkpoint can read.

    The host bakes all patches in. The file appears when it is whole and has been read back.

    Args:
        more: metadata beside what says what the model is.

    Raises:
        ValueError: they are not parts of an InstaFlow or of a Stable Diffusion 1.5.
    """
    from ...instaflow_core.atomic import replacing
    from ...instaflow_core.weights.deltas import combined_licence
    from ...instaflow_core.weights.reading import read_source

    check_sd15(model)
    _check_parts(model, clip, vae)
    described = _described_model(model)
    beside = [_metadata(part.patcher) for part in (clip, vae) if part is not None]
    configs = {key: known[key] for known in beside for key in known if key.endswith("_config")}
    metadata = {"format": "pt"} | (more or {}) | configs | described | combined_licence(described, *beside)
    with replacing(path) as temporary:
        comfy.sd.save_checkpoint(str(temporary), model, clip, vae, metadata=metadata)
        read_source(temporary)


def _metadata(patcher: Any) -> dict[str, str]:
    """What is known of a patcher's checkpoint; nothing where another loader made it."""
    return patcher.get_attachment(METADATA) or {}


def _described_model(model: Any) -> dict[str, str]:
    """The metadata of a MODEL's UNet: that of its checkpoint, as far as it is still sampled in the same way."""
    from ...instaflow_core.weights.checkpoint import Checkpoint
    from ...instaflow_core.weights.configs import infer_unet_config
    from ...instaflow_core.weights.metadata import ZERO_SNR_KEY
    from ...instaflow_core.weights.saving import describe

    known = _metadata(model)
    prediction, zero_snr = _prediction(model)
    if known.get("instaflow.prediction") == prediction and (ZERO_SNR_KEY in known) == zero_snr:
        return known
    kept = {key: known[key] for key in known if "license" in key or key == "instaflow.native_size"}
    if "instaflow.unet_config" in known:
        config = json.loads(known["instaflow.unet_config"])
    else:
        weights = model.model_state_dict(_UNET)
        config = infer_unet_config({key.removeprefix(_UNET): tuple(w.shape) for key, w in weights.items()}, "ldm")
    said = {"instaflow.prediction": prediction} | ({ZERO_SNR_KEY: "true"} if zero_snr else {})
    return describe(Checkpoint({}, config, metadata=kept | said))


def _prediction(model: Any) -> tuple[str, bool]:
    """What a MODEL is sampled as predicting, and whether on a noise schedule of zero terminal SNR."""
    kind = model.get_model_object("model_sampling")
    if isinstance(kind, InstaFlowSampling):
        return "velocity", False
    zero_snr = bool(getattr(kind, "zsnr", False))
    # The host's other predictions are subclasses of these with a calculation of their own.
    for prediction, known in (("epsilon", comfy.model_sampling.EPS), ("v", comfy.model_sampling.V_PREDICTION)):
        same = getattr(type(kind), "calculate_denoised", None) is known.calculate_denoised
        if same and (prediction == "v" or not zero_snr):
            return prediction, zero_snr
    kinds = " + ".join(base.__name__ for base in type(kind).__bases__)
    kinds += " with zero terminal SNR" if zero_snr else ""
    raise ValueError(
        f"This MODEL is sampled as {kinds}, which an InstaFlow checkpoint cannot say. Expected an InstaFlow or a "
        "Stable Diffusion 1.5 that predicts noise or v. Save it with ComfyUI's own Save Checkpoint."
    )


def _check_parts(model: Any, clip: Any, vae: Any) -> None:
    """Raise ValueError for a CLIP or a VAE that cannot be in one checkpoint with this MODEL."""
    advice = "Connect those the model came with, or Stable Diffusion 1.5's."
    if clip is not None:
        width = model.model.model_config.unet_config["context_dim"]
        weights = clip.cond_stage_model.state_dict()
        tokens = weights.get("clip_l.transformer.text_model.embeddings.token_embedding.weight", torch.empty(0, 0))
        if tokens.shape[1] != width or not all(key.startswith("clip_l.") for key in weights):
            raise ValueError(
                f"This CLIP is a {type(clip.cond_stage_model).__name__} {tokens.shape[1]} wide; the MODEL reads one "
                f"CLIP-L {width} wide. {advice}"
            )
    if vae is not None and vae.latent_channels != model.model.latent_format.latent_channels:
        raise ValueError(
            f"This VAE's latents have {vae.latent_channels} channels; the MODEL's have "
            f"{model.model.latent_format.latent_channels}. {advice}"
        )


def _prompt_metadata(hidden: Any) -> dict[str, str]:
    """What ran, as the host's own nodes save it; nothing under --disable-metadata."""
    if args.disable_metadata or hidden is None:
        return {}
    extra = hidden.extra_pnginfo or {}
    return {"prompt": json.dumps(hidden.prompt), **{key: json.dumps(value) for key, value in extra.items()}}
