"""The form of a message of the bus on its way: what is in a datagram, and what is in a memory file beside it.

This file owns the two formats and their limits. It does not know who sends to whom (bus.py). A participant runs the
user's code, so a datagram may contain anything: `unpack` and `decode` raise InvalidError, and nothing else.

1. A message in a memory file has its place in the same channel as all others, so the order holds.
2. A memory file is sealed before it is sent, and the receiver checks that. So nobody can change or shorten it while the
   receiver reads, and reading never waits, as it would with a pipe.
3. The payload is bytes from here on. Each subscription decodes it for itself, as two of them must not share a list.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from typing import Any, Final, NamedTuple

from limpet.errors import reason
from limpet.system import memfile

INLINE_BYTES: Final = 16 << 10  # more go into a memory file: one takes 20 us, and a channel has room for 200 of 16 KiB
LARGEST_BYTES: Final = 16 << 20  # of a payload
LONGEST_TOPIC_BYTES: Final = 1024
_HEADER: Final = struct.Struct("=BBHHHII")  # form, kind, length of the topic, publisher's row, entry, lost, size
_FORM: Final = 1
_IN_FILE: Final = 0x10  # added to the kind
BYTES, TEXT, JSON = range(3)
_NAMES: Final = {BYTES: "bytes", TEXT: "text", JSON: "JSON"}
DATAGRAM_BYTES: Final = _HEADER.size + LONGEST_TOPIC_BYTES + INLINE_BYTES
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class InvalidError(Exception):
    """A datagram that is no message of the bus."""


class Packet(NamedTuple):
    """A datagram that was taken apart. *lost* counts what the publisher has lost before, for this entry of the row.

    If that is nothing, *entry* is 0, so that all receivers get the same datagram.
    """

    publisher: int
    topic: str
    entry: int
    lost: int
    kind: int
    payload: bytes
    size: int  # of a memory file that has the payload; 0 if the payload is in the datagram


def encode(data: Any) -> tuple[int, bytes]:
    """Return the kind of *data* and its bytes. Raises TypeError or ValueError for what is no bytes, text or JSON."""
    if isinstance(data, bytes | bytearray | memoryview):
        kind, payload = BYTES, bytes(data)
    elif isinstance(data, str):
        kind, payload = TEXT, data.encode()
    else:
        kind, payload = JSON, json.dumps(data, separators=(",", ":")).encode()
    if len(payload) > LARGEST_BYTES:
        raise ValueError(f"a message of {len(payload)} bytes: at most {LARGEST_BYTES} are possible")
    return kind, payload


def decode(kind: int, payload: bytes) -> Any:
    """Return the data that `encode` was given. Raises InvalidError."""
    try:
        if kind == JSON:
            return json.loads(payload)
        return payload.decode() if kind == TEXT else payload
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"not {_NAMES[kind]}: {error}") from None


def name(topic: str) -> bytes:
    """Return *topic* as it stands in a datagram. Raises TypeError or ValueError for what cannot be a topic."""
    if not isinstance(topic, str):
        raise TypeError(f"a topic is text, and not {type(topic).__name__}")
    encoded = topic.encode()
    if len(encoded) > LONGEST_TOPIC_BYTES:
        raise ValueError(f"a topic of {len(encoded)} bytes: at most {LONGEST_TOPIC_BYTES} are possible")
    return encoded


def pack(publisher: int, topic: bytes, entry: int, lost: int, kind: int, payload: bytes) -> bytes:
    """Return a datagram; without its payload if that is larger than `INLINE_BYTES`, as it is in a memory file then."""
    if len(payload) <= INLINE_BYTES:
        return _HEADER.pack(_FORM, kind, len(topic), publisher, entry, lost, 0) + topic + payload
    return _HEADER.pack(_FORM, kind | _IN_FILE, len(topic), publisher, entry, lost, len(payload)) + topic


def unpack(datagram: bytes) -> Packet:
    """Return what is in *datagram*. Raises InvalidError."""
    try:
        form, kind, length, publisher, entry, lost, size = _HEADER.unpack_from(datagram)
        end = _HEADER.size + length
        topic = datagram[_HEADER.size : end].decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise InvalidError(str(error)) from None
    is_in_file = bool(kind & _IN_FILE)
    kind &= ~_IN_FILE
    if form != _FORM or kind not in _NAMES or len(datagram) < end or is_in_file != (0 < size <= LARGEST_BYTES):
        raise InvalidError(f"form {form}, kind {kind}, {len(datagram)} bytes, {size=}")
    return Packet(publisher, topic, entry, lost, kind, datagram[end:], size)


def memory_file(payload: bytes) -> int:
    """Return the descriptor of a sealed memory file with *payload*. Owns: the caller. Raises OSError."""
    fd = memfile.create("limpet-message", payload, may_be_sealed=True)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read(fd: int, size: int) -> bytes:
    """Return the *size* bytes in the memory file *fd*. Raises InvalidError if it is not sealed or has another size."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS or os.fstat(fd).st_size != size:
            raise InvalidError(f"a memory file that is not sealed, or has not {size} bytes")
        return os.pread(fd, size, 0)
    except OSError as error:  # no memory file at all
        raise InvalidError(reason(error)) from None
