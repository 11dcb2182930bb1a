"""The servers that a worker can run, and what each of them can do.

Owns one table, `KINDS`. Checks of settings use it, and tests compare it with the documentation. servers/registry.py
finds and calls the adapter of a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from limpet.errors import SettingsError

GROUP: Final = "limpet.servers"
"""The group of entry points by which an installed package offers a server."""


@dataclass(frozen=True, slots=True)
class ServerKind:
    """What one server can do."""

    module: str  # of the adapter; `module:function` for a server that is not limpet's own
    interface: str  # what it calls: "asgi", "wsgi", or in words what else APP must be
    takes: str = "any"  # which connections it gets: "any", or "accepted" if only those that it accepts itself
    moves: bool = False  # hands a connection on when a later request on it belongs to another slot
    hears: str = "never"  # when applications see the client of a PROXY header: "always", on "asyncio" only, or "never"
    closes: bool = True  # can end each connection with its response
    websocket: bool = False
    http: bool = True  # serves only HTTP; False: any protocol, so no key can be looked for in requests
    runs_hooks: bool = False  # calls the functions of worker/hooks.py itself, on its event loop
    extra: str | None = None  # the extra of limpet that installs it


KINDS: Final[Mapping[str, ServerKind]] = {
    "uvicorn": ServerKind(
        "limpet.servers.uvicorn.server", "asgi", moves=True, hears="always", websocket=True, runs_hooks=True
    ),
    "hypercorn": ServerKind(
        "limpet.servers.hypercorn.server", "asgi", hears="always", websocket=True, runs_hooks=True, extra="hypercorn"
    ),
    "granian": ServerKind(
        "limpet.servers.granian", "asgi", "accepted", websocket=True, runs_hooks=True, extra="granian"
    ),
    "gunicorn": ServerKind("limpet.servers.gunicorn.server", "wsgi", hears="always", extra="gunicorn"),
    "waitress": ServerKind("limpet.servers.waitress", "wsgi", hears="always", extra="waitress"),
    "aiohttp": ServerKind(
        "limpet.servers.aiohttp",
        "an `aiohttp.web.Application`",
        hears="asyncio",
        websocket=True,
        runs_hooks=True,
        extra="aiohttp",
    ),
    "tornado": ServerKind(
        "limpet.servers.tornado",
        "a `tornado.web.Application`",
        hears="always",
        websocket=True,
        runs_hooks=True,
        extra="tornado",
    ),
    "sanic": ServerKind(
        "limpet.servers.sanic", "a `sanic.Sanic`", hears="asyncio", websocket=True, runs_hooks=True, extra="sanic"
    ),
    "daphne": ServerKind(
        "limpet.servers.daphne", "asgi", hears="always", websocket=True, runs_hooks=True, extra="daphne"
    ),
    "twisted": ServerKind(
        "limpet.servers.twisted.server",
        "a resource, site or protocol factory of Twisted",
        hears="always",
        extra="twisted",
    ),
    "stream": ServerKind(
        "limpet.servers.stream",
        "an `async def handle(reader, writer)` or a factory of asyncio protocols",
        hears="asyncio",
        runs_hooks=True,
        http=False,
    ),
    "trio": ServerKind(
        "limpet.servers.trio.server", "an `async def handle(stream)`, on trio", http=False, extra="trio"
    ),
    "anyio": ServerKind("limpet.servers.anyio", "an `async def handle(stream)`, on anyio", http=False, extra="anyio"),
    "socketserver": ServerKind(
        "limpet.servers.socketserver", "a handler class, as for `socketserver` or `http.server`", hears="always"
    ),
    "script": ServerKind(
        "limpet.servers.script", "a function that serves on `limpet.listener()`", hears="always", closes=False
    ),
}
ON_TRIO: Final = frozenset({"hypercorn", "trio", "anyio"})
"""The servers that work with `--loop trio`."""

ASGI_CLASSES: Final = frozenset({"asgi", "uvicorn-worker"})
"""The worker classes of gunicorn that call ASGI."""

FOREIGN: Final = "whatever its adapter serves"


@cache
def kind(name: str) -> ServerKind:
    """Return what the server *name* can do: one of limpet's, `module:function`, or an installed entry point.

    Imports no user code. Raises SettingsError.
    """
    if name in KINDS:
        return KINDS[name]
    module, colon, function = name.partition(":")
    if colon and function.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return ServerKind(name, FOREIGN, closes=False)
    from importlib.metadata import entry_points  # only here: it takes longer to import than everything else

    offered = {point.name: point.value for point in entry_points(group=GROUP)}
    if name in offered:
        return ServerKind(offered[name], FOREIGN, closes=False)
    known = ", ".join(f"`{each}`" for each in [*KINDS, *offered])
    raise SettingsError(
        f"unknown server `{name}`", hint=f"the servers are {known}; `module:function` is an adapter of your own"
    )


def interface(server: str, worker_class: str) -> str:
    """Return what *server* calls: "asgi", "wsgi", or in words what else APP must be.

    *worker_class* is gunicorn's; other servers have none.
    """
    is_asgi = server == "gunicorn" and worker_class in ASGI_CLASSES
    return "asgi" if is_asgi else kind(server).interface


def at_home(app: object) -> str | None:
    """Return the server that belongs to the framework of *app*, or None if the class of *app* does not say."""
    framework = type(app).__module__.partition(".")[0]
    return framework if framework in KINDS and KINDS[framework].interface not in ("asgi", "wsgi") else None
