"""The first message of a TLS connection: the name of the server that the client asks for (SNI), without ending TLS.

Owns where the name lies in a ClientHello. Refuses to know where the bytes come from (dispatch/peek.py looks at them)
and all the rest of TLS: whether the message is good is for the worker to say, which reads it again. Pure.

1. Nothing that a client sends raises anything but BadHelloError, and at most MAX_BYTES are looked at.
2. The outcome depends neither on how the bytes were divided among packets nor on how the message was among records.
3. The name is in lower case: names of hosts are alike in any case, and so have one home.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

MAX_BYTES: Final = (
    16_384  # of a ClientHello with its records; those with keys for post-quantum exchange have some 2,000
)
_HANDSHAKE: Final = 0x16  # type of a record
_CLIENT_HELLO: Final = 1  # type of a message
_SERVER_NAME: Final = 0  # type of an extension, and of the one kind of name in it
_RECORD_HEAD: Final = 5  # type, version, length
_LONGEST_RECORD: Final = 16_384
_MESSAGE_HEAD: Final = 4  # type, length
_VERSION_AND_RANDOM: Final = 34
_NAME: Final = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?")


class BadHelloError(Exception):
    """These bytes are not, and will not become, a ClientHello."""


class Hello(NamedTuple):
    """What a ClientHello says; no name when the client asks for none, as by address."""

    server_name: str | None


class _Reader:
    """Takes what stands in a message, one after the other. Raises BadHelloError at its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at >= len(self._data)

    def take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        if len(found) < size:
            raise BadHelloError("its ClientHello ends too early")
        self._at += size
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> _Reader:
        """Return what stands behind its own length, a number of *size* bytes."""
        return _Reader(self.take(self.number(size)))


def parse(data: bytes) -> Hello | None:
    """Return what the ClientHello says with which *data* begins, None when more must come. Raises BadHelloError."""
    message, end = b"", MAX_BYTES
    for fragment in _fragments(data[:MAX_BYTES]):
        message += fragment
        if message and message[0] != _CLIENT_HELLO:
            raise BadHelloError("its first TLS message is no ClientHello")
        if len(message) >= _MESSAGE_HEAD:
            end = _MESSAGE_HEAD + int.from_bytes(message[1:_MESSAGE_HEAD], "big")
        if len(message) >= end:
            return Hello(_server_name(_Reader(message[_MESSAGE_HEAD:end])))
    if len(data) >= MAX_BYTES or end > MAX_BYTES:
        raise BadHelloError(f"its ClientHello is larger than {MAX_BYTES} bytes")
    return None


def _fragments(data: bytes) -> Iterator[bytes]:
    """Yield what the records in *data* hold, the last of which may be incomplete."""
    at = 0
    while at < len(data):
        if data[at] != _HANDSHAKE or data[at + 1 : at + 2] not in (b"", b"\x03"):
            raise BadHelloError("it does not begin with a TLS handshake")
        size = int.from_bytes(data[at + 3 : at + _RECORD_HEAD], "big")
        if len(data) - at < _RECORD_HEAD:
            return
        if not 0 < size <= _LONGEST_RECORD:
            raise BadHelloError("its first TLS record has a length that there is not")
        at += _RECORD_HEAD
        yield data[at : at + size]
        at += size


def _server_name(hello: _Reader) -> str | None:
    """Return the name in *hello*, None where there is none or it is no name of a host."""
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
