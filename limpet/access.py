"""The access log: a line for each request, with the slot, the digest of its key and how it was routed.

Owns the form of the lines and when they are written. Who serves requests notes them: servers/uvicorn_access.py for
uvicorn, servers/accessed.py for other servers of ASGI and WSGI.

1. No key: the digest stands for it. A line has no query and no address, and what `path:` finds in a path is a `*`.
2. Lines are written together, after _HELD_S at the latest: a write for each would cost more than the rest of it. A
   worker that is killed takes its last ones along; one that ends writes them.
3. `status` is what the application answered, `seconds` the time until its answer was given away.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as quoted
from typing import Final
from urllib.parse import quote, unquote

from limpet import logs
from limpet.elements import AFFINITY, Key, Path
from limpet.key import KeyChain
from limpet.router import Route, Router
from limpet.settings import Settings

_HELD_S: Final = 0.2
_MOST_HELD: Final = 256  # lines
Later = Callable[[float, Callable[[], None]], object]


class AccessLog:
    """The access log of one worker."""

    def __init__(self, slot: int, settings: Settings, later: Later | None = None) -> None:
        """*later* calls a function after some seconds; without it each line is written at once."""
        self._slot = slot
        self._later = later
        self._lines: list[str] = []
        self._second = -1
        self._clock = ""
        self._in_utc = settings.log_format == "json"
        self._line = self._as_json if self._in_utc else self._as_text
        self._stamp = "%Y-%m-%dT%H:%M:%S" if self._in_utc else logs.stamp(settings.log_file)
        atexit.register(self.flush)

    def note(
        self, method: str, path: str, status: int, digest: str, route: str, began: float, waited_s: float = 0.0
    ) -> None:
        """Note a request that *began* at that monotonic time and has been answered.

        *route* is how it came here: hash, learned, cookie, placed or returned. Of the first request of a connection
        *waited_s* is the time from accepting it.
        """
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._clock = time.strftime(self._stamp, time.gmtime(now) if self._in_utc else time.localtime(now))
        took_s = time.monotonic() - began
        self._lines.append(
            self._line(int(now % 1 * 1000), method, path, status, digest, route, took_s, max(0.0, waited_s))
        )
        if self._later is None or len(self._lines) >= _MOST_HELD:
            self.flush()
        elif len(self._lines) == 1:
            self._later(_HELD_S, self.flush)

    def flush(self) -> None:
        """Write what has been noted."""
        lines, self._lines = self._lines, []
        if lines:
            logs.write(lines)

    def _as_json(
        self, ms: int, method: str, path: str, status: int, digest: str, route: str, took_s: float, waited_s: float
    ) -> str:
        return (
            f'{{"timestamp": "{self._clock}.{ms:03d}+00:00", "level": "info", "event": "request", '
            f'"slot": {self._slot}, "digest": "{digest}", "route": "{route}", '
            f'"method": {quoted(method)}, "path": {quoted(path)}, "status": {status}, '
            f'"seconds": {took_s:.6f}, "waited": {waited_s:.6f}}}\n'
        )

    def _as_text(
        self, ms: int, method: str, path: str, status: int, digest: str, route: str, took_s: float, waited_s: float
    ) -> str:
        return (
            f"{self._clock} INFO    {method} {path} {status} in {took_s * 1000:.1f} ms, slot {self._slot}, "
            f"{route} {digest or '-'}, waited {waited_s * 1000:.1f} ms\n"
        )


def route_of(key: Key | None, route: Route | None) -> str:
    """Return how a request with this *key* came to its slot by this *route*."""
    if key is None or route is None:
        return "placed"
    if route.learned is not None:
        return "learned"
    return "cookie" if key.element == AFFINITY else "hash"


def digest_of(router: Router, route: Route | None) -> str:
    """Return the digest of the key of *route* as people see it, nothing without a key."""
    return "" if route is None else router.hasher.show(route.digest)


def mask(chain: KeyChain) -> Callable[[str], str]:
    """Return what takes the keys of *chain* out of a path as it came on the wire."""
    elements = [element for element in chain.elements if isinstance(element, Path)]

    def masked(path: str) -> str:
        plain = unquote(path)
        for element in elements:
            plain = element.masked(plain)
        return quote(plain, safe="/*:@!$&'()+,;=~")

    return masked if elements else lambda path: path
