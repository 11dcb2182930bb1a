"""The user's code: importing an application or a key function, and telling ASGI applications from WSGI ones.

Owns every import of user code. Workers, dispatchers and `limpet check` call it; the supervisor never does. If something
fails here, the user has to fix it: it becomes an AppError whose cause keeps the traceback.
"""

from __future__ import annotations

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

from limpet.errors import AppError, LimpetError
from limpet.ipc.scoreboard import Row
from limpet.logs import Hourly
from limpet.routing import elements

Application = Callable[..., Any]
log = logging.getLogger("limpet")


def look_in(directories: Sequence[str]) -> None:
    """Let user code be imported from *directories* first. Without any, the current directory is used."""
    first = [os.path.abspath(directory) for directory in directories] or [os.getcwd()]
    sys.path[:] = [*first, *(directory for directory in sys.path if directory not in first)]


def takes(app: Any, number: int, *, is_async: bool) -> bool:
    """Return whether *app* can be called with *number* arguments and is a coroutine function exactly if *is_async*."""
    if not callable(app) or inspect.iscoroutinefunction(_call(app)) != is_async:
        return False
    try:
        inspect.signature(app).bind(*range(number))
    except (TypeError, ValueError):
        return False
    return True


def load_function(text: str) -> Callable[..., object]:
    """Return the key function named `module:function`. Raises AppError. Runs in a dispatcher or worker."""
    function = import_object(text, "key function")
    if not callable(function):
        raise AppError(f"the key function `{text}` is {describe(function)}, not a function")
    found: Callable[..., object] = function
    return found  # its results are checked at each call


def end_copy(pid: int) -> None:
    """End this process if it is not *pid*: user code forked while it was imported, and this is the copy.

    A copy that went on would read the same channel as the original and use the same line. Called after all user code
    was imported and before anything is served.
    """
    if os.getpid() != pid:
        log.error(
            "user code forked while it was imported, and the forked copy (pid %d) returned from the import: it ends",
            os.getpid(),
            extra={"event": "forked_at_import"},
        )
        logging.shutdown()
        os._exit(1)


class Complaints:
    """Counts faults of key functions, and logs each once an hour: the `on_error` of a `KeyChain`."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._hourly = Hourly()

    def __call__(self, element: str, error: BaseException | str) -> None:
        self._row.add("key_errors")
        if self._hourly.allows(element, time.monotonic()):
            log.warning(
                "`%s` %s; the rest of the key chain is used",
                element,
                self._what(error),
                extra={"event": "key_function_failed"},
            )

    def _what(self, error: BaseException | str) -> str:
        """Return what was wrong. It never includes the text of a user's exception, because that may contain the key."""
        if isinstance(error, str):
            return error
        where = traceback.extract_tb(error.__traceback__)[-1]
        if where.filename == elements.__file__:
            return f"did not return a key: {error}"
        return f"raised {class_name(error)} in {where.filename}:{where.lineno}"


def import_object(text: str, what: str) -> Any:
    """Return the object that `module:attribute` names. Raises AppError, which says which part is missing."""
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
    except LimpetError:  # for example from a server that the module would start
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
    """Return "asgi" or "wsgi" by how *app* can be called, or None if it is neither.

    ASGI 3 is a coroutine function with three parameters, ASGI 2 a callable with one, WSGI a callable with two.
    Decorated and partial applications may not look like coroutine functions, but still have the right number of
    parameters.
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
    """Return *app* as ASGI 3. An ASGI 2 application is called in two steps."""
    if inspect.iscoroutinefunction(_call(app)) or len(inspect.signature(app).parameters) != 1:
        return app

    async def asgi3(scope: Any, receive: Any, send: Any) -> None:
        await app(scope)(receive, send)

    return asgi3


def _call(app: Application) -> Application:
    """Return the function that runs when *app* is called: for an object, the `__call__` of its class."""
    if inspect.isroutine(app) or inspect.isclass(app):
        return app
    call: Application = app.__call__  # type: ignore[operator]  # mypy does not see it on a callable
    return call


def _import_failed(what: str, text: str, error: BaseException) -> AppError:
    return AppError(f"cannot import {what} `{text}`: {class_name(error)}: {error}")


def class_name(error: BaseException) -> str:
    return type(error).__name__


def describe(found: object) -> str:
    return f"a {type(found).__name__}" if not callable(found) else f"`{found!r}`"
