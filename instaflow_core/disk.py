"""What a disk refuses, in words: full, read-only, closed to this user."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FREE = "Free some space there, or write to another place, and run it again."
_OPEN = "Make it writable, or write to another place, and run it again."
_REFUSALS = {
    errno.ENOSPC: ("the disk is full", _FREE),
    errno.EDQUOT: ("this user's share of the disk is used up", _FREE),
    errno.EFBIG: ("no file may be that large there", "Write to another place, or lift the limit, and run it again."),
    errno.EROFS: ("that place is read-only", _OPEN),
    errno.EACCES: ("this user may not write there", _OPEN),
    errno.EPERM: ("this user may not write there", _OPEN),
}
_RUST = re.compile(r"\(os error (\d+)\)")
"""How the library of safetensors says which error the system gave; it has no OSError of its own."""


class CannotWrite(OSError):
    """The disk refused a file. The message says which, why, and what to do; what had that name is as it was."""

    def __init__(self, number: int, path: Path) -> None:
        reason, advice = _REFUSALS[number]
        super().__init__(number, f"{path} could not be written: {reason}. What was there before is as it was. {advice}")

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def refusals_told(path: Path) -> Iterator[None]:
    """What the disk refuses on the way to a file or folder `path` is raised as CannotWrite, whichever library met it.

    Of several, one in the other, the outermost path is named: the others are of files in a folder that is not there
    yet.
    """
    try:
        yield
    except Exception as error:
        number = _refusal(error, path)
        if number is None:
            raise
        raise CannotWrite(number, path) from error


def _refusal(error: BaseException | None, path: Path) -> int | None:
    """The number of the refusal behind an error: torch, for one, raises another error over the system's own."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else _rust_number(str(error))
        if number in _REFUSALS and _is_of(error, path):
            return number
        if isinstance(error, OSError):  # which says itself what is the matter, such as that the file is in use
            return None
        error = error.__cause__ or error.__context__
    return None


def _rust_number(said: str) -> int | None:
    found = _RUST.search(said)
    if not found:
        return None
    number = int(found[1])
    return OSError(0, "", None, number).errno if os.name == "nt" else number  # Windows has numbers of its own


def _is_of(error: BaseException, path: Path) -> bool:
    """Whether an error is of the file that is written, or of one in or beside it: not of one that is read for it."""
    named = getattr(error, "filename", None)
    return not isinstance(named, str) or Path(named).is_relative_to(path.parent) or path.is_relative_to(named)
