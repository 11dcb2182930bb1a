"""How limpet itself answers a client: the few responses that no worker gives.

Owns the bytes of these answers and the manner of closing after one. Called by the dispatcher; knows nothing of why.

A socket that is closed while unread bytes wait in it sends RST, which may destroy the answer before the client has
read it. So a refused connection is half-closed and drained for a moment first.
"""

from __future__ import annotations

import contextlib
import http
import socket
from collections.abc import Mapping
from typing import Final

LINGER_S: Final = 2.0  # how long a refused client may take to read its answer and close
_DRAIN_BYTES: Final = 65536  # read at once of what a refused client still sends
_TEXT: Final[Mapping[int, str]] = {
    400: "bad request",
    408: "the request head did not arrive in time",
    429: "this address has too many connections",
    431: "the request head is too large",
    503: "no worker can take this request now",
}


def answer(status: int, reason: str = "") -> bytes:
    """Return the whole response for *status*; *reason* says more than the status does."""
    body = f"{reason or _TEXT[status]}\n".encode()
    retry = "Retry-After: 1\r\n" if status in (429, 503) else ""
    head = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n{retry}Connection: close\r\n\r\n"
    )
    return head.encode() + body


class Refused:
    """A client connection that has its answer and now only has to end. Closes it."""

    __slots__ = ("_socket", "deadline")

    def __init__(self, connection: socket.socket, status: int, reason: str, now: float) -> None:
        self._socket = connection
        self.deadline = now + LINGER_S
        with contextlib.suppress(OSError):  # a client that has gone needs no answer
            connection.send(answer(status, reason), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            connection.shutdown(socket.SHUT_WR)

    def fileno(self) -> int:
        """Return the descriptor to watch for readability."""
        return self._socket.fileno()

    def drained(self) -> bool:
        """Throw away what came; return True when the client has closed. Blocks never."""
        try:
            return not self._socket.recv(_DRAIN_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
