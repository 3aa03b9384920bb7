"""What a run leaves on disk to go on from: `state.pt`, and its losses in `loss.csv`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..atomic import replacing

STATE_FILE = "state.pt"
LOSS_FILE = "loss.csv"
_FORMAT = 2


def write_state(content: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values under names, whole or not at all."""
    with replacing(path) as temporary:
        torch.save(content | {"format": _FORMAT}, temporary)


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote, on the CPU; nothing where there is no file.

    The tensors are views of the file, so that the processes of a machine share one copy of it in memory.

    Raises:
        ValueError: the file is of another version's format.
    """
    if not path.exists():
        return {}
    content = torch.load(str(path), "cpu", weights_only=True, mmap=True)
    if content.get("format") != _FORMAT:
        raise ValueError(
            f"The checkpoint {path} is of another version of this pack, whose moving average was another. "
            f"Finish the run with that version, or remove {path.parent} and start again."
        )
    return content


def check_same(there: dict[str, Any], here: dict[str, Any], free: set[str], path: Path) -> None:
    """Make sure that a run is resumed as it was begun.

    Args:
        there, here: what the checkpoint at `path` says the run was made with, and what it is to be gone on with.
        free: names that may differ.

    Raises:
        ValueError: something differs.
    """
    differing = [name for name in there | here if name not in free and there.get(name) != here.get(name)]
    if differing:
        found = ", ".join(f"{name} {there.get(name)}" for name in differing)
        wanted = ", ".join(f"{name} {here.get(name)}" for name in differing)
        raise ValueError(
            f"The checkpoint {path} was made with {found}, and this run has {wanted}. "
            "Resume with the same settings, or train into another folder."
        )


def write_losses(losses: Sequence[float], path: Path) -> None:
    """Write the loss of every iteration, from 1 on, as a table."""
    lines = [f"{i + 1},{value!r}" for i, value in enumerate(losses)]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(["iteration,loss", *lines, ""]), encoding="utf-8")
