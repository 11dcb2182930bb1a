"""The PROXY protocol, versions 1 and 2: what a proxy says about a connection before the client's first byte.

This file owns the format of a PROXY header, for reading and for writing, and the `Origin` that a header gives. It does
not know which peers may send a header: the dispatcher and the terminator ask `Trust`. Nor does it know where the bytes
come from: dispatch/peek.py looks at them, and ipc/channel.py takes them off the socket. Pure.

1. Nothing is guessed. Bytes that cannot become a header are refused as soon as that is certain.
2. The result depends neither on how the bytes were divided nor on what follows the header.
3. A header has at most MAX_BYTES. A TLV of unknown type is skipped by its length.

How it works
------------

Version 1 is a line: `PROXY TCP4 source destination port port`. Version 2 is a signature, a command, a family, and the
length of the rest. The rest is the addresses, followed by TLVs (type, length, value). LOCAL in version 2 and UNKNOWN in
version 1 say that the proxy speaks for itself, as in a health check: then the peer of the connection is the client.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

MAX_BYTES: Final = 4096  # of a header; one with everything that HAProxy can send has about 600
_V1_MAX_BYTES: Final = 107  # of the longest line, including its CRLF
_V1_START: Final = b"PROXY "
_V1_LINE: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?"
    rb"|(TCP[46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4}))\r\n"
)
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2: Final = struct.Struct(">12sBBH")  # signature, version and command, family and transport, bytes that follow
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_UNSPECIFIED: Final = 0x00
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_UNIX: Final = 0x31
_ADDRESS_BYTES: Final = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX: 216}
_TLV: Final = struct.Struct(">BH")
_AUTHORITY: Final = 0x02  # the server name that the client asked for (SNI)
_SSL: Final = 0x20
_CLIENT_SSL: Final = 0x01  # in the first byte of _SSL: the client came by TLS


class BadHeaderError(Exception):
    """The bytes are not the start of a PROXY header, and more bytes cannot change that."""


class Origin(NamedTuple):
    """Where a connection comes from, as a trusted proxy said in a PROXY header."""

    address: str | None  # None: a unix socket
    port: int | None
    is_tls: bool = False  # whether the client used TLS, which ended at the proxy
    server_name: str | None = None  # the name that the client asked for in its TLS handshake

    @property
    def client(self) -> tuple[str, int] | None:
        """Return the client's address and port as applications get them; None for a unix socket."""
        return None if self.address is None or self.port is None else (self.address, self.port)


class Header(NamedTuple):
    """A whole header: its length in bytes, and what it says. *origin* is None if the peer itself is the client."""

    length: int
    origin: Origin | None


def parse(data: bytes) -> Header | None:
    """Return the header at the start of *data*; None if more bytes must come. Raises BadHeaderError."""
    if _V1_START.startswith(data[: len(_V1_START)]):
        return _parse_line(data)
    if _SIGNATURE.startswith(data[: len(_SIGNATURE)]):
        return _parse_binary(data)
    raise BadHeaderError("the first bytes are not a PROXY header")


def write(origin: Origin) -> bytes:
    """Return a header of version 2 for *origin*. The header does not name the destination."""
    source = None if origin.address is None else ip_address(origin.address)
    if source is None:
        family, addresses = _UNIX, bytes(216)
    else:
        family, size = (_TCP4, 4) if source.version == 4 else (_TCP6, 16)
        addresses = source.packed + bytes(size) + struct.pack(">HH", origin.port or 0, 0)
    tlvs = b""
    if origin.server_name is not None:
        name = origin.server_name.encode("latin-1")
        tlvs += _TLV.pack(_AUTHORITY, len(name)) + name
    if origin.is_tls:
        tlvs += _TLV.pack(_SSL, 5) + bytes((_CLIENT_SSL, 0, 0, 0, 0))
    return _V2.pack(_SIGNATURE, _PROXY, family, len(addresses) + len(tlvs)) + addresses + tlvs


def _parse_line(data: bytes) -> Header | None:
    end = data.find(b"\n", 0, _V1_MAX_BYTES) + 1
    if not end:
        if len(data) >= _V1_MAX_BYTES:
            raise BadHeaderError(f"the line of the PROXY header is longer than {_V1_MAX_BYTES} bytes")
        return None
    found = _V1_LINE.fullmatch(data[:end])
    if found is None:
        raise BadHeaderError("the line of the PROXY header is malformed")
    if found[1] is None:
        return Header(end, None)
    source, destination = (_address(text, 4 if found[1] == b"TCP4" else 6) for text in found.group(2, 3))
    ports = int(found[4]), int(found[5])
    if source is None or destination is None or max(ports) > 65535:
        raise BadHeaderError("invalid address or port in the PROXY header")
    return Header(end, Origin(_canonical(source), ports[0]))


def _parse_binary(data: bytes) -> Header | None:
    if len(data) < _V2.size:
        return None
    _, command, family, size = _V2.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise BadHeaderError("unsupported version or unknown command in the PROXY header")
    end = _V2.size + size
    if end > MAX_BYTES:
        raise BadHeaderError(f"the PROXY header is longer than {MAX_BYTES} bytes")
    if command == _PROXY and size < _ADDRESS_BYTES.get(family, end):
        raise BadHeaderError("the PROXY header is not for a stream socket, or is too short for its addresses")
    if len(data) < end:
        return None
    if command == _LOCAL or family == _UNSPECIFIED:
        return Header(end, None)
    address, port = _source(data, family)
    is_tls, server_name = False, None
    for kind, value in _tlvs(data[_V2.size + _ADDRESS_BYTES[family] : end]):
        if kind == _SSL and value:
            is_tls = bool(value[0] & _CLIENT_SSL)
        elif kind == _AUTHORITY and 0 < len(value) < 256:
            server_name = value.decode("latin-1").lower()
    return Header(end, Origin(address, port, is_tls, server_name))


def _source(data: bytes, family: int) -> tuple[str | None, int | None]:
    """Return the client's address and port from *data*, a whole header of *family*."""
    if family == _UNIX:
        return None, None
    size = 4 if family == _TCP4 else 16
    address = ip_address(data[_V2.size : _V2.size + size])
    (port,) = struct.unpack_from(">H", data, _V2.size + 2 * size)
    return _canonical(address), port


def _tlvs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the value of each TLV in *data*. Raises BadHeaderError."""
    at = 0
    while at < len(data):
        if len(data) - at < _TLV.size:
            raise BadHeaderError("the PROXY header ends within a TLV")
        kind, size = _TLV.unpack_from(data, at)
        at += _TLV.size + size
        if at > len(data):
            raise BadHeaderError("the PROXY header ends within a TLV")
        yield kind, data[at - size : at]


def _address(text: bytes, version: int) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(text.decode())
    except ValueError:
        return None
    return found if found.version == version else None


def _canonical(address: IPv4Address | IPv6Address) -> str:
    """Return *address* as text. An IPv4-mapped IPv6 address becomes IPv4, so that each client has one address."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
