"""What is often found in place of a file of weights, known by its first bytes."""

from .errors import DOWNLOAD_AGAIN, WEIGHTS_EXPECTED, FormatError

_PICKLES = (b"PK\x03\x04", b"\x80")
"""What the pickles begin with that PyTorch writes: a zip, or before 1.6 the pickle itself."""

_PAGE_ADVICE = "The download link needs a login or leads to a page about the file: use the page's download button."
_UNPACK_ADVICE = "Unpack it and choose the file of weights in it."
_OTHER_LOADER = "Load it with the loader made for it, or get the safetensors version."

# The first bytes in lower case, what it is, what to do.
_IMPOSTORS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer, a few lines of text that stand for the real file",
        "Run `git lfs pull` in that folder, or download the file from the model's page.",
    ),
    (b"<!doctype html", "a web page, not weights", _PAGE_ADVICE),
    (b"<html", "a web page, not weights", _PAGE_ADVICE),
    (b"<?xml", "an XML file, not weights", _PAGE_ADVICE),
    (b"{", "a JSON file, not weights", "Name the folder it lies in, or the file of weights beside it."),
    (b"gguf", "a GGUF file", _OTHER_LOADER),
    (b"\x89hdf", "an HDF5 file (Keras)", _OTHER_LOADER),
    (b"\x93numpy", "a NumPy file", _OTHER_LOADER),
    (b"par1", "a Parquet file, not weights", "Choose the file of weights."),
    (b"\x1f\x8b", "a gzip archive", _UNPACK_ADVICE),
    (b"7z\xbc\xaf", "a 7-Zip archive", _UNPACK_ADVICE),
    (b"rar!", "a RAR archive", _UNPACK_ADVICE),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK_ADVICE),
)


def refuse_impostor(name: str, head: bytes) -> None:
    """Raise FormatError unless a file that begins with `head` may be a pickle of tensors as PyTorch writes it."""
    for start, found, advice in _IMPOSTORS:
        if head.lstrip().lower().startswith(start):
            raise FormatError(f"{name} is {found}", WEIGHTS_EXPECTED, advice)
    if head[257:262] == b"ustar":
        raise FormatError(f"{name} is a tar archive; nothing in it was unpacked", WEIGHTS_EXPECTED, _UNPACK_ADVICE)
    if not head.startswith(_PICKLES):
        found = f"{name} is not a file of weights (it begins with {head[:8]!r})"
        raise FormatError(found, WEIGHTS_EXPECTED, DOWNLOAD_AGAIN)
