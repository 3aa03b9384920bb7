"""Other versions of packages than this environment has: in a folder of their own, first on a second program's path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
from devhost import make_tools

ROOT = Path(__file__).resolve().parents[2]
OLDEST_TRANSFORMERS = ("transformers==4.50.3", "huggingface_hub<1", "tokenizers<0.22")
"""What ComfyUI 0.3.75 asks for at least, with what it needs."""
KEPT = ("torch", "numpy", "transformers")
"""What belongs to the host and stays as it is."""
_PIP = ("-m", "pip", "--disable-pip-version-check", "--retries", "1")


def with_packages(folder: Path, packages: Sequence[str]) -> dict[str, str]:
    """Install exactly these packages, without what they need, into the folder; skips where no package index answers.

    Returns the environment variables of a Python that finds them first, then the pack, then what is installed here.
    """
    _pip("install", "--quiet", "--no-deps", "--no-compile", "--target", str(folder), *packages)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "OMP_NUM_THREADS": "1"}


def with_pinned(folder: Path, requirements: Path) -> None:
    """Install what the file names by version and hash, without what it needs, into the folder; skips as above."""
    options = ("--quiet", "--no-deps", "--no-compile", "--require-hashes")
    _pip("install", *options, "--target", str(folder), "--requirement", str(requirements))


def install(python: Path, requirements: Path) -> None:
    """Install what the file lists, with what it needs, into another interpreter's environment; skips as above."""
    _pip("install", "--quiet", "--no-compile", "--requirement", str(requirements), python=python)


def tools(requirements: Path) -> Path:
    """The interpreter of an environment of its own with what the file lists, made once; skips as above."""
    try:
        return make_tools(requirements)
    except subprocess.CalledProcessError:
        _skip_without_an_index()
        raise


def what_pip_takes(folder: Path, packages: Sequence[str], keep: Sequence[str]) -> list[str]:
    """What pip would install to have these packages here, with all that they need in versions they accept.

    Args:
        folder: for a file of constraints.
        keep: packages that stay as they are; where that cannot be, the test fails with pip's reason.
    """
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version(name).partition('+')[0]}\n" for name in keep))
    options = ("--dry-run", "--quiet", "--report", "-", "--constraint", str(constraints))
    taken = json.loads(_pip("install", *options, *packages))["install"]
    return [f"{package['metadata']['name']}=={package['metadata']['version']}" for package in taken]


def _pip(*arguments: str, python: Path = Path(sys.executable)) -> str:
    ran = subprocess.run([python, *_PIP, *arguments], capture_output=True, text=True)
    if ran.returncode:
        _skip_without_an_index()
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _skip_without_an_index() -> None:
    """Skip the test where no version can be had of a package that every index has."""
    question = ("install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed", "packaging")
    ran = subprocess.run([sys.executable, *_PIP, *question], capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(f"no package index can be reached, which this test installs from: {ran.stderr.strip()[-300:]}")
