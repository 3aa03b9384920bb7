"""What README.md and docs/ say of this repository is there: paths, links, pictures, messages."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
import rules_table
from documents import DOCUMENTS, ROOT, heading_anchors, links, read

from instaflow_core.rules import RULES

# Folders of the repository; what is made by make (build/, output/) or lies in ComfyUI (models/checkpoints) is not one.
FOLDERS = "benchmarks|docs|instaflow_core|locales|nodes|scripts|tests|web|workflows"
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def named_paths(text: str) -> set[str]:
    """The paths of this repository that a document names: in code, in links and as pictures."""
    return set(re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*[\w/]", text))


def lost_links(document: Path, text: str) -> list[str]:
    """The links of a document's text that lead nowhere: no such file, or no such heading in it."""
    lost = []
    for _, target in links(text):
        name, _, anchor = target.partition("#")
        there = document.parent / name if name else document
        found = text if there == document else read(there) if there.suffix == ".md" and there.is_file() else ""
        if not there.exists() or (anchor and anchor not in heading_anchors(found)):
            lost.append(target)
    return lost


@every_document
def test_every_path_a_document_names_exists(document: Path) -> None:
    paths = named_paths(read(document))
    assert not {path for path in paths if not (ROOT / path).exists() and "NodeId" not in path}


def test_a_path_that_is_not_there_is_seen() -> None:
    assert named_paths("see `nodes/nowhere.py` and models/checkpoints/x.safetensors.") == {"nodes/nowhere.py"}
    assert sum(len(named_paths(read(document))) for document in DOCUMENTS) > 40, "does the pattern still fit?"


@every_document
def test_every_link_leads_somewhere(document: Path) -> None:
    assert lost_links(document, read(document)) == []


def test_a_link_that_leads_nowhere_is_seen() -> None:
    text = "# A `b`: c\n[x](#a-b-c) [x](#nowhere) [x](docs/install.md#windows) [x](docs/install.md#x) ![x](docs/x.png)"
    assert lost_links(ROOT / "README.md", text) == ["#nowhere", "docs/install.md#x", "docs/x.png"]


def test_every_page_is_reached_from_the_front_page() -> None:
    linked = {target.partition("#")[0] for _, target in links(read(ROOT / "README.md"))}
    assert {f"docs/{path.name}" for path in DOCUMENTS[1:]} <= linked


def test_the_front_page_stays_one() -> None:
    assert len(read(ROOT / "README.md").splitlines()) <= 130


def test_the_registrys_zip_has_what_documents_show_and_link() -> None:
    """Pages and pictures; what .comfyignore leaves out is named in them as text alone."""
    listed = ["git", "ls-files", "--cached", "--ignored", "--exclude-from=.comfyignore"]
    left_out = set(subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n"))
    assert "Makefile" in left_out
    shown = {
        (path.parent / target.partition("#")[0]).resolve() for path in DOCUMENTS for _, target in links(read(path))
    }
    assert not {str(path.relative_to(ROOT)) for path in shown} & left_out


def test_the_moving_picture_moves_and_is_small() -> None:
    from PIL import Image

    path = ROOT / "docs" / "live.webp"
    with Image.open(path) as picture:
        assert picture.n_frames > 40
    assert path.stat().st_size <= 1_500_000


# --- messages that docs/troubleshooting.md explains ---


def said_by_the_code() -> list[str]:
    """Every text in what is shipped; what varies in one is …"""
    texts = []
    for path in sorted([*(ROOT / "instaflow_core").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]):
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.append("".join(map(str, parts)))
    return texts


def is_said(message: str, texts: list[str]) -> bool:
    """Whether a message, with … for what varies, is in one of the texts."""
    parts = [part for part in re.split(r"\s*…\s*", message) if part]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return any(pattern.search(text) for text in texts)


def explained_messages() -> list[str]:
    """The messages in the first column of docs/troubleshooting.md, but ComfyUI's own."""
    ours = read(ROOT / "docs" / "troubleshooting.md").partition("\n## Loading a model")[2]
    cells = re.findall(r"^\| (`[^|]+) \|", ours, re.MULTILINE)
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


def test_messages_are_quoted_as_the_code_says_them() -> None:
    texts, messages = said_by_the_code(), explained_messages()
    assert len(messages) > 50
    assert [message for message in messages if not is_said(message, texts)] == []


def test_a_message_that_nobody_says_is_seen() -> None:
    texts = said_by_the_code()
    assert is_said("There is nothing at …", texts) and not is_said("There is nothing in …", texts)


def test_the_table_of_rules_is_the_codes() -> None:
    document = rules_table.DOCUMENT.read_text(encoding="utf-8")
    assert rules_table.with_table(document) == document, "run `python scripts/rules_table.py`"
    assert all(f"| `{name}` |" in document for name in RULES)
