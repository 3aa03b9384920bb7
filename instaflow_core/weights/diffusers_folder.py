"""Diffusers folders: unet/, vae/, text_encoder/, tokenizer/, scheduler/ and model_index.json, read and written.

Written folders are what `StableDiffusionPipeline` and the community's `RectifiedFlowPipeline` load.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic import replacing, replacing_folder
from ..text import TOKENIZER
from .bounded_json import parse
from .files import (
    Config,
    FormatError,
    Metadata,
    Progress,
    Weights,
    bytes_of,
    read_weights,
    sibling,
    unwrapped_name,
    write_weights,
)

WEIGHT_NAMES = {
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": ("model.safetensors", "pytorch_model.bin"),
}
"""Names a part's weights may have, best first; an index beside them names the pieces of a model in several files."""
UNET_CLASS = "UNet2DConditionModel"
"""What a UNet's config.json calls it."""
_VARIANTS = ("", ".fp32", ".fp16", ".bf16", ".non_ema")

_MOST_SHARDS = 1000
_GET_AGAIN = "Get the file from where the weights came."
_LARGEST_TEXT = 2**24
"""Bytes of a config or of a file of a tokenizer; the largest known has 4 MB."""

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
    return _object(_content(path), str(path))


def _content(path: Path) -> bytes:
    """A file of text, if it is no larger than one can be."""
    size = path.stat().st_size
    if size > _LARGEST_TEXT:
        raise FormatError(f"{path} has {size:,} bytes", f"at most {_LARGEST_TEXT:,} in a file of text", _GET_AGAIN)
    return path.read_bytes()


def _object(text: str | bytes, name: str) -> Config:
    try:
        return parse(text, dict)
    except ValueError as error:
        raise FormatError(f"{name} {error}", "a JSON object", _GET_AGAIN) from error


def read_part(folder: Path, part: str) -> tuple[Weights, Config, Metadata]:
    """Tensors, config and metadata of one part ("unet", "vae" or "text_encoder") kept in `folder`."""
    config = read_json(folder / "config.json")
    for name in WEIGHT_NAMES[part]:
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
        f"one of {', '.join(WEIGHT_NAMES[part])} in it",
        "Download the whole folder; git alone fetches only pointers (use git lfs pull).",
    )


def _read_shards(index: Path) -> Weights:
    listed = read_json(index).get("weight_map")
    weight_map = dict(listed) if isinstance(listed, dict) else {}
    if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise FormatError(
            f"{index.name} lists no files of weights", "a weight_map of tensors to files beside it", _GET_AGAIN
        )
    weight_map = {unwrapped_name(key): name for key, name in weight_map.items()}
    names = set(weight_map.values())
    if len(names) > _MOST_SHARDS:
        found = f"{index.name} lists {len(names):,} files of weights"
        raise FormatError(found, f"at most {_MOST_SHARDS}", _GET_AGAIN)
    tensors: Weights = {}
    for name in sorted(names):
        path = sibling(index, name)
        _check_inside(path, index.parent)
        inside = read_weights(path)[0]
        wrong = next((key for key in inside if weight_map.get(key, name) != name or key in tensors), None)
        if wrong is not None:
            raise FormatError(
                f"{name} holds {wrong}, which {index.name} says is in {weight_map.get(wrong)!r}",
                "each tensor in the one file that the index names for it",
                _GET_AGAIN,
            )
        tensors |= inside
    absent = weight_map.keys() - tensors.keys()
    if absent:
        first = min(absent)
        raise FormatError(
            f"{index.name} lists {len(absent)} tensors that are not there, such as {first} in {weight_map[first]}",
            "every tensor of the index in its file",
            _GET_AGAIN,
        )
    return tensors


def _check_inside(path: Path, folder: Path) -> None:
    """Raise FormatError where a file that a downloaded folder names is a link that leads out of it. In the hub's cache
    files are links to blobs beside the snapshots, in the same repository."""
    home = folder.resolve()
    snapshots = next((above for above in home.parents if above.name == "snapshots"), None)
    roots = (home, snapshots.parent) if snapshots and snapshots.parent.name.startswith("models--") else (home,)
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in roots):
        raise FormatError(
            f"{path} is a link that leads out of its folder", "a file in the folder", "Put the file itself there."
        )


def read_texts(folder: Path) -> dict[str, str]:
    """Configs and tokenizer files of a folder by their relative path, what a single file keeps for the way back.

    The 1.4 MB of Stable Diffusion's vocabulary are left out where they are the ones this pack ships: `write_folder`
    writes them anew.
    """
    texts = {}
    if (folder / "model_index.json").is_file():
        texts["model_index.json"] = _text(folder / "model_index.json")
    for name in _TEXT_FOLDERS:
        for path in sorted((folder / name).glob("*")):
            if path.suffix in (".json", ".txt") and ".index." not in path.name and path.is_file():
                texts[f"{name}/{path.name}"] = _text(path)
    if _is_shipped_vocabulary(texts):
        for name in _VOCABULARY_FILES:
            texts.pop(name, None)
    return texts


def _text(path: Path) -> str:
    # What is read is written into the new file, and so is not to come from elsewhere.
    _check_inside(path, path.parent)
    try:
        return _content(path).decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 ({error.reason})", "a file of text", _GET_AGAIN) from error


def _is_shipped_vocabulary(texts: Mapping[str, str]) -> bool:
    if "tokenizer/vocab.json" in texts:
        vocabulary = _object(texts["tokenizer/vocab.json"], "tokenizer/vocab.json")
    elif "tokenizer/tokenizer.json" in texts:
        model = _object(texts["tokenizer/tokenizer.json"], "tokenizer/tokenizer.json").get("model")
        vocabulary = model.get("vocab", {}) if isinstance(model, dict) else {}
    else:
        return True
    return vocabulary == json.loads((TOKENIZER / "vocab.json").read_text(encoding="utf-8"))


_TEXT_NAME = re.compile(rf"model_index\.json|({'|'.join(_TEXT_FOLDERS)})/\w[\w.+-]*\.(json|txt)")


def check_texts(texts: Mapping[str, Any], name: str) -> None:
    """Raise FormatError unless the texts that `name` keeps are files a folder can have: they were written by whoever
    made the file, and a name with .. in it would be written anywhere."""
    for file, text in texts.items():
        if not _TEXT_NAME.fullmatch(file) or not isinstance(text, str):
            raise FormatError(
                f"instaflow.folder in {name} names the file {file[:60]!r}",
                "configs and tokenizer files of a diffusers folder",
                "Do not use this file.",
            )


def write_folder(
    destination: Path,
    parts: Mapping[str, tuple[Weights, Config]],
    metadata: Mapping[str, str],
    model_index: Config,
    texts: Mapping[str, str],
    scheduler: Config,
    progress: Progress,
) -> None:
    """Write a diffusers folder under a temporary name, then rename it over `destination`.

    Args:
        parts: tensors and config of "unet" and, where there are, "vae" and "text_encoder".
        metadata: goes into the header of the UNet's file.
        model_index: used where `texts` has none.
        texts: files to restore as they were, by relative path.
        scheduler: what the scheduler's config is to say beside Stable Diffusion's numbers, where `texts` has none.
    """
    total = sum(bytes_of(tensors) for tensors, _ in parts.values())
    with replacing_folder(destination) as temporary:
        for part, (tensors, config) in parts.items():
            # Loaders of diffusers and transformers refuse a file that does not say which framework wrote it.
            header = {"format": "pt"} | (dict(metadata) if part == "unet" else {})
            path = temporary / part / WEIGHT_NAMES[part][0]
            write_weights(tensors, path, header, lambda size, _: progress(size, total))
            _write_text(_dump(config), temporary / part / "config.json")
        for name, text in {**_default_texts(parts, scheduler), **texts}.items():
            if name.split("/")[0] in (*parts, "tokenizer", "scheduler", "feature_extractor"):
                _write_text(text, temporary / name)
        kept = texts.get("model_index.json", _dump(model_index))
        index = _object(kept, "model_index.json")
        present = _only_present(index, temporary)
        _write_text(kept if present == index else _dump(present), temporary / "model_index.json")


def _default_texts(parts: Mapping[str, Any], scheduler: Config) -> dict[str, str]:
    texts = {"scheduler/scheduler_config.json": _dump(_SCHEDULER_CONFIG | scheduler)}
    if "text_encoder" in parts:
        texts |= {f"tokenizer/{path.name}": path.read_text(encoding="utf-8") for path in sorted(TOKENIZER.iterdir())}
    return texts


def _only_present(index: Config, folder: Path) -> Config:
    """The model index with null for every component the folder lacks (the safety checker is never kept)."""
    there = {path.name for path in folder.iterdir() if path.is_dir()}
    present = {
        name: value if not isinstance(value, list) or name in there else [None, None] for name, value in index.items()
    }
    if present.get("safety_checker") == [None, None]:
        present["requires_safety_checker"] = False
    return present


def _write_text(text: str, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _dump(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
