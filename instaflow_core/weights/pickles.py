"""Pickles of tensors, read by PyTorch's restricted reader: what they ask for is named, and none of it is run.

PyTorch writes a zip, in which a pickle describes the tensors whose numbers lie beside it; before 1.6 it wrote pickles
one after another.
"""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from .errors import DOWNLOAD_AGAIN, WEIGHTS_EXPECTED, FormatError

_MOST_ENTRIES = 2**15
_LONGEST_DIRECTORY = 2**22
"""Bytes of a zip's directory; that of Stable Diffusion's checkpoint has 0.1 MB."""
_LARGEST_COMPRESSED = 2**24
"""Bytes of what is compressed in a zip. PyTorch compresses nothing; other programs compress the pickle."""

# What the restricted reader says of what it will not make or call, in the words of PyTorch 2.6 and later.
_ASKED_FOR = re.compile(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:class|function) ([\w.]+)|call.* function ([\w.]+)")


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, as far as it is tensors and plain values; on the CPU, mapped where it is a zip.

    Raises:
        FormatError: it is something else, or damaged.
    """
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        _check_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damaged bytes make torch's reader stumble in any way: KeyError, AssertionError, …
        # By its name: an import of the module it is in is what scanners look for in malicious packages.
        if type(error).__name__ == "UnpicklingError":
            raise _with_code(path.name, str(error)) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _damaged(path.name, reason) from error


def _with_code(name: str, said: str) -> FormatError:
    asked = next((next(filter(None, found)) for found in _ASKED_FOR.findall(said)), None)
    what = f", which asks for {asked}" if asked else ""
    return FormatError(
        f"{name} is a pickle that holds Python objects or code; it was not run{what}",
        WEIGHTS_EXPECTED,
        "Get the safetensors version of this model. A whole module, such as SiD-LSG's, is made into one where its "
        "authors' code is, in a sandbox, since that runs what is in the file: "
        'model = pickle.load(open(FILE, "rb")) (of SiD-LSG, its ["ema"]; torch.load(FILE, weights_only=False) where '
        "torch.save wrote it); safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, "
        "NAME).",
    )


def _damaged(name: str, reason: str) -> FormatError:
    return FormatError(f"{name} is damaged or cut short ({reason})", WEIGHTS_EXPECTED, DOWNLOAD_AGAIN)


def _check_zip(path: Path) -> None:
    """Raise FormatError unless this is a zip as PyTorch writes it, small once unpacked."""
    with path.open("rb") as file:
        end = max(0, path.stat().st_size - 2**16 - 22)
        file.seek(end)
        tail = file.read()
    found = tail.rfind(b"PK\x05\x06")
    record = tail[found : found + 22]
    if found < 0 or len(record) < 22:
        raise _damaged(path.name, "a zip without its directory")
    directory = int.from_bytes(record[12:16], "little")
    if directory > _LONGEST_DIRECTORY:
        raise _damaged(path.name, f"a zip whose directory would be {directory:,} bytes long")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, UnicodeDecodeError, IndexError) as error:
        raise _damaged(path.name, str(error)) from error
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise FormatError(
            f"{path.name} is a TorchScript archive, a program with its weights; it was not run",
            WEIGHTS_EXPECTED,
            "Get the weights themselves, or save them where you trust the program: "
            "safetensors.torch.save_file(dict(torch.jit.load(FILE).state_dict()), NAME).",
        )
    if len(entries) > _MOST_ENTRIES or not any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        raise FormatError(
            f"{path.name} is a zip of {len(entries):,} files and not one of weights (it holds "
            f"{', '.join(names[:3]) or 'nothing'})",
            WEIGHTS_EXPECTED,
            "Unpack it and choose the file of weights in it.",
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise FormatError(f"{path.name} is a zip with a password", WEIGHTS_EXPECTED, "Get the file without one.")
    compressed = sum(entry.file_size for entry in entries if entry.compress_type != zipfile.ZIP_STORED)
    if compressed > _LARGEST_COMPRESSED:
        raise FormatError(
            f"{path.name} is a zip that unpacks to {compressed:,} bytes more than PyTorch would ever pack",
            WEIGHTS_EXPECTED,
            "Do not use this file.",
        )
