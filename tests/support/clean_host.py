"""An environment as ComfyUI's requirements make it, before any pack was installed.

Its packages are links to those of the environment that runs the tests, which has those of the pack and of the tests as
well. They lie outside of the new environment, on its path, as a system's own packages do: pip takes what is there for
installed, and leaves it alone where it installs another version.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from devhost import TREE_UNLISTED, DevHost
from packaging.requirements import Requirement


def clean_host(host: DevHost, environment: Path) -> DevHost:
    """The same ComfyUI with an interpreter that has what its requirements.txt asks for, pip, and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    linked = environment.parent / "host-packages"
    linked.mkdir()
    lines = (line.partition("#")[0].strip() for line in (host.comfyui / "requirements.txt").read_text().splitlines())
    for package in _with_what_they_need([*filter(None, lines), *TREE_UNLISTED, "pip"]):
        # Programs lie beside the folder of the packages; folders such as nvidia belong to several packages.
        for name in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not (linked / name).exists():
                (linked / name).symlink_to(package.locate_file(name))
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "host.pth").write_text(f"{linked}\n")
    return DevHost(host.comfyui, environment / "bin" / "python")


def packages(python: Path) -> dict[str, str]:
    """The packages that an interpreter has, each with its version, as `pip freeze` says them; names in lower case."""
    ran = subprocess.run([python, "-m", "pip", "freeze", "--all"], capture_output=True, text=True, check=True)
    return dict(line.lower().split("==") for line in ran.stdout.splitlines())


def _with_what_they_need(wanted: Iterable[str]) -> list[Distribution]:
    """The installed packages of these names, and those that they ask for on this system."""
    todo, found = [Requirement(line) for line in wanted], {}
    while todo:
        asked = todo.pop()
        key = asked.name.lower(), frozenset(asked.extras)
        if key not in found:
            found[key] = distribution(asked.name)
            todo += [
                needed
                for needed in map(Requirement, found[key].requires or [])
                if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in {"", *asked.extras})
            ]
    return list(found.values())
