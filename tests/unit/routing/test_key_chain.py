"""The key chain: what it means, what it finds, and that nothing a client or a user's function does ends it."""

from __future__ import annotations

import functools
import ipaddress
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import limpet.protocol.request
from limpet.errors import SettingsError
from limpet.protocol.request import Peer, Request
from limpet.routing.elements import Ip, Path
from limpet.routing.forwarded import behind_nat64
from limpet.routing.key_chain import Key, KeyChain, Trust

PEER = Peer("192.0.2.77", 4711, "127.0.0.1:8000")
TRUST = Trust.parse("192.0.2.0/24")
ASKED = Request(
    "GET",
    "/session/s%201/x?EIO=4&sid=q1",
    PEER,
    [(b"x-user", b"alice"), (b"cookie", b"mysid=0; sid=c1"), (b"x-forwarded-for", b"198.51.100.7"), (b"x-empty", b"")],
)


def chain(text: str, function: object = None, errors: list[tuple[str, str]] | None = None) -> KeyChain:
    """Return the chain *text*, whose functions are all *function*, and whose errors are collected."""

    def load(name: str) -> Callable[..., object]:
        return function  # type: ignore[return-value]  # what is no function is refused by the chain

    def on_error(element: str, error: BaseException | str) -> None:
        if errors is not None:
            errors.append((element, type(error).__name__))

    return KeyChain.parse(text, TRUST, load if function is not None else None, on_error)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("ip", Key(b"\xc0\x00\x02\x4d", "ip", True)),
        ("ip/24", Key(b"\xc0\x00\x02\x00", "ip/24", True)),
        ("forwarded", Key(b"\xc6\x33\x64\x07", "forwarded", True)),
        ("forwarded/8/48", Key(b"\xc6\x00\x00\x00", "forwarded/8/48", True)),
        ("header:X-User", Key(b"alice", "header:x-user", False)),
        ("cookie:sid", Key(b"c1", "cookie:sid", False)),
        ("query:sid", Key(b"q1", "query:sid", False)),
        ("path:^/session/([^/]+)", Key(b"s 1", "path:^/session/([^/]+)", False)),
        ("path:(nothing)?", None),
        ("path:/other/(.*)", None),
        ("header:x-empty", None),
        ("cookie:Sid", None),
        ("query:s", None),
        ("header:x-none,cookie:none,query:sid,ip", Key(b"q1", "query:sid", False)),
        ("header:x-empty,ip", Key(b"\xc0\x00\x02\x4d", "ip", True)),
    ],
)
def test_first_element_that_yields_a_key_wins(text: str, key: Key | None) -> None:
    """The whole meaning of a chain."""
    assert chain(text).find(PEER, ASKED) == key


WEBSOCKET = b"sec-websocket-protocol"
BEARERS = [
    ("/", (b"authorization", b"Bearer abc.def")),
    ("/", (b"authorization", b"bearer   abc.def")),
    ("/?access_token=abc.def", (b"accept", b"*/*")),
    ("/?access_token=abc%2Edef", (b"authorization", b"Basic YTpi")),
    ("/", (WEBSOCKET, b"bearer, abc.def")),
    ("/", (WEBSOCKET, b"chat.v1,Bearer , abc.def")),
    ("/", (WEBSOCKET, b"base64url.bearer.authorization.k8s.io.YWJjLmRlZg, base64.binary.k8s.io")),
]


@pytest.mark.parametrize(("target", "header"), BEARERS)
def test_bearer_token_is_one_key_wherever_the_client_sends_it(target: str, header: tuple[bytes, bytes]) -> None:
    """A page sends its token in a header with `fetch`, and cannot with a websocket: both have to reach one worker."""
    request = Request("GET", target, PEER, [header])
    found = chain("bearer").find(PEER, request)
    assert found == Key(b"abc.def", "bearer", False)
    assert chain("bearer").value is not None
    plain = chain("query:token").find(PEER, Request("GET", "/?token=abc.def", PEER, []))
    assert plain is not None
    assert plain.value == found.value


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Basic YTpi")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearerabc")],
        [(WEBSOCKET, b"chat, bearer")],
        [(WEBSOCKET, b"bearer,")],
        [(WEBSOCKET, b"base64url.bearer.authorization.k8s.io.A")],
        [(WEBSOCKET, b",".join([b"x"] * 5000) + b",bearer,abc")],
    ],
)
def test_what_has_no_bearer_token_has_no_key(headers: list[tuple[bytes, bytes]]) -> None:
    """A password of `Basic` is not a token; and nothing that a client sends raises."""
    assert chain("bearer").find(PEER, Request("GET", "/", PEER, headers)) is None


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("path:^/(a{1,3}),bearer", "path:^/(a{1,3}),bearer"),
        ("bearer,ip", "bearer,ip"),
        ("ip", "ip"),
        ("ip/32/64", "ip"),
        ("ip/024", "ip/24"),
        ("ip/32/48", "ip/32/48"),
        ("forwarded/24/64", "forwarded/24"),
        (" cookie:sid , ip ", "cookie:sid,ip"),
        ("header:X-User,header:Authorization", "header:x-user,header:authorization"),
        ("cookie:__Host-connect.sid,query:a!b", "cookie:__Host-connect.sid,query:a!b"),
        ("path:^/(a{1,3}),ip/24", "path:^/(a{1,3}),ip/24"),
        ("path:^/(a,b) , cookie:x", "path:^/(a,b),cookie:x"),
        ("path:(a),ipx,(b), path:(c),iptables", "path:(a),ipx,(b),path:(c),iptables"),
        ("python:shop.keys:by_tenant,ip", "python:shop.keys:by_tenant,ip"),
        ("python:keys:Tenants.find", "python:keys:Tenants.find"),
    ],
)
def test_chain_has_one_canonical_text(text: str, spec: str) -> None:
    """Children are given the text: what they parse must be what the user wrote."""
    assert chain(text).spec == spec
    assert chain(spec).spec == spec


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cookie:sid,foo:bar", "`foo:bar`"),
        ("foo", "`foo`"),
        ("", "``"),
        ("ip,", "``"),
        ("ip,,cookie:sid", "``"),
        ("IP", "`IP`"),
        ("ip/", "`ip/`"),
        ("ip/24/64/1", "`ip/24/64/1`"),
        ("ip/x", "`ip/x`"),
        ("ip/0", "`/0`"),
        ("ip/33", "`/33`"),
        ("ip/24/129", "`/129`"),
        ("ip/24/0", "`/0`"),
        ("header", "`header`"),
        ("header:", "``"),
        ("header:x user", "`x user`"),
        ("cookie:a=b", "`a=b`"),
        ("cookie:größe", "`größe`"),
        ("query:a b", "`a b`"),
        ("path:^/session/", "`path:^/session/`"),
        ("path:(", "`path:(`"),
        ("path:(a{99999999999})", "`path:(a{99999999999})`"),
        ("python:shop.keys", "`python:shop.keys`"),
        ("python:shop..keys:f", "`python:shop..keys:f`"),
        ("python:keys:f()", "`python:keys:f()`"),
        ("affinity:sid", "`affinity:sid`"),
    ],
)
def test_nonsense_in_a_chain_is_named(text: str, found: str) -> None:
    """Whoever mistypes a chain must see which part of it, and what would be right."""
    with pytest.raises(SettingsError) as caught:
        chain(text)
    assert found in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("regex", ["(a),ip", "(a),cookie:b", "(a) "])
def test_element_whose_text_means_something_else_is_refused(regex: str) -> None:
    """A chain made of objects travels to the children as text."""
    with pytest.raises(SettingsError):
        KeyChain([Path(regex), Ip()])


def test_chain_without_elements_is_refused() -> None:
    """It would find no key for anybody, and say nothing."""
    with pytest.raises(SettingsError):
        KeyChain([])


@given(st.ip_addresses(), st.integers(1, 32), st.integers(1, 128))
def test_address_is_masked_and_packed_in_whole_words(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, v4: int, v6: int
) -> None:
    """The kernel's program loads 32-bit words of the address: the dispatcher must hash the same."""
    key = KeyChain([Ip(v4, v6)]).find(Peer(str(address), None, ""), None)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    known = mapped or behind_nat64(address)
    bits, size = (v4, 4) if known.version == 4 else (v6, -(-v6 // 32) * 4)
    network = ipaddress.ip_network((known, bits), strict=False)
    assert key is not None
    assert key.is_address
    assert key.value == network.network_address.packed[:size]


def test_ipv6_is_masked_to_64_bits_by_default() -> None:
    """A host changes its address inside its /64 every day."""
    home, moved, other = (
        chain("ip").find(Peer(address, None, ""), None)
        for address in ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1")
    )
    assert home == moved == Key(bytes.fromhex("20010db800010002"), "ip", True)
    assert home != other


def test_unix_peer_has_no_address_key() -> None:
    """All clients of a unix socket would share one key."""
    assert chain("ip,header:x-user").find(Peer(None, None, "unix:/x"), ASKED) == Key(b"alice", "header:x-user", False)


@pytest.mark.parametrize("text", ["forwarded", "header:x-user", "cookie:sid", "query:sid", "path:(.*)", "python:m:f"])
def test_element_that_needs_the_head_says_so_and_finds_nothing_without(text: str) -> None:
    """The dispatcher waits for a head only if it must, and asks with none if it need not."""
    assert chain(text, len).needs_head
    assert chain(f"ip,{text}", len).needs_head
    assert chain(text, len).find(PEER, None) is None


@pytest.mark.parametrize("text", ["ip", "ip/24/48,ip"])
def test_address_alone_needs_no_head(text: str) -> None:
    """Any protocol can be served by address, and nothing waits."""
    assert not chain(text).needs_head


def test_key_is_not_shown() -> None:
    """Keys are secrets of the users, and a repr ends up in logs."""
    assert "secret" not in repr(Key(b"secret", "cookie:sid", False))


# --- limpet where -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("cookie:sid=c1", Key(b"c1", "cookie:sid", False)),
        ("c1", Key(b"c1", "cookie:sid", False)),
        ("YWxpY2U==", Key(b"YWxpY2U==", "cookie:sid", False)),
        ("cookie:sid=ip=1", Key(b"ip=1", "cookie:sid", False)),
        ("header:X-User=alice", Key(b"alice", "header:x-user", False)),
        ("header:x-user=größe", Key("größe".encode(), "header:x-user", False)),
        ("header:x-user=\udcff", Key(b"\xff", "header:x-user", False)),
        ("path:^/a=(.+)=b", Key(b"b", "path:^/a=(.+)", False)),
        ("python:m:f=7,8", Key(b"7,8", "python:m:f", False)),
        ("ip=192.0.2.77", Key(b"\xc0\x00\x02\x00", "ip/24/48", True)),
        ("ip/24/48=2001:db8:1:2::3", Key(bytes.fromhex("20010db800010000"), "ip/24/48", True)),
        ("forwarded=::ffff:192.0.2.1", Key(b"\xc0\x00\x02\x01", "forwarded", True)),
    ],
)
def test_key_as_text_is_read_as_the_element_that_it_names(text: str, key: Key) -> None:
    """`limpet where` answers for what a client sends, with the words of `--by`."""
    assert chain("cookie:sid,header:x-user,path:^/a=(.+),python:m:f,ip/24/48,forwarded").from_text(text) == key


@pytest.mark.parametrize(
    ("by", "text"),
    [
        ("ip", "alice"),
        ("ip", "192.0.2.256"),
        ("ip", "192.0.2.0/24"),
        ("ip", ""),
        ("ip", "cookie:sid=c1"),
        ("ip/24", "ip/16=192.0.2.1"),
        ("cookie:sid", ""),
        ("cookie:sid", "cookie:sid="),
        ("cookie:sid", "cookie:SID=c1"),
        ("cookie:sid", "ip=192.0.2.1"),
    ],
)
def test_key_as_text_that_no_client_could_have_is_refused(by: str, text: str) -> None:
    """An answer to a question that the server never asks would mislead whoever hunts a client."""
    with pytest.raises(SettingsError):
        chain(by).from_text(text)


@given(st.sampled_from(["header:x-user", "cookie:sid", "query:sid", "ip", "forwarded"]))
def test_key_as_text_is_the_key_of_the_client(by: str) -> None:
    """`limpet where` and the dispatcher must never disagree."""
    text = {"header:x-user": "alice", "cookie:sid": "c1", "query:sid": "q1", "ip": PEER.address}.get(by, "198.51.100.7")
    assert text
    assert chain(by).from_text(text) == chain(by).from_text(f"{by}={text}") == chain(by).find(PEER, ASKED)


# --- users' functions -------------------------------------------------------------------------------------------------


def numbers() -> Iterator[int]:
    yield 1
    yield 2


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (b"\x00\xff", b"\x00\xff"),
        ("größe", "größe".encode()),
        (7, b"7"),
        (-7, b"-7"),
        ([192, 0, 2], b"192,0,2"),
        ((), None),
        (range(3), b"0,1,2"),
        (numbers(), b"1,2"),
        (None, None),
        ("", None),
        (b"", None),
    ],
)
def test_answer_of_a_function_becomes_bytes(answer: object, value: bytes | None) -> None:
    """The same answer must be the same key on every machine."""
    errors: list[tuple[str, str]] = []
    key = chain("python:m:f", lambda request: answer, errors).find(PEER, ASKED)
    assert key == (value and Key(value, "python:m:f", False))
    assert not errors


@pytest.mark.parametrize("answer", [True, 1.5, object(), [1, "2"], [True], {"a": 1}, "\udc80", [10**5000]])
def test_answer_that_cannot_be_a_key_is_reported_and_passed_over(answer: object) -> None:
    """A wrong answer must cost stickiness for one function, not the server."""
    errors: list[tuple[str, str]] = []
    key = chain("python:m:f,header:x-user", lambda request: answer, errors).find(PEER, ASKED)
    assert key == Key(b"alice", "header:x-user", False)
    assert [element for element, _ in errors] == ["python:m:f"]


@pytest.mark.parametrize("error", [KeyError, SystemExit, KeyboardInterrupt, RecursionError, GeneratorExit])
def test_function_that_raises_is_reported_and_passed_over(error: type[BaseException]) -> None:
    """A user function that threw killed the master of the reference."""

    def fail(request: Request) -> str:
        raise error

    errors: list[tuple[str, str]] = []
    assert chain("python:m:f,ip", fail, errors).find(PEER, ASKED) == chain("ip").find(PEER, None)
    assert errors == [("python:m:f", error.__name__)]


def test_function_that_raises_while_answering_is_reported_and_passed_over() -> None:
    """A generator runs only when its numbers are taken."""

    def fail(request: Request) -> Iterator[int]:
        yield 1
        sys.exit(1)

    errors: list[tuple[str, str]] = []
    assert chain("python:m:f", fail, errors).find(PEER, ASKED) is None
    assert errors == [("python:m:f", "SystemExit")]


def test_errors_nobody_listens_to_change_nothing() -> None:
    """The worker asks the same chain again, and the dispatcher has reported already."""
    silent = KeyChain.parse("python:m:f,ip", TRUST, lambda name: lambda request: 1 / 0)
    assert silent.find(PEER, ASKED) == chain("ip").find(PEER, None)


def by_annotation(far_end: Peer) -> str:
    return f"{far_end.port}"


def by_string_annotation(far_end: "limpet.protocol.request.Peer") -> str:  # noqa: UP037
    return f"{far_end.port}"


def by_name(peer):  # type: ignore[no-untyped-def]
    return f"{peer.port}"


class ByMethod:
    def __call__(self, peer: Peer) -> str:
        return f"{peer.port}"

    def method(self, peer: Peer) -> str:
        return f"{peer.port}"


@pytest.mark.parametrize(
    "function",
    [
        by_annotation,
        by_string_annotation,
        by_name,
        ByMethod(),
        ByMethod().method,
        functools.partial(by_annotation),
        lambda peer: f"{peer.port}",
    ],
)
def test_function_of_a_peer_needs_no_head(function: Callable[..., object]) -> None:
    """It can balance any protocol, and is asked before a byte has come."""
    by_peer = chain("python:m:f", function)
    assert not by_peer.needs_head
    assert by_peer.find(PEER, None) == Key(b"4711", "python:m:f", False)


@pytest.mark.parametrize(
    "function",
    [
        lambda request: request.headers["x-user"],
        lambda anything, more=1: anything.headers["x-user"],
        lambda *all_of_them: all_of_them[0].headers["x-user"],
        functools.partial(lambda name, request: request.headers[name], "x-user"),
    ],
)
def test_any_other_function_is_given_the_request(function: Callable[..., object]) -> None:
    """Most keys are in the head."""
    assert chain("python:m:f", function).find(PEER, ASKED) == Key(b"alice", "python:m:f", False)


async def later(request: Request) -> str:
    return "alice"


class Later:
    async def __call__(self, request: Request) -> str:
        return "alice"


@pytest.mark.parametrize(
    "function", [later, Later(), functools.partial(later), "by_tenant", lambda: "", lambda a, b: "", lambda *, a: ""]
)
def test_what_cannot_be_a_key_function_is_refused_at_start(function: Any) -> None:
    """Found at the first request it would be found by a client."""
    with pytest.raises(SettingsError) as caught:
        chain("python:m:f", function)
    assert "`python:m:f`" in caught.value.message


def test_function_without_a_signature_is_given_the_request() -> None:
    """Some functions written in C cannot be inspected."""
    assert chain("python:m:f", max).needs_head


def test_unresolved_function_counts_as_needing_the_head() -> None:
    """The supervisor parses the chain without running user code, and must not promise what it cannot know."""
    assert chain("python:m:f").needs_head


def test_unresolved_function_cannot_be_asked() -> None:
    """A process that may not run user code has no business routing by it, and skipping it would misroute."""
    with pytest.raises(RuntimeError):
        chain("python:m:f,ip").find(PEER, ASKED)


def test_error_of_the_loader_is_passed_on() -> None:
    """A module that cannot be imported has a message of its own."""

    def load(name: str) -> Callable[..., object]:
        raise LookupError(name)

    with pytest.raises(LookupError, match="shop:key"):
        KeyChain.parse("ip,python:shop:key", TRUST, load)
