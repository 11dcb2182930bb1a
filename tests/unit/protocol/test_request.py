"""What a request says: the first of several, the exact name, and bytes and text alike."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.protocol.request import Headers, Peer, Request

PEER = Peer("192.0.2.1", 4711, "127.0.0.1:8000")
NAMES = ["sid", "mysid", "SID", "connect.sid", "s+d", "a-b", "x"]


def request(target: str = "/", *raw: tuple[bytes, bytes]) -> Request:
    """Return a GET of *target* with these header lines."""
    return Request("GET", target, PEER, list(raw))


@pytest.mark.parametrize(
    ("sockaddr", "address", "port"),
    [
        (("192.0.2.1", 4711), "192.0.2.1", 4711),
        (("2001:db8::1", 4711, 0, 0), "2001:db8::1", 4711),
        (("::ffff:192.0.2.1", 4711, 0, 0), "192.0.2.1", 4711),
        (("fe80::1%eth0", 4711, 0, 2), "fe80::1", 4711),
        (("::ffff:0:1", 4711, 0, 0), "::ffff:0:1", 4711),
        ("", None, None),
        (b"\x00abstract", None, None),
        (None, None, None),
    ],
)
def test_client_has_one_address_whatever_the_socket(sockaddr: Any, address: str | None, port: int | None) -> None:
    """A client that came by a dual-stack listener today and by an IPv4 one yesterday is the same client."""
    assert Peer.of(sockaddr, "unix:/run/x") == Peer(address, port, "unix:/run/x")


def test_header_is_found_in_any_case() -> None:
    """HTTP/2 front ends write names in lower case, clients as they like."""
    headers = request("/", (b"x-user", b"alice")).headers
    assert headers["X-User"] == headers["x-user"] == headers.get("X-USER") == "alice"
    assert "x-User" in headers


def test_header_of_several_lines_is_one_value() -> None:
    """Proxies may join lines or not: both must give the same key."""
    several = request("/", (b"via", b"a \t"), (b"host", b"h"), (b"via", b""), (b"via", b"\tb"))
    joined = request("/", (b"via", b"a, b"))
    assert several.headers["via"] == joined.headers["via"] == "a, b"
    assert several.header_bytes(b"via") == joined.header_bytes(b"via") == b"a, b"
    assert several.headers.get_all("Via") == ["a", "", "b"]


def test_absent_header_is_absent_and_an_empty_one_is_empty() -> None:
    """A key function tells "did not say" from "said nothing" by this."""
    headers = request("/", (b"x-user", b"")).headers
    assert headers["x-user"] == ""
    assert "x-use" not in headers
    assert "x-user2" not in headers
    assert headers.get_all("x-use") == []
    with pytest.raises(KeyError):
        headers["x-use"]


def test_headers_are_a_mapping_of_distinct_names() -> None:
    """`dict(request.headers)` is the first thing that anybody writes."""
    assert dict(Headers([(b"a", b"1"), (b"b", b"\xe9"), (b"a", b"2")])) == {"a": "1, 2", "b": "é"}
    assert len(Headers([(b"a", b"1"), (b"a", b"2")])) == 1


@pytest.mark.parametrize(
    ("line", "sid"),
    [
        (b"sid=1", "1"),
        (b"a=0;sid=1", "1"),
        (b"a=0;   sid = 1 ; b=2", "1"),
        (b"sid=1; sid=2", "1"),
        (b"mysid=0; connect.sid=0; SID=0; sid.x=0; sid=1", "1"),
        (b"a=sid=0; sid=1", "1"),
        (b"x sid=0; sid=1", "1"),
        (b'sid="1"', "1"),
        (b'a="x; sid=1"; b=2', '1"'),
        (b'sid="', '"'),
        (b'sid=""', ""),
        (b"sid=a%3Db=c", "a%3Db=c"),
        (b"sid", None),
        (b"sid; sid=1", "1"),
        (b"sid=; sid=1", ""),
        (b"", None),
        (b";;;", None),
    ],
)
def test_cookie_is_read_as_servers_read_it(line: bytes, sid: str | None) -> None:
    """A cookie that the application sees and the dispatcher does not, or the reverse, sends its client astray."""
    asked = request("/", (b"cookie", line))
    assert asked.cookies.get("sid") == sid
    assert asked.cookie_bytes(b"sid") == (None if sid is None else sid.encode())


def test_cookies_of_several_lines_are_one_list() -> None:
    """HTTP/2 front ends split the cookies over lines."""
    asked = request("/", (b"cookie", b"a=1"), (b"cookie2", b"sid=0"), (b"cookie", b"sid=1"), (b"cookie", b"sid=2"))
    assert asked.cookies == {"a": "1", "sid": "1"}
    assert asked.cookie_bytes(b"sid") == b"1"


@given(st.lists(st.text('sid=;" \tmyx.-+', max_size=30), max_size=3), st.sampled_from(NAMES))
def test_cookie_bytes_and_text_agree(lines: list[str], name: str) -> None:
    """A key function that reads `cookies` must find what `--by cookie:` finds."""
    asked = request("/", *((b"cookie", line.encode()) for line in lines))
    found = asked.cookie_bytes(name.encode())
    assert asked.cookies.get(name) == (None if found is None else found.decode())


@pytest.mark.parametrize(
    ("target", "sid"),
    [
        ("/?sid=1", "1"),
        ("/?EIO=4&sid=1&t=x", "1"),
        ("/?mysid=0&sid=1", "1"),
        ("/?sid2=0&Sid=0&x.sid=0&sid[]=0&sid=1", "1"),
        ("/?sid=1&sid=2", "1"),
        ("/sid=0?sid=1", "1"),
        ("/&sid=0", None),
        ("/&sid=0?sid=1", "1"),
        ("/?a=1?sid=0", None),
        ("/?a=&sid=1", "1"),
        ("/?%73i%64=1", "1"),
        ("/?s%69d=1&sid=2", "1"),
        ("/?sid=%41%2Fb+c%2b", "A/b c+"),
        ("/?sid=a%26sid=b", "a&sid=b"),
        ("/?x=%26sid=0", None),
        ("/?sid=a=b", "a=b"),
        ("/?sid=100%", "100%"),
        ("/?sid=%zz", "%zz"),
        ("/?sid=%E2%82%AC", "€"),
        ("/?sid", ""),
        ("/?sid&sid=1", ""),
        ("/?sid=", ""),
        ("/?", None),
        ("/", None),
        ("/?a;sid=0", None),
        ("/#?sid=0", None),
        ("/?a=1#&sid=0", None),
        ("/?sid=1#f", "1"),
        ("http://h/p?sid=1", "1"),
    ],
)
def test_query_parameter_is_found_by_its_exact_name(target: str, sid: str | None) -> None:
    """`?mysid=` once shadowed `?sid=`: a lookalike sent every client of a page to one worker."""
    assert request(target).query.get("sid") == sid
    assert request(target).query_bytes(b"sid") == (None if sid is None else sid.encode())


@given(st.text("sid=&?#%+27345CcBbx.", max_size=40), st.sampled_from(NAMES) | st.text("sd=&%+ 25", min_size=1))
def test_query_bytes_and_text_agree(query: str, name: str) -> None:
    """A key function that reads `query` must find what `--by query:` finds."""
    asked = request("/?" + query)
    found = asked.query_bytes(name.encode())
    assert asked.query.get(name) == (None if found is None else found.decode(errors="replace"))


@given(st.text(min_size=1), st.text())
def test_query_is_found_however_it_was_encoded(name: str, value: str) -> None:
    """Clients differ in what they escape: the same parameter must be the same key."""

    def escape(text: str) -> str:
        return "".join(f"%{byte:02X}" for byte in text.encode())

    asked = request(f"/?{escape('x' + name)}=0&{escape(name)}={escape(value)}")
    assert asked.query[name] == value
    assert asked.query_bytes(name.encode()) == value.encode()


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/a/b?c/d", "/a/b"),
        ("/a%20b%2Fc", "/a b/c"),
        ("/%E2%82%AC/%ff", "/€/\ufffd"),
        ("/a+b", "/a+b"),
        ("/a#b?c", "/a"),
        ("//a/b", "//a/b"),
        ("/http://h/p", "/http://h/p"),
        ("http://h/p/q?r", "/p/q"),
        ("https://u@h:80/?r=/s", "/"),
        ("http://h", "/"),
        ("*", "*"),
        ("*://h/p", "*://h/p"),
    ],
)
def test_path_is_what_the_application_sees(target: str, path: str) -> None:
    """A path pattern is written for the application's paths, not for what proxies make of them."""
    assert request(target).path == path


def test_listener_is_the_one_of_the_peer() -> None:
    """A key function of a server with two ports may tell them apart."""
    assert request().listener == "127.0.0.1:8000"


def test_repr_shows_no_key() -> None:
    """It ends up in the log of every key function that raises."""
    shown = repr(request("/?sid=secret", (b"cookie", b"sid=secret"), (b"authorization", b"secret")))
    assert shown == "<Request GET, 2 headers, Peer(address='192.0.2.1', port=4711, listener='127.0.0.1:8000')>"
