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
    "gradio": Preset(
        product="Gradio",
        sets={"by": "affinity"},
        why="The page makes a session hash, which is in the body of some of its requests and in the query of others: "
        "nothing that a router could go by. State (`gr.State`), the queue and uploads live in one process.",
        app='app = gr.mount_gradio_app(FastAPI(), demo, path="/")  # demo is the gr.Blocks',
        notes=(
            "`demo.launch()` starts a server of its own, in one process: leave it out.",
            "Clients that keep no cookies, such as `gradio_client`, are placed anew with each request. They need a key "
            "of their own: `--by header:x-client,affinity`, and the header with each request.",
        ),
    ),
    "marimo": Preset(
        product="marimo",
        sets={"by": "query:session_id,header:marimo-session-id"},
        why="The page makes a session id, which every request carries, in the query (websocket) or in a header.",
        app='app = marimo.create_asgi_app().with_app(path="/", root="notebook.py").build()',
    ),
    "nicegui": Preset(
        product="NiceGUI",
        sets={"by": "affinity"},
        why="The id of a page's client is in its HTML, then in the query of its websocket and the path of its uploads. "
        "Elements and what they hold live in the process that has rendered the page.",
        app="ui.run_with(app)  # app is a FastAPI()",
        notes=(
            "`ui.run(workers=...)` refuses more than one worker. `ui.run_with` adds the pages to an application of "
            "FastAPI, which limpet runs.",
            "`app.storage.general` and `app.storage.user` are read from their files once: workers that write the "
            "same file do not see each other. `app.storage.user` is one person's, so one worker's; for "
            "`general` set `NICEGUI_REDIS_URL`, which NiceGUI knows.",
        ),
    ),
    "panel": Preset(
        product="Panel, Bokeh",
        sets={"by": "affinity"},
        why="The token of a session is in its HTML, then in the websocket's `Sec-WebSocket-Protocol`. A worker that "
        "does not know the session makes a second one without a word, and nobody listens to the page's widgets.",
        app='app = FastAPI()\nadd_applications({"/page": page}, app=app)  # of panel.io.fastapi; page is a function',
        notes=(
            "`pip install bokeh-fastapi` brings what `panel.io.fastapi` needs; an application of Bokeh alone is "
            '`BokehFastAPI({"/page": modify_document}).app`.',
            "`panel serve` and `bokeh serve` start a server of their own and are not needed.",
            "Bokeh accepts websockets from pages of its own address only: with another name in front of it set "
            "`BOKEH_ALLOW_WS_ORIGIN`.",
        ),
    ),
    "reflex": Preset(
        product="Reflex",
        sets={"by": "query:token,header:reflex-client-token"},
        why="The page makes a token, which every request carries, in the query (websocket) or in a header.",
        app="app = application()  # of reflex, the backend",
    ),
    "shiny": Preset(
        product="Shiny for Python",
        sets={"by": "affinity"},
        why="A session begins with its websocket; the path of its uploads and downloads then has its id. All of it is "
        "in one process.",
        app="app = App(app_ui, server)",
        notes=('Shiny Express: `app = wrap_express_app(Path("app.py"))`, of `shiny.express`.',),
    ),
    "solara": Preset(
        product="Solara",
        sets={"by": "affinity"},
        why="Each page has a kernel, whose id is in the path of its websocket; it lives in one process. Solara has a "
        "cookie for each browser, but makes it after the client was routed.",
        app="from solara.server.starlette import app  # and SOLARA_APP=page.py in the environment",
        notes=("`solara run` starts a server of its own, in one process: leave it out.",),
    ),
    "streamlit": Preset(
        product="Streamlit",
        sets={"by": "affinity"},
        why="A session begins with its websocket. Uploads have its id in the path, pictures and other media have none; "
        "all of it is in the memory of one process.",
        app='app = App("script.py")  # of streamlit.starlette',
        notes=(
            "`streamlit run` starts a server of its own, in one process: leave it out.",
            "Set `server.cookieSecret` (`STREAMLIT_SERVER_COOKIE_SECRET`): else each worker makes one of its own, and "
            "who has logged in is logged out when a worker is replaced.",
            "`st.cache_data` and `st.cache_resource` are each worker's own: N workers compute and keep it N times.",
        ),
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


MEASURED = """\
## Measured

Sessions that failed: something they had made was gone, or another process answered. All sessions of a run were open at
once, each with state that only its worker knows, on 4 workers of limpet with the preset, and of plain
`uvicorn --workers 4`; behind nginx with kept-alive connections, and without. `make measure-products` runs it again;
what each failed session saw is in `benchmarks/results/products.json`.
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
        ]
        lines += [f"    {line}" for line in preset.app.splitlines()]
        lines += ["", *(f"- {note}" for note in preset.notes), *([""] if preset.notes else [])]
    return "\n".join(lines).rstrip() + "\n"


def _measured(measured: Mapping[str, Any]) -> list[str]:
    if not measured:
        return []
    titles = ("product", "version", "limpet", "limpet behind nginx", "uvicorn", "uvicorn behind nginx")
    rows = [
        (f"`{name}`", found["version"], *(_failed(found, run) for run in found["runs"]))
        for name, found in sorted(measured.items())
    ]
    return [MEASURED, *(f"| {' | '.join(cells)} |" for cells in [titles, ("---",) * len(titles), *rows]), ""]


def _failed(found: Mapping[str, Any], run: str) -> str:
    outcome = found["runs"][run]
    return f"{len(outcome['failures'])} of {found['sessions']}" if "failures" in outcome else str(outcome["refused"])


if __name__ == "__main__":
    print(reference(json.loads(Path(sys.argv[1]).read_text())), end="")
