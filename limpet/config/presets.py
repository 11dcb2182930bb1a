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
    without_cookies: str
    """What becomes of clients that keep no cookies, such as curl: the rest of a sentence that begins with them."""
    app: str
    """How an application of the product is given, a line of Python; `app` is what `limpet run` is told then."""
    notes: Sequence[str] = field(default=())
    """What does not work, or works otherwise than its users expect."""

    def flags(self) -> str:
        """Return the settings as they would stand on the command line."""
        return " ".join(
            f"--{key}" if value == "true" else f"--{key} {shlex.quote(value)}" for key, value in self.sets.items()
        )


MINTED: Final[Mapping[str, str]] = {
    "socketio": "query:sid",
    "gradio": "path:/call/(?:v2/)?[^/]+/([0-9a-f]{32})",
    "mcp": "query:session_id",
}
"""Where clients send the ids of each library that `--mint` knows."""

PRESETS: Final[Mapping[str, Preset]] = {
    "chainlit": Preset(
        product="Chainlit",
        sets={"by": "affinity"},
        why="The page makes a session id and has it set as a cookie, but after its first requests only, and a second "
        "tab replaces it. limpet's own cookie keeps all tabs of a browser with one worker.",
        without_cookies="work if a single websocket carries the whole chat. Long polls, uploads and a reconnect may "
        "reach another worker, which does not know the session.",
        app='app = FastAPI()\nmount_chainlit(app, target="chat.py", path="/chat")',
    ),
    "flask-socketio": Preset(
        product="Flask-SocketIO",
        sets={"by": "query:sid", "mint": "socketio", "server": "gunicorn", "threads": "256"},
        why="As socketio. Its threading mode keeps a thread for each long poll and each websocket, which is what "
        "gunicorn's threads are for; with simple-websocket installed they serve websockets too.",
        without_cookies="keep their sessions: the id is in the query.",
        app='app = Flask(__name__)\nsio = SocketIO(app, async_mode="threading")',
        notes=("`--threads` is how many clients one worker can have; more wait.",),
    ),
    "gradio": Preset(
        product="Gradio",
        sets={"by": f"{MINTED['gradio']},affinity", "mint": "gradio"},
        why="The page makes a session hash, which is in the body of some of its requests and in the query of others: "
        "nothing that a router could go by. State (`gr.State`), the queue and uploads live in one process, and "
        "browsers go by limpet's own cookie. The API by curl has a `POST` that answers with the id of an event, and a "
        "`GET` with this id in its path. limpet has the id made such that it hashes to the worker that makes it.",
        without_cookies="get their results: the id of an event is in the path. What they keep on the server from one "
        "call to the next (`gr.State`, uploads) may be at another worker.",
        app='app = gr.mount_gradio_app(FastAPI(), demo, path="/")  # demo is the gr.Blocks',
        notes=(
            "`demo.launch()` starts a server of its own, in one process: leave it out.",
            "`gradio_client` keeps the cookie of its first answer, so it stays with one worker as a browser does. curl "
            "does that with `--cookie-jar jar --cookie jar`.",
        ),
    ),
    "jupyter": Preset(
        product="Jupyter Server",
        sets={"by": "path:/api/(?:kernels|sessions)/([0-9a-f-]{36}),cookie:_xsrf", "server": "script"},
        why="It brings its own server, which has no workers. limpet starts one in each slot, and has the ids of "
        "kernels and sessions made such that they bring clients home; a browser's other requests go by the cookie that "
        "the first page sets.",
        without_cookies="find their kernels and sessions: the ids are in the path. Other requests may reach another "
        "worker.",
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
        without_cookies="keep their sessions: the id is in the query or in a header. Files that cells show may come "
        "from another worker, which answers 404.",
        app='app = marimo.create_asgi_app().with_app(path="/", root="notebook.py").build()',
    ),
    "mcp": Preset(
        product="MCP",
        sets={
            "by": f"header:mcp-session-id,{MINTED['mcp']},affinity",
            "learn": "header:mcp-session-id",
            "mint": "mcp",
        },
        why="With Streamable HTTP the server makes the session id, names it in a header of its first answer, and "
        "answers 404 to an id that it does not know. limpet learns the id before that answer leaves. The older "
        "transport by SSE sends its id in an event; limpet has it made such that it hashes to the worker that makes "
        "it. The protocol's newest form (2026-07-28) has no session: its clients stay with a worker by limpet's "
        "cookie if they keep cookies, as those of the Python SDK do.",
        without_cookies="keep their sessions: the ids are in a header or in the query. In the newest form each request "
        "may reach another worker.",
        app='server = MCPServer("notes")\napp = server.streamable_http_app()',
        notes=(
            "In the newest form a call that needs more input carries a sealed `requestState`. The SDK (2.3) seals it "
            "with a random key of its process. limpet gives all workers one key, made from its secret, so each opens "
            "what another has sealed. A key of your own (`request_state_security=`) is left alone.",
            "That key is for all servers of MCP in the application. Give each a name of its own: the SDK binds what it "
            "seals to the name.",
            "Notifications of the newest form (`subscriptions/listen`) reach clients of all workers, by limpet's bus. "
            "A bus that you give to `MCPServer(subscriptions=)` is left alone.",
            "A handle that a tool makes can find its worker. Make it by `limpet.mint`, annotate the argument with "
            "`x-mcp-header`, and clients repeat it in a header: `--by header:mcp-param-NAME,...`. See "
            "[sessions](sessions.md#mcp-without-sessions).",
            "A proxy in front must pass on `Host`, which the SDK checks.",
        ),
    ),
    "nicegui": Preset(
        product="NiceGUI",
        sets={"by": "affinity"},
        why="The id of a page's client is in its HTML, then in the query of its websocket and the path of its uploads. "
        "Elements and what they hold live in the process that has rendered the page.",
        without_cookies="do not work: the websocket may reach another worker than the one that made the page.",
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
        without_cookies="do not work: the websocket may reach another worker than the one that made the page.",
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
        without_cookies="keep their sessions: the token is in the query or in a header.",
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
        without_cookies="work over their websocket. Uploads and downloads are requests of their own, and may reach "
        "another worker, which answers 404.",
        app="app = App(app_ui, server)",
        notes=('Shiny Express: `app = wrap_express_app(Path("app.py"))`, of `shiny.express`.',),
    ),
    "socketio": Preset(
        product="python-socketio",
        sets={"by": "query:sid", "mint": "socketio"},
        why="The server makes the `sid` that later requests carry in the query, and names it in a body, where no "
        "router sees it. limpet has it made such that it hashes to the worker that makes it; the application does not "
        "change.",
        without_cookies="keep their sessions: the id is in the query.",
        app='sio = socketio.AsyncServer(async_mode="asgi")\napp = socketio.ASGIApp(sio)',
        notes=("A `generate_id` of the application's own is left alone; `limpet.mint` does the same for it.",),
    ),
    "solara": Preset(
        product="Solara",
        sets={"by": "affinity"},
        why="Each page has a kernel, whose id is in the path of its websocket; it lives in one process. Solara has a "
        "cookie for each browser, but makes it after the client was routed.",
        without_cookies="work over their websocket. A reconnect may reach another worker, where a new kernel begins.",
        app="from solara.server.starlette import app  # and SOLARA_APP=page.py in the environment",
        notes=("`solara run` starts a server of its own, in one process: leave it out.",),
    ),
    "streamlit": Preset(
        product="Streamlit",
        sets={"by": "affinity"},
        why="A session begins with its websocket. Uploads have its id in the path, pictures and other media have none; "
        "all of it is in the memory of one process.",
        without_cookies="work over their websocket. Uploads, downloads and pictures are requests of their own, and "
        "may reach another worker.",
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
        without_cookies="keep their uploads: the id is in the path.",
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
