"""Files around a server's folders that none of its prompts may read or change, and links that lead to them."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

_OWN = ("base/temp", "base/user", "base/server.log", "base/custom_nodes")  # what any prompt may change
_LINKED = ("input", "output", "output/checkpoints", "output/loras", "output/instaflow/triplets")


@dataclass(frozen=True)
class Outside:
    """What is to stay unread and as it is.

    Attributes:
        around: the folder that holds all of it, `base` among it.
        secret: stands in each of the files called canary.
    """

    around: Path
    secret: str

    @property
    def base(self) -> Path:
        """The server's base directory. In the folders of it that prompts may name, `away` and `next-door` are links to
        folders outside, `away-file` with several endings to files."""
        return self.around / "base"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those with the files; the names of the others begin as those of the server's own folders do."""
        return (self.around / "outside", *(self.base / f"{name}-other" for name in ("input", "output")))

    def listing(self) -> dict[str, tuple[int, int]]:
        """Every file, folder and link with its time and size, but for what any prompt may change."""
        found = {}
        for path in self.around.rglob("*"):
            name = path.relative_to(self.around).as_posix()
            if not name.startswith(_OWN):
                stat = path.lstat()
                found[name] = (0, 0) if path.is_dir() else (stat.st_mtime_ns, stat.st_size)
        return found

    def looked_at(self) -> list[Path]:
        """The files that somebody has read since they were made, by the time the file system keeps of it."""
        return [path for folder in self.folders for path in folder.iterdir() if path.stat().st_atime > 0]


def make_outside(around: Path) -> Outside:
    """Write the files and the links."""
    made = Outside(around, f"secret-{secrets.token_hex(8)}")
    for folder in made.folders:
        folder.mkdir(parents=True)
        for name in ("canary", "canary.txt", "canary.safetensors", "set.json"):
            (folder / name).write_text(f"{made.secret}\n")
            os.utime(folder / name, (0, 0))
    for inside in _LINKED:
        folder = made.base / inside
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "away").symlink_to(made.folders[0], target_is_directory=True)
        (folder / "next-door").symlink_to(made.base / f"{inside.partition('/')[0]}-other", target_is_directory=True)
        for ending in ("", ".txt", ".safetensors"):
            (folder / f"away-file{ending}").symlink_to(made.folders[0] / f"canary{ending}")
    return made
