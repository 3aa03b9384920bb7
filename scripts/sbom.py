"""The pack's bill of materials, sbom.cdx.json (CycloneDX): what it asks for, and the files it brings that are no text.

    python3 scripts/sbom.py

The packages are those of requirements.txt, in the versions that it allows: which of them a host has is the host's. A
test holds the file to this; nothing in it changes with the day.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
SBOM = ROOT / "sbom.cdx.json"
LICENCES = {
    "diffusers": "Apache-2.0",
    "accelerate": "Apache-2.0",
    "datasets": "Apache-2.0",
    "peft": "Apache-2.0",
    "pyarrow": "Apache-2.0",
    "matplotlib": "PSF-2.0",
    "Pillow": "MIT-CMU",
}
"""Of each package; matplotlib's own licence is made after the PSF's."""


def bill() -> dict[str, Any]:
    """The document as CycloneDX 1.6 has it."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    packages = [_package(Requirement(line)) for line in lines if line and not line.startswith("#")]
    files = [_file(path) for path in sorted((ROOT / "models").rglob("*")) if path.is_file()]
    pack = {"type": "application", "bom-ref": "instaflow", "name": "instaflow", "licenses": _licence("GPL-3.0-only")}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": pack},
        "components": packages + files,
        "dependencies": [{"ref": "instaflow", "dependsOn": [package["bom-ref"] for package in packages]}],
    }


def _package(requirement: Requirement) -> dict[str, Any]:
    purl = f"pkg:pypi/{requirement.name.lower()}"
    asked = {"name": "instaflow:versions", "value": str(requirement.specifier)}
    return {
        "type": "library",
        "bom-ref": purl,
        "name": requirement.name,
        "licenses": _licence(LICENCES[requirement.name]),
        "purl": purl,
        "properties": [asked],
    }


def _file(path: Path) -> dict[str, Any]:
    name = path.relative_to(ROOT).as_posix()
    hashed = {"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}
    kind = "machine-learning-model" if path.suffix == ".safetensors" else "data"
    return {"type": kind, "bom-ref": name, "name": name, "hashes": [hashed]}


def _licence(name: str) -> list[dict[str, Any]]:
    return [{"license": {"id": name}}]


def text() -> str:
    """What the file holds."""
    return json.dumps(bill(), indent=2) + "\n"


if __name__ == "__main__":
    SBOM.write_text(text(), encoding="utf-8", newline="\n")
    sys.stdout.write(f"{SBOM.relative_to(ROOT)}\n")
