"""What `--for NAME` sets for each product that limpet knows, and why.

Owns one table, `PRESETS`, and what `limpet presets` prints of it; tools/docs/presets_page.py makes docs/presets.md.
What a setting means, and whether a value is allowed, is config/settings.py's; that a product really works like this,
tests/products/ shows.

1. A preset fills in defaults and nothing else: what the command line, a variable or the file says wins.
2. A preset never says how many workers there are, or where they listen.

If you change this, also run: make docs
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

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
        return " ".join(
            f"--{key}" if value == "true" else f"--{key} {shlex.quote(value)}" for key, value in self.sets.items()
        )


PRESETS: Final[Mapping[str, Preset]] = {
    "chainlit": Preset(
        product="Chainlit",
        sets={"by": "affinity"},
        why="The page makes a session id and has it set as a cookie, but after its first requests only, and a second "
        "tab replaces it. limpet's own cookie keeps all tabs of a browser with one worker.",
        app='app = FastAPI()\nmount_chainlit(app, target="chat.py", path="/chat")',
    ),
    "flask-socketio": Preset(
        product="Flask-SocketIO",
        sets={"by": "query:sid", "mint": "socketio", "server": "gunicorn", "threads": "256"},
        why="As socketio. Its threading mode keeps a thread for each long poll and each websocket, which is what "
        "gunicorn's threads are for; with simple-websocket installed they serve websockets too.",
        app='app = Flask(__name__)\nsio = SocketIO(app, async_mode="threading")',
        notes=("`--threads` is how many clients one worker can have; more wait.",),
    ),
    "gradio": Preset(
        product="Gradio",
        sets={"by": "affinity"},
        why="The page makes a session hash, which is in the body of some of its requests and in the query of others: "
        "nothing that a router could go by. State (`gr.State`), the queue and uploads live in one process.",
        app='app = gr.mount_gradio_app(FastAPI(), demo, path="/")  # demo is the gr.Blocks',
        notes=(
            "`demo.launch()` starts a server of its own, in one process: leave it out.",
            "`gradio_client` keeps the cookie of its first answer, so it stays with one worker as a browser does.",
        ),
    ),
    "jupyter": Preset(
        product="Jupyter Server",
        sets={"by": "path:/api/(?:kernels|sessions)/([0-9a-f-]{36}),cookie:_xsrf", "server": "script"},
        why="It brings its own server, which has no workers. limpet starts one in each slot, and has the ids of "
        "kernels and sessions made such that they bring clients home; a browser's other requests go by the cookie that "
        "the first page sets.",
        app="from limpet.integrations.jupyter import serve as app",
        notes=(
            "Workers must accept the same token: set `JUPYTER_TOKEN` or a password.",
            "Lists of kernels, sessions and terminals show those of one worker, the one at which the browser lives.",
            "Kernels end with their worker.",
        ),
    ),
    "marimo": Preset(
        product="marimo",
        sets={"by": "affinity,query:session_id,header:marimo-session-id"},
        why="The page makes a session id, which its websocket has in the query and other requests in a header, but "
        "files that cells show are asked for without it. Browsers go by limpet's own cookie, other clients by the id.",
        app='app = marimo.create_asgi_app().with_app(path="/", root="notebook.py").build()',
    ),
    "mcp": Preset(
        product="MCP, Streamable HTTP",
        sets={"by": "header:mcp-session-id", "learn": "header:mcp-session-id"},
        why="The server makes the session id, names it in a header of its first answer, and answers 404 to one that it "
        "does not know. Clients keep no cookies. limpet learns the id before that answer leaves.",
        app='server = MCPServer("notes")\napp = server.streamable_http_app()',
        notes=(
            "The protocol's newer form has no sessions; its requests go to the worker with the fewest connections.",
            "The older transport by SSE makes its id where no header shows it, so it needs one worker.",
            "A proxy in front must pass on `Host`, which the SDK checks.",
        ),
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
        sets={"by": "query:token,header:reflex-client-token", "factory": "true"},
        why="The page makes a token for each tab, which its websocket has in the query and its uploads in a header.",
        app="app = rx.App()  # the backend; `reflex export` makes the pages",
        notes=(
            "Set `REFLEX_ENV_MODE=prod` and `__REFLEX_SKIP_COMPILE=true`, as Reflex's own start of workers does.",
            "State stays in memory with `REFLEX_STATE_MANAGER_MODE=memory`, without the Redis that Reflex asks for.",
        ),
    ),
    "shiny": Preset(
        product="Shiny for Python",
        sets={"by": "affinity"},
        why="A session begins with its websocket; the path of its uploads and downloads then has its id. All of it is "
        "in one process.",
        app="app = App(app_ui, server)",
        notes=('Shiny Express: `app = wrap_express_app(Path("app.py"))`, of `shiny.express`.',),
    ),
    "socketio": Preset(
        product="python-socketio",
        sets={"by": "query:sid", "mint": "socketio"},
        why="The server makes the `sid` that later requests carry in the query, and names it in a body, where no "
        "router sees it. limpet has it made such that it hashes to the worker that makes it; the application does not "
        "change.",
        app='sio = socketio.AsyncServer(async_mode="asgi")\napp = socketio.ASGIApp(sio)',
        notes=("A `generate_id` of the application's own is left alone; `limpet.mint` does the same for it.",),
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
    "tus": Preset(
        product="tus",
        sets={"by": "path:/files/([^/?]+)", "learn": "location:/files/([^/?]+)"},
        why="The server makes an upload's id and names it in `Location`; it is in the path of all requests that "
        "follow.",
        app='app = FastAPI()\napp.include_router(create_tus_router(prefix="files"))  # of tuspyserver, for example',
        notes=("Where uploads are not under `/files/`, give both settings with the other path.",),
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
