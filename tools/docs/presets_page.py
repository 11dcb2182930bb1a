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

This page is a reference. `limpet run app:app --workers 4 --for NAME` sets what a product needs, so that each session
stays with the worker that made it. A preset sets only defaults: for each setting, a value from the command line, a
variable or the file wins. `limpet presets` lists all presets.

    limpet run app:app --workers 4 --for reflex

If the key chain of a preset contains `affinity`, a client must send back limpet's cookie. Browsers do that. A program
needs a cookie jar: `requests.Session()`, `httpx.Client()`, `curl --cookie-jar jar --cookie jar`. Each preset says what
happens to clients without a cookie jar. If each of your clients has an address of its own and there is no proxy,
`--by affinity,ip` keeps these clients with one worker, too. This is not the default: behind a proxy or in an office all
new clients have the same address, so all of them would start at the same worker.
"""


MEASURED = """\
## Measured

The table shows how many sessions failed. A session failed if something that it had made was gone, or if another process
answered. All sessions of a run were open at the same time, and each had state that only its worker knows. They ran on 4
workers of limpet with the preset, and on plain `uvicorn --workers 4` (Flask-SocketIO: gunicorn with threads). Each of
the two ran without nginx, and behind nginx with kept-alive connections. `make measure-products` measures again.
`benchmarks/results/products.json` has what each failed session saw.
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
