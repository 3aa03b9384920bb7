"""A checkpoint's models out of whatever they are kept in: a single file, a bare UNet, or a diffusers folder.

Every model comes out under its diffusers names, whole, and with a config: from the metadata or the config.json, else
read off the shapes. What the UNet predicts comes from the caller, else from what the source says, else from the row it
is found to be of, else it is assumed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .configs import infer_text_config, infer_unet_config, infer_vae_config
from .diffusers_folder import pipeline_folder, read_part
from .files import Config, FormatError, Metadata, Weights, read_weights, sibling
from .identify import Layout, identify
from .layouts import OLD_VAE_ATTENTION, PARTS, PREFIXES
from .matching import match, rows_of, text_name, with_text_prefix
from .metadata import (
    ASSUMED_KEY,
    CONFIG_KEYS,
    NOISE_MINUS_DATA,
    ZERO_SNR_KEY,
    Said,
    check_metadata,
    described_by_folder,
    json_entry,
    own_metadata,
    said_in_file,
    said_in_folder,
    zero_snr_in_folder,
)
from .rows import CALLER, Found, Told, found_in_file, found_in_folder, settle_rule, told

Parts = dict[str, tuple[Weights, Config]]

_GET_AGAIN = "Get the file again from where it came."

# Two numbers the host's TAESD has beside its weights; no diffusers model has them.
_HOST_SCALE_KEYS = ("vae_scale", "vae_shift")


@dataclass(frozen=True)
class Source:
    """What was read.

    parts: tensors and config of each model there is, "unet" always.
    metadata: this pack's and the standard entries, `instaflow.prediction` always.
    said_by: who says what the UNet predicts, in words.
    homes: the file or folder that each part's tensors are views of.
    """

    parts: Parts
    metadata: Metadata
    layout: Layout
    said_by: str
    homes: dict[str, Path]


def read_source(path: Path, prediction: str | None = None, rule: str | None = None) -> Source:
    """Read a file or a folder.

    Args:
        prediction: one of SAYABLE, whatever the source says; None takes the source's word.
        rule: the name of the row of `rules` it is sampled by; None takes what is found.

    Raises:
        FormatError: it is not a whole model of Stable Diffusion 1.5's kind, or not one for that rule.
        ValueError: there is no such prediction or rule, or they contradict each other.
    """
    caller = told(prediction, rule)
    return _read_folder(path, caller) if path.is_dir() else _read_file(path, caller)


def _by_caller(caller: Told) -> Said | None:
    return Said(caller.prediction, CALLER) if caller.prediction else None


def _settled(
    parts: Parts,
    homes: dict[str, Path],
    metadata: Metadata,
    layout: Layout,
    caller: Told,
    said: Said | None,
    found: Found | None,
    zero_snr: bool,
    name: str,
) -> Source:
    """The source with rule and prediction in its metadata, and as this pack counts a velocity: data minus noise.

    said, found: what the caller or the source says that the UNet predicts, and the row that the source is of.
    zero_snr: whether it says that its noise schedule ends in zero terminal SNR.
    """
    said = settle_rule(metadata, caller, said, found, zero_snr, name)
    if zero_snr:
        metadata[ZERO_SNR_KEY] = "true"
    if said is None:
        metadata.setdefault("instaflow.prediction", "velocity")
        metadata[ASSUMED_KEY] = "true"
        by = "nobody; it is assumed"
    else:
        metadata.pop(ASSUMED_KEY, None)
        metadata["instaflow.prediction"], by = said.prediction, said.by
        if said.prediction == NOISE_MINUS_DATA:
            metadata["instaflow.prediction"] = "velocity"
            unet, config = parts["unet"]
            parts["unet"] = _negated(unet), config
    check_metadata(metadata, name)
    return Source(parts, metadata, layout, by, homes)


def _negated(unet: Weights) -> Weights:
    """The UNet whose output has the other sign: its last convolution is negated, which is exact in every type."""
    last = ("conv_out.weight", "conv_out.bias")
    return unet | {key: (-unet[key].float()).to(unet[key].dtype) for key in last}


# --- one file ---------------------------------------------------------------------------------------------------------


def _read_file(path: Path, caller: Told) -> Source:
    tensors, header = read_weights(path)
    layout = identify(tensors, path.name)
    metadata = own_metadata(header)
    said = _by_caller(caller) or said_in_file(tensors, metadata, path.name)
    parts: Parts = {"unet": _part("unet", _under(tensors, layout.unet_prefix), metadata, path.name, layout.unet_keys)}
    if layout.text_prefix is not None:
        parts["text_encoder"] = _part("text_encoder", _under(tensors, layout.text_prefix), metadata, path.name)
    if layout.vae_prefix is not None:
        parts["vae"] = _part("vae", _under(tensors, layout.vae_prefix), metadata, path.name)
    homes = dict.fromkeys(parts, path)
    shared_names = json_entry(metadata, "instaflow.shared", list, path.name)
    metadata.pop("instaflow.shared", None)
    if not all(isinstance(name, str) for name in shared_names) or len(shared_names) > len(PARTS):
        raise FormatError(
            f"instaflow.shared in {path.name} is no list of files", "names of files beside it", _GET_AGAIN
        )
    for name in shared_names:
        home = sibling(path, name)
        shared, shared_header = read_weights(home)
        for part in ("text_encoder", "vae"):
            inside = _under(shared, PREFIXES[part])
            if inside and part not in parts:
                parts[part], homes[part] = _part(part, inside, own_metadata(shared_header), name), home
    zero_snr = "ztsnr" in tensors
    return _settled(parts, homes, metadata, layout, caller, said, found_in_file(path), zero_snr, path.name)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> Weights:
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _part(part: str, tensors: Weights, metadata: Metadata, name: str, keys: str = "ldm") -> tuple[Weights, Config]:
    """One model of a file, its config from the metadata or read off the shapes."""
    if part == "text_encoder":
        tensors = with_text_prefix(tensors)
    if part == "vae":
        tensors = {key: tensor for key, tensor in tensors.items() if key not in _HOST_SCALE_KEYS}
    if CONFIG_KEYS[part] in metadata:
        config = json_entry(metadata, CONFIG_KEYS[part], dict, name)
    else:
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        infer = {"text_encoder": infer_text_config, "vae": infer_vae_config}
        config = infer_unet_config(shapes, keys) if part == "unet" else infer[part](shapes)
    return _matched(part, tensors, config, keys, name)


def _matched(part: str, tensors: Weights, config: Config, keys: str, name: str) -> tuple[Weights, Config]:
    if part == "vae":
        config.setdefault("_class_name", "AutoencoderKL")
    return match(part, tensors, rows_of(part, config), keys, name), config


# --- a folder ---------------------------------------------------------------------------------------------------------


def _read_folder(path: Path, caller: Told) -> Source:
    layout = identify(path)
    root = pipeline_folder(path)
    wanted = {"unet": "", "text_encoder": layout.text_prefix, "vae": layout.vae_prefix}
    parts: Parts = {}
    homes = {}
    metadata: Metadata = {}
    renamed = {}
    for part in (part for part in PARTS if wanted[part] is not None):
        folder = path / part if (path / "unet").is_dir() else path
        tensors, config, header = read_part(folder, part)
        if part == "unet":
            identify(tensors, folder.absolute().relative_to(root.parent).as_posix())
            metadata = own_metadata(header)
        names = _current_names(part, tensors)
        if any(old != new for old, new in names.items()):
            renamed[part] = {new: old for old, new in names.items() if old != new}
        tensors = {names[key]: tensor for key, tensor in tensors.items()}
        parts[part], homes[part] = _matched(part, tensors, config, "diffusers", root.name), folder
    said = _by_caller(caller) or said_in_folder(root, metadata)
    if "instaflow.format" not in metadata:
        metadata |= described_by_folder(root)
    if renamed:
        metadata["instaflow.renamed"] = json.dumps(renamed)
    zero_snr = zero_snr_in_folder(root)
    return _settled(parts, homes, metadata, layout, caller, said, found_in_folder(root), zero_snr, root.name)


def _current_names(part: str, tensors: Weights) -> dict[str, str]:
    """Today's name of every tensor in a folder, by the name it has there."""
    if part == "text_encoder":
        return {name: text_name(name) for name in tensors}
    names = {key: key for key in tensors}
    if part == "vae":
        for new, old in OLD_VAE_ATTENTION.items():
            names |= {key: key.replace(f".{old}.", f".{new}.") for key in tensors if f".attentions.0.{old}." in key}
    return names
