"""Whose word is believed: the walk through the proxies, from the right."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.errors import SettingsError
from limpet.protocol.head import HeadParser
from limpet.protocol.request import Peer, Request, UnparsedRequest
from limpet.routing.forwarded import Trust, client_address, parse_address

PROXY = "10.0.0.1"
TRUST = Trust.parse("10.0.0.0/8, fd00::/8")


def client(
    *forwarded_for: str, peer: str | None = PROXY, forwarded: tuple[str, ...] = (), trust: Trust = TRUST
) -> str | None:
    """Return the client of a request with these X-Forwarded-For and Forwarded lines, that came from *peer*."""
    lines = [(b"x-forwarded-for", line.encode("latin-1")) for line in forwarded_for]
    lines += [(b"forwarded", line.encode("latin-1")) for line in forwarded]
    request = Request("GET", "/", Peer(peer, None, "unix:/run/x"), lines)
    return client_address(request.peer, request, trust)


def test_untrusted_peer_is_the_client_whatever_it_says() -> None:
    """Believing anybody lets every client choose its worker."""
    assert client("198.51.100.7", peer="203.0.113.9") == "203.0.113.9"
    assert client(peer="203.0.113.9", forwarded=("for=198.51.100.7",)) == "203.0.113.9"


def test_trusted_network_of_ipv4_holds_nobody_behind_nat64() -> None:
    """`--trust 10.0.0.0/8` names one's own network; a translator lets 10.0.0.1 of any network through."""
    assert "64:ff9b::10.0.0.1" not in Trust.parse("10.0.0.0/8")
    assert "64:ff9b::10.0.0.1" in Trust.parse("64:ff9b::/96")


def test_trusted_peer_that_says_nothing_is_the_client() -> None:
    """The health check of a load balancer is a client too."""
    assert client() == PROXY
    assert client("") == PROXY


def test_first_untrusted_address_from_the_right_is_the_client() -> None:
    """What is left of it was sent by the client, so it may be forged."""
    assert client("6.6.6.6, 198.51.100.7, 10.0.0.2, 10.0.0.3") == "198.51.100.7"


def test_leftmost_is_the_client_when_all_are_trusted() -> None:
    """A client inside the trusted network is a client all the same."""
    assert client("10.0.0.4, 10.0.0.2") == "10.0.0.4"


@pytest.mark.parametrize("lines", [("6.6.6.6", "198.51.100.7, 10.0.0.2"), ("6.6.6.6, 198.51.100.7", "10.0.0.2")])
def test_several_lines_are_one_list(lines: tuple[str, ...]) -> None:
    """A proxy may add its own line, so the last line alone is not all of it."""
    assert client(*lines) == "198.51.100.7"


@pytest.mark.parametrize(
    "garbage",
    [
        *("unknown", "_hidden", "", "not-an-ip", "1.2.3", "1.2.3.256", "010.1.1.1", "1.2.3.4.5", "1.2.3.4:", ":80"),
        *("[::1", "::1]", "[1.2.3.4", "1.2.3.4:port", "1.2.3.4 5", '"1.2.3.4', "1.2.3.4/24", "::ffff:", "[]", "%eth0"),
        *("for=1.2.3.4", "1.2.3.4;5.6.7.8", "\xb9.2.3.4", "\x00", "1" * 60_000, "[" + "1:" * 30_000 + "]"),
    ],
)
def test_garbage_ends_the_walk_at_the_hop_that_wrote_it(garbage: str) -> None:
    """It must neither end the server nor let the walk go on into what the client forged."""
    assert client(f"6.6.6.6, {garbage}") == PROXY
    assert client(f"6.6.6.6, {garbage}, 10.0.0.2, 10.0.0.3") == "10.0.0.2"
    assert client(f"{garbage}, 198.51.100.7") == "198.51.100.7"


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("198.51.100.7:4711", "198.51.100.7"),
        ('"198.51.100.7:4711"', "198.51.100.7"),
        ("198.51.100.7:_port", "198.51.100.7"),
        ("  198.51.100.7\t", "198.51.100.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ('"[2001:db8::1]:4711"', "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:80", "fe80::1"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("[::ffff:c633:6407]:80", "198.51.100.7"),
    ],
)
def test_address_is_understood_however_the_proxy_writes_it(entry: str, address: str) -> None:
    """One client behind two kinds of proxy is one client."""
    assert client(entry) == address


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        (("for=198.51.100.7",), "198.51.100.7"),
        (("FOR = 198.51.100.7 ;proto=https; by=10.0.0.9",), "198.51.100.7"),
        (('proto=https;for="[2001:db8::1]:4711"',), "2001:db8::1"),
        (("for=6.6.6.6, for=198.51.100.7;by=10.0.0.3, for=10.0.0.2",), "198.51.100.7"),
        (("for=6.6.6.6", "for=198.51.100.7"), "198.51.100.7"),
        (("for=6.6.6.6, for=unknown, for=10.0.0.2",), "10.0.0.2"),
        (("for=6.6.6.6, proto=https",), PROXY),
        (("for=6.6.6.6, for=_hidden, for=10.0.0.2",), "10.0.0.2"),
        (('for=6.6.6.6, for="_SEVKISEK", for=10.0.0.2',), "10.0.0.2"),
        (('for="[fe80::1%25eth0]:_port"',), "fe80::1"),
        (("for=6.6.6.6", "for=198.51.100.7", "for=10.0.0.3", "for=10.0.0.2"), "198.51.100.7"),
        (("for=,for=198.51.100.7,",), PROXY),
        (('for=6.6.6.6;ext="x, for=198.51.100.7',), "198.51.100.7"),
        (("host=x;for=6.6.6.6;for=198.51.100.7",), PROXY),
        (("xfor=6.6.6.6;for=198.51.100.7",), "198.51.100.7"),
        (("198.51.100.7",), PROXY),
    ],
)
def test_forwarded_is_read_when_there_is_no_x_forwarded_for(lines: tuple[str, ...], address: str) -> None:
    """The standard's header is what newer proxies write, and its quotes must not swallow what they append."""
    assert client(forwarded=lines) == address
    assert client("203.0.113.5", forwarded=lines) == "203.0.113.5"


def test_thousands_of_trusted_entries_are_not_all_looked_at() -> None:
    """A trusted client that writes 60 KB of them cost its dispatcher 36 ms a request."""
    entries = [f"10.{number // 256}.{number % 256}.1" for number in range(4000)]
    assert client(", ".join(entries)) == entries[-64]
    assert client(", ".join(entries[:63])) == entries[0]


def test_unix_peer_is_trusted_by_name_only() -> None:
    """A proxy on the same machine has no address that a network could hold."""
    assert client("198.51.100.7", peer=None) is None
    assert client("198.51.100.7", peer=None, trust=Trust.parse("unix")) == "198.51.100.7"
    assert client("unknown", peer=None, trust=Trust.parse("unix")) is None
    assert client(peer=None, trust=Trust.parse("unix")) is None


UNIX = Trust.parse("10.0.0.0/8, unix")


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("6.6.6.6, 198.51.100.7, unix:", "198.51.100.7"),
        ("198.51.100.7, unix:, 10.0.0.2, unix:", "198.51.100.7"),
        ("198.51.100.7, 10.0.0.2, unix:", "198.51.100.7"),
        ("unix:, 10.0.0.2", None),
        ("6.6.6.6, unknown, unix:", None),
        ("6.6.6.6, unix:/run/x, 10.0.0.2", "10.0.0.2"),
    ],
)
def test_proxy_that_was_called_by_unix_socket_is_a_hop(line: str, address: str | None) -> None:
    """nginx before nginx on one machine: the inner one writes `unix:` for the outer one, which has no address."""
    assert client(line, trust=UNIX) == address
    assert client(line, peer=None, trust=UNIX) == address
    if address == "198.51.100.7":
        standard = ", ".join(f'for="{entry}"' for entry in line.split(", "))
        assert client(forwarded=(standard,), trust=UNIX) == address
        assert client(line) is None or client(line) == PROXY  # who does not trust `unix` goes no further


def test_nobody_is_trusted_by_default() -> None:
    """A list of proxies that was forgotten must not become a list of everybody."""
    assert PROXY not in Trust.parse("")
    assert None not in Trust.parse("")
    assert client("198.51.100.7", trust=Trust()) == PROXY


@given(st.ip_addresses(), st.sampled_from(["10.0.0.0/8", "fd00::/8", "0.0.0.0/0", "::/0", "192.0.2.1/32", "2001::/16"]))
def test_trust_holds_the_addresses_of_its_networks(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, text: str
) -> None:
    """A mask that is off by one bit believes strangers."""
    known = parse_address(str(address))
    assert (str(address) in Trust.parse(text)) == (known in ipaddress.ip_network(text))


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "proxy", "*", "10.0.0.0/8;fd00::/8", "10.0.0.0/8 unix"])
def test_what_is_no_network_is_refused_with_a_remedy(text: str) -> None:
    """A trust that silently matches nobody sends everybody to one worker."""
    with pytest.raises(SettingsError) as caught:
        Trust.parse(f"127.0.0.1,{text}")
    assert f"`{text}`" in caught.value.message
    assert caught.value.hint
    assert "--trust" in caught.value.hint


LINES = st.lists(
    st.tuples(
        st.sampled_from([b"X-Forwarded-For", b"x-forwarded-for", b"Forwarded", b"X-Forwarded", b"Accept"]),
        st.sampled_from(
            [b"198.51.100.7", b" 10.0.0.2 ,10.0.0.3\t", b"for=198.51.100.8", b"", b"unknown", b"unix:", b","]
        ),
    ),
    max_size=6,
)


@given(LINES)
def test_head_that_is_only_searched_has_the_client_of_one_that_is_parsed(lines: list[tuple[bytes, bytes]]) -> None:
    """The dispatcher parses, a worker searches the bytes: they must not see different clients of one request."""
    head = b"GET / HTTP/1.1\r\n" + b"".join(b"%b:%b\r\n" % line for line in lines) + b"\r\n"
    parser = HeadParser()
    assert parser.feed(head)
    peer = Peer(PROXY, None, "127.0.0.1:8000")
    parsed, searched = parser.request(peer), UnparsedRequest(head, peer)
    assert client_address(peer, parsed, UNIX) == client_address(peer, searched, UNIX)


@given(st.lists(st.text(st.characters(max_codepoint=255), max_size=40), max_size=4), st.booleans())
def test_nothing_in_the_headers_raises(lines: list[str], standard: bool) -> None:
    """`X-Forwarded-For: not-an-ip` killed the master of the reference."""
    found = client(forwarded=tuple(lines)) if standard else client(*lines)
    assert parse_address(found or "")
