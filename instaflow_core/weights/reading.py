"""A checkpoint's models out of whatever they are kept in: a single file, a bare UNet, or a diffusers folder.

Every model comes out under its diffusers names, whole, and with a config: from the metadata or the config.json, else
read off the shapes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .configs import infer_text_config, infer_unet_config, infer_vae_config
from .diffusers_folder import read_json, read_part, sibling
from .files import FormatError, Metadata, Weights, read_weights
from .identify import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX, Layout, identify
from .layouts import OLD_VAE_ATTENTION
from .matching import match, rows_of, with_text_prefix

Config = dict[str, Any]
Parts = dict[str, tuple[Weights, Config]]

PARTS = ("unet", "text_encoder", "vae")
PREFIXES = {"unet": UNET_PREFIX, "text_encoder": TEXT_PREFIX, "vae": VAE_PREFIX}
CONFIG_KEYS = {"unet": "instaflow.unet_config", "text_encoder": "instaflow.text_config", "vae": "instaflow.vae_config"}

_FLOW_PIPELINES = ("RectifiedFlowPipeline", "InstaFlowPipeline")
_PREDICTIONS = {"epsilon": "epsilon", "flow_prediction": "velocity", "velocity": "velocity"}
# Folder names of the released models, the only trace of which of the two a folder is.
_STAGES_BY_NAME = (("2_rectified_flow", "2-rectified-flow"), ("instaflow", "one-step"))

# Two numbers the host's TAESD has beside its weights; no diffusers model has them.
_HOST_SCALE_KEYS = ("vae_scale", "vae_shift")


@dataclass(frozen=True)
class Source:
    """What was read: tensors and config of each model there is, "unet" always; this pack's metadata; the layout."""

    parts: Parts
    metadata: Metadata
    layout: Layout


def read_source(path: Path) -> Source:
    """Read a file or a folder.

    Raises FormatError for everything that is not a whole model of Stable Diffusion 1.5's kind.
    """
    source = _read_folder(path) if path.is_dir() else _read_file(path)
    _check_metadata(source.metadata, path.name)
    return source


# --- one file ---------------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> Source:
    tensors, header = read_weights(path)
    layout = identify(tensors, path.name)
    metadata = _own(header)
    parts: Parts = {"unet": _part("unet", _under(tensors, layout.unet_prefix), metadata, path.name, layout.unet_keys)}
    if layout.text_prefix is not None:
        parts["text_encoder"] = _part("text_encoder", _under(tensors, layout.text_prefix), metadata, path.name)
    if layout.vae_prefix is not None:
        parts["vae"] = _part("vae", _under(tensors, layout.vae_prefix), metadata, path.name)
    for name in _json(metadata.pop("instaflow.shared", "[]"), "instaflow.shared", path.name):
        shared, shared_header = read_weights(sibling(path, name))
        for part in ("text_encoder", "vae"):
            inside = _under(shared, PREFIXES[part])
            if inside and part not in parts:
                parts[part] = _part(part, inside, _own(shared_header), name)
    return Source(parts, metadata, layout)


def _own(header: Metadata) -> Metadata:
    return {key: value for key, value in header.items() if key.startswith(("instaflow.", "modelspec."))}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> Weights:
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _part(part: str, tensors: Weights, metadata: Metadata, name: str, keys: str = "ldm") -> tuple[Weights, Config]:
    """One model of a file, its config from the metadata or read off the shapes."""
    if part == "text_encoder":
        tensors = with_text_prefix(tensors)
    if part == "vae":
        tensors = {key: tensor for key, tensor in tensors.items() if key not in _HOST_SCALE_KEYS}
    if CONFIG_KEYS[part] in metadata:
        config = _json(metadata[CONFIG_KEYS[part]], CONFIG_KEYS[part], name)
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


def _read_folder(path: Path) -> Source:
    layout = identify(path)
    root = path if (path / "unet").is_dir() else path.parent
    wanted = {"unet": "", "text_encoder": layout.text_prefix, "vae": layout.vae_prefix}
    parts: Parts = {}
    metadata: Metadata = {}
    renamed = {}
    for part in (part for part in PARTS if wanted[part] is not None):
        tensors, config, header = read_part(root / part, part)
        if part == "unet":
            identify(tensors, f"{root.name}/unet")
            metadata = _own(header)
        names = _current_names(part, tensors)
        if any(old != new for old, new in names.items()):
            renamed[part] = {new: old for old, new in names.items() if old != new}
        tensors = {names[key]: tensor for key, tensor in tensors.items()}
        parts[part] = _matched(part, tensors, config, "diffusers", root.name)
    if "instaflow.format" not in metadata:
        metadata |= _describe_folder(root)
    if renamed:
        metadata["instaflow.renamed"] = json.dumps(renamed)
    return Source(parts, metadata, layout)


def _current_names(part: str, tensors: Weights) -> dict[str, str]:
    """Today's name of every tensor in a folder, by the name it has there."""
    if part == "text_encoder":
        return dict(zip(tensors, with_text_prefix(tensors), strict=True))
    names = {key: key for key in tensors}
    if part == "vae":
        for new, old in OLD_VAE_ATTENTION.items():
            names |= {key: key.replace(f".{old}.", f".{new}.") for key in tensors if f".attentions.0.{old}." in key}
    return names


def _describe_folder(root: Path) -> Metadata:
    """What model_index.json, the scheduler and the folder's name say of a model without metadata of its own."""
    described: Metadata = {}
    index = read_json(root / "model_index.json") if (root / "model_index.json").is_file() else {}
    scheduler = root / "scheduler" / "scheduler_config.json"
    if index.get("_class_name") in _FLOW_PIPELINES:
        described["instaflow.prediction"] = "velocity"
        # The licence of the released weights, the only folders of this kind that say nothing of themselves.
        described["instaflow.license"] = "CC-BY-NC-4.0"
        stage = next((stage for name, stage in _STAGES_BY_NAME if name in root.resolve().name.lower()), None)
        if stage:
            described["instaflow.stage"] = stage
    elif scheduler.is_file() and "prediction_type" in (says := read_json(scheduler)):
        kind = says["prediction_type"]
        if kind not in _PREDICTIONS:
            raise FormatError(
                f"The scheduler of {root.name} predicts {kind!r}",
                "epsilon or velocity",
                "Load it with the host's own loader.",
            )
        described["instaflow.prediction"] = _PREDICTIONS[kind]
    return described


# --- metadata from strangers ------------------------------------------------------------------------------------------


def _json(text: str, key: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _damaged(name, key, text, "JSON") from error


def _check_metadata(metadata: Metadata, name: str) -> None:
    """Raise FormatError where a value that is read later is not what it should be."""
    prediction = metadata.get("instaflow.prediction", "velocity")
    if prediction not in ("velocity", "epsilon"):
        raise _damaged(name, "instaflow.prediction", prediction, "velocity or epsilon")
    for key, kind in (("instaflow.native_size", int), ("instaflow.guidance", float)):
        try:
            kind(metadata.get(key, "1"))
        except ValueError as error:
            raise _damaged(name, key, metadata[key], "a number") from error


def _damaged(name: str, key: str, value: str, expected: str) -> FormatError:
    return FormatError(f"The metadata {key} of {name} is {value[:40]!r}", expected, "Get the file again.")
