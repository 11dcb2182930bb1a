"""Many clients of several kinds with cookies, who note where each of their requests was served.

A client is one browser: its cookies are its own, whatever it sends. Nothing is sent twice but what a browser would: a
GET on a kept-alive connection that was closed under it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import aiohttp
import socketio

Result = TypeVar("Result")
AT_ONCE = 60
WAIT = aiohttp.ClientTimeout(total=240)  # longer than any front needs to notice that a host is lost


class Home(NamedTuple):
    """Where a request was served."""

    host: str
    slot: int


def home_of(text: str | bytes) -> Home:
    told = json.loads(text)
    return Home(told["host"], told["slot"])


@dataclass
class Client:
    """One browser."""

    url: str
    session: aiohttp.ClientSession
    homes: list[Home] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def get(self, number: int = 1, path: str = "/") -> None:
        """Send *number* GETs, one after the other."""
        for _ in range(number):
            try:
                async with self.session.get(f"{self.url}{path}", timeout=WAIT) as reply:
                    text = await reply.text()
                    if reply.status == 200:
                        self.homes.append(home_of(text))
                    else:
                        self.failures.append(f"{reply.status} {text[:80]}")
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failures.append(repr(error))

    async def websocket(self) -> None:
        """Open a websocket, ask it five times, close it."""
        async with self.session.ws_connect(f"{self.url}/ws") as socket:
            for _ in range(5):
                await socket.send_str("?")
                self.homes.append(home_of(await socket.receive_str(timeout=30)))

    async def events(self) -> None:
        """Read a stream of events to its end."""
        async with self.session.get(f"{self.url}/events", timeout=WAIT) as reply:
            assert reply.status == 200
            async for line in reply.content:
                if line.startswith(b"data: "):
                    self.homes.append(home_of(line[6:]))

    async def socketio(self) -> None:
        """Open a Socket.IO session by long polls, which becomes a websocket, and ask it five times."""
        peer = socketio.AsyncClient(http_session=self.session, reconnection=False)
        await peer.connect(self.url, wait_timeout=30)
        try:
            for _ in range(5):
                told = await peer.call("where", timeout=30)
                self.homes.append(Home(told["host"], told["slot"]))
        finally:
            await peer.disconnect()

    @property
    def home(self) -> Home:
        """Where the last request was served."""
        return self.homes[-1]


class Crowd:
    """*number* clients before the front at *url*."""

    def __init__(self, url: str, number: int) -> None:
        self.url = url
        self._number = number

    async def __aenter__(self) -> Self:
        def session() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))  # cookies of an address

        self.clients = [Client(self.url, session()) for _ in range(self._number)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self.clients:
            await client.session.close()

    async def each(self, act: Callable[[Client], Awaitable[None]]) -> None:
        """Have every client *act*, AT_ONCE at a time."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(client: Client) -> None:
            async with gate:
                await act(client)

        await asyncio.gather(*map(one, self.clients))

    async def during(self, act: Callable[[], Any]) -> None:
        """Have all clients send GETs, while *act* does something in a thread, until it has."""
        done = asyncio.Event()

        async def one(client: Client) -> None:
            while not done.is_set():
                await client.get()
                await asyncio.sleep(0.2)

        asking = [asyncio.create_task(one(client)) for client in self.clients]
        try:
            await act()
        finally:
            done.set()
            await asyncio.gather(*asking)

    def homes(self) -> list[Home]:
        """Return where each client was served last."""
        return [client.home for client in self.clients]

    def failures(self) -> list[str]:
        """Return all failures so far."""
        return [failure for client in self.clients for failure in client.failures]

    def forget(self) -> None:
        """Forget where clients were served but for the last time."""
        for client in self.clients:
            del client.homes[:-1]


def moved(before: Iterable[Home], after: Iterable[Home]) -> list[tuple[Home, Home]]:
    """Return who is elsewhere now, and where."""
    return [(old, new) for old, new in zip(before, after, strict=True) if old != new]


def run_peers(script: Coroutine[Any, Any, Result]) -> Result:
    """Return what *script* does, in which there are clients of Socket.IO that make their own sessions of aiohttp.

    Such a client leaves the connection of an upgrade open, and a warning of that would come in any later test.
    """
    try:
        return asyncio.run(script)
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
