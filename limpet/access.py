"""The access log: a line for each request, with the slot, the digest of its key and how it was routed.

Owns the form of the lines and when they are written. Who serves requests notes them: servers/uvicorn_access.py for
uvicorn, servers/accessed.py for other servers of ASGI and WSGI.

1. No key: the digest stands for it. A line has no query and no address, and what `path:` finds in a path is a `*`.
2. Noting is an append. Lines are made and written together, after _HELD_S at the latest: a write for each would cost
   more than all the rest. A worker that is killed takes its last ones along; one that ends writes them.
3. What lines have in common is kept ready, in a bounded memory: making the line is most of what is left.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

from limpet import logs
from limpet.elements import AFFINITY, Key, Path
from limpet.key import KeyChain
from limpet.router import Route, Router
from limpet.settings import Settings

_HELD_S: Final = 0.2
_MOST_HELD: Final = 512  # requests
_READY: Final = 2048  # parts of lines that are kept
Later = Callable[[float, Callable[[], None]], object]


class Entry(NamedTuple):
    """One request that has been answered; times are monotonic, in seconds."""

    began: float
    ended: float
    method: str
    path: bytes  # as it came on the wire, without the query
    bind: int
    status: int  # 0: a websocket that was refused
    found: tuple[Key | None, Route | None]
    is_returned: bool  # another worker found that it belongs here
    waited: float  # from accepting the connection to its first request; 0 for later ones


class AccessLog:
    """The access log of one worker."""

    def __init__(self, slot: int, settings: Settings, router: Router, later: Later | None = None) -> None:
        """*later* calls a function after some seconds; without it each line is written at once."""
        self._slot = slot
        self._router = router
        self._later = later
        self._masks = [mask(router.chain.at(bind)) for bind in range(len(settings.bind))]
        self._is_json = settings.log_format == "json"
        self._stamp = "%Y-%m-%dT%H:%M:%S" if self._is_json else logs.stamp(settings.log_file)
        self._held: list[Any] = []
        self._routed = lru_cache(_READY)(self._say_route)
        self._asked = lru_cache(_READY)(self._say_request)
        atexit.register(self.flush)

    def add(self, entry: Entry | tuple[object, ...]) -> None:
        """Note a request; *entry* has the fields of an Entry, whose making would cost as much as the rest."""
        held = self._held
        held.append(entry)
        if self._later is None or len(held) >= _MOST_HELD:
            self.flush()
        elif len(held) == 1:
            self._later(_HELD_S, self.flush)

    def flush(self) -> None:
        """Write what has been noted."""
        held, self._held = self._held, []
        if not held:
            return
        offset, second, clock, lines = time.time() - time.monotonic(), -1, "", []
        for began, ended, method, path, bind, status, (key, route), is_returned, waited in held:
            at = ended + offset
            if int(at) != second:
                second = int(at)
                clock = time.strftime(self._stamp, time.gmtime(at) if self._is_json else time.localtime(at))
            routed = self._routed("returned" if is_returned else route_of(key, route), route and route.digest)
            asked = self._asked(method, path, bind)
            if self._is_json:
                lines.append(
                    f'{{"timestamp": "{clock}.{int(at % 1 * 1000):03d}+00:00", {routed}, {asked}, "status": {status}, '
                    f'"seconds": {ended - began:.6f}, "waited": {waited and max(0.0, waited):.6f}}}\n'
                )
            else:
                took_ms, waited_ms = (ended - began) * 1000, waited * 1000
                lines.append(
                    f"{clock} INFO    {asked} {status} in {took_ms:.1f} ms, {routed}, waited {waited_ms:.1f} ms\n"
                )
        logs.write(lines)

    def _say_route(self, how: str, digest: int | None) -> str:
        shown = "" if digest is None else self._router.hasher.show(digest)
        if self._is_json:
            head = f'"level": "info", "event": "request", "slot": {self._slot}'
            return f'{head}, "digest": "{shown}", "route": "{how}"'
        return f"slot {self._slot}, {how} {shown or '-'}"

    def _say_request(self, method: str, path: bytes, bind: int) -> str:
        shown = self._masks[bind](path.decode("latin-1"))
        return f'"method": {quoted(method)}, "path": {quoted(shown)}' if self._is_json else f"{method} {shown}"


def route_of(key: Key | None, route: Route | None) -> str:
    """Return how a request with this *key* came to its slot by this *route*."""
    if key is None or route is None:
        return "placed"
    if route.learned is not None:
        return "learned"
    return "cookie" if key.element == AFFINITY else "hash"


def mask(chain: KeyChain) -> Callable[[str], str]:
    """Return what takes the keys of *chain* out of a path as it came on the wire."""
    elements = [element for element in chain.elements if isinstance(element, Path)]

    def masked(path: str) -> str:
        plain = unquote(path)
        for element in elements:
            plain = element.masked(plain)
        return quote(plain, safe="/*:@!$&'()+,;=~")

    return masked if elements else lambda path: path
