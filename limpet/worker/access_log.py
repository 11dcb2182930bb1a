"""The access log: one line for each request, with the slot, the digest of its key, and how it was routed.

Owns the form of the lines and when they are written. It knows no server: servers/uvicorn/access.py records requests for
uvicorn, servers/asgi.py for the other servers of ASGI and WSGI.

1. A line never shows a key; the digest stands for it. A line has no query and no client address. What `path:` finds in
   a path is shown as `*`.
2. Recording a request is one append (`Held`). Lines are built and written in batches, at the latest after _HELD_S: one
   write for each line would cost more than everything else. A killed worker loses its last lines; one that ends writes
   them.
3. The parts that lines share are cached in a bounded memory, so a JSON line is five texts joined together.
"""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from limpet import logs
from limpet.config.settings import Settings
from limpet.routing.elements import Path
from limpet.routing.key_chain import KeyChain
from limpet.routing.router import Route, Router

LEFT: Final = 499  # a status: the connection ended before a response began, as nginx writes it
_HELD_S: Final = 0.2
_MOST_HELD: Final = 512  # requests
_READY: Final = 2048  # parts of lines that are cached, of each kind
_MILLISECONDS: Final = [f"0.{number:03d}" for number in range(1000)]
_MICROSECONDS: Final = [f'{number:03d}, "waited": 0.000000}}\n' for number in range(1000)]
_log = logging.getLogger("limpet")
K = TypeVar("K")
Found = Route | int | None  # what `Home.latest` is


class First(NamedTuple):
    """The route of the first request of a connection, and how long it waited since the connection was accepted."""

    found: Found
    waited: float  # seconds


class Entry(NamedTuple):
    """One request that was answered. Times are monotonic, in seconds."""

    began: float
    ended: float
    method: str
    path: bytes  # as it came on the wire, without the query
    bind: int
    status: int | bytes  # bytes: the digits as they stand in a head; 0: a websocket that was refused
    found: Found | First  # an int: only the digest, 0 without a key, because another worker sent the request here


Fields = tuple[Any, ...]  # the fields of an Entry: making the Entry would cost as much as the rest


class AccessLog:
    """The access log of one worker. Any thread may write."""

    def __init__(self, slot: int, settings: Settings, router: Router) -> None:
        self._slot = slot
        self._show = router.hasher.show
        self._masks = [mask(router.chain.at(bind)) for bind in range(len(settings.bind))]
        self._is_json = settings.log_format == "json"
        self._stamp = "%Y-%m-%dT%H:%M:%S" if self._is_json else logs.stamp(settings.log_file)
        self._second = -1, ""
        self._routes = _Ready(self._say_route)
        self._requests = _Ready(self._say_request)

    def write(self, entries: Iterable[Fields]) -> None:
        """Write a line for each of *entries*, which are ordered by their ends. Never raises."""
        offset = time.time() - time.monotonic()
        say = self._json if self._is_json else self._words
        entries = list(entries)
        try:
            lines = "".join(say(entries, offset))
        except Exception:  # noqa: BLE001  one of them is at fault: the others get their lines
            lines = "".join(self._each(entries, offset))
        logs.write(lines)

    def _each(self, entries: list[Fields], offset: float) -> Iterator[str]:
        """Yield the lines of those *entries* that can be written. The log says how many could not, and why."""
        lost = 0
        for entry in entries:
            try:
                yield "".join(self._json([entry], offset) if self._is_json else self._words([entry], offset))
            except Exception as exception:  # noqa: BLE001  nothing that logs may raise into a request
                lost, why = lost + 1, exception
        if lost:
            _log.error(
                "%d lines of the access log cannot be written", lost, exc_info=why, extra={"event": "access_log_lost"}
            )

    def _json(self, entries: Iterable[Fields], offset: float) -> list[str]:
        """Return the lines, each in five parts. *offset* plus a monotonic time is the wall-clock time."""
        parts: list[str] = []
        until, stamp = 0.0, ""
        routes, requests = self._routes, self._requests
        for began, ended, method, path, bind, status, found in entries:
            if ended >= until:
                at_ms = int((ended + offset) * 1000)
                until = (at_ms + 1) / 1000 - offset
                stamp = f'{{"timestamp": "{self._clock(at_ms // 1000)}.{at_ms % 1000:03d}+00:00", '
            took_us = int((ended - began) * 1e6)
            took_ms = took_us // 1000
            start = _MILLISECONDS[took_ms] if took_ms < 1000 else f"{took_ms // 1000}.{took_ms % 1000:03d}"
            if type(found) is First:
                end = f'{took_us % 1000:03d}, "waited": {max(0.0, found.waited):.6f}}}\n'
                found = found.found
            else:
                end = _MICROSECONDS[took_us % 1000]
            parts += stamp, routes[found], requests[method, path, bind, status], start, end
        return parts

    def _words(self, entries: Iterable[Fields], offset: float) -> Iterator[str]:
        """Yield the lines in the format for people."""
        for began, ended, method, path, bind, status, found in entries:
            found, waited = found if type(found) is First else (found, 0.0)
            routed, asked = self._routes[found], self._requests[method, path, bind, status]
            took_ms, waited_ms = (ended - began) * 1000, waited * 1000
            clock = self._clock(int(ended + offset))
            yield f"{clock} INFO    {asked} in {took_ms:.1f} ms, {routed}, waited {waited_ms:.1f} ms\n"

    def _clock(self, second: int) -> str:
        """Return the text for *second*, a wall-clock time."""
        if second != self._second[0]:
            parts = time.gmtime(second) if self._is_json else time.localtime(second)
            self._second = second, time.strftime(self._stamp, parts)
        return self._second[1]

    def _say_route(self, found: Found) -> str:
        if isinstance(found, int):
            how, digest = "returned", found
        else:
            how, digest = ("placed", 0) if found is None else (found.how, found.digest)
        shown = self._show(digest) if digest else ""
        if self._is_json:
            head = f'"level": "info", "event": "request", "slot": {self._slot}'
            return f'{head}, "digest": "{shown}", "route": "{how}", '
        return f"slot {self._slot}, {how} {shown or '-'}"

    def _say_request(self, request: tuple[str, bytes, int, int | bytes]) -> str:
        method, path, bind, status = request
        shown = self._masks[bind](path.decode("latin-1"))
        if self._is_json:
            return f'"method": {quoted(method)}, "path": {quoted(shown)}, "status": {int(status)}, "seconds": '
        return logs.escaped(f"{method} {shown} {int(status)}")


class _Ready(dict[K, str]):
    """A cache of parts of lines. A part that is missing is made from its key."""

    def __init__(self, make: Callable[[K], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: K) -> str:
        if len(self) >= _READY:
            self.clear()
        made = self[key] = self._make(key)
        return made


class Held:
    """Entries that wait to be written together.

    A recorder appends the fields of each entry to `fields`. Keeping an object for each entry would cost a quarter more.
    Once `fields` holds `most` values, the recorder must call `full`.
    """

    def __init__(self, log: AccessLog, later: Callable[[float, Callable[[], None]], object]) -> None:
        """*later* calls a function after the given number of seconds."""
        self.fields: list[Any] = []
        self.most = 1
        self._log = log
        self._later = later
        atexit.register(self.flush)

    def add(self, entry: Fields) -> None:
        """Hold *entry*. servers/uvicorn/access.py does the same by itself for each request, to save the call."""
        self.fields.extend(entry)
        if len(self.fields) >= self.most:
            self.full()

    def full(self) -> None:
        """Write what is held. After a pause in requests, instead hold the first entry and write it within _HELD_S."""
        if self.most > 1:
            self.flush()
            return
        self.most = _MOST_HELD * len(Entry._fields)
        self._later(_HELD_S, self._end)

    def _end(self) -> None:
        self.most = 1
        self.flush()

    def flush(self) -> None:
        """Write everything that is held."""
        fields = self.fields[:]
        self.fields.clear()
        if fields:
            self._log.write(zip(*[iter(fields)] * len(Entry._fields), strict=True))


def mask(chain: KeyChain) -> Callable[[str], str]:
    """Return a function that removes the keys of *chain* from a path, given as it came on the wire."""
    elements = [element for element in chain.elements if isinstance(element, Path)]

    def masked(path: str) -> str:
        plain = unquote(path)
        for element in elements:
            plain = element.masked(plain)
        return quote(plain, safe="/*:@!$&'()+,;=~")

    return masked if elements else lambda path: path
