"""Decoders of TAESD's shape, which the host keeps in models/vae_approx, as a VAE.

A tiny decoder gives in a twentieth of the time almost the picture of the large one. What it is for is in no file of
TAESD's: those of other latents than Stable Diffusion 1.5's are known by their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import torch
from comfy.taesd.taesd import TAESD
from torch import Tensor

from .checkpoints import METADATA
from .model_files import listed_files

FULL = "full"
"""The choice of the VAE's own decoder."""

_KIND = "vae_approx"
_FOR_OTHER_LATENTS = ("taesdxl", "taesd3", "taef1", "taef2")
_HOW_TO_GET = (
    "Put TAESD's taesd_decoder (.safetensors or .pth, from github.com/madebyollin/taesd) there, and its taesd_encoder; "
    "or train one of your own VAE's with python -m instaflow_core distill-decoder. Refresh the page (R) and choose it."
)


def decoder_names() -> list[str]:
    """The choices: the VAE's own, and the decoders in models/vae_approx."""
    names = (name for name in listed_files(_KIND) if "decoder" in Path(name).stem.lower())
    return [FULL, *(name for name in names if not Path(name).name.startswith(_FOR_OTHER_LATENTS))]


def with_decoder(name: str, vae: Any) -> Any:
    """A VAE that decodes with this choice and encodes as `vae` does, or as the file beside it says that is called
    encoder where this one is called decoder.

    Args:
        vae: None where there is none.

    Raises:
        FormatError: the file is no decoder of TAESD's shape for four channels.
        ValueError: there is no such choice.
    """
    if name == FULL:
        return vae
    path = decoder_file(name)
    decoder = _read(path, "taesd_decoder")
    before = path.with_name("encoder".join(path.name.rsplit("decoder", 1)))
    encoder = _read(before, "taesd_encoder") if before.is_file() and before != path else None
    nothing = {key: torch.zeros_like(w) for key, w in _empty().items() if key.startswith("taesd_encoder.")}
    # Its latents are as the UNet takes them; the host hands a VAE latents divided by SD's scale.
    numbers = {"vae_scale": torch.tensor(_scale()), "vae_shift": torch.tensor(0.0)}
    tiny = comfy.sd.VAE(sd={**decoder, **(encoder or nothing), **numbers}, dtype=None if vae is None else vae.vae_dtype)
    if vae is not None:
        tiny.encode, tiny.encode_tiled, tiny.get_sd = vae.encode, vae.encode_tiled, vae.get_sd
        tiny.patcher.set_attachments(METADATA, vae.patcher.get_attachment(METADATA))
    elif encoder is None:
        tiny.encode = tiny.encode_tiled = tiny.get_sd = _no_encoder(path.name)
    return tiny


def decoder_file(name: str) -> Path:
    """The file of a choice other than FULL; ValueError where there is none."""
    path = folder_paths.get_full_path(_KIND, name) if name in decoder_names() else None
    if path is None:
        raise ValueError(f"There is no decoder {name!r} in models/vae_approx. {_HOW_TO_GET}")
    return Path(path)


def _read(path: Path, part: str) -> dict[str, Tensor]:
    """The weights of a file by the host's names for that part of a TAESD."""
    from ...instaflow_core.weights.files import FormatError, check_finite, read_weights

    tensors = {f"{part}.{key}": weight for key, weight in read_weights(path)[0].items()}
    check_finite(tensors, path.name)
    wanted = {key: weight.shape for key, weight in _empty().items() if key.startswith(f"{part}.")}
    found = {key: weight.shape for key, weight in tensors.items()}
    if found != wanted:
        example = min(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        raise FormatError(
            f"{path.name} is no {part.removeprefix('taesd_')} of TAESD's shape: it differs in {example}",
            f"the {len(wanted)} tensors of one for latents of 4 channels, by the names of the authors' own files",
            _HOW_TO_GET,
        )
    return tensors


def _empty() -> dict[str, Tensor]:
    """The host's own module, without memory."""
    with torch.device("meta"):
        weights: dict[str, Tensor] = TAESD(latent_channels=4).state_dict()
    return {key: torch.empty_like(weight, device="cpu") for key, weight in weights.items()}


def _scale() -> float:
    from ...instaflow_core.weights.layouts import LATENT_SCALE

    return LATENT_SCALE


def _no_encoder(name: str) -> Any:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError(
            f"{name} is a decoder alone, and this VAE was asked for more. Connect the `vae` of InstaFlow Accelerate, "
            f"or put the encoder that belongs to it beside it in models/vae_approx."
        )

    return refuse
