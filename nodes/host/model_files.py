"""The checkpoints in the host's model folders: the names to choose from, and where a chosen one lies."""

from __future__ import annotations

import os

import folder_paths


def checkpoint_sources() -> dict[str, str]:
    """Choices of InstaFlowLoadCheckpoint and what each stands for: built-in names, files, diffusers folders."""
    from ...instaflow_core.weights.checkpoint import BUILT_IN

    sources = {name: name for name in BUILT_IN}
    for name in folder_paths.get_filename_list("checkpoints"):
        sources.setdefault(name, folder_paths.get_full_path_or_raise("checkpoints", name))
    for name, path in _diffusers_folders().items():
        sources.setdefault(name, path)
    return sources


def unet_sources() -> dict[str, str]:
    """Choices of InstaFlowLoadUNet: files of models/diffusion_models, and the UNets of models/diffusers."""
    names = folder_paths.get_filename_list("diffusion_models")
    sources = {name: folder_paths.get_full_path_or_raise("diffusion_models", name) for name in names}
    for name, path in _diffusers_folders().items():
        if os.path.isdir(os.path.join(path, "unet")):
            sources.setdefault(f"{name}/unet", os.path.join(path, "unet"))
    return sources


def resolve(name: str, sources: dict[str, str], folders: str) -> str:
    """What a chosen name stands for. Hosts up to 0.3.75 do not check a choice, and prompts come over the network.

    Raises:
        ValueError: no such choice.
    """
    if name not in sources:
        raise ValueError(
            f"There is no checkpoint {name!r}. It was looked for in {folders}. "
            "Put it there, refresh the page (R) and choose it again."
        )
    return sources[name]


def _diffusers_folders() -> dict[str, str]:
    """Diffusers folders under models/diffusers, by their path there: those with a unet/ or a model_index.json."""
    found: dict[str, str] = {}
    for root in folder_paths.get_folder_paths("diffusers"):
        for path, folders, files in os.walk(root, followlinks=True):
            if path != root and ("unet" in folders or "model_index.json" in files):
                found.setdefault(os.path.relpath(path, root).replace(os.sep, "/"), path)
                folders.clear()  # what lies inside belongs to it
    return found
