"""docs/presets.md, made from the table of presets and what `make measure-products` has written.

Run as `python -m tools.docs.presets_page benchmarks/results/products.json > docs/presets.md`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limpet.config.presets import PRESETS

PREFACE = """\
# Presets

`limpet run app:app --workers 4 --for NAME` sets what a product needs so that each of its sessions stays with the worker
that knows it. A preset fills in defaults: whatever the command line, a variable or the file says wins, one setting at a
time. `limpet presets` lists them.

    limpet run app:app --workers 4 --for reflex

Where the chain of a preset has `affinity`, a client has to send back limpet's cookie. Browsers do. A program needs a
cookie jar: `requests.Session()`, `httpx.Client()`, `curl --cookie-jar jar --cookie jar`. Each preset says what happens
to clients without one. If yours come from addresses of their own and through no proxy, `--by affinity,ip` keeps them
at one worker, too. It is not the default, since all new clients behind a proxy or in an office have one address, and
would begin at one worker.
"""


MEASURED = """\
## Measured

Sessions that failed: something they had made was gone, or another process answered. All sessions of a run were open at
once, each with state that only its worker knows, on 4 workers of limpet with the preset, and of plain
`uvicorn --workers 4` (Flask-SocketIO: gunicorn with threads); behind nginx with kept-alive connections, and without.
`make measure-products` runs it again; what each failed session saw is in `benchmarks/results/products.json`.
"""


def reference(measured: Mapping[str, Any]) -> str:
    """Return docs/presets.md; *measured* is what `make measure-products` has written."""
    lines = [PREFACE, *_measured(measured)]
    for name, preset in sorted(PRESETS.items()):
        lines += [
            f"## {name}: {preset.product}",
            "",
            f"    limpet run app:app --for {name}    # {preset.flags()}",
            "",
            preset.why,
            "",
            f"Clients that keep no cookies {preset.without_cookies}",
            "",
        ]
        lines += [f"    {line}" for line in preset.app.splitlines()]
        lines += ["", *(f"- {note}" for note in preset.notes), *([""] if preset.notes else [])]
    return "\n".join(lines).rstrip() + "\n"


def _measured(measured: Mapping[str, Any]) -> list[str]:
    if not measured:
        return []
    columns = {
        "limpet": "limpet plain",
        "limpet behind nginx": "limpet nginx",
        "uvicorn": "uvicorn plain",
        "uvicorn behind nginx": "uvicorn nginx",
    }
    titles = ("product", "version", *columns)
    rows = [
        (f"`{name}`", found["version"], *(_failed(found, run) for run in columns.values()))
        for name, found in sorted(measured.items())
    ]
    return [MEASURED, *(f"| {' | '.join(cells)} |" for cells in [titles, ("---",) * len(titles), *rows]), ""]


def _failed(found: Mapping[str, Any], run: str) -> str:
    outcome = found["runs"][run]
    return f"{len(outcome['failures'])} of {found['sessions']}" if "failures" in outcome else str(outcome["refused"])


if __name__ == "__main__":
    print(reference(json.loads(Path(sys.argv[1]).read_text())), end="")
