"""Every language has what the English of the code and of the help pages has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from devhost import ROOT
from languages import LANGUAGES, words

PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
THE_PAGES = {"loaders", "model", "noise", "sampling", "training"}  # categories that ComfyUI has words for, which stay
SAID = re.compile(r'\bt\(\s*"((?:[^"\\]|\\.)*)"')  # what the page's scripts say is said through t()


def test_no_language_is_left_out() -> None:
    assert {path.name for path in (ROOT / "locales").iterdir()} == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_is_translated(host: Any, pack: Any, language: str) -> None:
    translated = words(language, "nodeDefs.json")
    nodes = {node.__name__: node.define_schema() for node in pack.nodes.NODE_CLASS_MAPPINGS.values()}
    assert set(translated) == set(nodes)
    for node_id, node in translated.items():
        said = nodes[node_id]
        assert node["display_name"]
        assert node["description"] != said.description
        assert list(node["inputs"]) == [i.id for i in said.inputs], node_id
        for given in said.inputs:
            assert node["inputs"][given.id]["name"]
            assert node["inputs"][given.id]["tooltip"] not in ("", given.tooltip), (node_id, given.id)
        assert list(node["outputs"]) == [str(n) for n in range(len(said.outputs))], node_id
        for given, output in zip(said.outputs, node["outputs"].values(), strict=True):
            # Of a name of the host's own, such as MODEL, ComfyUI's page has the words.
            assert output["name"] and (output["name"] != given.display_name or given.display_name.isupper()), node_id
            assert output["tooltip"] not in ("", given.tooltip), (node_id, given.display_name)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_categories_are_translated(host: Any, pack: Any, language: str) -> None:
    parts = {
        part for node in pack.nodes.NODE_CLASS_MAPPINGS.values() for part in node.define_schema().category.split("/")
    }
    assert set(words(language, "main.json")["nodeCategories"]) == parts - THE_PAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_the_page_says_is_translated(language: str) -> None:
    scripts = [*(ROOT / "web").glob("*.js"), *(ROOT / "web" / "live").glob("*.js")]
    said = {text for script in scripts for text in SAID.findall(script.read_text(encoding="utf-8"))}
    translated = words(language, "main.json")["instaflowLive"]
    assert len(said) >= 20 and set(translated) == said
    for english, text in translated.items():
        assert text and text.count("{0}") == english.count("{0}")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_help_page_is_translated(page: Path, language: str) -> None:
    """The same headings, names in code and pictures; a page is fetched from docs/NODE/LANGUAGE.md."""
    english = page.read_text(encoding="utf-8")
    translated = (page.with_suffix("") / f"{language}.md").read_text(encoding="utf-8")
    assert outline(translated) == outline(english)
    assert translated != english


def outline(text: str) -> tuple[list[str], set[str], list[str]]:
    """The levels of a page's headings, what is in code, and what it links to."""
    blocks = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    return (
        re.findall(r"^#+(?= )", blocks.sub("", text), re.MULTILINE),
        set(re.findall(r"`([^`\n]+)`", blocks.sub("", text))),
        re.findall(r"\]\(([^)]+)\)", text),
    )
