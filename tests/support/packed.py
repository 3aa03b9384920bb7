"""The zip that a registry gets: git's files without those that .comfyignore names, as `comfy node pack` makes it."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def pack(path: Path) -> Path:
    """Write the zip of this checkout; git reads .comfyignore, whose patterns are those of its own ignore files."""
    left_out = set(listed("--cached", "--ignored", "--exclude-from=.comfyignore"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in listed("--cached"):
            if name not in left_out:
                archive.write(ROOT / name, name)
    return path


def unpack(archive: Path, folder: Path) -> Path:
    """The zip's files under the folder, as an installer puts them there."""
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    return folder


def listed(*options: str) -> list[str]:
    """The names that `git ls-files` lists in this checkout."""
    ran = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in ran.stdout.split("\0") if name]
