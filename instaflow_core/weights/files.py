"""Weight files on disk: read without running code in them, write without ever leaving half a file.

`read_weights` looks at the bytes and not at the file's name, so a web page saved as `.safetensors` or a pickle under a
wrong ending is told apart. Tensors of a safetensors file stay on disk (memory-mapped) until they are used.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..atomic import replacing
from .errors import DOWNLOAD_AGAIN, WEIGHTS_EXPECTED, FormatError
from .impostors import refuse_impostor
from .pickles import read_pickle
from .safetensors_file import read_safetensors

Weights = dict[str, Tensor]
Metadata = dict[str, str]
Config = dict[str, Any]

WEIGHT_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""What the names of weight files end in, in any case; every other dot in a name, as in instaflow_0.9B, is a dot."""


def read_weights(path: Path) -> tuple[Weights, Metadata]:
    """Tensors and metadata of one weight file; metadata is empty where the format has none.

    Names that DataParallel (`module.`) or torch.compile (`_orig_mod.`) have wrapped come without the wrapper.

    Raises FormatError for anything that is not a whole file of tensors. Pickles are read with `weights_only`: code in
    them does not run.
    """
    if not path.exists():
        raise FormatError(f"There is no file {path}", WEIGHTS_EXPECTED, "Check the name and the folder.")
    if not path.is_file():  # a pipe or a device would be waited for, for ever
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise FormatError(f"{path} is {kind}, not a file", WEIGHTS_EXPECTED, "Name the file of weights itself.")
    size = path.stat().st_size
    if size == 0:
        raise FormatError(f"{path.name} is empty (0 bytes)", WEIGHTS_EXPECTED, DOWNLOAD_AGAIN)
    with path.open("rb") as file:
        head = file.read(512)
    # Byte 8 starts the JSON header of every safetensors file; asked first, since its length may begin like a pickle.
    if head[8:9] == b"{":
        tensors, metadata = read_safetensors(path, size)
        return _checked(tensors, path, size), metadata
    refuse_impostor(path.name, head)
    return _checked(_read_pickle(path), path, size), {}


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


Progress = Callable[[int, int], object]
"""Is called after every tensor with its bytes, and with all bytes there are to write."""


def write_weights(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str], progress: Progress = lambda *_: None
) -> None:
    """Write one safetensors file. It appears under its name only when it is whole and on disk.

    `tensors` may be views of a memory-mapped file, but on Windows not of `path` itself. A failed write leaves nothing
    behind. The same tensors and metadata give the same bytes, which the library's own writer does not promise.
    """
    # Wide types first, so that every tensor starts at a multiple of its own width.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    layout = {name: tensors[name] for name in order}
    stream_weights(layout, layout.items(), path, metadata, progress)


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """What the tensors take, in a file as in memory."""
    return sum(tensor.nbytes for tensor in tensors.values())


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


WEIGHT_TYPES = tuple(dtype for dtype in _TYPE_NAMES if dtype.is_floating_point)
"""What the weights of a model may be in; fewer than torch knows."""


def stream_weights(
    layout: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    path: Path,
    metadata: Mapping[str, str],
    progress: Progress = lambda *_: None,
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
        start, end = end, end + tensor.nbytes
        if tensor.dtype not in _TYPE_NAMES:
            raise FormatError(f"{name} is of the type {tensor.dtype}", ", ".join(_TYPE_NAMES.values()), "Convert it.")
        kind = _TYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors to start at a multiple of 8
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        _write_tensors(file, layout, tensors, path.name, lambda size: progress(size, end))


def _write_tensors(
    file: BinaryIO,
    layout: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    name: str,
    written: Callable[[int], object],
) -> None:
    # On its own, so that none of the tensors is alive when the file gets its name: see `stream_weights`.
    for (planned, like), (key, tensor) in zip(layout.items(), tensors, strict=True):
        if (key, tensor.shape, tensor.dtype) != (planned, like.shape, like.dtype):
            raise ValueError(
                f"{name} was to go on with {planned} {tuple(like.shape)} {like.dtype}, and {key} "
                f"{tuple(tensor.shape)} {tensor.dtype} came. Give the tensors in the order of the layout."
            )
        written(file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data))


def types_in_words(tensors: Mapping[str, Tensor]) -> str:
    """The types of tensors: "float32", or "float16, float32"."""
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise FormatError, calling their file `name`, where a weight is NaN or infinite. All of them are read."""
    for key, tensor in tensors.items():
        if tensor.dtype in WEIGHT_TYPES and not _is_finite(tensor):
            raise FormatError(
                f"{name} holds numbers in {key} that are NaN or infinite",
                "finite weights",
                "Its pictures would be black. Get the file again, or an earlier checkpoint of the training.",
            )


def _is_finite(tensor: Tensor) -> bool:
    """Without a copy of the tensor: its least and its greatest are finite where all are. Types of eight bits cannot be
    compared."""
    if not tensor.numel():
        return True
    if tensor.element_size() == 1:
        return bool(torch.isfinite(tensor.to(torch.float16)).all())
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short name for weights, from the names, shapes and first numbers of all tensors: a few kilobytes are read of
    each, so a large model takes no time."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        start = tensor.flatten()[:1024].contiguous().view(torch.uint8).numpy().tobytes()
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode() + start)
    return total.hexdigest()[:16]


def unwrapped_name(name: str) -> str:
    """A tensor's name in the module that was wrapped."""
    return _WRAPPERS.sub(r"\1", name)


_WRAPPERS = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")


def _unwrapped(tensors: Weights, name: str) -> Weights:
    """The same tensors under the names they have in the module that was wrapped."""
    bare: Weights = {}
    for key, tensor in tensors.items():
        own = unwrapped_name(key)
        if own in bare:
            raise FormatError(
                f"{name} holds {own} twice, wrapped and unwrapped", "one model", "Save the one you mean on its own."
            )
        bare[own] = tensor
    return bare


_LONGEST_NAME = 1000
"""Characters."""

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
    content = read_pickle(path)
    for _ in range(8):  # a dictionary in a pickle may hold itself
        if not isinstance(content, dict):
            break
        inside = [content[nest] for nest in _NESTS if isinstance(content.get(nest), dict)]
        if not inside:
            break
        content = inside[0]
    tensors = {}
    if isinstance(content, dict):
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise FormatError(f"{path.name} holds no named tensors", WEIGHTS_EXPECTED, "Check that this is the right file.")
    return tensors


def _checked(tensors: Weights, path: Path, size: int) -> Weights:
    """The tensors under the names they have unwrapped, if they are what they seem: dense, in memory or in the file, and
    no larger than it."""
    for name, tensor in tensors.items():
        if len(name) > _LONGEST_NAME:
            raise FormatError(
                f"{path.name} holds a tensor whose name is {len(name):,} characters long ({name[:40]}…)",
                f"at most {_LONGEST_NAME:,}",
                "Do not use this file.",
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}".replace("torch.", "")
            raise FormatError(
                f"{name} in {path.name} is a {kind} tensor", "ordinary, dense tensors", "Get the plain weights."
            )
    needed = bytes_of(tensors)
    if needed > 2 * size:  # views of one storage, as tied weights are, but more of them than any model has
        raise FormatError(
            f"{path.name} has {size:,} bytes, and its tensors say to have {needed:,}",
            "no more than are in the file",
            "Do not use this file.",
        )
    return _unwrapped(tensors, path.name)
