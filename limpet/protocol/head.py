"""Reading one request head, with the same parser as the worker.

This file owns three things: where a head ends, which heads are refused before a worker sees them, and the limits. It
does not know where the bytes come from (dispatch/peek.py reads them from a socket) nor what they mean
(protocol/request.py). Pure.

1. The worker accepts every head that is accepted here, and reads the same method, target and headers from it. Both run
   llhttp in its strict mode, and the further checks of uvicorn's protocol are repeated here. So the dispatcher and the
   worker never disagree about the key of a request. `_begin` and `_finish` refuse a little more than the worker would.
2. llhttp gets no byte after the blank line. It reports no offsets, and it would read a body or the next request as a
   part of this one. A head ends only at CRLF CRLF, because llhttp refuses a bare LF.
3. The result does not depend on how the bytes were divided among calls of `feed`.
4. The time is linear in the size of the head, however the head is divided. `max_head` limits the size.
5. `plain` recognises a usual head by its form. llhttp accepts every head that `plain` accepts, and reads the same from
   it.

How it works
------------

llhttp gets the request line as it comes, so that bytes that are not HTTP are refused at the first byte. It gets the
headers in whole lines. httptools joins the pieces of a header by copying what it has for each new piece, so a header
that comes byte by byte would take quadratic time.

`plain` leaves out everything that has rules of its own: framing headers, absolute targets, bytes outside ASCII. It is
one regular expression, and takes a third of the time of a parser with callbacks.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from functools import lru_cache
from typing import Final

import httptools

from limpet.protocol.request import Peer, Request

_EMPTY_LINES: Final = re.compile(rb"\A(?:\r\n)+")  # some clients send one after the body of a POST
_TLS_HANDSHAKE: Final = 0x16  # the first byte of a ClientHello
_VERSIONS: Final = frozenset({"1.0", "1.1"})  # llhttp also takes 0.9, which has no headers, and 2.0


_PLAIN: Final = (
    rb"(?:GET|HEAD|OPTIONS|POST|PUT|PATCH|DELETE) /[!$%%&'()*+,\-./0-9:;=?@A-Z_a-z~]*+ HTTP/1\.[01]\r\n"
    rb"(?:(?!(?i:content-length|transfer-encoding):)[!#$%%&'*+\-.^_`|~0-9A-Za-z]++:[^\r]*+\r\n){0,%d}\r\n"
)
_TEXT: Final = bytes((0x09, *range(0x20, 0x7F)))  # what the lines of a plain head consist of


def plain(data: bytes, max_headers: int) -> int:
    """Return the length of the request head at the start of *data*; 0 if the head is incomplete or not plain."""
    found = _plain_pattern(max_headers).match(data)
    if found is None:
        return 0
    # For a value of 60 kB this takes a third of the time that a set of characters in the expression would take.
    ends = found[0].translate(None, _TEXT)  # each CR in it is followed by LF
    return found.end() if ends == b"\r\n" * (len(ends) // 2) else 0


@lru_cache(maxsize=1)
def _plain_pattern(max_headers: int) -> re.Pattern[bytes]:
    return re.compile(_PLAIN % max_headers)


class BadHead(Exception):
    """The bytes are not a request head that a worker should see, and more bytes cannot change that."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


class _Stage(Enum):
    START = auto()  # only empty lines have come
    REQUEST_LINE = auto()
    HEADERS = auto()
    DONE = auto()


# In CPython 3.11 each `_Stage.X` costs 0.1 us, and a usual head needs six of them.
_START, _REQUEST_LINE, _HEADERS, _DONE = _Stage


class _Sink:
    """What llhttp reports. Not HeadParser itself: that would make a reference cycle for each connection."""

    __slots__ = ("complete", "headers", "target")

    def __init__(self) -> None:
        self.target: list[bytes] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, part: bytes) -> None:
        self.target.append(part)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


class HeadParser:
    """Reads one request head from bytes that come in any portions."""

    __slots__ = (
        "_held", "_max_headers", "_parser", "_sink", "_stage", "_taken", "_target", "head_length", "max_head"
    )  # fmt: skip

    def __init__(self, max_head: int = 65536, max_headers: int = 256) -> None:
        self.max_head = max_head
        self.head_length = 0  # bytes up to the end of the blank line; 0 until the head is complete
        self._max_headers = max_headers
        self._sink = _Sink()
        self._parser = httptools.HttpRequestParser(self._sink)
        self._stage = _START
        self._taken = 0  # bytes of all calls of `feed`
        self._held = bytearray()  # the last bytes, which llhttp does not have yet: less than a line
        self._target = ""

    def feed(self, data: bytes) -> bool:
        """Read *data*, the bytes since the last call, and return whether the head is complete. Raises BadHead."""
        if self._stage is _DONE:
            return True
        new = data[: self.max_head - self._taken]
        self._taken += len(new)
        if self._stage is _HEADERS and b"\n" not in new:
            self._held += new
        elif new and self._advance(bytes(self._held) + new if self._held else new):
            return True
        if self._taken == self.max_head:
            raise BadHead(431, f"the request head is larger than {self.max_head} bytes")
        return False

    def request(self, peer: Peer) -> Request:
        """Return the request, which came from *peer*. Raises RuntimeError unless the head is complete."""
        if self._stage is not _DONE:
            raise RuntimeError("the request head is not complete")
        return Request(self._parser.get_method().decode(), self._target, peer, self._sink.headers)

    def _advance(self, text: bytes) -> bool:
        """Parse *text*, which begins where llhttp stopped, and return whether the head is complete.

        Bytes that llhttp should not have yet are held back.
        """
        if self._stage is _START:
            text = self._begin(text)
            if not text:
                return False
        if end := self._end(text):
            self._parse(text[:end])
            self._finish()
            self.head_length = self._taken - len(text) + end
            return True
        cut = text.rfind(b"\n") + 1
        if cut:
            self._stage = _HEADERS
        elif self._stage is _REQUEST_LINE:
            cut = len(text)
        self._held = bytearray(text[cut:])
        self._parse(text[:cut])
        return False

    def _begin(self, text: bytes) -> bytes:
        """Return *text* from the request line on; empty if the line has not begun. Raises BadHead."""
        if text[0] in b"\r\n":
            text = _EMPTY_LINES.sub(b"", text)
            self._held = bytearray(text if text == b"\r" else b"")
            if self._held or not text:
                return b""
            if text[0] in b"\r\n":
                raise BadHead(400, "a bare CR or LF before the request line")
        if text[0] == _TLS_HANDSHAKE:
            raise BadHead(400, "TLS on a plain port")
        self._stage = _REQUEST_LINE
        return text

    def _end(self, text: bytes) -> int:
        """Return the offset in *text* just after the blank line; 0 if there is no blank line."""
        if self._stage is _HEADERS and text.startswith(b"\r\n"):
            return 2
        blank = text.find(b"\n\r\n")
        return blank + 3 if blank >= 0 else 0

    def _parse(self, text: bytes) -> None:
        """Give *text* to llhttp. Raises BadHead for what llhttp refuses and for too many headers."""
        malformed = None
        try:
            self._parser.feed_data(text)
        except httptools.HttpParserUpgrade:
            pass  # raised after a complete head that asks for an upgrade, which is a request like any other
        except httptools.HttpParserError as error:
            malformed = str(error)
        if len(self._sink.headers) > self._max_headers:  # checked first: these headers came before the malformed part
            raise BadHead(431, f"the request has more than {self._max_headers} headers")
        if malformed is not None:
            raise BadHead(400, f"malformed request head: {malformed}")

    def _finish(self) -> None:
        """Refuse a complete head that llhttp accepts and a worker should not see. Raises BadHead."""
        if not self._sink.complete:  # only after `PRI` does llhttp wait for more than the blank line
            raise BadHead(400, "an HTTP/2 preface on an HTTP/1 port")
        version = self._parser.get_http_version()
        if version not in _VERSIONS:
            raise BadHead(400, f"HTTP version {version}")
        if self._parser.get_method() == b"CONNECT":  # what follows is no HTTP: for proxies
            raise BadHead(400, "CONNECT")
        target = b"".join(self._sink.target)
        try:
            path = httptools.parse_url(target).path
        except httptools.HttpParserInvalidURLError:
            path = None
        if path is None:  # uvicorn answers 400 too, except to a websocket, which may have no path
            raise BadHead(400, "malformed request target")
        self._target = target.decode("latin-1")  # all of it is ASCII: llhttp accepts nothing else
        self._stage = _DONE
