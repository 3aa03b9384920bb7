"""Names out of prompts, as paths that stay in the host's folders.

Prompts come from strangers, also over the network, and hosts differ in what they check: what is opened or written by a
name that somebody typed is contained here, whatever the host does. Choices of the loaders are another thing: they are
looked up in what the host has listed (model_files.py), and the model folders may hold links to anywhere.
"""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

import folder_paths

_LONGEST = 200
"""Bytes of a name in UTF-8: file systems take 255, and a number, an ending and a temporary file's marks are added."""
_PORTS = [f"{kind}{number}" for kind in ("COM", "LPT") for number in "0123456789¹²³"]
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *_PORTS}
"""What Windows opens a device for, whatever the folder and the ending."""
_NO_FILE = "[\\x00\\ud800-\\udfff]"
"""What no system takes in a file's name, and Python's own functions refuse each in its way."""


def output_path(folder: str, name: str, ending: str = "") -> Path:
    """Where something of this name lies: FOLDER/NAME, with the ending, in the host's output folder.

    Raises:
        ValueError: the name is not a plain one, or as `contained_output`.
    """
    _check_portable("name", name)
    if not re.fullmatch(r"[\w][\w .()+-]*(/[\w][\w .()+-]*)*", name):
        raise _refused("name", name, "which is not a plain one")
    return contained_output(Path(folder, name + ending))


def contained_output(inside: Path) -> Path:
    """The absolute path of what lies there in the host's output folder.

    Raises:
        ValueError: a link leads out of the output folder; also one in it, where it is a folder.
    """
    root = _real_output()
    path = root / inside
    _check_links(path, root)
    if path.is_dir():
        for entry in os.scandir(path):
            if entry.is_symlink():
                _check_links(Path(entry.path), root)
    return path


def numbered_output_paths(prefix: str, ending: str) -> Iterator[Path]:
    """The next free file of this prefix in the host's output folder, as the host's own nodes number theirs, and those
    after it; their folder is made.

    Raises:
        ValueError: the prefix is a path of its own, leads out of the output folder by .. or by a link, or cannot be a
            file's name on every system.
    """
    _check_portable("filename_prefix", prefix)
    # Behind a slash the host counts no files: it would give the first one's name again and again.
    root, expanded = _real_output(), _expanded(prefix.rstrip("\\/"))
    _check_links((root / expanded).parent, root)  # the host makes folders, and older ones follow links
    folder, name, counter, *_ = folder_paths.get_save_image_path(expanded, str(root))
    _check_links(Path(folder, f"{name}_{counter:05}_{ending}"), root)
    return (Path(folder, f"{name}_{number:05}_{ending}") for number in itertools.count(counter))


def input_file(name: str, what: str) -> str | None:
    """The file of this name in the host's input folder; None where there is none.

    Args:
        what: is to come from it, for the error.

    Raises:
        ValueError: the name is a path of its own, one in another of the host's folders, leads out of the input folder
            by .. or by a link, or is a device's on Windows.
    """
    inside = name.removesuffix(" [input]")
    elsewhere = (
        inside.endswith(("[output]", "[temp]"))
        or PureWindowsPath(inside).drive
        or re.search(_NO_FILE, inside)
        or any(map(_is_device, re.split(r"[\\/]", inside)))
    )
    root = os.path.realpath(folder_paths.get_input_directory())
    path = root if elsewhere else os.path.realpath(os.path.join(root, inside.replace("\\", "/")))
    if elsewhere or not _is_inside(path, root):
        raise ValueError(
            f"The {what} are to come from {_shown(name)}, which is not in ComfyUI's input folder. Put the file there "
            f"and give its name, or write the {what} into the node."
        )
    return path if os.path.isfile(path) else None


def _real_output() -> Path:
    return Path(os.path.realpath(folder_paths.get_output_directory()))


def _expanded(prefix: str) -> str:
    """The prefix with what the host puts for %year% and the like, which it tells only as it makes the folders."""
    if "%" not in prefix:
        return prefix
    with tempfile.TemporaryDirectory() as scratch:
        expanded: str = folder_paths.get_save_image_path(prefix, os.path.realpath(scratch))[4]
    return expanded


def _check_links(path: Path, root: Path) -> None:
    if not _is_inside(os.path.realpath(path), str(root)):
        raise ValueError(
            f"{path.relative_to(root).as_posix()} is a link that leads out of ComfyUI's output folder. Give another "
            "name, or remove the link."
        )


def _is_inside(path: str, root: str) -> bool:
    """Whether a real path is a real folder, or lies under it."""
    try:
        return os.path.commonpath([path, root]) == root
    except ValueError:  # on two drives
        return False


def _check_portable(what: str, name: str) -> None:
    """Raise ValueError for what is no relative name of a file on every system: graphs go from one to another."""
    parts = re.split(r"[\\/]", name)
    if not name.strip("\\/"):
        why = "which is empty"
    elif not parts[0] or PureWindowsPath(name).drive:
        why = "which is a path of its own"
    elif ".." in parts:
        why = "which leads out of its folder"
    elif found := re.search(rf'[\x01-\x1f<>:"|?*]|{_NO_FILE}', name):
        why = f"with a {found[0]!r} in it"
    elif any(part.endswith((".", " ")) for part in parts):
        why = "with a dot or a space at the end, which Windows leaves out"
    elif any(map(_is_device, parts)):
        why = "which is a device's on Windows"
    elif len(os.fsencode(name)) > _LONGEST:
        why = f"which is {len(os.fsencode(name))} bytes long, and {_LONGEST} are taken"
    else:
        return
    raise _refused(what, name, why)


def _refused(what: str, name: str, why: str) -> ValueError:
    return ValueError(
        f"The {what} is {_shown(name)}, {why}. Give a plain name of letters, digits, spaces, - and _, with / for "
        "subfolders of ComfyUI's output folder."
    )


def _is_device(part: str) -> bool:
    return part.partition(".")[0].rstrip().upper() in _DEVICES


def _shown(name: str) -> str:
    return repr(name if len(name) <= _LONGEST else name[:40] + "…")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the host's own for temporary files, gone afterwards."""
    # An error holds the file that was read until it has been shown, and Windows does not delete that.
    with tempfile.TemporaryDirectory(dir=folder_paths.get_temp_directory(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)
