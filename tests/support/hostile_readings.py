"""What every reading of a hostile file has to hold to."""

from __future__ import annotations

from pathlib import Path

from watched import Watched

from instaflow_core.weights.errors import FormatError

SMALL = 64 * 2**20
"""Bytes of memory that any reading may take, beside twice the file's."""


def refused(error: Exception, name: str = "") -> str:
    """What an error of ours says, which names the file and in a second sentence what to do."""
    assert type(error) in (FormatError, ValueError), f"{type(error).__name__} is no error of ours"
    said = str(error)
    assert name in said and ". " in said and said.endswith((".", ")")), said
    assert len(said) < 2000
    return said


def harmless(seen: Watched, folder: Path, size: int) -> None:
    """Nothing was run or written, nothing outside the folder read, no more memory taken than twice the file's."""
    assert not seen.events
    assert not seen.outside(folder)
    assert seen.memory <= 2 * size + SMALL, f"{seen.memory / 2**20:.0f} MB for a file of {size / 2**20:.1f} MB"
