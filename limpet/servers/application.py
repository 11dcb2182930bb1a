"""The application as its server calls it: ASGI or WSGI, and wrapped where the server speaks the other.

Owns which adapter serves and what it is given. What can be imported, and what is said when that fails, is
worker/user_code.py's business. Called in workers and by `limpet check`, never in the supervisor.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from limpet import current
from limpet.config import conflicts, server_kinds
from limpet.config.settings import Settings
from limpet.errors import AppError
from limpet.servers import registry
from limpet.worker.user_code import Application, asgi, class_name, describe, import_object, interface_of, load_function

log = logging.getLogger("limpet")


class PerBind(tuple[Application, ...]):
    """The application of each bind, where binds differ in what they serve or by which key chain."""

    __slots__ = ()


def load(settings: Settings) -> Application | PerBind:
    """Return the settings' application as its server calls it, or those of all binds. Raises AppError."""
    wanted = [(each.app, each.server) for each in settings.served]
    loaded = {}
    for app, server in dict.fromkeys(wanted):
        own: dict[str, Any] = {"app": app, "server": server}
        loaded[app, server] = _load(dataclasses.replace(settings, **own))
    several = len({(each.app, each.by, each.server) for each in settings.served}) > 1
    return PerBind(loaded[each] for each in wanted) if several else loaded[wanted[0]]


def _load(settings: Settings) -> Application:
    """Return the settings' application as the server calls it: as an ASGI 3 callable, or as a WSGI one.

    A server that calls ASGI gets WSGI ones in a pool of threads. Raises AppError. Runs in a worker.
    """
    app = import_object(settings.app, "application")
    if settings.factory:
        try:
            app = app()
        except Exception as error:
            raise AppError(f"the factory `{settings.app}` raised {class_name(error)}: {error}") from error
    wanted = server_kinds.interface(settings.server, settings.worker_class)
    if wanted not in ("asgi", "wsgi"):
        return _fitting(app, wanted, settings)
    interface = settings.interface if settings.interface != "auto" else interface_of(app)
    made_for = server_kinds.at_home(app)
    if interface is None or (made_for and settings.interface == "auto"):
        other = "`--factory` if it is a function that returns the application, or `--interface asgi|wsgi`"
        raise AppError(
            f"`{settings.app}` is {describe(app)}, not an ASGI or WSGI application",
            hint=f"`--server {made_for}`" if made_for else other,
        )
    if wanted == "wsgi":
        return _only_wsgi(app, interface, settings)
    return _in_threads(app, settings) if interface == "wsgi" else asgi(app)


def _fitting(app: Application, wanted: str, settings: Settings) -> Application:
    """Return *app* if it is what the server serves. Raises AppError."""
    if settings.server in server_kinds.KINDS and not registry.module(settings.server).fits(app):
        hint = "`--server uvicorn` serves ASGI and WSGI" if interface_of(app) else "`--factory` if it returns that"
        raise AppError(
            f"`{settings.app}` is {describe(app)}, and `--server {settings.server}` serves {wanted}", hint=hint
        )
    return app


def adapter(settings: Settings) -> Callable[[Any, Any], None]:
    """Return the `serve` of the server's adapter. Raises AppError, as when that server is not installed."""
    kind = server_kinds.kind(settings.server)
    if settings.server in server_kinds.KINDS:
        module = registry.module(settings.server)
        if hasattr(module, "prepare"):
            module.prepare(settings)
        found = module.serve
    else:
        found = import_object(kind.module, "server")
    serve: Callable[[Any, Any], None] = found
    return serve


def _only_wsgi(app: Application, interface: str, settings: Settings) -> Application:
    """Return *app* if it is a WSGI application. Raises AppError."""
    if interface != "wsgi":
        raise AppError(
            f"`{settings.app}` is an ASGI application, and `{settings.server}` serves WSGI alone",
            hint="`--server uvicorn` serves ASGI, websockets included",
        )
    return app


def _in_threads(app: Application, settings: Settings) -> Application:
    """Return the WSGI application *app* as ASGI 3, its calls made in threads. Raises AppError."""
    from limpet.servers.wsgi import Threaded  # only workers that serve WSGI pay for the import

    if settings.loop == "trio":
        raise AppError(
            f"`{settings.app}` is a WSGI application, and `--loop trio` serves ASGI alone",
            hint="`--loop auto`, or `--server uvicorn`",
        )
    if current.child_role() == "worker" and current.current_worker()[::2] == (0, 1):  # once for the whole server
        log.info(
            "application %s is WSGI: each worker serves it in up to %d threads",
            settings.app,
            settings.threads,
            extra={"event": "wsgi_detected"},
        )
    return Threaded(app, settings.threads)


def has_threads(settings: Settings, interface: str) -> bool:
    """Return whether an application of that *interface* is called in `--threads` threads."""
    return interface == "wsgi" and not (settings.server == "gunicorn" and settings.worker_class in ("sync", "gevent"))


def check(settings: Settings) -> list[str]:
    """Import all user code that *settings* name; return a line on each thing found. Raises LimpetError."""
    from limpet.config.router import build_router
    from limpet.net import backend

    settings = registry.told(settings)
    app = import_object(settings.app, "application")
    interface = settings.interface if settings.interface != "auto" else interface_of(app() if settings.factory else app)
    adapter(settings)
    load(settings)
    router = build_router(settings, b"", load=load_function)  # where keys live is not asked
    chain = router.chain
    conflicts.refuse(settings, chain, is_loaded=True)
    head = "the request head is read" if chain.needs_head else "nothing is read"
    name, why = backend.choose(settings, router)
    spoken = interface or server_kinds.interface(settings.server, settings.worker_class)
    threads = f", in {settings.threads} threads of each worker" if has_threads(settings, spoken) else ""
    return [
        f"application {settings.app}: {spoken}{threads}",
        f"key chain {chain.spec}: {head}",
        f"backend {name}: {why}",
    ]
