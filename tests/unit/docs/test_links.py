"""Links between documents lead somewhere, in the repository as on the site, and the site leaves no document out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = [
    *ROOT.glob("*.md"),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(path: Path) -> set[str]:
    """Return what may stand behind `#` in a link to the document *path*, as its headings and marks say."""
    text = CODE.sub("", path.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    bare = [re.sub(r"\]\([^)]*\)|[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in bare} | set(re.findall(r'<a id="([\w-]+)"></a>', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A reader who follows one at night has no time to search."""
    for target, anchor in LINK.findall(CODE.sub("", page.read_text())):
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


def test_every_document_is_in_the_navigation_of_the_site() -> None:
    """What is not in it is found by nobody who reads the site."""
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert not {path.name for path in (ROOT / "docs").glob("*.md")} - listed


def test_page_says_what_kind_it_is() -> None:
    """A reader who looks for a recipe and meets an explanation leaves; the first words say which of the four it is."""
    beginnings = {
        "Tutorials": "In this tutorial",
        "How-to guides": "This guide shows",
        "Reference": "This page is a reference",
        "Explanation": "This page explains",
    }
    made = {
        "presets",
        "api",
        "metrics",
        "bounds",
        "events",
        "hostile-inputs",
        "benchmarks",
        "scaling",
    }
    elsewhere = {"security": "SECURITY.md", "architecture": "ARCHITECTURE.md"}
    examples = {"chat": "chat", "chat-redis": "chat_redis", "channels-chat": "channels_chat", "mcp": "mcp"}
    seen = set()
    for kind, entries in re.findall(
        r"^  - ([\w -]+):\n((?:      .*\n)+)", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE
    ):
        for folder, name in re.findall(r": (examples/)?([\w-]+)\.md$", entries, re.MULTILINE):
            if kind in beginnings and name not in made:
                path = f"examples/{examples[name]}/README.md" if folder else elsewhere.get(name, f"docs/{name}.md")
                first = (ROOT / path).read_text().split("\n\n")[1]
                assert first.startswith(beginnings[kind]), path
                seen.add(kind)
    assert seen == set(beginnings)
