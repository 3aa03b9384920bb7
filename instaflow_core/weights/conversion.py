"""`convert`: a diffusers folder into one file, or a file into a folder."""

import json
from pathlib import Path

import torch

from .checkpoint import Checkpoint, load, locate
from .diffusers_folder import pipeline_folder, read_texts
from .files import WEIGHT_ENDINGS, FormatError, Progress
from .metadata import NOISE_MINUS_DATA, said_in_folder
from .saving import save, save_folder


def convert(
    source: str | Path,
    destination: str | Path,
    dtype: torch.dtype | None = None,
    force: bool = False,
    prediction: str | None = None,
    rule: str | None = None,
    progress: Progress = lambda *_: None,
) -> Checkpoint:
    """Turn a folder into one safetensors file, or a file into a folder; `destination`'s ending decides.

    Args:
        destination: a name that ends in .safetensors, or a folder's, which may have dots in it: instaflow_0.9B.
        prediction, rule: what the source's UNet predicts and how it is sampled, as for `load`.

    Without `dtype` every tensor keeps its bytes, and converting back gives the same tensors, names and configs.

    Returns the checkpoint that was written.

    Raises:
        FormatError: `source` cannot be used, or is `destination` or in it.
        FileExistsError: `destination` exists and `force` is not set.
    """
    start, end = locate(source), Path(destination).expanduser()
    if end.exists() and end.resolve() == start.resolve():
        raise FormatError(f"{end} is both source and destination", "two places", "Give another destination.")
    if end.exists() and end.resolve() in start.resolve().parents:
        found = f"The destination {end} holds the source, and would be replaced with all that is in it"
        raise FormatError(found, "two places", "Give another destination.")
    if end.exists() and not force:
        raise FileExistsError(f"{end} exists already. Give another name, or --force to replace it.")
    checkpoint = load(start, prediction, rule)
    if start.is_dir():
        checkpoint.metadata["instaflow.folder"] = json.dumps(_kept_texts(pipeline_folder(start), prediction or rule))
    ending = end.suffix.lower()
    if ending == ".safetensors":
        save(checkpoint, end, dtype, progress=progress)
    elif ending in WEIGHT_ENDINGS:
        raise FormatError(
            f"The destination is called {end.name}",
            "a name ending in .safetensors, or a folder's name",
            "Change the destination.",
        )
    else:
        save_folder(checkpoint, end, dtype, progress)
    return checkpoint


def _kept_texts(root: Path, overruled: str | None) -> dict[str, str]:
    """The folder's texts for the way back, without those that say what its UNet predicts where that is true no more: it
    was overruled by the caller, or its weights were read with the other sign."""
    texts = read_texts(root)
    said = None if overruled else said_in_folder(root, {})
    if overruled or (said and said.prediction == NOISE_MINUS_DATA):
        for name in ("model_index.json", "scheduler/scheduler_config.json"):
            texts.pop(name, None)
    return texts
