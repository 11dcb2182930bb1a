"""The first message of a TLS connection: it names the server that the client wants (SNI).

This file owns the place of that name in a ClientHello. It does not know where the bytes come from: dispatch/peek.py
reads them and calls `parse`. It checks nothing else in the message: the worker reads the message again and decides
whether it is valid TLS. Pure.

1. `parse` raises only BadHelloError, whatever a client sends, and it looks at no more than MAX_BYTES.
2. The result depends neither on how the bytes were divided among packets nor on how the message was divided among
   records.
3. The name is returned in lower case. Host names ignore case, so every spelling of a name must give the same key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

MAX_BYTES: Final = 16_384  # of a ClientHello and the headers of its records; one with post-quantum keys has about 2,000
_HANDSHAKE: Final = 0x16  # type of a record
_CLIENT_HELLO: Final = 1  # type of a message
_SERVER_NAME: Final = 0  # type of the extension, and also of the only kind of name in it
_RECORD_HEAD: Final = 5  # type, version, length
_LONGEST_RECORD: Final = 16_384
_MESSAGE_HEAD: Final = 4  # type, length
_VERSION_AND_RANDOM: Final = 34
_NAME: Final = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?")


class BadHelloError(Exception):
    """The bytes are not the start of a ClientHello, and more bytes cannot change that."""


class Hello(NamedTuple):
    """What a ClientHello says. `server_name` is None if the client names no server, for example with an address."""

    server_name: str | None


class _Reader:
    """Reads the fields of a message in order. Raises BadHelloError if the message ends within a field."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at >= len(self._data)

    def take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        if len(found) < size:
            raise BadHelloError("the ClientHello ends too early")
        self._at += size
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> _Reader:
        """Return a reader of the next field, whose length precedes it as a number of *size* bytes."""
        return _Reader(self.take(self.number(size)))


def parse(data: bytes) -> Hello | None:
    """Return what the ClientHello at the start of *data* says; None if more bytes must come. Raises BadHelloError."""
    message, end = b"", MAX_BYTES
    for fragment in _fragments(data[:MAX_BYTES]):
        message += fragment
        if message and message[0] != _CLIENT_HELLO:
            raise BadHelloError("the first TLS message is not a ClientHello")
        if len(message) >= _MESSAGE_HEAD:
            end = _MESSAGE_HEAD + int.from_bytes(message[1:_MESSAGE_HEAD], "big")
        if len(message) >= end:
            return Hello(_server_name(_Reader(message[_MESSAGE_HEAD:end])))
    if len(data) >= MAX_BYTES or end > MAX_BYTES:
        raise BadHelloError(f"the ClientHello is larger than {MAX_BYTES} bytes")
    return None


def _fragments(data: bytes) -> Iterator[bytes]:
    """Yield the content of each record in *data*. The last record may be incomplete. Raises BadHelloError."""
    at = 0
    while at < len(data):
        if data[at] != _HANDSHAKE or data[at + 1 : at + 2] not in (b"", b"\x03"):
            raise BadHelloError("the first bytes are not a TLS handshake")
        size = int.from_bytes(data[at + 3 : at + _RECORD_HEAD], "big")
        if len(data) - at < _RECORD_HEAD:
            return
        if not 0 < size <= _LONGEST_RECORD:
            raise BadHelloError("a TLS record has an invalid length")
        at += _RECORD_HEAD
        yield data[at : at + size]
        at += size


def _server_name(hello: _Reader) -> str | None:
    """Return the name in *hello*; None if *hello* has no name, or one that is not a host name. Raises BadHelloError."""
    hello.take(_VERSION_AND_RANDOM)
    for size in 1, 2, 1:  # session id, cipher suites, compression methods
        hello.block(size)
    if hello.is_at_end:
        return None
    extensions = hello.block(2)
    while not extensions.is_at_end:
        kind, extension = extensions.number(2), extensions.block(2)
        if kind == _SERVER_NAME:
            names = extension.block(2)
            while not names.is_at_end:
                kind, name = names.number(1), names.block(2)._data
                if kind == _SERVER_NAME:
                    return name.decode().lower() if _NAME.fullmatch(name) else None
    return None
