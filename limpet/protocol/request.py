"""What a key is taken from: the `Peer` of a connection and one `Request` on it.

This file owns how headers, cookies, query and path are read from a request head. It does not know how a head is parsed
(protocol/head.py), nor which value is the key (routing/key_chain.py), and it never sees a body. Pure. The key chain and
users' key functions call it.

1. Nothing is decoded before it is asked for. A `Request` is four references, and each access makes a view.
2. The `*_bytes` methods and the text views agree: `query_bytes(b"sid")` equals `query["sid"]` before its conversion to
   text. The `*_bytes` methods search in C, because a client may send 64 KiB of nothing but `;` or `&`.
3. Of several cookies or parameters with one name the first wins. Several lines of one header are one value.
4. No `repr` shows the target, headers or cookies: keys are secrets of the users.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, AnyStr, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, unquote_to_bytes

_BLANKS: Final = b" \t"
_NAMES: Final = 256  # patterns kept. Names come from key chains and code, never from clients, so they are few
# Characters of a name that appear in a query as something else if they are not percent-encoded. `(?!)` matches nothing.
_BARE: Final = {
    ord(" "): r"\+",
    ord("%"): "%(?![0-9A-Fa-f]{2})",
    **dict.fromkeys(b"+&=#", "(?!)"),
}


class Peer(NamedTuple):
    """The far end of a client connection, and the listener by which the connection came."""

    address: str | None  # None: a unix socket
    port: int | None
    listener: str
    bind: int = 0  # index of that listener's bind
    server_name: str | None = None  # the name that the client asked for in its TLS handshake

    def __repr__(self) -> str:
        return f"Peer(address={self.address!r}, port={self.port!r}, listener={self.listener!r})"

    @classmethod
    def of(cls, sockaddr: Any, listener: str, bind: int = 0) -> Peer:
        """Return the peer for *sockaddr*, a result of `accept()` or `getpeername()`.

        An IPv4 client of a dual-stack listener is shown as IPv4, and a zone (`%eth0`) is dropped. So a client has one
        address, however the listener was bound.
        """
        if not isinstance(sockaddr, tuple):
            return cls(None, None, listener, bind)
        address = sockaddr[0]
        if len(sockaddr) == 4:
            address = address.partition("%")[0]
            if address.startswith("::ffff:") and "." in address:
                address = address[7:]
        return _new_peer((address, sockaddr[1], listener, bind, None))


_new_peer: Final = partial(tuple.__new__, Peer)  # once for each connection: `Peer()` is a Python function


class Headers(Mapping[str, str]):
    """The headers of one request as text. Names ignore case; several lines of one name are joined with ", "."""

    __slots__ = ("_raw",)

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._raw = raw

    def __getitem__(self, name: str) -> str:
        value = _joined(_lines(self._raw, name.lower().encode()))
        if value is None:
            raise KeyError(name)
        return value.decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.decode("latin-1") for name, _ in self._raw))

    def __len__(self) -> int:
        return len({name for name, _ in self._raw})

    def get_all(self, name: str) -> list[str]:
        """Return the value of each line of header *name*, in wire order; an empty list if there is none."""
        return [value.decode("latin-1") for value in _lines(self._raw, name.lower().encode())]


class Request:
    """One request head. Key functions get it as their argument."""

    __slots__ = ("method", "peer", "raw_headers", "target")

    def __init__(self, method: str, target: str, peer: Peer, raw_headers: list[tuple[bytes, bytes]]) -> None:
        self.method = method
        self.target = target
        self.peer = peer
        self.raw_headers = raw_headers  # names in lower case, wire order

    def __repr__(self) -> str:
        return f"<Request {self.method}, {len(self.raw_headers)} headers, {self.peer}>"

    @property
    def listener(self) -> str:
        """The listener by which the connection came."""
        return self.peer.listener

    @property
    def headers(self) -> Headers:
        """The headers as text."""
        return Headers(self.raw_headers)

    @property
    def path(self) -> str:
        """The path as the application sees it: percent-decoded, and without the query."""
        path = self.target.partition("#")[0].partition("?")[0]
        if "://" in path and not path.startswith(("/", "*")):  # absolute-form, which clients send to proxies
            path = "/" + path.partition("://")[2].partition("/")[2]
        return unquote(path)

    @property
    def query(self) -> Mapping[str, str]:
        """The query, percent- and plus-decoded. The first value of a name wins; a name without `=` has value ""."""
        pairs: dict[str, str] = {}
        for name, value in parse_qsl(self._query(), keep_blank_values=True):
            pairs.setdefault(name, value)
        return pairs

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies. The first value of a name wins."""
        pairs: dict[str, str] = {}
        for line in self.headers.get_all("cookie"):
            for pair in line.split(";"):
                name, equals, value = pair.partition("=")
                if equals:
                    pairs.setdefault(name.strip(" \t"), _unquoted(value.strip(" \t"), '"'))
        return pairs

    def header_bytes(self, name: bytes) -> bytes | None:
        """Return the value of the header *name* (in lower case); None if there is none."""
        return _joined(self._lines(name))

    def cookie_bytes(self, name: bytes) -> bytes | None:
        """Return the value of the first cookie *name*; None if there is none."""
        pattern = _cookie_pattern(name)
        for line in self._lines(b"cookie"):
            if match := pattern.search(b";" + line):
                return _unquoted(match[1].strip(_BLANKS), b'"')
        return None

    def cookie_values(self, name: bytes) -> list[bytes]:
        """Return the distinct values of all cookies *name*, in wire order."""
        return cookie_values(self._lines(b"cookie"), name)

    def query_bytes(self, name: bytes) -> bytes | None:
        """Return the decoded value of the first query parameter *name*; None if there is none."""
        match = _query_pattern(name).search("&" + self._query())
        return match and unquote_to_bytes((match[1] or "").replace("+", " "))

    def _lines(self, name: bytes) -> list[bytes]:
        return _lines(self.raw_headers, name)

    def _query(self) -> str:
        # llhttp accepts a fragment. uvicorn counts it neither as path nor as query.
        return self.target.partition("#")[0].partition("?")[2]


class UnparsedRequest(Request):
    """A request that is read from the raw bytes of its head, and only as far as it is asked.

    For a head that llhttp accepts this equals the result of `HeadParser.request`: lines end only in CRLF, a name stands
    at the start of its line and ends at the colon, and no value continues on the next line. For any other head the
    result may be wrong: a caller that acts on it must give the head to a parser before the request is served. A search
    for one header takes 1 us; to parse a head with 10 headers takes 7 us.
    """

    __slots__ = ("_head",)

    def __init__(self, head: bytes, peer: Peer) -> None:
        self._head = head
        self.peer = peer

    def __getattr__(self, name: str) -> Any:
        """Compute the attribute *name* of `Request` at its first access."""
        if name == "raw_headers":
            lines = [line.partition(b":") for line in self._head.lstrip(b"\r\n").split(b"\r\n")[1:] if line]
            self.raw_headers = [(key.lower(), value.lstrip(_BLANKS)) for key, _, value in lines]
        elif name in ("method", "target"):
            words = [*self._head.lstrip(b"\r\n").partition(b"\r\n")[0].split(maxsplit=2), b"", b""]
            self.method, self.target = words[0].decode("latin-1"), words[1].decode("latin-1")
        else:
            raise AttributeError(name)
        return getattr(self, name)

    def header_bytes(self, name: bytes) -> bytes | None:
        """Return the value of the header *name* (in lower case); None if there is none."""
        values = _line_pattern(name).findall(self._head)
        return values[0].strip(_BLANKS) if len(values) == 1 else _joined([value.strip(_BLANKS) for value in values])

    def _lines(self, name: bytes) -> list[bytes]:
        return [value.strip(_BLANKS) for value in _line_pattern(name).findall(self._head)]


def cookie_values(lines: Iterable[bytes], name: bytes) -> list[bytes]:
    """Return the distinct values of all cookies *name* in the Cookie headers *lines*, in wire order."""
    pattern = _cookie_pattern(name)
    found = [_unquoted(value.strip(_BLANKS), b'"') for line in lines for value in pattern.findall(b";" + line)]
    return list(dict.fromkeys(found)) if len(found) > 1 else found


def set_cookie_value(line: bytes, name: bytes) -> bytes | None:
    """Return the value that the Set-Cookie header *line* gives to the cookie *name*; None if it sets another cookie.

    It is the value that `cookie_bytes` will find in the client's requests: up to the `;`, without a pair of quotes.
    """
    found, equals, value = line.partition(b";")[0].partition(b"=")
    return _unquoted(value.strip(_BLANKS), b'"') if equals and found.strip(_BLANKS) == name else None


def _lines(raw: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    # llhttp strips the blanks before a value and leaves those after it.
    return [value.strip(_BLANKS) for key, value in raw if key == name]


def _joined(values: list[bytes]) -> bytes | None:
    if len(values) == 1:
        return values[0]
    return b", ".join(filter(None, values)) if values else None


@lru_cache(maxsize=_NAMES)
def _line_pattern(name: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"\r\n(?i:" + re.escape(name) + rb"):([^\r\n]*)")


def _unquoted(value: AnyStr, quote: AnyStr) -> AnyStr:
    """Return *value* without a pair of quotes around it. Quotes protect nothing: a `;` within them ends the value."""
    return value[1:-1] if len(value) > 1 and value[:1] == value[-1:] == quote else value


@lru_cache(maxsize=_NAMES)
def _cookie_pattern(name: bytes) -> re.Pattern[bytes]:
    # The literal `;` at the start lets the search skip from pair to pair. Callers add one before the first pair.
    return re.compile(rb";[ \t]*" + re.escape(name) + rb"[ \t]*=([^;]*)")


@lru_cache(maxsize=_NAMES)
def _query_pattern(name: bytes) -> re.Pattern[str]:
    """Return a pattern that finds *name* after a `&`, however its characters are encoded."""
    encodings = (f"(?:{_BARE.get(byte) or re.escape(chr(byte))}|%(?i:{byte:02x}))" for byte in name)
    return re.compile("&" + "".join(encodings) + r"(?:=([^&]*)|(?=&)|\Z)")
