"""Diffusers folders: unet/, vae/, text_encoder/, tokenizer/, scheduler/ and model_index.json, read and written.

Written folders are what `StableDiffusionPipeline` and the community's `RectifiedFlowPipeline` load.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic import replacing, replacing_folder
from ..text import TOKENIZER
from .files import Config, FormatError, Metadata, Weights, read_weights, sibling, write_weights

# Names a part's weights may have, best first; an index beside them names the pieces of a model kept in several files.
_WEIGHT_NAMES = {
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": ("model.safetensors", "pytorch_model.bin"),
}
UNET_CLASS = "UNet2DConditionModel"
"""What a UNet's config.json calls it."""
_VARIANTS = ("", ".fp32", ".fp16", ".bf16", ".non_ema")

_GET_AGAIN = "Get the file from where the weights came."

# The part of a folder that is text, and that a single file has to remember for the way back.
_TEXT_FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor")
_VOCABULARY_FILES = ("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer.json")

# As in the released folders.
_SCHEDULER_CONFIG: Config = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}


def pipeline_folder(path: Path) -> Path:
    """The absolute path of the folder whose model_index.json and scheduler/ speak for the UNet in `path`: the one above
    a part of a pipeline, else `path` itself, be it a pipeline or a repository of a UNet alone."""
    here = path.absolute()  # the working folder has a name, too
    part = not (here / "unet").is_dir() and (here.name == "unet" or (here.parent / "model_index.json").is_file())
    return here.parent if part else here


def read_json(path: Path) -> Config:
    """A JSON object from a file; FormatError where it is missing or is not one."""
    if not path.is_file():
        raise FormatError(
            f"The folder {path.parent.name} has no {path.name}", f"{path.name} beside the weights", _GET_AGAIN
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is not JSON ({error})", "a JSON object", _GET_AGAIN) from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} holds a {type(content).__name__}", "a JSON object", _GET_AGAIN)
    return content


def read_part(folder: Path, part: str) -> tuple[Weights, Config, Metadata]:
    """Tensors, config and metadata of one part ("unet", "vae" or "text_encoder") kept in `folder`."""
    config = read_json(folder / "config.json")
    for name in _WEIGHT_NAMES[part]:
        stem, suffix = name.rsplit(".", 1)
        for variant in _VARIANTS:
            path = folder / f"{stem}{variant}.{suffix}"
            if path.is_file():
                tensors, metadata = read_weights(path)
                return tensors, config, metadata
            # Where the variant stands in an index's name has changed with the libraries' versions.
            for index in (f"{stem}.{suffix}.index{variant}.json", f"{stem}{variant}.{suffix}.index.json"):
                if (folder / index).is_file():
                    return _read_shards(folder / index), config, {}
    raise FormatError(
        f"The folder {folder} has no weights",
        f"one of {', '.join(_WEIGHT_NAMES[part])} in it",
        "Download the whole folder; git alone fetches only pointers (use git lfs pull).",
    )


def _read_shards(index: Path) -> Weights:
    weight_map = read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise FormatError(
            f"{index.name} lists no files of weights", "a weight_map of tensors to files beside it", _GET_AGAIN
        )
    tensors: Weights = {}
    for name in sorted(set(names)):
        tensors |= read_weights(sibling(index, name))[0]
    return tensors


def read_texts(folder: Path) -> dict[str, str]:
    """Configs and tokenizer files of a folder by their relative path, what a single file keeps for the way back.

    The 1.4 MB of Stable Diffusion's vocabulary are left out where they are the ones this pack ships: `write_folder`
    writes them anew.
    """
    texts = {}
    if (folder / "model_index.json").is_file():
        texts["model_index.json"] = (folder / "model_index.json").read_text(encoding="utf-8")
    for name in _TEXT_FOLDERS:
        for path in sorted((folder / name).glob("*")):
            if path.suffix in (".json", ".txt") and ".index." not in path.name:
                texts[f"{name}/{path.name}"] = path.read_text(encoding="utf-8")
    if _is_shipped_vocabulary(texts):
        for name in _VOCABULARY_FILES:
            texts.pop(name, None)
    return texts


def _is_shipped_vocabulary(texts: Mapping[str, str]) -> bool:
    if "tokenizer/vocab.json" in texts:
        vocabulary = json.loads(texts["tokenizer/vocab.json"])
    elif "tokenizer/tokenizer.json" in texts:
        vocabulary = json.loads(texts["tokenizer/tokenizer.json"])["model"]["vocab"]
    else:
        return True
    return vocabulary == json.loads((TOKENIZER / "vocab.json").read_text(encoding="utf-8"))


def write_folder(
    destination: Path,
    parts: Mapping[str, tuple[Weights, Config]],
    metadata: Mapping[str, str],
    model_index: Config,
    texts: Mapping[str, str],
    scheduler: Config,
) -> None:
    """Write a diffusers folder under a temporary name, then rename it over `destination`.

    Args:
        parts: tensors and config of "unet" and, where there are, "vae" and "text_encoder".
        metadata: goes into the header of the UNet's file.
        model_index: used where `texts` has none.
        texts: files to restore as they were, by relative path.
        scheduler: what the scheduler's config is to say beside Stable Diffusion's numbers, where `texts` has none.
    """
    with replacing_folder(destination) as temporary:
        for part, (tensors, config) in parts.items():
            # Loaders of diffusers and transformers refuse a file that does not say which framework wrote it.
            header = {"format": "pt"} | (dict(metadata) if part == "unet" else {})
            write_weights(tensors, temporary / part / _WEIGHT_NAMES[part][0], header)
            _write_text(_dump(config), temporary / part / "config.json")
        for name, text in {**_default_texts(parts, scheduler), **texts}.items():
            if name.split("/")[0] in (*parts, "tokenizer", "scheduler", "feature_extractor"):
                _write_text(text, temporary / name)
        kept = texts.get("model_index.json", _dump(model_index))
        index = json.loads(kept)
        present = _only_present(index, temporary)
        _write_text(kept if present == index else _dump(present), temporary / "model_index.json")


def _default_texts(parts: Mapping[str, Any], scheduler: Config) -> dict[str, str]:
    texts = {"scheduler/scheduler_config.json": _dump(_SCHEDULER_CONFIG | scheduler)}
    if "text_encoder" in parts:
        texts |= {f"tokenizer/{path.name}": path.read_text(encoding="utf-8") for path in sorted(TOKENIZER.iterdir())}
    return texts


def _only_present(index: Config, folder: Path) -> Config:
    """The model index with null for every component the folder lacks (the safety checker is never kept)."""
    present = {
        name: value if not isinstance(value, list) or (folder / name).is_dir() else [None, None]
        for name, value in index.items()
    }
    if present.get("safety_checker") == [None, None]:
        present["requires_safety_checker"] = False
    return present


def _write_text(text: str, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _dump(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
