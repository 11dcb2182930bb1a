"""`limpet explain`: how a request is routed and why, from the request's text.

Owns the parsing of pasted text, and the words of the explanation. The elements of the key chain find the key, and the
running server says where that key is served: it is the same code that routes. It runs in the process of the command,
which may import key functions; the server only answers questions.

1. The output contains no key. The user has typed the request, but reports are passed on.
2. Only the server has the secret to read an affinity cookie, so the server opens it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from limpet.errors import SettingsError
from limpet.protocol.head import BadHead, HeadParser
from limpet.protocol.request import Peer, Request
from limpet.routing.affinity_cookie import TRIED
from limpet.routing.elements import AFFINITY, Element, Key
from limpet.routing.key_chain import KeyChain, Trust
from limpet.worker import user_code

Ask = Callable[[dict[str, Any]], dict[str, Any]]
_CURL: Final = re.compile(r"^> ?(.*)$", re.MULTILINE)
_CURL_FROM: Final = re.compile(r"^\* .*\bfrom ([0-9a-fA-F.:]+) port \d+", re.MULTILINE)
_HTTP_2: Final = re.compile(r"^(\S+ \S+) HTTP/[23](?:\.0)?$")
_HINT: Final = (
    "`curl -sv URL 2>&1 | limpet explain` explains the request of curl; a raw head begins with `GET / HTTP/1.1`"
)


class Look(NamedTuple):
    """The result of asking one element of the chain."""

    element: str
    outcome: str  # in words
    found: bool


def head_of(text: str) -> tuple[bytes, str | None]:
    """Return the first request head in *text*, and the client address if curl shows it.

    *text* is the output of `curl -v`, or a raw request head.
    """
    sent = _CURL.findall(text)
    source = _CURL_FROM.search(text) if sent else None
    lines = [line.rstrip("\r") for line in sent or text.strip("\r\n").split("\n")]
    if "" in lines:
        lines = lines[: lines.index("")]
    if lines:
        lines[0] = _HTTP_2.sub(r"\1 HTTP/1.1", lines[0])  # as a proxy would pass it on
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode(errors="surrogateescape"), source and source[1]


def request_of(head: bytes, peer: Peer) -> Request:
    """Return the request of *peer* with this *head*. Raises SettingsError."""
    parser = HeadParser()
    try:
        if parser.feed(head):
            return parser.request(peer)
    except BadHead as bad:
        raise SettingsError(f"limpet would answer {bad.status}: {bad.reason}", hint=_HINT) from None
    raise SettingsError("the text is not a complete request head", hint=_HINT)


def explain(ask: Ask, text: str | None, address: str | None, bind: int) -> dict[str, Any]:
    """Return how the request in *text* from *address* is routed at bind number *bind*. Raises LimpetError.

    Without *text* it is a connection without a request. *ask* asks the server.
    """
    routing = ask({"command": "routing"})
    if not 0 <= bind < len(routing["chains"]):
        raise SettingsError(f"there is no bind number {bind}: expected 0 to {len(routing['chains']) - 1}")
    user_code.look_in(routing["app_dir"])
    raised: dict[str, str] = {}
    chain = KeyChain.parse(
        routing["chains"][bind],
        Trust.parse(",".join(routing["trust"])),
        user_code.load_function,
        lambda spec, error: raised.__setitem__(spec, error if isinstance(error, str) else type(error).__name__),
    )
    head, source = head_of(text) if text is not None else (b"", None)
    peer = Peer.of(_sockaddr(address or source), routing["binds"][bind], bind)
    request = request_of(head, peer) if head else None
    looks: list[Look] = []
    home: dict[str, Any] | None = None
    for element in chain.elements:
        if home is not None:
            looks.append(Look(element.spec, "not asked", False))
            continue
        home = _home(ask, element, peer, request, routing["cookies"])
        failure = raised.get(element.spec)
        outcome = "found" if home else f"raised {failure}" if failure else element.absence(peer, request)
        looks.append(Look(element.spec, outcome, home is not None))
    return {
        "request": None if request is None else f"{request.method} with {len(request.raw_headers)} headers",
        "address": peer.address,
        "chain": [look._asdict() for look in looks],
        "home": home,
        "backend": routing["backend"],
        "place": routing["place"],
    }


def _sockaddr(address: str | None) -> tuple[str, int] | None:
    return None if address is None else (address, 0)


def _home(
    ask: Ask, element: Element, peer: Peer, request: Request | None, cookies: Iterable[str]
) -> dict[str, Any] | None:
    """Return where the key is served that *element* finds, or None if it finds none."""
    if element.spec == AFFINITY:
        for name in cookies if request is not None else ():
            values = request.cookie_values(name.encode()) if request is not None else []
            answer = ask({"command": "where", "keys": [{"cookie": value.hex()} for value in values[:TRIED]]})
            for home in answer["keys"]:
                if home:
                    return dict(home)
        return None
    key = element.find(peer, request)
    return None if key is None else dict(ask({"command": "where", "keys": [_packed(key)]})["keys"][0])


def _packed(key: Key) -> dict[str, Any]:
    return {"element": key.element, "value": key.value.hex(), "is_address": key.is_address}


def text_of(found: dict[str, Any]) -> str:
    """Return the result of `explain` as text for people."""
    width = max(len(look["element"]) for look in found["chain"])
    source = found["address"] or "an unknown address"
    return "\n".join(
        [
            f"{found['request'] or 'a connection'} from {source}",
            *(f"  {look['element']:<{width}}  {look['outcome']}" for look in found["chain"]),
            *(route_lines(found["home"]) if found["home"] else [f"no key: placed by `--place {found['place']}`"]),
            f"backend {found['backend']}",
        ]
    )


def route_lines(home: dict[str, Any]) -> list[str]:
    """Return the lines that say where a key is served, and why."""
    worker = f"pid {home['pid']}" if home["pid"] else "no worker"
    away = f" in place of {home['home']}, which is down" if home["home"] != home["slot"] else ""
    rank = " ".join(map(str, home["rank"]))
    how = {"learned": "learned from a response", "cookie": "by its cookie", "hash": "by its hash"}[home["how"]]
    return [
        f"slot {home['slot']}{away}, {worker} ({home['state']}): {how}",
        f"digest {home['digest']}, bucket {home['bucket']}, slots by rank {rank}",
    ]


def read(path: str) -> str:
    """Return the text of the file at *path*, or of stdin for `-`. Raises SettingsError."""
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            return file.read().decode(errors="surrogateescape")
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise SettingsError(f"cannot read `{path}`: {reason}", hint=_HINT) from None
