"""README.md and docs/ as tests read them: their text, their links and the commands in their fenced blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One line of a fenced block, with the lines that it goes on in.

    Attributes:
        page: the document's name.
        shell: what the fence says, bash or powershell; anything else is no command.
        text: the line.
    """

    page: str
    shell: str
    text: str


def read(path: Path) -> str:
    """A document's text."""
    return path.read_text(encoding="utf-8")


def without_fences(text: str) -> str:
    """A document's text but for its fenced blocks."""
    return _FENCE.sub("", text)


def commands(path: Path) -> list[Command]:
    """The commands in a document's fenced blocks, in order; comments left out."""
    found = []
    for shell, block in _FENCE.findall(read(path)):
        whole = re.sub(r"\\\n\s*", "", block)
        lines = (line.strip() for line in whole.splitlines())
        found += [Command(path.name, shell, line) for line in lines if line and not line.startswith("#")]
    return found


def heading_anchors(text: str) -> set[str]:
    """The #names of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_fences(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def links(text: str) -> list[tuple[bool, str]]:
    """Where a document's links lead that stay in this repository; and whether each is a picture."""
    found = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", without_fences(text))
    return [(bool(mark), target) for mark, target in found if not re.match(r"https?:", target)]
