"""Who works where: locks of the system's own, which end with the process that holds them, however it ends."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .disk import refusals_told

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_MINUTE = 60.0  # seconds


class InUse(ValueError):
    """Another process works there."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only one who works in a folder, which is made where it is not there.

    The folder keeps an empty file LOCK_FILE. One that was left by a process that is gone, or was copied here, locks
    nothing.

    Raises:
        InUse: another process, or another part of this one, works there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_FILE)
    with refusals_told(folder / LOCK_FILE):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InUse(
                f"Another run is at work in {folder}. Wait for its end or stop it, and then go on with it, or give "
                "this one another name."
            ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def in_hand(path: Path, make: Callable[[Path], None]) -> Iterator[None]:
    """Make a file or folder, and have it in hand until the end: it is not `abandoned`, to other processes either."""
    handle = None
    while handle is None:
        make(path)
        try:
            handle = _handle(path)
            if handle is None:
                break
            with suppress(OSError):  # this filesystem has no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        except FileNotFoundError:
            continue
        if not path.exists():  # somebody thought it abandoned before it was locked
            os.close(handle)
            handle = None
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Whether nobody has a file or folder in hand any more: its writer was killed. Nobody can take it in hand until the
    end, so that it can be removed: between a question and a removal its writer may come.

    Where there are no such locks, as on Windows, it is so when nobody has written to it for a minute.
    """
    handle = None
    try:
        handle = _handle(path)
        if handle is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = handle is not None or time.time() - path.stat().st_mtime > _MINUTE
    except (BlockingIOError, FileNotFoundError):  # in hand; or its writer is done with it, or another has removed it
        found = False
    except OSError:  # this filesystem has no locks
        found = time.time() - path.stat().st_mtime > _MINUTE
    try:
        yield found
    finally:
        if handle is not None:
            os.close(handle)


def _handle(path: Path) -> int | None:
    """What to lock a file or folder by; None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        return os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:  # another user's
        return None
