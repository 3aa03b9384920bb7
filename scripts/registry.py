"""Write into pyproject.toml where the repository is published, and with it where the Comfy Registry finds its pictures.

    python3 scripts/registry.py https://github.com/OWNER/NAME [BRANCH]

The registry asks for the address of the repository, and shows an icon and a banner by theirs: raw files of the branch,
which is main where none is given. The rest of pyproject.toml stays as it is.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")


def addressed(pyproject: str, address: str, branch: str) -> str:
    """The text with Repository, Icon and Banner for this address.

    Raises:
        ValueError: it is no address of a repository on GitHub, or the text lacks a field to write it to.
    """
    name = GITHUB.fullmatch(address)
    if not name:
        raise ValueError(f"{address} is not https://github.com/OWNER/NAME, the address of a repository. Give that.")
    raw = f"https://raw.githubusercontent.com/{name[1]}/{branch}/docs"
    fields = {"Repository": f"https://github.com/{name[1]}", "Icon": f"{raw}/icon.png", "Banner": f"{raw}/banner.png"}
    for field, value in fields.items():
        pyproject, written = re.subn(rf'^{field} = ".*"$', f'{field} = "{value}"', pyproject, flags=re.MULTILINE)
        if written != 1:
            raise ValueError(f'pyproject.toml has {written} lines {field} = "...", expected one. Add or remove one.')
    return pyproject


def main(address: str, branch: str = "main") -> None:
    """Write pyproject.toml."""
    path = ROOT / "pyproject.toml"
    path.write_text(addressed(path.read_text(encoding="utf-8"), address, branch), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(f"error: {len(sys.argv) - 1} arguments. Use: {(__doc__ or '').splitlines()[2].strip()}")
    try:
        main(*sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
