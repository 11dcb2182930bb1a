"""Importing the user's code: what is found, how it is called, and in which words it is missed."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limpet.config.settings import Settings
from limpet.errors import AppError
from limpet.servers import application
from limpet.worker import user_code

MODULE = """
import functools

async def asgi(scope, receive, send):
    await send(scope["type"])

def wsgi(environ, start_response): ...
def asgi2(scope): return asgi2_part
async def asgi2_part(receive, send):
    await send("two")
def make(): return asgi
def make_nothing(): return None
def breaks(): raise LookupError("no configuration")
def key(request): return "k"
class Holder:
    app = staticmethod(asgi)
number = 7
_hidden = asgi
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module `site_app`, and some that cannot be imported."""
    files = {
        "site_app": MODULE,
        "site_broken": "raise OSError('no such database')",
        "site_exits": "raise SystemExit(3)",
        "site_misses": "import site_not_there",
        "site_wrong": "def f(:",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in files:
        sys.modules.pop(name, None)


def load(app: str, **settings: Any) -> Any:
    return application.load(Settings(app=app, workers=1, **settings))


def sent_by(app: Any) -> list[Any]:
    """Return what *app* sends for a lifespan."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": "lifespan"}, None, send))
    return sent


class Callable3:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Callable2:
    def __call__(self, environ: Any, start_response: Any) -> None: ...


class Asgi2:
    def __init__(self, scope: Any) -> None: ...


async def asgi3(scope: Any, receive: Any, send: Any, *, extra: int = 1) -> None: ...
def decorated(scope: Any, receive: Any, send: Any) -> None: ...
def wsgi(environ: Any, start_response: Any, spare: int = 0) -> None: ...


@pytest.mark.parametrize(
    ("app", "interface"),
    [
        (asgi3, "asgi"),
        (Callable3(), "asgi"),
        (Callable3().__call__, "asgi"),
        (functools.partial(asgi3, extra=2), "asgi"),
        (decorated, "asgi"),
        (Asgi2, "asgi"),
        (wsgi, "wsgi"),
        (Callable2(), "wsgi"),
        (functools.partial(wsgi, spare=1), "wsgi"),
        (lambda: None, None),
        (lambda a, b, c, d: None, None),
        (7, None),
        (None, None),
        ("site_app:asgi", None),
        ({}, None),
        (sys, None),
    ],
)
def test_interface_is_told_by_how_the_application_can_be_called(app: object, interface: str | None) -> None:
    """Users say `limpet run module:app` for either kind; a guess that is wrong fails at the first request."""
    assert user_code.interface_of(app) == interface


@pytest.mark.parametrize("app", ["site_app:asgi", "site_app:Holder.app", "site_app:_hidden"])
def test_application_of_asgi_3_is_taken_as_it_is(app: str) -> None:
    """Nothing stands between the server and the application without need."""
    assert load(app) is load("site_app:asgi")


def test_application_of_asgi_2_is_called_in_two_steps() -> None:
    """Some frameworks still speak it."""
    assert sent_by(load("site_app:asgi2")) == ["two"]


def test_factory_is_called_for_the_application() -> None:
    """The usual form of a Flask application."""
    assert sent_by(load("site_app:make", factory=True)) == ["lifespan"]


def test_function_is_found_by_name_and_called_by_nobody_yet() -> None:
    """What a key function answers is checked at each call, not here."""
    assert user_code.load_function("site_app:key")(None) == "k"


def test_name_that_is_nearly_right_gets_the_right_one_proposed() -> None:
    """The mistake is mostly one letter; a list of all that a module imports helps nobody."""
    with pytest.raises(AppError) as caught:
        user_code.import_object("site_app:mak", "application")
    assert caught.value.hint == "`site_app` has `make`"


@pytest.mark.parametrize(
    ("app", "settings", "words"),
    [
        ("site_app:absent", {}, "`site_app` has no `absent`"),
        ("site_app:Holder.absent", {}, "`site_app` has no `Holder.absent`"),
        ("site_nowhere:app", {}, "there is no module `site_nowhere`"),
        ("site_app.deeper:app", {}, "there is no module `site_app.deeper`"),
        ("site_misses:app", {}, "ModuleNotFoundError: No module named 'site_not_there'"),
        ("site_broken:app", {}, "OSError: no such database"),
        ("site_exits:app", {}, "SystemExit: 3"),
        ("site_wrong:app", {}, "SyntaxError"),
        ("site_app:number", {}, "is a int, not an ASGI or WSGI application"),
        ("site_app:make", {}, "not an ASGI or WSGI application"),
        ("site_app:make_nothing", {"factory": True}, "is a NoneType, not an ASGI or WSGI application"),
        ("site_app:breaks", {"factory": True}, "raised LookupError: no configuration"),
    ],
)
def test_what_cannot_be_served_is_said_in_words(app: str, settings: dict[str, Any], words: str) -> None:
    """The operator reads which part is missing; a bug in the application keeps its traceback, as the cause."""
    with pytest.raises(AppError) as caught:
        load(app, **settings)
    assert words in caught.value.message
    assert "`" + app in caught.value.message
    assert (caught.value.__cause__ is not None) == (": " in words or "SyntaxError" in words)


@pytest.mark.parametrize("name", ["site_app:number", "site_app:absent", "site_nowhere:key"])
def test_key_function_that_is_none_is_said_so(name: str) -> None:
    """The dispatcher fails to start, and not at the first client."""
    with pytest.raises(AppError, match="key function"):
        user_code.load_function(name)


def test_hint_for_a_misspelt_name_lists_what_is_there() -> None:
    """It is mostly one of these."""
    with pytest.raises(AppError) as caught:
        load("site_app:ap")
    assert caught.value.hint is not None
    assert "`asgi`" in caught.value.hint
    assert "_hidden" not in caught.value.hint
