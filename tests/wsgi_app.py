"""WSGI applications that tell what they see, read bodies of any kind and stream."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.validate import validator

_feed: queue.Queue[bytes] = queue.Queue()


def raw(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """GET `/feed` streams what is sent by POST; else answer with the environment and the hash of the body."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] != "/feed":
        return [json.dumps(facts(environ) | seen(body)).encode()]
    if environ["REQUEST_METHOD"] == "POST":
        _feed.put(body)
        return [b"sent"]
    return stream()


def flask() -> Any:
    """Return a Flask application that does the same."""
    from flask import Flask, request

    app = Flask(__name__)

    @app.route("/feed", methods=["POST"])
    def send() -> str:
        _feed.put(request.get_data())
        return "sent"

    @app.get("/feed")
    def receive() -> Any:
        return stream(), {"Content-Type": "text/plain"}

    @app.route("/", defaults={"path": ""}, methods=["GET", "POST"])
    @app.route("/<path:path>", methods=["GET", "POST"])
    def view(path: str) -> dict[str, Any]:
        return facts(request.environ) | seen(request.get_data())

    return app


def stream() -> Iterator[bytes]:
    """Yield what is sent until something empty is."""
    while event := _feed.get():
        yield event


def facts(environ: dict[str, Any]) -> dict[str, Any]:
    """Return what of the environment is text, and where this runs."""
    texts = {name: value for name, value in environ.items() if isinstance(value, str) and name == name.upper()}
    return texts | {"pid": os.getpid(), "slot": int(os.environ["LIMPET_SLOT"]), "scheme": environ["wsgi.url_scheme"]}


def seen(body: bytes) -> dict[str, Any]:
    """Return what tells one body from another."""
    return {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def probe(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Do what the path says; the rest of it is a number."""
    name, _, number = environ["PATH_INFO"].strip("/").partition("/")
    found: Iterable[bytes] = PROBES[name](environ, start_response, int(number or 0))
    return found


OK = ("200 OK", [("Content-Type", "text/plain")])
yielded = 0
closed = 0
_running = 0
_lock = threading.Lock()


def _facts(environ: dict[str, Any], start: Any, number: int) -> Iterable[bytes]:
    start(*OK)
    return [json.dumps(facts(environ) | {"yielded": yielded, "closed": closed, "running": _running}).encode()]


def _body(environ: dict[str, Any], start: Any, number: int) -> Iterable[bytes]:
    body = environ["wsgi.input"]
    start(*OK)
    read = body.read(number) if number else b"".join(iter(lambda: body.read(4096), b""))
    return [json.dumps(seen(read)).encode()]


def _unread(environ: dict[str, Any], start: Any, number: int) -> Iterable[bytes]:
    start("401 Unauthorized", [("Content-Length", "2"), *OK[1]])
    return [b"no"]


def _wait(environ: dict[str, Any], start: Any, milliseconds: int) -> Iterable[bytes]:
    global _running
    with _lock:
        _running += 1
    time.sleep(milliseconds / 1000)
    with _lock:
        _running -= 1
    start(*OK)
    return [b"waited"]


class _Stream:
    """So many pieces of 64 KiB, counted, closed how often is counted, too."""

    def __init__(self, number: int) -> None:
        self._left = number

    def __iter__(self) -> Iterator[bytes]:
        global yielded
        for _ in range(self._left):
            yielded += 1
            yield bytes(65_536)

    def close(self) -> None:
        global closed
        closed += 1


def _stream(environ: dict[str, Any], start: Any, number: int) -> Iterable[bytes]:
    start(*OK)
    return _Stream(number)


def _fail(environ: dict[str, Any], start: Any, number: int) -> Iterable[bytes]:
    if number:
        start(*OK)
    raise KeyError("failed")


def _fail_midway(environ: dict[str, Any], start: Any, number: int) -> Iterable[bytes]:
    start(*OK)
    yield b"begun"
    raise KeyError("failed")


def _length(environ: dict[str, Any], start: Any, number: int) -> Iterable[bytes]:
    start("200 OK", [("Content-Length", str(number)), *OK[1]])
    return iter([b"0123456789"])


def _session(environ: dict[str, Any], start: Any, number: int) -> Iterable[bytes]:
    start("200 OK", [("X-Session", environ.get("HTTP_X_SESSION") or uuid.uuid4().hex)])
    return [os.environ["LIMPET_SLOT"].encode()]


PROBES: dict[str, Any] = {
    "facts": _facts,
    "body": _body,
    "unread": _unread,
    "wait": _wait,
    "stream": _stream,
    "fail": _fail,
    "midway": _fail_midway,
    "length": _length,
    "session": _session,
}


def validated() -> Any:
    """Return `probe` between wsgiref's validator."""
    return validator(probe)


def by_werkzeug(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    """Answer with what an upload has, as Flask sees it."""
    from werkzeug.wrappers import Request

    request = Request(environ)
    found = {name: seen(file.read()) for name, file in request.files.items()} | dict(request.form)
    start(*OK)
    return [json.dumps(found).encode()]


def by_django() -> Any:
    """Return an application of Django that does so."""
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import JsonResponse
    from django.urls import path

    def view(request: Any) -> Any:
        files = {name: seen(file.read()) for name, file in request.FILES.items()}
        return JsonResponse(files | request.POST.dict())

    settings.configure(ROOT_URLCONF=(path("", view),), ALLOWED_HOSTS=["*"], DATA_UPLOAD_MAX_MEMORY_SIZE=None)
    return get_wsgi_application()


def by_python_multipart(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    """Do so by the parser of Starlette."""
    from python_multipart import parse_form

    found: dict[str, Any] = {}

    def on_field(field: Any) -> None:
        found[field.field_name.decode()] = field.value.decode()

    def on_file(file: Any) -> None:
        file.file_object.seek(0)
        found[file.field_name.decode()] = seen(file.file_object.read())
        file.close()

    headers = {"Content-Type": environ["CONTENT_TYPE"].encode(), "Content-Length": environ["CONTENT_LENGTH"].encode()}
    parse_form(headers, environ["wsgi.input"], on_field, on_file)
    start(*OK)
    return [json.dumps(found).encode()]


def by_lines(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    """Answer with the body as the standard library's `cgi` reads it, and what has been copied from that."""
    lines = iter(lambda: environ["wsgi.input"].readline(1 << 16), b"")
    start(*OK)
    return [json.dumps(seen(b"".join(lines))).encode()]
