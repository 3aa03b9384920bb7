"""What comes into a node, each input by itself: looked at before anything is done with it.

The host lets a graph link what has the right type, and looks at numbers and choices only where they are typed into the
node itself, before 0.4 not even at the choices. So a link can bring a size, a number or a model that no node can use.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io
from torch import Tensor

Execute = Callable[..., io.NodeOutput]

_LATENT_SHAPE = "InstaFlow takes (batch, 4, height / 8, width / 8)"
_LATENT_ADVICE = "Make it with Empty Latent Image, or with VAE Encode and InstaFlow's own VAE."


def checked(execute: Execute) -> Execute:
    """A node's `execute` that looks at each of its inputs first, at what the node's schema says that it is.

    Raises:
        ValueError: names the input, what came, what was expected and what to do.
    """

    @functools.wraps(execute)
    def run(cls: type[io.ComfyNode], **inputs: Any) -> io.NodeOutput:
        for said in cls.define_schema().inputs:  # anew: files have come since the last time
            value = inputs.get(said.id)
            if said.id in inputs and not (said.optional and value is None):
                _CHECKS.get(said.get_io_type(), _anything)(said, value)
        return execute(cls, **inputs)

    return run


def refused(name: str, found: str, expected: str, advice: str) -> ValueError:
    """The error for an input: `name` found; expected. What to do."""
    return ValueError(f"`{name}` {found}; {expected}. {advice}")


def _anything(said: io.Input, value: Any) -> None:
    """What the graph's own types are enough for."""


def _number(said: Any, value: Any) -> None:
    whole = said.get_io_type() == "INT"
    kind = numbers.Integral if whole else numbers.Real
    fits = isinstance(value, kind) and math.isfinite(value) and said.min <= value <= said.max
    if not fits or (whole and said.step and (value - said.min) % said.step):
        wanted = "a whole number" if whole else "a number"
        by = f" in steps of {said.step}" if whole and said.step else ""
        raise refused(
            said.id,
            f"is {value!r}",
            f"expected {wanted} from {said.min:.15g} to {said.max if whole else f'{said.max:.15g}'}{by}",
            "Change it here, or in the node that it comes from.",
        )


def _choice(said: Any, value: Any) -> None:
    """A list without a default is one of files, and who looks for the file says what became of it."""
    if said.default is None:
        _text(said, value)
    elif value not in said.options:
        raise ValueError(f"Unknown {said.id} {value!r}; expected one of {', '.join(said.options)}. Choose one of them.")


def _text(said: Any, value: Any) -> None:
    if not isinstance(value, str):
        raise refused(
            said.id, f"is a {_kind(value)}", "expected a text", "Connect a STRING, or write it into the node."
        )


def _latent(said: Any, value: Any) -> None:
    samples = value.get("samples") if isinstance(value, dict) else value
    if not isinstance(samples, Tensor):
        raise refused(
            said.id,
            f"holds a {_kind(samples)} where samples belong",
            _LATENT_SHAPE,
            _LATENT_ADVICE,
        )
    _check_tensor(said.id, samples, 4, _LATENT_SHAPE, _LATENT_ADVICE)
    index = value.get("batch_index")
    if index is not None and (len(index) != len(samples) or not all(_is_place(place) for place in index)):
        raise refused(
            said.id,
            f"holds {len(samples)} latents and the batch_index {list(index)}",
            "expected a place of 0 or more for each latent",
            "Pick latents out of a batch with Latent From Batch.",
        )
    if value.get("noise_mask") is not None:
        check_mask(said.id, value["noise_mask"], "a noise_mask of the shape")


def _is_place(place: Any) -> bool:
    return isinstance(place, numbers.Integral) and int(place) >= 0


def _conditioning(said: Any, value: Any) -> None:
    advice = "Make it with CLIP Text Encode and the CLIP that came with the MODEL."
    if not isinstance(value, (list, tuple)) or not value:
        found = "is empty" if isinstance(value, (list, tuple)) else f"is a {_kind(value)}"
        raise refused(said.id, found, "expected the conditioning of at least one prompt", advice)
    for part in value:
        if not (isinstance(part, (list, tuple)) and len(part) == 2 and isinstance(part[1], dict)):
            raise refused(said.id, f"holds a {_kind(part)}", "expected pairs of a prompt's states and options", advice)
        if not isinstance(part[0], Tensor):
            raise refused(said.id, f"holds a {_kind(part[0])}", "expected the states of a prompt", advice)
        _check_tensor(
            said.id, part[0], 3, "expected states of the shape (batch, tokens, width), none of them 0", advice
        )


def _mask(said: Any, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise refused(said.id, f"is a {_kind(value)}", "expected a mask", "Connect a MASK, as from Load Image.")
    check_mask(said.id, value, "has the shape")


def check_mask(name: str, mask: Tensor, holds: str) -> None:
    """Raise ValueError unless a mask is (height, width), (batch, height, width) or (batch, 1, height, width)."""
    shape = tuple(mask.shape)
    advice = "Make it with the mask editor, or with Solid Mask."
    if len(shape) not in (2, 3, 4) or 0 in shape or (len(shape) == 4 and shape[1] != 1):
        raise refused(name, f"{holds} {shape}", "expected (batch, height, width)", advice)
    _check_finite(name, mask, "expected a mask", advice)


def _image(said: Any, value: Any) -> None:
    """One batch of pictures, or a list of them where the node takes lists."""
    expected, advice = "expected (batch, height, width, 3 or 4)", "Connect an IMAGE, as from VAE Decode."
    for batch in value if isinstance(value, list) else [value]:
        if not isinstance(batch, Tensor):
            raise refused(said.id, f"is a {_kind(batch)}", "expected pictures", advice)
        _check_tensor(said.id, batch, 4, expected, advice)
        if batch.shape[3] not in (3, 4):
            raise refused(said.id, f"has the shape {tuple(batch.shape)}", expected, advice)


def _noise(said: Any, value: Any) -> None:
    if not hasattr(value, "generate_noise"):
        raise refused(
            said.id,
            f"is a {_kind(value)}",
            "expected a NOISE",
            "Connect InstaFlow Seed Noise or RandomNoise, or nothing for the noise of the seed.",
        )


def _model(said: Any, value: Any) -> None:
    if not hasattr(value, "get_model_object"):
        raise refused(
            said.id, f"is a {_kind(value)}", "expected a MODEL", "Connect the MODEL of InstaFlow Load Checkpoint."
        )


def _clip(said: Any, value: Any) -> None:
    """A checkpoint without a text encoder gives None here."""
    if not hasattr(value, "cond_stage_model"):
        raise refused(
            said.id,
            f"is a {_kind(value)}, as from a checkpoint without a text encoder",
            "expected a CLIP",
            "Connect the CLIP of InstaFlow Load Checkpoint, or of Load CLIP.",
        )


def _vae(said: Any, value: Any) -> None:
    """A checkpoint without an autoencoder gives None, or a VAE with none in it."""
    if not hasattr(value, "decode") or getattr(value, "first_stage_model", value) is None:
        raise refused(
            said.id,
            f"is a {_kind(value)} with no autoencoder in it, as from a checkpoint that has none",
            "expected a VAE",
            "Connect the VAE of InstaFlow Load Checkpoint, or of Load VAE.",
        )


def _check_tensor(name: str, tensor: Tensor, dimensions: int, shape: str, advice: str) -> None:
    if tensor.ndim != dimensions or 0 in tensor.shape:
        raise refused(name, f"has the shape {tuple(tensor.shape)}", shape, advice)
    if not tensor.is_floating_point():
        found = f"holds numbers of the type {str(tensor.dtype).removeprefix('torch.')}"
        raise refused(name, found, "expected float32 or another floating type", advice)
    _check_finite(name, tensor, shape, advice)


def _check_finite(name: str, tensor: Tensor, shape: str, advice: str) -> None:
    if tensor.is_meta:
        raise refused(name, "is on the device meta and holds no numbers", shape, advice)
    if not tensor.float().isfinite().all():
        raise refused(
            name,
            "holds numbers that are not finite (NaN or infinity)",
            "expected finite ones",
            "Look at the node it comes from: a model computing in float16, or a strength that is too high, makes them.",
        )


def _kind(value: Any) -> str:
    return type(value).__name__


_CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "INT": _number,
    "FLOAT": _number,
    "COMBO": _choice,
    "STRING": _text,
    "LATENT": _latent,
    "CONDITIONING": _conditioning,
    "MASK": _mask,
    "IMAGE": _image,
    "NOISE": _noise,
    "MODEL": _model,
    "CLIP": _clip,
    "VAE": _vae,
}
