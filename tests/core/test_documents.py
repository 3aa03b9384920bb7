"""What README.md and docs/ say of this repository is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Folders of the repository; what is made by make (build/, output/) or lies in ComfyUI (models/checkpoints) is not one.
FOLDERS = "benchmarks|docs|instaflow_core|locales|nodes|scripts|tests|web|workflows"


def named_paths(text: str) -> set[str]:
    """The paths of this repository that a document names: in code, in links and as pictures."""
    return set(re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*[\w/]", text))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_a_document_names_exists(document: Path) -> None:
    paths = named_paths(document.read_text(encoding="utf-8"))
    assert paths, "the document names no path at all: does the pattern still fit?"
    assert not {path for path in paths if not (ROOT / path).exists() and "NodeId" not in path}


def test_a_path_that_is_not_there_is_seen() -> None:
    assert named_paths("see `nodes/nowhere.py` and models/checkpoints/x.safetensors.") == {"nodes/nowhere.py"}
