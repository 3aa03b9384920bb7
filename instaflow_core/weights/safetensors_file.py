"""Safetensors files, whose headers are weighed before anything is made of them."""

import re
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from .errors import DOWNLOAD_AGAIN, WEIGHTS_EXPECTED, FormatError

_LONGEST_HEADER = 25_000_000
"""Bytes. The largest models have a few hundred thousand; the library reads four times as many, in twenty times the
memory."""
_MOST_TENSORS = 2**15
_MOST_MEMBERS = 2**20
_END = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d{1,18})\s*\]')


def _header(path: Path, size: int) -> bytes:
    """A safetensors file's header, not yet looked into; FormatError where it cannot be one."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise _no_header(path, f"would be {length:,} bytes long", f"at most {_LONGEST_HEADER:,}")
        if 8 + length > size:
            raise _truncated(path, size, f"at least {8 + length:,}")
        text = file.read(length)
    # Before anything is made of it: one of a few bytes each takes a few hundred in memory.
    for sign, most, what in ((b"{", _MOST_TENSORS, "tensors"), (b",", _MOST_MEMBERS, "numbers and names")):
        if text.count(sign) > most:
            raise _no_header(path, f"lists {text.count(sign):,} {what}", f"at most {most:,}")
    return text


def _no_header(path: Path, found: str, expected: str) -> FormatError:
    return FormatError(f"{path.name} looks like a safetensors file but its header {found}", expected, DOWNLOAD_AGAIN)


def _truncated(path: Path, size: int, needed: str) -> FormatError:
    return FormatError(
        f"{path.name} is cut short: {size:,} bytes", f"{needed} bytes, as its header says", DOWNLOAD_AGAIN
    )


def read_safetensors(path: Path, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file of so many bytes; the tensors are views of the file, mapped.

    Raises FormatError where it is damaged, or its header larger than one can be.
    """
    header = _header(path, size)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # get_tensor returns a view of the memory-mapped file: nothing is read from disk yet.
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the library's own kind, and what torch says to types and shapes it does not know
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if re.search("json|utf-?8|deserialization", reason, re.IGNORECASE):
            raise _no_header(path, f"is damaged ({reason})", WEIGHTS_EXPECTED) from error
        end = 8 + len(header) + max((int(found[1]) for found in _END.finditer(header)), default=0)
        if end > size:
            raise _truncated(path, size, f"{end:,}") from error
        raise FormatError(f"{path.name} is damaged ({reason})", WEIGHTS_EXPECTED, DOWNLOAD_AGAIN) from error
