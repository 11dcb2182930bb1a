"""What `make site` does beside building docs/: pages from elsewhere, links to them, and nothing from outside.

Owns which files of the repository that are not in docs/ are on the site, and under which name. Called by mkdocs alone
(mkdocs.yml); no process of a server imports it.

1. A document is written for the repository: its links lead to files there. Here they are turned into links of the site.
2. What a reader's browser would fetch from elsewhere fails the build.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
ELSEWHERE = {  # file of the repository: file of the site
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "LICENSE",
    "examples/chat/README.md": "examples/chat.md",
    "examples/chat_redis/README.md": "examples/chat-redis.md",
    "examples/channels_chat/README.md": "examples/channels-chat.md",
    "examples/mcp/README.md": "examples/mcp.md",
    "examples/grafana.json": "examples/grafana.json",
}
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
FETCHED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
DIAGRAM = re.compile(r"```mermaid\nstateDiagram-v2\n(.*?)```", re.DOTALL)
CHANGE = re.compile(r"^ *(\S+) --> (\w+)(?:: ([\w ]+?)(?: / (.*))?)?$", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add what is not in docs/."""
    for source, name in ELSEWHERE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to files of the repository into links of the site, and the diagram into a table."""
    name = page.file.src_uri
    source = next((source for source, shown in ELSEWHERE.items() if shown == name), f"docs/{name}")

    def link(found: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(source), found[1]))
        shown = ELSEWHERE.get(target, target.removeprefix("docs/"))
        return f"]({os.path.relpath(shown, os.path.dirname(name) or '.')}{found[2] or ''})"

    return DIAGRAM.sub(lambda found: table(found[1]), LINK.sub(link, markdown))


def table(diagram: str) -> str:
    """Return a state diagram as a table: drawing it would take a program of 3 MB from elsewhere."""
    rows = ["| state | event | next state | what is done |", "|---|---|---|---|"]
    for before, after, event, action in CHANGE.findall(diagram):
        if before != "[*]":
            rows.append(f"| {before} | {event} | {after} | {action} |")
    return "\n".join(rows)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Fail where the page would have the reader's browser fetch something from elsewhere."""
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} would fetch {found[0]}")
    return output
