"""Folders of pictures: found by name, and what is none is named."""

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from instaflow_core.pictures.sources import Folder


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


START = b"\x89PNG\r\n\x1a\n"
BAD = {
    "text": b"no picture",
    "cut short": START + chunk(b"IHDR", struct.pack(">2I5B", 8, 8, 8, 2, 0, 0, 0)),
    "of a length that lies": START + struct.pack(">I", 3) + b"IHDR" + b"abc" + b"1234",
    "of fifty thousand pixels a side": START + chunk(b"IHDR", struct.pack(">2I5B", 50000, 50000, 8, 2, 0, 0, 0)),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_picture_is_named(tmp_path: Path, bad: str) -> None:
    (tmp_path / "bad.png").write_bytes(BAD[bad])
    with pytest.raises(ValueError, match=r"bad\.png is not a picture that can be read .+ Take it out of the folder\."):
        Folder(tmp_path).read([0])


def test_pictures_are_read_by_name_in_rgb(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name, mode in (("b.png", "L"), ("below/a.webp", "RGB"), ("a.PNG", "RGBA")):
        Image.new(mode, (len(name), 3)).save(tmp_path / name)
    folder = Folder(tmp_path)
    assert len(folder) == 3
    assert [(picture.size, picture.mode) for picture in folder.read([2, 0, 1])] == [
        ((12, 3), "RGB"),
        ((5, 3), "RGB"),
        ((5, 3), "RGB"),
    ]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There are no pictures in"):
        Folder(tmp_path)
