"""The checkpoints in the host's model folders: the names to choose from, and where a chosen one lies."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import folder_paths

_SNAPSHOT = re.compile(r"(?:.*/)?models--([^/]+)--([^/]+)/snapshots/[^/]+")
"""A repository in the Hugging Face cache's layout, whose folder's own name is a commit's."""


_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor", "safety_checker")
"""Folders of a pipeline in diffusers' layout."""
_UNET_WEIGHTS = "diffusion_pytorch_model."
"""What weights in such a layout begin with."""


def checkpoint_names() -> list[str]:
    """The choices of InstaFlowLoadCheckpoint: built-in names, files of models/checkpoints, folders of models/diffusers.

    Only names: the host asks for them on every page load, and a file that cannot be reached, such as a link to a drive
    that is not there, is nobody's trouble until it is chosen.
    """
    return _unique(_built_in(), listed_files("checkpoints"), _diffusers_folders())


def unet_names() -> list[str]:
    """The choices of InstaFlowLoadUNet: built-in names, files of models/diffusion_models, UNets of models/diffusers."""
    return _unique(_built_in(), listed_files("diffusion_models"), _unet_folders())


def checkpoint_source(name: str) -> str:
    """What a choice of InstaFlowLoadCheckpoint stands for: a built-in name, or the path of a file or folder.

    Raises:
        ValueError: there is no such choice, or nothing that can be reached behind it.
    """
    folders = "the built-in models, models/checkpoints and models/diffusers"
    return _source(name, "checkpoints", _diffusers_folders, folders)


def unet_source(name: str) -> str:
    """What a choice of InstaFlowLoadUNet stands for. Raises as `checkpoint_source`."""
    folders = "the built-in models, models/diffusion_models and models/diffusers"
    return _source(name, "diffusion_models", _unet_folders, folders)


def listable(names: Iterable[str]) -> list[str]:
    """Those of the names that a browser may be given to list.

    The page of hosts up to 0.3.75 puts a choice into its menu as HTML, where a file called <img onerror=...> would run.
    """
    return [name for name in names if "<" not in name]


def modified(source: str) -> list[tuple[str, int, int]]:
    """Names, times and sizes of the files behind a source, by which the host knows that they were written again."""
    from ...instaflow_core.weights.checkpoint import locate

    path = os.fspath(locate(source))
    return [state for place in (path, *(os.path.join(path, part) for part in _PARTS)) for state in file_states(place)]


def file_states(place: str | Path) -> list[tuple[str, int, int]]:
    """Names, times and sizes of a file, or of the files in a folder itself."""
    files = [os.fspath(place)]
    if os.path.isdir(place):
        files = [os.path.join(place, name) for name in sorted(os.listdir(place))]
    found = [(file, os.stat(file)) for file in files if os.path.isfile(file)]
    return [(file, stat.st_mtime_ns, stat.st_size) for file, stat in found]


def _source(name: str, files: str, folders: Callable[[], dict[str, str]], looked_in: str) -> str:
    """Hosts up to 0.3.75 do not check a choice, and prompts come over the network: only what is listed is opened."""
    if name in _built_in():
        return name
    listed = name in listed_files(files)
    if listed:
        path = folder_paths.get_full_path(files, name)
    else:  # looked through only now: the host asks before each prompt whether a checkpoint has changed
        there = folders()
        path = there.get(name, there.get(_by_repository(name)))
    if path is not None:
        return path
    if listed:
        raise ValueError(
            f"{name} is listed in models/{files}, but there is no file behind it. It may be a link to a file or a "
            "drive that is gone. Bring it back, or choose another."
        )
    raise ValueError(
        f"There is no checkpoint {name!r}. It was looked for in {looked_in}; names with < in them are left out. "
        "Put it there, refresh the page (R) and choose it again."
    )


def _built_in() -> list[str]:
    from ...instaflow_core.weights.checkpoint import BUILT_IN

    return list(BUILT_IN)


def listed_files(kind: str) -> list[str]:
    """The files in the model folders of a kind, as far as they are listable.

    The host keeps its list, and asks the folders in it for their dates: where one is gone, as with the drive that a
    link leads to, it raises, and then the folders are looked through anew.
    """
    try:
        names = folder_paths.get_filename_list(kind)
    except OSError:
        names = folder_paths.get_filename_list_(kind)[0]
    return listable(names)


def _unique(*names: list[str] | dict[str, str]) -> list[str]:
    return list(dict.fromkeys(name for some in names for name in some))


def _unet_folders() -> dict[str, str]:
    """The unet/ of each diffusers folder, and folders that are a UNet's own."""
    pipelines, unets = _folders()
    inside = {f"{name}/unet": os.path.join(path, "unet") for name, path in pipelines.items()}
    return {name: path for name, path in inside.items() if os.path.isdir(path)} | unets


def _diffusers_folders() -> dict[str, str]:
    return _folders()[0]


def _folders() -> tuple[dict[str, str], dict[str, str]]:
    """Folders under models/diffusers by their path there: pipelines, with a unet/ or a model_index.json, and UNets,
    with a config.json and weights of their own.

    A snapshot in the Hugging Face cache's layout goes by its repository's name, models/diffusers itself, where it was
    downloaded to without a folder of its own, by the name of that. What is hidden is nobody's model: a download keeps
    its unfinished files there.
    """
    pipelines: dict[str, str] = {}
    unets: dict[str, str] = {}
    for root in folder_paths.get_folder_paths("diffusers"):
        seen: set[str] = set()
        for path, folders, files in os.walk(root, followlinks=True):
            real = os.path.realpath(path)
            if real in seen:  # links in a circle
                folders.clear()
                continue
            seen.add(real)
            found = None
            if "unet" in folders or "model_index.json" in files:
                found = pipelines
            elif "config.json" in files and any(name.startswith(_UNET_WEIGHTS) for name in files):
                found = unets if _says_unet(os.path.join(path, "config.json")) else None
            if found is not None:
                inside = os.path.relpath(path, os.path.dirname(os.path.abspath(root)) if path == root else root)
                inside = inside.replace(os.sep, "/")
                name = _by_repository(inside)
                found.setdefault(inside if name in found else name, path)
            # What lies inside belongs to it; in models/diffusers itself that is only what has a part's name.
            inner = set(folders if path != root and found is not None else _PARTS if found is pipelines else ())
            folders[:] = sorted(folder for folder in folders if not folder.startswith(".") and folder not in inner)
    return _listable(pipelines), _listable(unets)


def _listable(folders: dict[str, str]) -> dict[str, str]:
    return {name: folders[name] for name in listable(folders)}


def _says_unet(config: str) -> bool:
    """Whether a config.json is a UNet's. One that cannot be read is taken for one: what is wrong is said to who chooses
    it, and to nobody else."""
    from ...instaflow_core.weights.diffusers_folder import UNET_CLASS, read_json

    try:
        return read_json(Path(config)).get("_class_name") == UNET_CLASS
    except (OSError, ValueError):
        return True


def _by_repository(path: str) -> str:
    return _SNAPSHOT.sub(r"\1/\2", path)
