"""Weight files on disk: read without running code in them, write without ever leaving half a file.

`read_weights` looks at the bytes and not at the file's name, so a web page saved as `.safetensors` or a pickle under a
wrong ending is told apart. Tensors of a safetensors file stay on disk (memory-mapped) until they are used.
"""

import hashlib
import json
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..atomic import replacing

Weights = dict[str, Tensor]
Metadata = dict[str, str]
Config = dict[str, Any]

WEIGHT_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""What the names of weight files end in, in any case; every other dot in a name, as in instaflow_0.9B, is a dot."""

_EXPECTED = "a safetensors file (or an older PyTorch .bin / .ckpt that holds nothing but tensors)"
_DOWNLOAD_AGAIN = "Download the file again and compare its size with the one on the page it came from."

# What is often found in place of the weights: the first bytes, what it is, what to do.
_IMPOSTORS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer, a few lines of text that stand for the real file",
        "Run `git lfs pull` in that folder, or download the file from the model's page.",
    ),
    (
        b"<!doctype html",
        "a web page, not weights",
        "The download link needs a login or leads to a page about the file: use the page's download button.",
    ),
    (
        b"<html",
        "a web page, not weights",
        "The download link needs a login or leads to a page about the file: use the page's download button.",
    ),
)


class FormatError(ValueError):
    """A file, a folder or a state dict that cannot be used here.

    The message says what was found, what was expected, and what to do next.
    """

    def __init__(self, found: str, expected: str, advice: str) -> None:
        super().__init__(f"{found}. Expected {expected}. {advice}")


def read_weights(path: Path) -> tuple[Weights, Metadata]:
    """Tensors and metadata of one weight file; metadata is empty where the format has none.

    Names that DataParallel (`module.`) or torch.compile (`_orig_mod.`) have wrapped come without the wrapper.

    Raises FormatError for anything that is not a whole file of tensors. Pickles are read with `weights_only`: code in
    them does not run.
    """
    if not path.is_file():
        raise FormatError(f"There is no file {path}", _EXPECTED, "Check the name and the folder.")
    size = path.stat().st_size
    if size == 0:
        raise FormatError(f"{path.name} is empty (0 bytes)", _EXPECTED, _DOWNLOAD_AGAIN)
    with path.open("rb") as file:
        head = file.read(512)
    for start, found, advice in _IMPOSTORS:
        if head.lstrip().lower().startswith(start):
            raise FormatError(f"{path.name} is {found}", _EXPECTED, advice)
    # Byte 8 starts the JSON header of every safetensors file; asked first, since its length may begin like a pickle.
    if head[8:9] == b"{":
        tensors, metadata = _read_safetensors(path, size)
        return _unwrapped(tensors, path.name), metadata
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _unwrapped(_read_pickle(path), path.name), {}
    if head.lstrip().startswith(b"{"):
        found = f"{path.name} is a JSON file, not weights"
        raise FormatError(found, _EXPECTED, "Name the folder it lies in, or the file of weights beside it.")
    raise FormatError(f"{path.name} is not a file of weights (it begins with {head[:8]!r})", _EXPECTED, _DOWNLOAD_AGAIN)


def sibling(path: Path, name: str) -> Path:
    """The file called `name` in the same folder as `path`; FormatError for a name that leads elsewhere.

    Names inside downloaded files are not trusted with the rest of the disk.
    """
    if name != Path(name.replace("\\", "/")).name or name in ("", ".", ".."):
        raise FormatError(f"{path.name} names the file {name!r}", "a file in the same folder", "Do not use this file.")
    return path.parent / name


def new_file(path: str | Path, force: bool) -> Path:
    """The path of a safetensors file that may be written.

    Raises FormatError for another kind of name, FileExistsError where there is something and `force` is not set.
    """
    out = Path(path).expanduser()
    if out.suffix.lower() != ".safetensors":
        raise FormatError(f"The file to write is called {out.name}", "a name ending in .safetensors", "Change it.")
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists already. Give another name, or --force to replace it.")
    return out


def write_weights(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write one safetensors file. It appears under its name only when it is whole and on disk.

    `tensors` may be views of a memory-mapped file, but on Windows not of `path` itself. A failed write leaves nothing
    behind. The same tensors and metadata give the same bytes, which the library's own writer does not promise.
    """
    # Wide types first, so that every tensor starts at a multiple of its own width.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    layout = {name: tensors[name] for name in order}
    stream_weights(layout, layout.items(), path, metadata)


_TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What a safetensors header calls torch's types."""


def stream_weights(
    layout: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], path: Path, metadata: Mapping[str, str]
) -> None:
    """Write one safetensors file a tensor at a time, for models larger than the memory.

    Args:
        layout: what is coming, in this order; only shapes and types are looked at.
        tensors: the same names, in the same order, with tensors of these shapes and types. They may be views of `path`
            itself; on Windows, where a mapped file cannot be replaced, none of those may be left after the last.

    Raises ValueError where what comes is not what the layout says.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, tensor in layout.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        kind = _TYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors to start at a multiple of 8
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        _write_tensors(file, layout, tensors, path.name)


def _write_tensors(
    file: BinaryIO, layout: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], name: str
) -> None:
    # On its own, so that none of the tensors is alive when the file gets its name: see `stream_weights`.
    for (planned, like), (key, tensor) in zip(layout.items(), tensors, strict=True):
        if (key, tensor.shape, tensor.dtype) != (planned, like.shape, like.dtype):
            raise ValueError(
                f"{name} was to go on with {planned} {tuple(like.shape)} {like.dtype}, and {key} "
                f"{tuple(tensor.shape)} {tensor.dtype} came. Give the tensors in the order of the layout."
            )
        file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def types_in_words(tensors: Mapping[str, Tensor]) -> str:
    """The types of tensors: "float32", or "float16, float32"."""
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short name for weights, from the names, shapes and first numbers of all tensors: a few kilobytes are read of
    each, so a large model takes no time."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        start = tensor.flatten()[:1024].contiguous().view(torch.uint8).numpy().tobytes()
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode() + start)
    return total.hexdigest()[:16]


_WRAPPERS = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")


def _unwrapped(tensors: Weights, name: str) -> Weights:
    """The same tensors under the names they have in the module that was wrapped."""
    bare: Weights = {}
    for key, tensor in tensors.items():
        own = _WRAPPERS.sub(r"\1", key)
        if own in bare:
            raise FormatError(
                f"{name} holds {own} twice, wrapped and unwrapped", "one model", "Save the one you mean on its own."
            )
        bare[own] = tensor
    return bare


_LONGEST_HEADER = 100_000_000
"""Bytes; a longer one the library does not read either."""


def _check_header(path: Path, size: int) -> None:
    """Raise FormatError where a safetensors file's header is damaged, or the file ends before its header says."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise FormatError(
                f"{path.name} looks like a safetensors file but its header would be {length:,} bytes long",
                f"at most {_LONGEST_HEADER:,}",
                _DOWNLOAD_AGAIN,
            )
        if 8 + length > size:
            raise _truncated(path, size, f"at least {8 + length:,}")
        text = file.read(length)
    try:
        header = json.loads(text)
        end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FormatError(
            f"{path.name} looks like a safetensors file but its header is damaged ({error})", _EXPECTED, _DOWNLOAD_AGAIN
        ) from error
    if 8 + length + end > size:
        raise _truncated(path, size, f"{8 + length + end:,}")


def _truncated(path: Path, size: int, needed: str) -> FormatError:
    return FormatError(
        f"{path.name} is cut short: {size:,} bytes", f"{needed} bytes, as its header says", _DOWNLOAD_AGAIN
    )


def _read_safetensors(path: Path, size: int) -> tuple[Weights, Metadata]:
    _check_header(path, size)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # get_tensor returns a view of the memory-mapped file: nothing is read from disk yet.
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise FormatError(f"{path.name} is damaged ({error})", _EXPECTED, _DOWNLOAD_AGAIN) from error


_TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])
_NESTS = ("state_dict", "model", "module")
"""Where programs keep the weights in a pickle that also holds an optimiser or a step count."""


def _read_pickle(path: Path) -> Weights:
    if _TORCH < (2, 6):
        raise FormatError(
            f"{path.name} is a pickle, and PyTorch before 2.6, here {torch.__version__}, may run code in one",
            "a safetensors file",
            "Get the safetensors version of this model, or update PyTorch.",
        )
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        # Only the zip format (PyTorch 1.6 and later) can be memory-mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"{path.name} is a pickle that holds Python objects or code; it was not run",
            _EXPECTED,
            "Get the safetensors version of this model, or convert the file where you trust it.",
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damaged bytes make torch's reader stumble in any way: KeyError, AssertionError, …
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(f"{path.name} is damaged or cut short ({reason})", _EXPECTED, _DOWNLOAD_AGAIN) from error
    while isinstance(content, dict) and (inside := [content[k] for k in _NESTS if isinstance(content.get(k), dict)]):
        content = inside[0]
    tensors = {}
    if isinstance(content, dict):
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise FormatError(f"{path.name} holds no named tensors", _EXPECTED, "Check that this is the right file.")
    return tensors
