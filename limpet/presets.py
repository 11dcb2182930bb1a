"""What `--for NAME` sets for each product that limpet knows, and why.

Owns one table, `PRESETS`, and its two forms for people: `limpet presets` and docs/presets.md. What a setting means, and
whether a value is allowed, is settings.py's; that a product really works like this, tests/products/ shows.

1. A preset fills in defaults and nothing else: what the command line, a variable or the file says wins.
2. A preset never says how many workers there are, or where they listen.

If you change this, also run: make docs
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from limpet.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One product: what is set for it, and what its users should know."""

    product: str
    """What the product calls itself."""
    sets: Mapping[str, str]
    """Text by the key of a setting, as it would stand in the file."""
    why: str
    """How the product names its session, and so why these settings."""
    app: str
    """How an application of the product is given, a line of Python; `app` is what `limpet run` is told then."""
    notes: Sequence[str] = field(default=())
    """What does not work, or works otherwise than its users expect."""

    def flags(self) -> str:
        """Return the settings as they would stand on the command line."""
        return " ".join(f"--{key} {value}" for key, value in self.sets.items())


PRESETS: Final[Mapping[str, Preset]] = {
    "marimo": Preset(
        product="marimo",
        sets={"by": "query:session_id,header:marimo-session-id"},
        why="The page makes a session id, which every request carries, in the query (websocket) or in a header.",
        app='app = marimo.create_asgi_app().with_app(path="/", root="notebook.py").build()',
    ),
    "reflex": Preset(
        product="Reflex",
        sets={"by": "query:token,header:reflex-client-token"},
        why="The page makes a token, which every request carries, in the query (websocket) or in a header.",
        app="app = application()  # of reflex, the backend",
    ),
}


def check_preset(name: str) -> None:
    """Raise SettingsError unless there is a preset *name*."""
    if name not in PRESETS:
        nearest = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0)
        raise SettingsError(
            f"there is no preset `{name}`", hint=f"`--for {nearest[0]}`; `limpet presets` shows all of them"
        )


def listing() -> str:
    """Return what `limpet presets` prints: a line for each, with the flags that it stands for."""
    width = max(map(len, PRESETS))
    return "\n".join(f"{name.ljust(width)}  {preset.flags()}" for name, preset in sorted(PRESETS.items()))


PREFACE = """\
# Presets

`limpet run app:app --workers 4 --for NAME` sets what a product needs so that each of its sessions stays with the worker
that knows it. A preset fills in defaults: whatever the command line, a variable or the file says wins, one setting at a
time. `limpet presets` lists them.

    limpet run app:app --workers 4 --for reflex
"""


def reference(measured: Mapping[str, Any]) -> str:
    """Return docs/presets.md; *measured* is what `make products-record` wrote."""
    lines = [PREFACE, *_measured(measured)]
    for name, preset in sorted(PRESETS.items()):
        lines += [f"## {name}", "", f"    limpet run app:app --for {name}    # {preset.flags()}", "", preset.why, ""]
        lines += [f"    {line}" for line in preset.app.splitlines()]
        lines += ["", *(f"- {note}" for note in preset.notes), *([""] if preset.notes else [])]
    return "\n".join(lines).rstrip() + "\n"


def _measured(measured: Mapping[str, Any]) -> list[str]:
    return []


if __name__ == "__main__":
    print(reference(json.loads(Path(sys.argv[1]).read_text())), end="")
