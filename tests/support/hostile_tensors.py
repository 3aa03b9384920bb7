"""Safetensors files that lie, and other things under their name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Make = Callable[[Path], None]
"""Makes something at a path."""


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of any header, a text as it is, and a length of it that may be a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def _one(data: bytes = bytes(4), **changed: Any) -> bytes:
    return file_of({"a": entry(**changed)}, data)


def _many(count: int) -> bytes:
    """So many empty tensors, each in a few bytes of header."""
    start = '"{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    return file_of(("{" + ",".join(start.format(number) for number in range(count)) + "}").encode())


_WHOLE = _one()
_DOWNLOADED = {
    "an empty file": (b"", r"is empty \(0 bytes\)"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html><script>alert(1)</script></html>", "a web page, not weights"),
    "a web page after a mark and spaces": (b"  \n<HTML lang=en>", "a web page, not weights"),
    "an XML error of a bucket": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "an XML file"),
    "a JSON error of an API": (b'{"error": "Repository not found"}', "a JSON file, not weights"),
    "a GGUF file": (b"GGUF\x03\x00\x00\x00" + bytes(64), "a GGUF file"),
    "an ONNX file": (b"\x08\x08\x12\x07pytorch" + bytes(64), "not a file of weights"),
    "a Keras file": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "a NumPy file": (b"\x93NUMPY\x01\x00" + bytes(64), "a NumPy file"),
    "a Parquet file": (b"PAR1" + bytes(64) + b"PAR1", "a Parquet file"),
    "a gzip archive": (b"\x1f\x8b\x08\x00" + bytes(64), "a gzip archive"),
    "a 7-Zip archive": (b"7z\xbc\xaf\x27\x1c" + bytes(64), "a 7-Zip archive"),
    "a program": (b"MZ\x90\x00" + bytes(64), "not a file of weights"),
    "zeros": (bytes(1000), "not a file of weights"),
    "text": (b"hello", "not a file of weights"),
}
_BROKEN = {
    "cut within the length": (_WHOLE[:7], "not a file of weights"),
    "cut after the length": (_WHOLE[:8], "not a file of weights"),
    "cut within the header": (_WHOLE[:20], "is cut short"),
    "cut before the tensors": (_WHOLE[:-4], "is cut short"),
    "cut within a tensor": (_WHOLE[:-1], "is cut short"),
    "a byte too many": (_WHOLE + b"x", "is damaged"),
    "a header of 0 bytes": (file_of(b"", b"{}"), "is damaged"),
    "a header of 2^63 bytes": (file_of({"a": entry()}, length=2**63), "would be 9,223,372,036,854,775,808 bytes"),
    "a header of 2^64 - 1 bytes": (file_of({"a": entry()}, length=2**64 - 1), "bytes long. Expected at most"),
    "a header longer than the file": (file_of({"a": entry()}, length=10**6), "is cut short"),
    "a header shorter than it is": (file_of({"a": entry()}, bytes(4), length=10), "header is damaged"),
    "a header that is no JSON": (file_of(b"{not json}"), "header is damaged"),
    "a header that is a list": (file_of(b"[1]"), "not a file of weights"),
    "a header in UTF-16": (file_of('{"a":1}'.encode("utf-16-le")), "header is damaged"),
    "bytes that are no UTF-8": (file_of(b'{"\xff\xfe":1}'), "header is damaged"),
    "a header nested 100,000 deep": (file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "header is damaged"),
    "no tensors at all": (file_of({}), "holds not a single tensor"),
    "a number for a tensor": (file_of({"a": 1}), "header is damaged"),
    "null for a tensor": (file_of({"a": None}), "header is damaged"),
    "an unknown type": (_one(dtype="Q9"), "header is damaged"),
    "a type that is a number": (_one(dtype=5), "header is damaged"),
    "a type torch does not know": (_one(bytes(3), dtype="F6_E2M3", shape=[4], offsets=[0, 3]), "is damaged"),
    "a shape that is none": (file_of({"a": entry() | {"shape": "1"}}, bytes(4)), "header is damaged"),
    "a negative side": (_one(shape=[-1]), "header is damaged"),
    "half a side": (_one(shape=[1.5]), "header is damaged"),
    "sides that overflow": (_one(shape=[2**40, 2**40]), "is damaged"),
    "sides that come round to the right product": (_one(shape=[2**32, 2**32 + 1]), "is damaged"),
    "a side torch cannot hold": (_one(b"", shape=[2**63, 0], offsets=[0, 0]), "is damaged"),
    "a side of 10^40": (_one(shape=[10**40]), "header is damaged"),
    "a shape too large for its bytes": (_one(shape=[2]), "is damaged"),
    "offsets the wrong way round": (_one(offsets=[4, 0]), "is damaged"),
    "negative offsets": (_one(offsets=[-4, 0]), "header is damaged"),
    "offsets past the end": (_one(offsets=[0, 2**40], shape=[2**38]), "is cut short"),
    "offsets that overflow": (_one(offsets=[2**64 - 4, 2**64]), "is damaged"),
    "one offset": (_one(offsets=[0]), "header is damaged"),
    "three offsets": (_one(offsets=[0, 4, 8]), "header is damaged"),
    "offsets that are texts": (_one(offsets=["0", "4"]), "header is damaged"),
    "tensors over each other": (file_of({"a": entry(), "b": entry()}, bytes(4)), "is damaged"),
    "a hole": (file_of({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)), "is damaged"),
    "a hole at the beginning": (_one(bytes(8), offsets=[4, 8]), "is damaged"),
    "one name twice": (
        file_of(
            b'{"a":%b,"a":%b}' % (json.dumps(entry()).encode(), json.dumps(entry(offsets=(4, 8))).encode()), bytes(8)
        ),
        "is damaged",
    ),
    "metadata that is a list": (file_of({"__metadata__": [], "a": entry()}, bytes(4)), "header is damaged"),
    "metadata that is a text": (file_of({"__metadata__": "x", "a": entry()}, bytes(4)), "header is damaged"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 5}, "a": entry()}, bytes(4)), "header is damaged"),
    "a name of 100,000 characters": (file_of({"a" * 100_000: entry()}, bytes(4)), "whose name is 100,000 characters"),
    "400,000 empty tensors": (_many(400_000), "lists 400,001 tensors"),
    "a shape of two million sides": (_one(b"", shape=[0] * 2_000_000, offsets=[0, 0]), "numbers and names"),
}
TENSORS: dict[str, tuple[bytes, str]] = _DOWNLOADED | _BROKEN
"""The bytes of a file, and what is said of it."""


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


THINGS: dict[str, tuple[Make, str]] = {
    "a folder": (Path.mkdir, "is a folder|has no unet/ in it"),
    "a pipe": (_pipe, "a pipe or a device"),
    "a device without an end": (_device, "a pipe or a device"),
    "a link to nothing": (_dangling, "There is no(thing at| file)"),
}
"""What is no file at all: opened, some of them would be waited for or read for ever."""
