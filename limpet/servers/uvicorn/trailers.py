"""Trailers at httptools, which reports them as further headers of the request: uvicorn appends them to its scope.

Owns which of them cannot be dropped, and uvicorn's own protocol without them, for workers in which nothing else is
limpet's (gunicorn's uvicorn-worker). Our protocols count them, too: see protocols.py. It changes nothing of uvicorn
when it is imported.
"""

from __future__ import annotations

from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

OBEYED: Final = (b"connection", b"proxy-connection")  # what llhttp takes for a header of the message even in trailers


class ObeyedError(Exception):
    """Makes the parser stop: behind `connection: close` it would skip the next request in silence."""


class _Complete(list[tuple[bytes, bytes]]):
    """The headers of a request whose body has begun: no more are added."""

    def append(self, trailer: tuple[bytes, bytes]) -> None:
        """Drop *trailer*; raise ObeyedError for one that llhttp obeys."""
        if trailer[0] in OBEYED:
            raise ObeyedError


class WithoutTrailers(HttpToolsProtocol):
    """uvicorn's protocol, whose scopes have the headers of the head alone."""

    def on_chunk_header(self) -> Any:
        """Leave the headers as they are from now on; the next request gets a list of its own."""
        self.headers = _Complete()
