"""What a finetune has learned, taken from one model and added to another: W + s (W_finetuned - W_base).

The InstaFlow authors' own demo gets its quality so: InstaFlow came from Stable Diffusion 1.5, and what a finetune such
as DreamShaper changed in that can be added to InstaFlow. Only the UNet takes part; text encoder and VAE are used as the
finetune has them.

A difference is kept under the names ComfyUI gives a full-rank LoRA (`diffusion_model.….diff`, `.diff_b`), so the stock
LoRA loader applies the file too. Everything goes a tensor at a time: three models of 3.4 GB need less than 2 GB of
memory.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import Checkpoint, load, locate
from .files import (
    FormatError,
    Metadata,
    Progress,
    Weights,
    check_finite,
    new_file,
    read_weights,
    stream_weights,
    types_in_words,
)
from .layouts import UNET_PREFIX
from .metadata import json_entry
from .saving import describe, single_file

CHUNK_BYTES = 128 * 2**20

_DELTA_PREFIX = "diffusion_model."
_ENDINGS = {"weight": "diff", "bias": "diff_b"}


def extract(
    finetuned: str | Path,
    base: str | Path,
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> tuple[str, str]:
    """Write W_finetuned - W_base of two UNets, calculated in float32.

    Args:
        finetuned, base: checkpoints in any layout `load` reads, of the same architecture; their types may differ.
        path: the safetensors file to write.
        dtype: what the difference is kept in; float32 holds that of two fp16 or bf16 models exactly.

    Returns the types of the two UNets' weights, in words.

    Raises:
        FormatError: one of them cannot be read, or they do not have the same tensors.
        FileExistsError: `path` exists and `force` is not set.
    """
    out = new_file(path, force)
    first, second = load(finetuned), load(base)
    learned, known = _on_meta(_unet(first)), _on_meta(_unet(second))
    licence = combined_licence(first.metadata, second.metadata)
    del first, second  # nothing may be mapped of `path` when it is replaced
    check_same(
        learned,
        known,
        (_name(finetuned), _name(base)),
        "Give the model the finetune was made from.",
    )
    layout = {_delta_name(name): torch.empty_like(w, dtype=dtype) for name, w in learned.items()}
    metadata = {
        "format": "pt",
        "modelspec.title": f"{_name(finetuned)} - {_name(base)}",
        "instaflow.delta": json.dumps({"finetuned": _name(finetuned), "base": _name(base)}),
    } | licence

    def chunk(names: list[str]) -> Iterator[tuple[str, Tensor]]:
        minuend, subtrahend = _unet(load(finetuned)), _unet(load(base))
        for name in names:
            check_finite({name: minuend[name]}, _name(finetuned))
            check_finite({name: subtrahend[name]}, _name(base))
            yield _delta_name(name), (minuend[name].float() - subtrahend[name].float()).to(dtype)

    stream_weights(layout, _in_chunks(learned, chunk), out, metadata, progress)
    return types_in_words(learned), types_in_words(known)


def merge(
    model: str | Path,
    delta: str | Path,
    path: str | Path,
    strength: float = 1.0,
    clip_vae: str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> None:
    """Write a model with W + strength * delta in its UNet, calculated in float32 and kept in the model's types.

    Args:
        model: a checkpoint in any layout `load` reads.
        delta: a file `extract` wrote.
        path: the safetensors file to write, with the model's metadata and a record of the merge.
        clip_vae: the checkpoint to take text encoder and VAE from, such as the finetune; the model's own where None.

    Raises:
        FormatError: one of them cannot be read, or they do not fit each other.
        FileExistsError: `path` exists and `force` is not set.
        ValueError: strength is not a finite number.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength is {strength}. Give a finite number; 1.0 adds the whole difference.")
    out, delta_path = new_file(path, force), locate(delta)
    differences, header = _read_delta(delta_path)
    described = _with_parts(model, clip_vae)
    check_same(
        differences,
        _unet(described),
        (delta_path.name, _name(model)),
        "A difference fits models of the architecture it was taken from; InstaFlow has Stable Diffusion 1.5's.",
    )
    layout = _on_meta(single_file(described))
    made_of = json_entry(header, "instaflow.delta", dict, delta_path.name)
    merges = json_entry(described.metadata, "instaflow.merged", list, _name(model))
    merges.append({"delta": delta_path.name, **made_of, "strength": strength})
    metadata = {"format": "pt"} | describe(described) | {"instaflow.merged": json.dumps(merges)}
    metadata |= combined_licence(described.metadata, header)
    del described, differences  # nothing may be mapped of `path` when it is replaced

    def chunk(names: list[str]) -> Iterator[tuple[str, Tensor]]:
        weights, added = single_file(_with_parts(model, clip_vae)), _read_delta(delta_path)[0]
        for name in names:
            weight = weights[name]
            if name.startswith(UNET_PREFIX):
                difference = added[name.removeprefix(UNET_PREFIX)]
                check_finite({name: difference}, delta_path.name)
                weight = (weight.float() + strength * difference.float()).to(weight.dtype)
            yield name, weight

    stream_weights(layout, _in_chunks(layout, chunk), out, metadata, progress)


def check_same(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    names: tuple[str, str],
    advice: str,
) -> None:
    """Raise FormatError, naming the first offenders, unless both have the same tensors, all of them floating-point.

    Args:
        first, second: tensors of two UNets under the same kind of names; only shapes and types are looked at.
        names: what messages call the two.
    """
    both = [name for name in first if name in second]
    said = [f"{name}: {_said(first[name])} and {_said(second[name])}" for name in both]
    problems = {
        f"only in {names[0]}": [name for name in first if name not in second],
        f"only in {names[1]}": [name for name in second if name not in first],
        "of different shapes": [s for s, n in zip(said, both, strict=True) if first[n].shape != second[n].shape],
        "of types that cannot be added": [
            text
            for text, name in zip(said, both, strict=True)
            if not (first[name].is_floating_point() and second[name].is_floating_point())
        ],
    }
    listed = [
        f"{len(found)} {what} ({'; '.join(found[:3])}{'; …' if len(found) > 3 else ''})"
        for what, found in problems.items()
        if found
    ]
    if listed:
        raise FormatError(
            f"The UNets of {names[0]} and {names[1]} differ in their tensors: {', '.join(listed)}",
            "the same names and shapes in both",
            advice,
        )


def combined_licence(*metadata: Mapping[str, str]) -> Metadata:
    """The licence entries of something made of several models: all their licences, non-commercial ones first."""
    said = [data.get("instaflow.license") or data.get("modelspec.license") or "" for data in metadata]
    licences = dict.fromkeys(part for text in said for part in text.split(" AND ") if part)
    joined = " AND ".join(sorted(licences, key=lambda licence: "NC" not in licence.upper().split("-")))
    return {"instaflow.license": joined, "modelspec.license": joined} if joined else {}


def _name(source: str | Path) -> str:
    """What a source is called in messages and metadata: never a path, which says where somebody's files lie."""
    return str(source) if str(source).startswith("built-in:") else Path(source).expanduser().resolve().name


def _said(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _on_meta(weights: Weights) -> Weights:
    """Their shapes and types, without the file that they are views of."""
    return {name: tensor.to("meta") for name, tensor in weights.items()}


def _unet(checkpoint: Checkpoint) -> Weights:
    """The UNet's tensors under LDM names without a prefix; views."""
    tensors = single_file(checkpoint, parts=["unet"])
    return {name.removeprefix(UNET_PREFIX): w for name, w in tensors.items() if name.startswith(UNET_PREFIX)}


def _with_parts(model: str | Path, clip_vae: str | Path | None) -> Checkpoint:
    """The model, with text encoder and VAE of another checkpoint where one is given."""
    checkpoint = load(model)
    if clip_vae is None:
        return checkpoint
    other = load(clip_vae)
    for part in ("text_encoder", "vae"):
        if other.part(part) is None:
            raise FormatError(
                f"{_name(clip_vae)} has no {part.replace('_', ' ')}",
                "a checkpoint with text encoder and VAE",
                "Name the whole finetuned model, or leave the option out to keep the model's own.",
            )
    width, wanted = (other.text_config or {})["hidden_size"], checkpoint.unet_config["cross_attention_dim"]
    if width != wanted:
        raise FormatError(
            f"The text encoder of {_name(clip_vae)} is {width} wide",
            f"{wanted}, which the UNet of {_name(model)} reads",
            "Take text encoder and VAE of a model of the same architecture.",
        )
    # What `convert` keeps of a folder describes the parts that are replaced.
    kept = checkpoint.metadata.keys() - {"instaflow.folder", "instaflow.renamed"}
    metadata = {key: checkpoint.metadata[key] for key in kept}
    return replace(
        checkpoint,
        text_encoder=other.text_encoder,
        text_config=other.text_config,
        vae=other.vae,
        vae_config=other.vae_config,
        metadata=metadata | combined_licence(metadata, other.metadata),
        homes=other.homes | {"unet": checkpoint.homes["unet"]},
    )


def _delta_name(name: str) -> str:
    """input_blocks.0.0.weight -> diffusion_model.input_blocks.0.0.diff"""
    layer, _, ending = name.rpartition(".")
    return f"{_DELTA_PREFIX}{layer}.{_ENDINGS[ending]}"


def _read_delta(path: Path) -> tuple[Weights, Metadata]:
    """A difference's tensors under the names of the weights they belong to; names of no weight stay as they are."""
    tensors, metadata = read_weights(path)
    endings = {new: old for old, new in _ENDINGS.items()}
    renamed: Weights = {}
    for name, tensor in tensors.items():
        layer, _, ending = name.rpartition(".")
        known = name.startswith(_DELTA_PREFIX) and ending in endings
        renamed[f"{layer.removeprefix(_DELTA_PREFIX)}.{endings[ending]}" if known else name] = tensor
    if not renamed.keys() - tensors.keys():
        raise FormatError(
            f"{path.name} is not a difference of weights (it holds {min(tensors, default='nothing')})",
            "what `extract-delta` writes",
            "Make one with `python -m instaflow_core extract-delta FINETUNED BASE DELTA`.",
        )
    return renamed, metadata


def _in_chunks(
    layout: Mapping[str, Tensor], chunk: Callable[[list[str]], Iterator[tuple[str, Tensor]]]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `chunk(names)` for all names of the layout, in runs of about CHUNK_BYTES.

    Each run opens its files anew: what was read of a mapped file counts as this process's memory until it is closed.
    """
    waiting, names = 0, []
    for position, (name, tensor) in enumerate(layout.items(), 1):
        names.append(name)
        waiting += tensor.nbytes
        if waiting >= CHUNK_BYTES or position == len(layout):
            yield from chunk(names)
            waiting, names = 0, []
