"""Checkpoints: loaded from anything `formats` knows, kept under diffusers names, saved as one file or as a folder.

Tensors of a loaded checkpoint stay on disk until they are used; nothing may write into them. What kind of model it is
stands in the metadata, since the weights of an InstaFlow cannot be told from Stable Diffusion 1.5's:

1. `instaflow.prediction` in the file, or in the folder's UNet file;
2. a `model_index.json` that names a rectified-flow pipeline, or a scheduler that says what it predicts;
3. otherwise the caller's word (`load(..., prediction=...)`), which is velocity: choosing our loader says so.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import formats
from .flow import LATENT_SCALE
from .folders import read_texts, sibling, write_folder
from .formats import VAE_PREFIX, FormatError
from .sources import CONFIG_KEYS, PARTS, PREFIXES, read_source
from .weightfiles import Metadata, Weights, read_weights, write_weights

Config = dict[str, Any]

MODELS = Path(__file__).parent.parent / "models"
BUILT_IN = {
    "built-in: shapes": "shapes.safetensors",
    "built-in: shapes-2rf": "shapes-2rf.safetensors",
    "built-in: shapes-teacher": "shapes-teacher.safetensors",
}
"""The models this pack ships: the name they go by, and their file in models/."""

_TITLES = {"one-step": "InstaFlow", "2-rectified-flow": "2-Rectified Flow", "teacher": "diffusion teacher"}


@dataclass
class Checkpoint:
    """A model's weights, configs and metadata.

    unet: keys of diffusers' UNet2DConditionModel, with unet_config.
    text_encoder: keys of transformers' CLIPTextModel, always under `text_model.`, with text_config; or None.
    vae: keys of diffusers' AutoencoderKL or AutoencoderTiny (vae_config's `_class_name`); or None.
    metadata: strings, as in a safetensors header.
    layout: how the source kept it, in words.
    """

    unet: Weights
    unet_config: Config
    text_encoder: Weights | None = None
    text_config: Config | None = None
    vae: Weights | None = None
    vae_config: Config | None = None
    metadata: Metadata = field(default_factory=dict)
    layout: str = "in memory"

    @property
    def prediction(self) -> str:
        """What the UNet predicts: "velocity" (data minus noise) or "epsilon" (noise, an ordinary diffusion model)."""
        return self.metadata.get("instaflow.prediction", "velocity")

    @property
    def stage(self) -> str:
        """How it was made: "one-step", "2-rectified-flow", "teacher", or "unknown"."""
        return self.metadata.get("instaflow.stage", "teacher" if self.prediction == "epsilon" else "unknown")

    @property
    def guidance(self) -> float:
        """The guidance it wants; 1.0 is none."""
        return float(self.metadata.get("instaflow.guidance", "1.5" if self.stage == "2-rectified-flow" else "1.0"))

    @property
    def latent_downscale(self) -> int:
        """Pixels to one latent, along each side."""
        config = self.vae_config or {}
        levels = config.get("encoder_block_out_channels") or config.get("block_out_channels") or [0] * 4
        return 2 ** (len(levels) - 1)

    @property
    def native_size(self) -> int:
        """Side of the pictures it was trained on, in pixels."""
        if "instaflow.native_size" in self.metadata:
            return int(self.metadata["instaflow.native_size"])
        size = self.unet_config.get("sample_size") or 64
        return (size if isinstance(size, int) else max(size)) * self.latent_downscale

    def latent_shape(self, width: int | None = None, height: int | None = None) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of pictures of that many pixels; of the native size where None."""
        unit = self.latent_downscale
        size = ((pixels or self.native_size) // unit for pixels in (height, width))
        return (self.unet_config.get("in_channels", 4), *size)

    def part(self, name: str) -> tuple[Weights, Config] | None:
        """Tensors and config of "unet", "text_encoder" or "vae"; None where the checkpoint lacks it."""
        tensors, config = {
            "unet": (self.unet, self.unet_config),
            "text_encoder": (self.text_encoder, self.text_config),
            "vae": (self.vae, self.vae_config),
        }[name]
        return None if tensors is None or config is None else (tensors, config)


# --- loading ----------------------------------------------------------------------------------------------------------


def load(source: str | Path, prediction: str = "velocity") -> Checkpoint:
    """Load a checkpoint.

    Args:
        source: a diffusers folder (or its unet/), a single file, a bare UNet, or a name in BUILT_IN.
        prediction: what to believe where the source does not say what it predicts.

    Raises FormatError for everything that is not a whole model of Stable Diffusion 1.5's kind.
    """
    read = read_source(locate(source))
    unet, unet_config = read.parts["unet"]
    text, text_config = read.parts.get("text_encoder", (None, None))
    vae, vae_config = read.parts.get("vae", (None, None))
    metadata = {"instaflow.prediction": prediction} | read.metadata
    return Checkpoint(unet, unet_config, text, text_config, vae, vae_config, metadata, read.layout.in_words)


def locate(source: str | Path) -> Path:
    """The path of a built-in name, or of a file or folder that exists; FormatError otherwise."""
    name = str(source)
    if name.startswith("built-in:"):
        if name not in BUILT_IN:
            raise FormatError(f"No built-in model is called {name!r}", " or ".join(BUILT_IN), "Check the spelling.")
        path = MODELS / BUILT_IN[name]
        advice = "Install the pack again, or make the models with `make models`."
    else:
        path = Path(source).expanduser()
        advice = "Check the name and the folder; built-in models are called " + ", ".join(BUILT_IN) + "."
    if not path.exists():
        raise FormatError(f"There is nothing at {path}", "a checkpoint file or a diffusers folder", advice)
    return path


# --- saving -----------------------------------------------------------------------------------------------------------


def describe(checkpoint: Checkpoint) -> Metadata:
    """The metadata a saved checkpoint carries: its own, with configs and the standard keys filled in."""
    size, stage = checkpoint.native_size, checkpoint.stage
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/gnobitab/InstaFlow",
        "modelspec.title": _TITLES.get(stage, "InstaFlow"),
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.prediction_type": checkpoint.prediction,
        **checkpoint.metadata,
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
    checkpoint: Checkpoint, path: str | Path, dtype: torch.dtype | None = None, shared: Sequence[str] = ()
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
    write_weights(single_file(checkpoint, dtype, parts), path, metadata)


def single_file(checkpoint: Checkpoint, dtype: torch.dtype | None = None, parts: Sequence[str] = PARTS) -> Weights:
    """The tensors of these parts, as far as there are any, under their names in a file that `save` writes.

    Views of the checkpoint's, and in their types where dtype is None.
    """
    tensors: Weights = {}
    for part in parts:
        tensors |= _ldm_tensors(checkpoint, part, dtype)
    return tensors


def save_part(checkpoint: Checkpoint, part: str, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Save only the "text_encoder" or the "vae", for `save(..., shared=[...])` of several models beside it.

    Raises ValueError where the checkpoint has no such part.
    """
    held = checkpoint.part(part)
    if held is None:
        raise ValueError(f"The checkpoint has no {part} to save. Save a part it has, or load the whole model.")
    metadata = {"format": "pt", "instaflow.format": "1"} | described_part(checkpoint, part)
    write_weights(_ldm_tensors(checkpoint, part, dtype), Path(path), metadata)


def _ldm_tensors(checkpoint: Checkpoint, part: str, dtype: torch.dtype | None) -> Weights:
    held = checkpoint.part(part)
    if held is None:
        return {}
    tensors, config = held
    rows = formats.table(part, config)
    named = formats.match(part, cast(tensors, dtype), rows, "diffusers")
    ldm = formats.to_ldm(named, rows, PREFIXES[part])
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


def save_folder(checkpoint: Checkpoint, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Save as a diffusers folder with the components of a StableDiffusionPipeline; it appears when it is whole.

    A checkpoint that `convert` made from a folder gives that folder's configs, tokenizer files and tensor names back.
    """
    renamed = json.loads(checkpoint.metadata.get("instaflow.renamed", "{}"))
    texts = json.loads(checkpoint.metadata.get("instaflow.folder", "{}"))
    parts = {}
    for part in PARTS:
        held = checkpoint.part(part)
        if held:
            names = renamed.get(part, {})
            tensors = {names.get(name, name): tensor for name, tensor in cast(held[0], dtype).items()}
            parts[part] = tensors, held[1]
    left_out = ("instaflow.folder", "instaflow.renamed", *CONFIG_KEYS.values())
    metadata = {key: value for key, value in describe(checkpoint).items() if key not in left_out}
    vae_class = (checkpoint.vae_config or {}).get("_class_name", "AutoencoderKL")
    index = {
        "_class_name": "RectifiedFlowPipeline" if checkpoint.prediction == "velocity" else "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", vae_class],
    }
    write_folder(Path(path), parts, metadata, index, texts)


def convert(
    source: str | Path,
    destination: str | Path,
    dtype: torch.dtype | None = None,
    force: bool = False,
    prediction: str = "velocity",
) -> Checkpoint:
    """Turn a folder into one safetensors file, or a file into a folder; `destination`'s ending decides.

    Without `dtype` every tensor keeps its bytes, and converting back gives the same tensors, names and configs.

    Returns the checkpoint that was written.

    Raises:
        FormatError: `source` cannot be used, or is `destination`.
        FileExistsError: `destination` exists and `force` is not set.
    """
    start, end = locate(source), Path(destination).expanduser()
    if end.exists() and end.resolve() == start.resolve():
        raise FormatError(f"{end} is both source and destination", "two places", "Give another destination.")
    if end.exists() and not force:
        raise FileExistsError(f"{end} exists already. Give another name, or --force to replace it.")
    checkpoint = load(start, prediction)
    if start.is_dir():
        root = start.parent if start.name == "unet" and not (start / "unet").is_dir() else start
        checkpoint.metadata["instaflow.folder"] = json.dumps(read_texts(root))
    if end.suffix == ".safetensors":
        save(checkpoint, end, dtype)
    elif end.suffix:
        raise FormatError(
            f"The destination is called {end.name}",
            "a name ending in .safetensors, or a folder's name",
            "Change the destination.",
        )
    else:
        save_folder(checkpoint, end, dtype)
    return checkpoint


# --- building ---------------------------------------------------------------------------------------------------------


def build_unet(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """A diffusers UNet2DConditionModel with the checkpoint's weights, in eval mode. The weights are copied."""
    from diffusers import UNet2DConditionModel

    return _filled(lambda: UNet2DConditionModel.from_config(checkpoint.unet_config), checkpoint.unet, dtype)


def build_vae(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """A diffusers AutoencoderKL or AutoencoderTiny, in eval mode; ValueError where the checkpoint has no VAE."""
    import diffusers

    held = checkpoint.part("vae")
    if held is None:
        raise ValueError("This checkpoint holds a UNet only, and the VAE is needed. Load the whole model.")
    tensors, config = held
    # AutoencoderTiny saves its decoder's widths a second time, under a name it does not take back.
    config = {
        k: v for k, v in config.items() if config["_class_name"] != "AutoencoderTiny" or k != "block_out_channels"
    }
    return _filled(lambda: getattr(diffusers, config["_class_name"]).from_config(config), tensors, dtype)


def build_text_encoder(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """A transformers CLIPTextModel, in eval mode; ValueError where the checkpoint has no text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    held = checkpoint.part("text_encoder")
    if held is None:
        raise ValueError("This checkpoint holds a UNet only, and the text encoder is needed. Load the whole model.")
    tensors, config = held
    return _filled(lambda: CLIPTextModel(CLIPTextConfig.from_dict(config)), tensors, dtype)


def _filled(make: Callable[[], Any], tensors: Weights, dtype: torch.dtype) -> Any:
    """A module made without memory for its weights, then given copies of `tensors`."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        module = make()
    names = module.state_dict()
    # transformers names the text encoder's tensors with or without `text_model.`, as its version goes.
    bare = not any(name.startswith("text_model.") for name in names)
    own = {name.removeprefix("text_model.") if bare else name: tensor for name, tensor in tensors.items()}
    copies = {name: tensor.to(dtype, copy=True) for name, tensor in own.items() if not name.endswith("position_ids")}
    module.load_state_dict(copies, assign=True)
    return module.eval()
