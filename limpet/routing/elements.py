"""The places where a key can be: the elements of a key chain.

Owns what each element takes from a peer or a request, as bytes. Refuses to know the text of a chain and the order of
its elements (routing/key_chain.py), and what becomes of a key (routing/router.py). Pure; of user code it runs only
functions that it was given.

1. Nothing that a client sends makes `find` raise, and no exception of a user's function leaves it.
2. `Key.value` is hashed, so what an element yields for given bytes is wire format: changing it moves clients.
3. An empty value is no key.
4. A key is a secret of the user: neither a `repr` nor an error about a request shows it.
"""

from __future__ import annotations

import base64
import inspect
import operator
import re
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from ipaddress import IPv4Address
from typing import ClassVar, Final, NamedTuple

from limpet.errors import SettingsError
from limpet.protocol.request import Peer, Request
from limpet.routing.affinity_cookie import Jar
from limpet.routing.forwarded import Trust, behind_nat64, client_address, parse_address

UserFunction = Callable[..., object]
OnError = Callable[[str, BaseException | str], None]

AFFINITY: Final = "affinity"
_ADDRESSES: Final = 16384  # keys kept per address element, some 5 MB: making one takes 20 times longer
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # of RFC 9110, which RFC 6265 uses for cookies
_PATH_HINT: Final = "`--by 'path:^/session/([^/]+)'` takes what follows `/session/`"
_BEARER: Final = re.compile(rb"bearer +([^ \t,]+)", re.IGNORECASE)  # RFC 6750: the scheme in any case
_K8S: Final = b"base64url.bearer.authorization.k8s.io."
_PROTOCOLS: Final = 16  # subprotocols looked at: a client may offer thousands, and none needs more than a few
_NOBODY: Final = Trust()
_FUNCTION_HINT: Final = "`def key(request: limpet.Request) -> str | None` or `def key(peer: limpet.Peer) -> str | None`"


class Key(NamedTuple):
    """What identifies a client: the same bytes, the same slot."""

    value: bytes
    element: str
    is_address: bool

    def __repr__(self) -> str:
        return f"<Key of {self.element}>"  # never the value: keys are secrets of the users


_new_key: Final = partial(tuple.__new__, Key)  # skips the Python function that `Key()` is: it runs for each request


class Element:
    """One place to look for a key."""

    spec: str  # its canonical text in a chain
    needs_head: bool = True
    value: Callable[[Request], bytes | None] | None = None
    """Returns what the key is made of, where that is in the request alone and stays what it is; None for others."""

    def find(self, peer: Peer, request: Request | None) -> Key | None:
        """Return the client's key, None when it has none here or the request is not known."""
        value = None if request is None else self._value(request)
        return _new_key((value, self.spec, False)) if value else None

    def read(self, text: str) -> Key:
        """Return the key that a client would have by sending *text*. Raises SettingsError."""
        try:
            value = text.encode("utf-8", "surrogateescape")  # so that any bytes can be asked for
        except UnicodeEncodeError:
            raise SettingsError(f"`{text!a}` is not text: it holds half a character") from None
        if not value:
            raise SettingsError(f"`{self.spec}` needs a value, and an empty one is no key")
        return Key(value, self.spec, False)

    def labelled(self, text: str) -> str | None:
        """Return the KEY if *text* is `ELEMENT=KEY` and means this element."""
        label = f"{self.spec}="
        return text[len(label) :] if text.startswith(label) else None

    def absence(self, peer: Peer, request: Request | None) -> str:
        """Return in words why `find` has found nothing; without anything that the client sent."""
        return "a request is looked into, and none is known" if request is None else self._nothing

    _nothing: ClassVar[str] = "the request has none, or an empty one"

    def _value(self, request: Request) -> bytes | None:
        raise NotImplementedError


class Ip(Element):
    """The address of the peer, masked to *v4* or *v6* bits: a client is free to choose among its own /64.

    An IPv4 client behind a NAT64 translator has the key of its IPv4 address.
    """

    kind: ClassVar[str] = "ip"
    needs_head = False

    def __init__(self, v4: int = 32, v6: int = 64) -> None:
        for family, bits, most in ("IPv4", v4, 32), ("IPv6", v6, 128):
            if not 1 <= bits <= most:
                raise SettingsError(
                    f"`/{bits}` in `{self.kind}` is no prefix length of {family}: 1 to {most} are allowed",
                    hint=f"`--by {self.kind}/24/64` takes the first 24 bits of IPv4 and the first 64 of IPv6",
                )
        self.spec = self.kind + (f"/{v4}/{v6}" if v6 != 64 else f"/{v4}" if v4 != 32 else "")
        self.prefixes = v4, v6
        self._key = lru_cache(maxsize=_ADDRESSES)(self._make)

    def find(self, peer: Peer, request: Request | None) -> Key | None:
        return None if peer.address is None else self._key(peer.address)

    def absence(self, peer: Peer, request: Request | None) -> str:
        return "the client's address is not known, as on a unix socket"

    def read(self, text: str) -> Key:
        key = self._key(text)
        if key is None:
            raise SettingsError(
                f"`{text}` is not an IP address, and `{self.spec}` needs one",
                hint="`limpet where 10.1.2.3` asks for an address, `limpet where cookie:sid=KEY` for a cookie",
            )
        return key

    def labelled(self, text: str) -> str | None:
        key = super().labelled(text)
        if key is None and text.startswith(f"{self.kind}="):  # whoever asks need not know the prefix lengths
            return text.partition("=")[2]
        return key

    def _make(self, text: str) -> Key | None:
        address = parse_address(text)
        if address is None:
            return None
        address = behind_nat64(address)
        v4, v6 = self.prefixes
        bits, size = (v4, 4) if isinstance(address, IPv4Address) else (v6, (v6 + 31) // 32 * 4)
        free = address.max_prefixlen - bits
        packed = (int(address) >> free << free).to_bytes(address.max_prefixlen // 8, "big")
        return Key(packed[:size], self.spec, True)


class Forwarded(Ip):
    """The address of the client as the proxies in `--trust` report it, masked as for `Ip`."""

    kind = "forwarded"
    needs_head = True

    def __init__(self, v4: int = 32, v6: int = 64, *, trust: Trust = _NOBODY) -> None:
        super().__init__(v4, v6)
        self._trust = trust

    def find(self, peer: Peer, request: Request | None) -> Key | None:
        address = None if request is None else client_address(peer, request, self._trust)
        return None if address is None else self._key(address)


class Sni(Element):
    """The name of the server that the client asked for when it began TLS, in lower case."""

    spec = "sni"
    needs_head = False

    def find(self, peer: Peer, request: Request | None) -> Key | None:
        name = peer.server_name
        return None if name is None else _new_key((name.encode("utf-8", "replace"), self.spec, False))

    def read(self, text: str) -> Key:
        return super().read(text.lower())


class _Named(Element):
    kind: ClassVar[str]
    asks: ClassVar[str]  # the method of a request that looks for it
    value: Callable[[Request], bytes | None]

    def __init__(self, name: str) -> None:
        if not _TOKEN.fullmatch(name):
            raise SettingsError(
                f"`{name}` is not the name of a {self.kind}: letters, digits and !#$%&'*+-.^_`|~ are allowed",
                hint=f"`--by {self.kind}:sid` takes the {self.kind} named `sid`",
            )
        self.spec = f"{self.kind}:{name}"
        self._name = name.encode()
        self.value = operator.methodcaller(self.asks, self._name)

    def find(self, peer: Peer, request: Request | None) -> Key | None:
        value = None if request is None else self.value(request)
        return _new_key((value, self.spec, False)) if value else None


class Header(_Named):
    """The value of a header; of all its lines, joined with ", "."""

    kind = "header"
    asks = "header_bytes"

    def __init__(self, name: str) -> None:
        super().__init__(name.lower())

    def labelled(self, text: str) -> str | None:
        end = len(self.spec)
        return super().labelled(text[:end].lower() + text[end:])


class Cookie(_Named):
    """The value of the first cookie of that name."""

    kind = "cookie"
    asks = "cookie_bytes"


class Query(_Named):
    """The decoded value of the first query parameter of that name."""

    kind = "query"
    asks = "query_bytes"


class Bearer(Element):
    """A bearer token, wherever a client can send it: one key for a `fetch` and for the websocket of the same user.

    Looked for in this order: `Authorization: Bearer TOKEN`; the subprotocols that a browser offers with a websocket,
    since it cannot set headers there; the query parameter `access_token` (RFC 6750). The key is the token alone, so an
    element that finds the same bytes elsewhere (`query:token`) has the same key.
    """

    spec = "bearer"
    _nothing = "the request has no bearer token"

    def __init__(self) -> None:
        self.value = _bearer

    def _value(self, request: Request) -> bytes | None:
        return _bearer(request)


def _bearer(request: Request) -> bytes | None:
    if (line := request.header_bytes(b"authorization")) and (match := _BEARER.match(line)):
        return match[1]
    if (line := request.header_bytes(b"sec-websocket-protocol")) and (token := _offered(line)):
        return token
    return request.query_bytes(b"access_token")


def _offered(line: bytes) -> bytes | None:
    """Return the token among the subprotocols of *line*: two conventions, since no standard has one.

    `bearer, TOKEN` offers the token behind its scheme; `base64url.bearer.authorization.k8s.io.TOKEN` is Kubernetes',
    where it is base64url without padding.
    """
    offered = [each.strip(b" \t") for each in line.split(b",", _PROTOCOLS)[:_PROTOCOLS]]
    for number, each in enumerate(offered):
        if each.startswith(_K8S):
            try:
                return base64.b64decode(each[len(_K8S) :] + b"==", b"-_")
            except ValueError:
                return None
        if each.lower() == b"bearer" and number + 1 < len(offered):
            return offered[number + 1]
    return None


class Path(Element):
    """The first group of a regular expression, searched in the decoded path."""

    def __init__(self, regex: str) -> None:
        self.spec = f"path:{regex}"
        try:
            pattern = re.compile(regex)
        except (re.error, OverflowError) as error:
            raise SettingsError(f"`{self.spec}` is not a regular expression: {error}", hint=_PATH_HINT) from None
        if not pattern.groups:
            raise SettingsError(f"`{self.spec}` has no group, and its first group is the key", hint=_PATH_HINT)
        self._search = pattern.search

    _nothing = "the path does not match, or its first group is empty"

    def masked(self, path: str) -> str:
        """Return the decoded *path* with a `*` in place of the key."""
        match = self._search(path)
        return path if match is None or not match[1] else f"{path[: match.start(1)]}*{path[match.end(1) :]}"

    def _value(self, request: Request) -> bytes | None:
        match = self._search(request.path)
        return match[1].encode() if match and match[1] else None


class Affinity(Element):
    """A cookie that limpet makes for clients who have none: docs/sessions.md."""

    spec = AFFINITY
    _nothing = "the request has no cookie that this server made, or it is too old"

    def __init__(self, jar: Jar | None = None) -> None:
        self._jar = jar

    def read(self, text: str) -> Key:
        opened = None if self._jar is None else self._jar.open(text.encode("utf-8", "replace"))
        if opened is None:
            raise SettingsError("that is no cookie that this server made, or it is too old")
        return Key(opened.digest.to_bytes(8, "big"), self.spec, False)

    def _value(self, request: Request) -> bytes | None:
        if self._jar is None:
            raise RuntimeError("affinity needs the secret, so without it this chain cannot be asked")
        opened = self._jar.find(request)
        return None if opened is None else opened.digest.to_bytes(8, "big")


class Function(Element):
    """What a user's function answers. Without *function* it can only be named, never asked."""

    def __init__(self, name: str, function: UserFunction | None = None, on_error: OnError | None = None) -> None:
        self.spec = f"python:{name}"
        self._function = function
        self._on_error = on_error
        self._wants_peer = function is not None and _wants_peer(function, self.spec)
        self.needs_head = not self._wants_peer

    _nothing = "it answered None, or nothing"

    def find(self, peer: Peer, request: Request | None) -> Key | None:
        if self._function is None:
            raise RuntimeError(f"{self.spec} was never loaded, so it cannot be asked")
        subject = peer if self._wants_peer else request
        if subject is None:
            return None
        try:
            value = _answer(self._function(subject))
        except BaseException as error:  # noqa: BLE001  # SystemExit too: it must not end the dispatcher
            if self._on_error is not None:
                self._on_error(self.spec, error)
            return None
        return Key(value, self.spec, False) if value else None


def _wants_peer(function: UserFunction, spec: str) -> bool:
    """Return whether *function* takes a Peer, not a Request. Raises SettingsError for what cannot be a key function."""
    if not callable(function):
        raise SettingsError(f"`{spec}` is not a function", hint=_FUNCTION_HINT)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        raise SettingsError(f"`{spec}` is async: the dispatcher cannot wait for a key", hint=_FUNCTION_HINT)
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have none
        return False
    try:
        signature.bind(None)
    except TypeError:
        raise SettingsError(f"`{spec}` must take one argument, not {signature}", hint=_FUNCTION_HINT) from None
    first = next(iter(signature.parameters.values()))
    if first.annotation is first.empty:
        return first.name == "peer"
    return first.annotation is Peer or str(first.annotation).strip("'\"").rpartition(".")[2] == "Peer"


def _answer(answer: object) -> bytes | None:
    """Return a user function's answer as bytes; numbers in decimal. Raises TypeError for what cannot be a key."""
    if answer is None or isinstance(answer, bytes):
        return answer
    if isinstance(answer, str):
        return answer.encode()
    numbers = tuple(answer) if isinstance(answer, Iterable) else (answer,)
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool):
            kind, inner = type(answer).__name__, type(number).__name__
            found = kind if number is answer else f"{kind} of {inner}"
            raise TypeError(f"a key is bytes, str, int, ints or None, not `{found}`")
    return ",".join(f"{number:d}" for number in numbers).encode()
