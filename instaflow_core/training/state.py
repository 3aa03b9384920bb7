"""What a run leaves on disk to go on from: `state.pt`, and its losses in `loss.csv`."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..atomic import replacing
from ..weights.errors import FormatError
from ..weights.pickles import read_pickle

STATE_FILE = "state.pt"
LOSS_FILE = "loss.csv"
_FORMAT = 2
_CONTENT: dict[str, type] = {
    "settings": dict,
    "origin": dict,
    "step": int,
    "losses": list,
    "by_time": dict,
    "trained": dict,
    "average": dict,
    "optimizer": dict,
    "schedule": dict,
}


def write_state(content: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values under names, whole or not at all."""
    # A file of Python's: what the system refuses torch would tell as a position that it did not expect.
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(content | {"format": _FORMAT}, file)


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote, on the CPU; nothing where there is no file.

    The tensors are views of the file, so that the processes of a machine share one copy of it in memory.

    Raises:
        ValueError: the file is no checkpoint of a training, or of another version's format.
    """
    if not path.exists():
        return {}
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise _no_checkpoint(path, "is no checkpoint of a training")
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise _no_checkpoint(path, f"holds a {type(content).__name__}")
    if type(made := content.get("format")) is int and made == _FORMAT:
        wrong = [name for name, kind in _CONTENT.items() if not isinstance(content.get(name), kind)]
        if wrong:
            raise _no_checkpoint(path, f"lacks {', '.join(wrong)}")
    else:
        raise ValueError(
            f"The checkpoint {path} is of another version of this pack, whose moving average was another. "
            f"Finish the run with that version, or remove {path.parent} and start again."
        )
    return content


def _no_checkpoint(path: Path, found: str) -> FormatError:
    return FormatError(
        f"{path} {found}", "what a training of this pack writes", f"Remove {path.parent} and start the training again."
    )


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
