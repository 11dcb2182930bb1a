"""A client that decides about every byte: in which segment it is sent, and what is read before the next one.

`Wire` is one connection. Its reading side knows just enough of HTTP and of websocket frames to tell where a message
ends, so that what comes behind it, or that nothing does, can be seen. Every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple

from tests.harness import PATIENCE_S, Reply

Address = tuple[str, int] | str
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Frame(NamedTuple):
    """One websocket frame."""

    opcode: int
    payload: bytes


class Wire:
    """A client connection: to a host and port, or to the path of a unix socket."""

    def __init__(
        self, address: Address, source: str | None = None, *, tls: ssl.SSLContext | None = None, name: str | None = None
    ) -> None:
        """With *tls* the connection is one of TLS, which asks for the server *name*."""
        family = (
            socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        )
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE_S)
        if family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if source:
                self.sock.bind(source if family == socket.AF_UNIX else (source, 0))
            self.sock.connect(address)
            if tls is not None:
                self.sock = tls.wrap_socket(self.sock, server_hostname=name, suppress_ragged_eofs=False)
        except OSError:
            self.sock.close()
            raise
        self._file = self.sock.makefile("rb")
        self.answered = False  # the response that was read last has begun at least

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- sending

    def send(self, *parts: bytes) -> Wire:
        """Send each of *parts* by a call of its own."""
        for part in parts:
            self.sock.sendall(part)
        return self

    def half_close(self) -> Wire:
        """Send FIN: this side has said all that it wants to say, and still listens."""
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        """Send RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self.sock.close()

    # --- reading

    def reply(self, *, to: str = "GET") -> Reply:
        """Return the next response, read whole and not a byte further; *to* is the method of its request."""
        status, headers = self.head()
        if to == "HEAD" or status < 200 or status in (204, 304):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        elif "content-length" in headers:
            body = self._exactly(int(headers["content-length"]))
        else:
            body = self._file.read()
        return Reply(status, headers, body)

    def head(self) -> tuple[int, Mapping[str, str]]:
        """Return status and headers of the next response, and leave its body."""
        self.answered = False
        status = self._line()
        self.answered = True
        assert status.startswith(b"HTTP/1.1 "), f"not a response: {status!r}"
        headers: dict[str, str] = {}
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            assert name.lower() not in headers or name.lower() == "set-cookie", f"{name} is there twice"
            headers[name.lower()] = value.strip()
        return int(status.split()[1]), headers

    def chunk(self) -> bytes:
        """Return the next chunk of a body; the last one is empty."""
        data = self._exactly(int(self._line(), 16))
        assert self._line() == b""
        return data

    def frame(self) -> Frame:
        """Return the next frame of a websocket's server."""
        first, size = self._exactly(2)
        if size >= 126:
            size = int.from_bytes(self._exactly(2 if size == 126 else 8), "big")
        return Frame(first & 15, self._exactly(size))

    def rest(self) -> bytes:
        """Return all that comes until the server has closed. A reset is an error: it may destroy what came before."""
        return self._file.read()

    def _line(self) -> bytes:
        line = self._file.readline()
        assert line.endswith(b"\r\n"), f"the connection ended within {line!r}"
        return line[:-2]

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        assert len(data) == size, f"the connection ended after {len(data)} of {size} bytes"
        return data


@contextlib.contextmanager
def wires(address: Address, number: int) -> Iterator[list[Wire]]:
    """Open *number* connections at once, and close them."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Wire(address)) for _ in range(number)]


def request(target: str = "/", method: str = "GET", body: bytes | None = None, /, **headers: str) -> bytes:
    """Return a request on the wire; `x_user="u"` becomes `x-user: u`."""
    fields = {"host": "limpet.test"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        fields["content-length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + (body or b"")


def chunked(parts: Iterable[bytes]) -> bytes:
    """Return a body in chunks, with its end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


def upgrade(target: str = "/", **headers: str) -> bytes:
    """Return the request that opens a websocket."""
    fields = {"connection": "Upgrade", "upgrade": "websocket", "sec_websocket_version": "13"}
    return request(target, sec_websocket_key="AAAAAAAAAAAAAAAAAAAAAA==", **fields, **headers)


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """Return one frame of a websocket's client, masked as it must be."""
    size = len(payload)
    length = bytes([128 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    mask = os.urandom(4)
    return bytes([128 | opcode]) + length + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def portions(data: bytes, *cuts: int) -> list[bytes]:
    """Return *data* divided at *cuts*."""
    return [data[start:stop] for start, stop in pairwise([0, *cuts, len(data)])]
