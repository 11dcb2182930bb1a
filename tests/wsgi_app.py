"""WSGI applications that tell what they see, read bodies of any kind and stream."""

from __future__ import annotations

import hashlib
import json
import os
import queue
from collections.abc import Callable, Iterable, Iterator
from typing import Any

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
