"""A checkpoint as one file or as a diffusers folder, and what it says of itself there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .diffusers_folder import check_texts, write_folder
from .errors import FormatError
from .files import Config, Metadata, Progress, Weights, read_weights, sibling, write_weights
from .layouts import LATENT_SCALE, PARTS, PREFIXES, VAE_PREFIX
from .matching import match, rows_of, to_ldm
from .metadata import CONFIG_KEYS, json_entry

_TITLES = {"one-step": "InstaFlow", "2-rectified-flow": "2-Rectified Flow", "teacher": "diffusion teacher"}


def describe(checkpoint: Checkpoint) -> Metadata:
    """The metadata a saved checkpoint carries: its own, with configs and the standard keys filled in."""
    size, stage = checkpoint.native_size, checkpoint.stage
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/gnobitab/InstaFlow",
        "modelspec.title": _TITLES.get(stage) or (checkpoint.rule.model if checkpoint.rule else "InstaFlow"),
        **checkpoint.metadata,
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.prediction_type": checkpoint.prediction,
        "instaflow.format": "1",
        "instaflow.prediction": checkpoint.prediction,
        "instaflow.stage": stage,
        "instaflow.native_size": str(size),
        "instaflow.guidance": str(checkpoint.guidance),
    }
    if "instaflow.license" in metadata:
        metadata.setdefault("modelspec.license", metadata["instaflow.license"])
    for part in PARTS:
        held = checkpoint.part(part)
        if held:
            metadata[CONFIG_KEYS[part]] = json.dumps(held[1])
    return metadata


def described_part(checkpoint: Checkpoint, part: str) -> Metadata:
    """What one part says of itself where it goes on alone: the UNet everything, the others their config and licence."""
    described = describe(checkpoint)
    if part == "unet":
        # What `convert` keeps of a folder, and the other configs, describe parts that may be exchanged.
        others = {"instaflow.folder", "instaflow.renamed", *(CONFIG_KEYS[other] for other in PARTS if other != part)}
        return {key: described[key] for key in described if key not in others}
    kept = (CONFIG_KEYS[part], "instaflow.license", "instaflow.training")
    return {key: described[key] for key in kept if key in described}


def save(
    checkpoint: Checkpoint,
    path: str | Path,
    dtype: torch.dtype | None = None,
    shared: Sequence[str] = (),
    progress: Progress = lambda *_: None,
) -> None:
    """Save as one safetensors file in the layout of Stable Diffusion's checkpoints, metadata included.

    ComfyUI's CheckpointLoaderSimple opens one of Stable Diffusion 1.5's size as an ordinary checkpoint.

    Args:
        path: the file; it appears when it is whole.
        dtype: floating-point type of the weights; as they are where None.
        shared: names of files beside `path`, written by `save_part`, that hold the text encoder or the VAE. Those parts
            are left out, and `load` finds them there.
    """
    path = Path(path)
    checkpoint.let_go_of(path)
    elsewhere = set()
    for name in shared:
        inside = read_weights(sibling(path, name))[0]
        elsewhere |= {part for part in PARTS if any(key.startswith(PREFIXES[part]) for key in inside)}
    metadata = {"format": "pt"} | describe(checkpoint)
    if shared:
        metadata["instaflow.shared"] = json.dumps(list(shared))
    for part in elsewhere:
        metadata.pop(CONFIG_KEYS[part], None)
    parts = [part for part in PARTS if part not in elsewhere]
    write_weights(single_file(checkpoint, dtype, parts), path, metadata, progress)


def single_file(checkpoint: Checkpoint, dtype: torch.dtype | None = None, parts: Sequence[str] = PARTS) -> Weights:
    """The tensors of these parts, as far as there are any, under their names in a file that `save` writes.

    Views of the checkpoint's, and in their types where dtype is None.
    """
    tensors: Weights = {}
    for part in parts:
        tensors |= _ldm_tensors(checkpoint, part, dtype)
    if "unet" in parts and checkpoint.prediction == "v":
        tensors["v_pred"] = torch.zeros(0)  # by which ComfyUI's own loader knows it
        if checkpoint.zero_snr:
            tensors["ztsnr"] = torch.zeros(0)
    return tensors


def save_part(checkpoint: Checkpoint, part: str, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Save only the "text_encoder" or the "vae", for `save(..., shared=[...])` of several models beside it.

    Raises ValueError where the checkpoint has no such part.
    """
    held = checkpoint.part(part)
    if held is None:
        raise ValueError(f"The checkpoint has no {part} to save. Save a part it has, or load the whole model.")
    metadata = {"format": "pt", "instaflow.format": "1"} | described_part(checkpoint, part)
    checkpoint.let_go_of(Path(path))
    write_weights(_ldm_tensors(checkpoint, part, dtype), Path(path), metadata)


def _ldm_tensors(checkpoint: Checkpoint, part: str, dtype: torch.dtype | None) -> Weights:
    held = checkpoint.part(part)
    if held is None:
        return {}
    tensors, config = held
    rows = rows_of(part, config)
    named = match(part, cast(tensors, dtype), rows, "diffusers")
    ldm = to_ldm(named, rows, PREFIXES[part])
    if config.get("_class_name") == "AutoencoderTiny":
        # ComfyUI's latents are unscaled; its TAESD multiplies by this before decoding.
        ldm[f"{VAE_PREFIX}vae_scale"] = torch.tensor(LATENT_SCALE)
        ldm[f"{VAE_PREFIX}vae_shift"] = torch.tensor(0.0)
    return ldm


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Weights:
    """The tensors with every floating-point one in `dtype`; unchanged, and uncopied, where dtype is None."""
    if dtype is None:
        return dict(tensors)
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def save_folder(
    checkpoint: Checkpoint,
    path: str | Path,
    dtype: torch.dtype | None = None,
    progress: Progress = lambda *_: None,
) -> None:
    """Save as a diffusers folder with the components of a StableDiffusionPipeline; it appears when it is whole.

    A checkpoint that `convert` made from a folder gives that folder's configs, tokenizer files and tensor names back.
    """
    checkpoint.let_go_of(Path(path))
    source = checkpoint.name
    renamed = json_entry(checkpoint.metadata, "instaflow.renamed", dict, source)
    texts = json_entry(checkpoint.metadata, "instaflow.folder", dict, source)
    check_texts(texts, source)
    parts = {}
    for part in PARTS:
        held = checkpoint.part(part)
        if held:
            names = renamed[part] if isinstance(renamed.get(part), dict) else {}
            tensors = {str(names.get(name, name)): tensor for name, tensor in cast(held[0], dtype).items()}
            if len(tensors) < len(held[0]):
                raise FormatError(
                    f"instaflow.renamed in {source} gives two tensors one name",
                    "a name for each",
                    "Do not use this file.",
                )
            parts[part] = tensors, held[1]
    left_out = ("instaflow.folder", "instaflow.renamed", *CONFIG_KEYS.values())
    metadata = {key: value for key, value in describe(checkpoint).items() if key not in left_out}
    # InstaFlow never asks the scheduler; pipelines want one to be there.
    scheduler: Config = {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"}
    if checkpoint.prediction == "v":
        scheduler["prediction_type"] = "v_prediction"
    if checkpoint.zero_snr:
        scheduler |= {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if checkpoint.rule and checkpoint.rule.diffusion:
        scheduler |= checkpoint.rule.scheduler
    vae_class = (checkpoint.vae_config or {}).get("_class_name", "AutoencoderKL")
    index = {
        "_class_name": "RectifiedFlowPipeline" if checkpoint.is_flow else "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", vae_class],
    }
    write_folder(Path(path), parts, metadata, index, texts, scheduler, progress)
