"""The rows of the matrix: each server, with each choice that makes it another server underneath."""

from __future__ import annotations

from typing import Final, NamedTuple

from limpet.config.server_kinds import KINDS

BOTH: Final = ("kernel", "dispatcher")


class Variant(NamedTuple):
    """One row."""

    server: str
    app: str
    arguments: tuple[str, ...] = ()
    websocket: str = ""  # its path, where the application has one
    keeps_alive: bool = True

    @property
    def name(self) -> str:
        """Return what it is called in the table: what a user types."""
        return f"`{' '.join([self.server, *self.arguments])}`"

    @property
    def made(self) -> str:
        """Return of what kind the application is."""
        if self.server == "script":
            return f"`{self.app.rpartition(':')[2]}` of tests/matrix/programs.py"
        return {ASGI: "ASGI", WSGI: "WSGI"}.get(self.app, KINDS[self.server].interface.replace("asgi", "ASGI"))

    @property
    def backends(self) -> tuple[str, ...]:
        """Return those on which it runs."""
        return BOTH if KINDS[self.server].takes == "any" else ("kernel",)


def header() -> list[tuple[str, str]]:
    """Return for each promise the name of its test and the title of its column."""
    return [
        ("test_keep_alive", "keep-alive"),
        ("test_client_address", "client's address and port"),
        ("test_body_of_300_kb", "300 kB body"),
        ("test_64_in_parallel_by_ip", "64 in parallel, sticky by ip"),
        ("test_by_header", "sticky by header"),
        ("test_websocket", "websocket"),
        ("test_connections_count", "connections are counted"),
        ("test_kill", "kill -9: same slot, next worker"),
        ("test_stop_with_a_request_in_flight", "stop finishes what is in flight"),
    ]


ASGI: Final = "tests.server_apps:asgi"
WSGI: Final = "tests.server_apps:wsgi"

VARIANTS: Final = (
    Variant("uvicorn", ASGI, websocket="/"),
    Variant("uvicorn", ASGI, ("--loop", "asyncio", "--http", "h11"), websocket="/"),
    Variant("uvicorn", WSGI),
    Variant("hypercorn", ASGI, websocket="/"),
    Variant("hypercorn", ASGI, ("--loop", "asyncio"), websocket="/"),
    Variant("hypercorn", "tests.matrix.trio_app:app", ("--loop", "trio"), websocket="/"),
    Variant("granian", ASGI, websocket="/"),
    Variant("gunicorn", WSGI),
    Variant("gunicorn", WSGI, ("--worker-class", "sync"), keeps_alive=False),
    Variant("gunicorn", WSGI, ("--worker-class", "gevent")),
    Variant("gunicorn", ASGI, ("--worker-class", "asgi"), websocket="/"),
    Variant("gunicorn", ASGI, ("--worker-class", "uvicorn-worker"), websocket="/"),
    Variant("waitress", WSGI),
    Variant("aiohttp", "tests.matrix.aiohttp_app:app", websocket="/ws"),
    Variant("tornado", "tests.matrix.tornado_app:app", websocket="/ws"),
    Variant("sanic", "tests.matrix.sanic_app:app", websocket="/ws"),
    Variant("sanic", "tests.matrix.sanic_app:app", ("--loop", "asyncio"), websocket="/ws"),
    Variant("daphne", ASGI, websocket="/"),
    Variant("twisted", "tests.matrix.twisted_app:site"),
    Variant("socketserver", "tests.matrix.handlers:Handler"),
    Variant("stream", "tests.matrix.streams:handle"),
    Variant("trio", "tests.matrix.streams:handle_trio"),
    Variant("anyio", "tests.matrix.streams:handle_anyio"),
    Variant("anyio", "tests.matrix.streams:handle_anyio", ("--loop", "trio")),
    Variant("script", "tests.matrix.programs:uvicorn_on_uvloop", websocket="/"),
    Variant("script", "tests.matrix.programs:asyncio_server"),
    Variant("script", "tests.matrix.programs:threads"),
)
