"""What is written about servers in several places is the same: settings, extras, docs/servers.md and `KINDS`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

from limpet.servers import KINDS
from limpet.settings import Settings

ROOT = Path(__file__).parents[2]


def test_every_server_can_be_chosen() -> None:
    """A name that the setting does not know could not be used, and one that is no server would fail late."""
    assert set(get_args(get_type_hints(Settings)["server"])) == set(KINDS)


def test_every_optional_server_has_an_extra() -> None:
    """The hint of a server that is not installed can be pasted."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [kind.extra for kind in KINDS.values() if kind.extra]
    assert set(wanted) <= set(extras)
    assert extras["all"] == [f"limpet[{','.join(sorted(wanted))}]"]


def test_docs_say_what_servers_can_do() -> None:
    """The first table in docs/servers.md has the rows that `KINDS` makes."""
    yes = {True: "yes", False: "no"}
    rows = []
    for name, kind in KINDS.items():
        takes_any = kind.takes == "any"
        cells = (
            f"`{name}`",
            "ASGI, WSGI" if kind.interface == "asgi" else "WSGI",
            "kernel, dispatcher" if takes_any else "kernel",
            *(yes[fact] for fact in (kind.moves, kind.websocket, takes_any)),
        )
        rows.append(f"| {' | '.join(cells)} |\n")
    assert "".join(rows) in (ROOT / "docs" / "servers.md").read_text()
