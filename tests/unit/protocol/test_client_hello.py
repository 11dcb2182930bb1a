"""The name of the server in the first message of TLS: found without ending TLS, however the message comes."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.protocol.client_hello import MAX_BYTES, BadHelloError, Hello, parse


def hello(name: str | None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """Return what OpenSSL sends first when it asks for *name*."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode, context.maximum_version = False, ssl.CERT_NONE, newest
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def records(data: bytes, size: int) -> bytes:
    """Return the message of *data*, one record, in records of *size* bytes."""
    message = data[5:]
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(data[:3] + len(part).to_bytes(2, "big") + part for part in parts)


HELLO = hello("Chat.Example")


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("name", "found"),
    [("chat.example", "chat.example"), ("Chat.EXAMPLE", "chat.example"), ("192.0.2.1", None), (None, None)],
)
def test_name_that_openssl_asks_for_is_found(name: str | None, found: str | None, newest: ssl.TLSVersion) -> None:
    """One host is one host in any case; a client that asks by address has no name."""
    assert parse(hello(name, newest) + b"more") == Hello(found)


def test_hello_split_across_packets_waits_for_more() -> None:
    """A first packet rarely holds all of a hello with keys for post-quantum exchange."""
    assert [parse(HELLO[:size]) for size in range(len(HELLO))] == [None] * len(HELLO)


@pytest.mark.parametrize("size", [1, 3, 4, 50, 200])
def test_hello_in_several_records_is_one_hello(size: int) -> None:
    """Some clients divide it so that middleboxes do not see the name."""
    assert parse(records(HELLO, size)) == Hello("chat.example")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\x2e\x01\x00\x02",  # SSL 2
        b"\x16\x02",
        b"\x15\x03\x01\x00\x02\x01\x00",  # an alert
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # a ServerHello
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",
        b"\x16\x03\x01\x00\x01\x01" * (MAX_BYTES // 6 + 1),
    ],
)
def test_what_is_no_hello_is_refused(data: bytes) -> None:
    """Waiting for what cannot come would hold the connection until the deadline."""
    with pytest.raises(BadHelloError):
        parse(data)


@pytest.mark.parametrize("name", [b"", b"chat.example.", b"a\x00b", b"\xc3\xa4.example", b"-x", b"x" * 256, b"a b"])
def test_what_is_no_name_of_a_host_is_no_key(name: bytes) -> None:
    """A key that no client can be asked for is none."""
    block = b"\x00" + len(name).to_bytes(2, "big") + name
    names = len(block).to_bytes(2, "big") + block
    extension = b"\x00\x00" + len(names).to_bytes(2, "big") + names
    body = bytes(34) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00" + len(extension).to_bytes(2, "big") + extension
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    assert parse(b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message) == Hello(None)


@given(st.data())
def test_changed_hello_has_one_outcome(data: st.DataObject) -> None:
    """Nothing that is sent raises anything else, and no division of it changes what it means."""
    changed = bytearray(HELLO)
    for _ in range(data.draw(st.integers(0, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    whole = bytes(changed) + data.draw(st.binary(max_size=20))

    def outcome(given: bytes) -> Hello | str | None:
        try:
            return parse(given)
        except BadHelloError:
            return "bad"

    early, late = outcome(whole[: data.draw(st.integers(0, len(whole)))]), outcome(whole)
    assert early is None or early == late
