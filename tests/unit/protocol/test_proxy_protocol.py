"""What a proxy says of a connection before its client's first byte: read once, the same however it comes."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.protocol.proxy_protocol import MAX_BYTES, BadHeaderError, Header, Origin, parse, write

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
CLIENT = b"GET / HTTP/1.1\r\n\r\n"


def binary(command: int, family: int, payload: bytes) -> bytes:
    """Return a header of version 2."""
    return SIGNATURE + bytes((command, family)) + struct.pack(">H", len(payload)) + payload


def tcp4(source: str, port: int, tlvs: bytes = b"") -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton("10.0.0.9") + struct.pack(">HH", port, 443)
    return binary(0x21, 0x11, addresses + tlvs)


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + bytes(16) + struct.pack(">HH", 1, 2)
MAPPED = bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 1)) + bytes(16) + struct.pack(">HH", 1, 2)
GOOD = {
    "v1": (b"PROXY TCP4 192.0.2.1 10.0.0.9 4711 443\r\n", Origin("192.0.2.1", 4711)),
    "v1 ipv6": (b"PROXY TCP6 2001:DB8:0::1 ::1 4711 443\r\n", Origin("2001:db8::1", 4711)),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1 unknown with addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
    "v2": (tcp4("192.0.2.1", 4711), Origin("192.0.2.1", 4711)),
    "v2 ipv6": (binary(0x21, 0x21, V6), Origin("2001:db8::1", 1)),
    "v2 ipv4 in ipv6": (binary(0x21, 0x21, MAPPED), Origin("192.0.2.1", 1)),
    "v2 unix": (binary(0x21, 0x31, bytes(216)), Origin(None, None)),
    "v2 local": (binary(0x20, 0x00, b""), None),
    "v2 local with an address": (binary(0x20, 0x11, bytes(12)), None),
    "v2 local of an unknown family": (binary(0x20, 0x7F, b"whatever"), None),
    "v2 unspecified": (binary(0x21, 0x00, b"skipped"), None),
    "v2 unknown tlvs": (tcp4("192.0.2.1", 1, tlv(0xE0, b"x" * 300) + tlv(0x04, b"")), Origin("192.0.2.1", 1)),
    "v2 tls": (
        tcp4("192.0.2.1", 1, tlv(0x02, b"Chat.Example") + tlv(0x20, b"\x01\0\0\0\0" + tlv(0x21, b"TLSv1.3"))),
        Origin("192.0.2.1", 1, True, "chat.example"),
    ),
    "v2 ssl that was not used": (tcp4("192.0.2.1", 1, tlv(0x20, b"\x00\0\0\0\x01")), Origin("192.0.2.1", 1)),
}
BAD = {
    "http": CLIENT,
    "tls": b"\x16\x03\x01\x02\x00",
    "lower case": b"proxy TCP4 192.0.2.1 10.0.0.9 1 2\r\n",
    "two blanks": b"PROXY TCP4  192.0.2.1 10.0.0.9 1 2\r\n",
    "no addresses": b"PROXY TCP4\r\n",
    "a name": b"PROXY TCP4 localhost 10.0.0.9 1 2\r\n",
    "other family": b"PROXY TCP4 ::1 ::1 1 2\r\n",
    "port too large": b"PROXY TCP4 192.0.2.1 10.0.0.9 65536 2\r\n",
    "port with zeros": b"PROXY TCP4 192.0.2.1 10.0.0.9 01 2\r\n",
    "octal address": b"PROXY TCP4 192.000.002.001 10.0.0.9 1 2\r\n",
    "udp": b"PROXY UDP4 192.0.2.1 10.0.0.9 1 2\r\n",
    "bare line feed": b"PROXY TCP4 192.0.2.1 10.0.0.9 1 2\n",
    "endless line": b"PROXY UNKNOWN " + b"x" * 100,
    "version 1 in binary": binary(0x11, 0x11, bytes(12)),
    "unknown command": binary(0x22, 0x11, bytes(12)),
    "datagrams": binary(0x21, 0x12, bytes(12)),
    "no room for addresses": binary(0x21, 0x21, bytes(35)),
    "too long": SIGNATURE + b"\x21\x11\xff\xff",
    "cut within a tlv": tcp4("192.0.2.1", 1, tlv(0x02, b"name")[:-1]),
    "half a tlv": tcp4("192.0.2.1", 1, b"\x02\x00"),
}


@pytest.mark.parametrize("name", GOOD)
def test_header_says_who_the_client_is(name: str) -> None:
    """What the proxy knows is what the key and the application go by."""
    data, origin = GOOD[name]
    assert parse(data + CLIENT) == Header(len(data), origin)


@pytest.mark.parametrize("name", GOOD)
def test_header_split_across_packets_waits_for_more(name: str) -> None:
    """A header that is believed too early, or refused too early, loses the connection."""
    data, _ = GOOD[name]
    assert [parse(data[:size]) for size in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_header_is_refused(name: str) -> None:
    """Where one is required, guessing that there is none would let clients write their own."""
    with pytest.raises(BadHeaderError):
        parse(BAD[name])


@pytest.mark.parametrize("start", [b"G", b"PROXX", b"\r\n\r\n\x00\r\nQUIX", b"\x16"])
def test_first_byte_that_cannot_be_a_header_ends_it(start: bytes) -> None:
    """Who speaks first in another language must not be waited for until the deadline."""
    with pytest.raises(BadHeaderError):
        parse(start)


addresses = st.ip_addresses().map(lambda each: str(getattr(each, "ipv4_mapped", None) or each))
origins = st.builds(
    Origin,
    addresses,
    st.integers(0, 65535),
    st.booleans(),
    st.none() | st.from_regex(r"[a-z0-9.-]{1,60}", fullmatch=True),
)


@given(origins | st.just(Origin(None, None)), st.binary(max_size=50))
def test_what_is_written_is_read(origin: Origin, behind: bytes) -> None:
    """A connection that moves takes its client's address along."""
    data = write(origin)
    found = parse(data + behind)
    assert found is not None
    assert found == Header(len(data), origin)
    if origin.address is not None:
        assert ipaddress.ip_address(origin.address) == ipaddress.ip_address(found.origin.address)  # type: ignore[union-attr, arg-type]


starts = st.sampled_from([b"", b"PROXY ", SIGNATURE, SIGNATURE + b"\x21\x11", SIGNATURE + b"\x21\x21\x00\x40"])


@given(starts, st.binary(max_size=600), st.data())
def test_bytes_of_any_kind_have_one_outcome(start: bytes, rest: bytes, data: st.DataObject) -> None:
    """Nothing that is sent raises anything else, and no division of it changes what it means."""
    whole = start + rest
    cut = data.draw(st.integers(0, len(whole)))

    def outcome(given: bytes) -> Header | str | None:
        try:
            return parse(given)
        except BadHeaderError:
            return "bad"

    early, late = outcome(whole[:cut]), outcome(whole)
    assert early is None or early == late
    if isinstance(late, Header):
        assert 0 < late.length <= min(len(whole), MAX_BYTES)
        assert outcome(whole[: late.length]) == late
