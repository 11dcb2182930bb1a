"""The user's code: importing an application or a key function, and telling an ASGI application from a WSGI one.

Owns every import of user code; called in workers, dispatchers and `limpet check`, never in the supervisor. What goes
wrong here is the user's to repair, so it ends in an AppError whose cause keeps the traceback.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from limpet.config import conflicts, server_kinds
from limpet.config.settings import Settings
from limpet.errors import AppError, LimpetError
from limpet.ipc.scoreboard import Row
from limpet.logs import Hourly
from limpet.routing import elements
from limpet.servers import registry

Application = Callable[..., Any]
log = logging.getLogger("limpet")


def look_in(directories: Sequence[str]) -> None:
    """Let user code be imported from *directories* before anywhere else, without any from the current one."""
    first = [os.path.abspath(directory) for directory in directories] or [os.getcwd()]
    sys.path[:] = [*first, *(directory for directory in sys.path if directory not in first)]


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
            raise AppError(f"the factory `{settings.app}` raised {_name(error)}: {error}") from error
    wanted = server_kinds.interface(settings)
    if wanted not in ("asgi", "wsgi"):
        return _fitting(app, wanted, settings)
    interface = settings.interface if settings.interface != "auto" else interface_of(app)
    made_for = server_kinds.at_home(app)
    if interface is None or (made_for and settings.interface == "auto"):
        other = "`--factory` if it is a function that returns the application, or `--interface asgi|wsgi`"
        raise AppError(
            f"`{settings.app}` is {_kind(app)}, not an ASGI or WSGI application",
            hint=f"`--server {made_for}`" if made_for else other,
        )
    if wanted == "wsgi":
        return _only_wsgi(app, interface, settings)
    return wsgi(app) if interface == "wsgi" else asgi(app)


def _fitting(app: Application, wanted: str, settings: Settings) -> Application:
    """Return *app* if it is what the server serves. Raises AppError."""
    if settings.server in server_kinds.KINDS and not registry.module(settings.server).fits(app):
        hint = "`--server uvicorn` serves ASGI and WSGI" if interface_of(app) else "`--factory` if it returns that"
        raise AppError(f"`{settings.app}` is {_kind(app)}, and `--server {settings.server}` serves {wanted}", hint=hint)
    return app


def takes(app: Any, number: int, *, is_async: bool) -> bool:
    """Return whether *app* is a function of *number* arguments, and a coroutine function or not."""
    if not callable(app) or inspect.iscoroutinefunction(_call(app)) != is_async:
        return False
    try:
        inspect.signature(app).bind(*range(number))
    except (TypeError, ValueError):
        return False
    return True


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


def load_function(text: str) -> Callable[..., object]:
    """Return the key function named `module:function`. Raises AppError. Runs in a dispatcher or worker."""
    function = import_object(text, "key function")
    if not callable(function):
        raise AppError(f"the key function `{text}` is {_kind(function)}, not a function")
    found: Callable[..., object] = function
    return found  # what it answers is checked at each call


class Complaints:
    """Counts what key functions do wrong, and says so once an hour for each: a `KeyChain`'s `on_error`."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._hourly = Hourly()

    def __call__(self, element: str, error: BaseException | str) -> None:
        self._row.add("key_errors")
        if self._hourly.allows(element, time.monotonic()):
            log.warning("`%s` %s; clients go by the rest of the key chain", element, self._what(error))

    def _what(self, error: BaseException | str) -> str:
        """Return what was wrong. Never the text of an exception of the user's: that may hold the key."""
        if isinstance(error, str):
            return error
        where = traceback.extract_tb(error.__traceback__)[-1]
        if where.filename == elements.__file__:
            return f"answered no key: {error}"
        return f"raised {_name(error)} in {where.filename}:{where.lineno}"


def import_object(text: str, what: str) -> Any:
    """Return what `module:attribute` names. Raises AppError that says which part is missing."""
    module_name, colon, attribute = text.partition(":")
    if not (module_name and colon and attribute):
        raise AppError(
            f"the {what} `{text}` is not of the form `module:attribute`", hint=f"`{module_name or 'app'}:app`"
        )
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            hint = f"run it from the directory that holds `{error.name.partition('.')[0]}`, or install it"
            raise AppError(f"cannot import {what} `{text}`: there is no module `{error.name}`", hint=hint) from None
        raise _import_failed(what, text, error) from error
    except LimpetError:  # as of a server that it would start in here
        raise
    except (Exception, SystemExit) as error:
        raise _import_failed(what, text, error) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            names = [known for known in vars(found) if callable(getattr(found, known)) and known[0] != "_"]
            names = difflib.get_close_matches(name, names) or names[:8]
            listed = ", ".join(f"`{known}`" for known in names)
            message = f"cannot import {what} `{text}`: `{module_name}` has no `{attribute}`"
            raise AppError(message, hint=f"`{module_name}` has {listed}" if names else None)
        found = getattr(found, name)
    return found


def interface_of(app: object) -> str | None:
    """Return "asgi" or "wsgi" by how *app* can be called, None when it is neither.

    ASGI 3 is a coroutine function of three parameters, ASGI 2 a callable of one, WSGI a callable of two. Decorated
    and partial applications that do not look like coroutine functions still have their number of parameters.
    """
    if not callable(app):
        return None
    if inspect.iscoroutinefunction(_call(app)):
        return "asgi"
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [item for item in parameters if item.kind in kinds and item.default is inspect.Parameter.empty]
    return {1: "asgi", 2: "wsgi", 3: "asgi"}.get(len(required))


def asgi(app: Application) -> Application:
    """Return *app* as ASGI 3: an ASGI 2 application is called in two steps."""
    if inspect.iscoroutinefunction(_call(app)) or len(inspect.signature(app).parameters) != 1:
        return app

    async def asgi3(scope: Any, receive: Any, send: Any) -> None:
        await app(scope)(receive, send)

    return asgi3


def wsgi(app: Application) -> Application:
    """Return *app* as ASGI 3, its calls made in threads."""
    from a2wsgi import WSGIMiddleware  # only workers that serve WSGI pay for the import

    def called(environ: Any, start_response: Any) -> Any:
        environ["wsgi.input_terminated"] = True  # else Flask takes a body without a length, one in chunks, for none
        environ["wsgi.errors"] = sys.stderr
        return app(environ, start_response)

    served = WSGIMiddleware(called)

    async def asgi3(scope: Any, receive: Any, send: Any) -> None:
        async def receive_whole() -> Any:
            message = await receive()
            if message["type"] == "http.disconnect":  # else half a body would be taken for a whole one
                raise ConnectionError("the client left before the end of its request")
            return message

        await served(scope, receive_whole, send)

    return asgi3


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
    return [
        f"application {settings.app}: {interface or server_kinds.interface(settings)}",
        f"key chain {chain.spec}: {head}",
        f"backend {name}: {why}",
    ]


def _call(app: Application) -> Application:
    """Return what runs when *app* is called: for an object that is its class's `__call__`."""
    if inspect.isroutine(app) or inspect.isclass(app):
        return app
    call: Application = app.__call__  # type: ignore[operator]  # mypy does not see it on a callable
    return call


def _import_failed(what: str, text: str, error: BaseException) -> AppError:
    return AppError(f"cannot import {what} `{text}`: {_name(error)}: {error}")


def _name(error: BaseException) -> str:
    return type(error).__name__


def _kind(found: object) -> str:
    return f"a {type(found).__name__}" if not callable(found) else f"`{found!r}`"
