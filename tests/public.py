"""The public of a server: clients of every kind at once, who notice everything that goes wrong while it changes.

Each client has a home, and knows it. Those with lasting connections ask again and again on them, a proxy carries
everybody's requests mixed, others connect for each request, and websockets talk. What counts as failed: a connection
that is refused, or ends without its response and without having been told so (`Connection: close`, 1012), a status but
200, an answer from another slot than the client's home.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

import websockets
from websockets.asyncio.client import connect

from tests.harness import Limpet, wait_until

THINK_S: Final = 0.02  # between two requests of a client, so that this process is not what is measured
PATIENCE_S: Final = 20.0


@dataclass
class Failure:
    """What a client did not expect, and when its connection had begun and it noticed: monotonic."""

    kind: str
    slots: set[int]  # the homes of the last who asked on the connection, and the slot that has answered last
    begin: float
    end: float
    is_first: bool  # nothing was answered on the connection
    what: str


@dataclass
class _Line:
    """The connection of a client."""

    begin: float
    users: list[str] = field(default_factory=list)  # the last who asked
    answers: int = 0
    slot: int | None = None  # that has answered last

    def asks(self, user: str) -> None:
        self.users = [*self.users, user][-2:]


@dataclass
class Seen:
    """What all clients together have seen."""

    served: int = 0
    told_to_close: int = 0  # responses with `Connection: close`
    restarted: int = 0  # websockets that were told 1012
    echoes: int = 0
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.served} requests served, {self.told_to_close} told to reconnect, {self.echoes} frames echoed, "
            f"{self.restarted} websockets told 1012, {len(self.failures)} failed"
        )


class _Lost(Exception):
    """The connection ended without a response."""


class Public:
    """The clients of one server. With *by_address* each has an address of its own, else a header."""

    def __init__(
        self,
        server: Limpet,
        *,
        by_address: bool,
        clients: int = 64,
        sockets: int = 50,
        pools: int = 4,
        think_s: float = THINK_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.seen = Seen()
        self._think_s = think_s
        self._tls = tls
        self._port = server.port
        self._by_address = by_address
        names = [f"127.{1 + n // 200}.{1 + n % 200}.1" if by_address else f"user-{n}" for n in range(clients)]
        self.homes: dict[str, int] = {
            name: entry["slot"] for name, entry in zip(names, server.where(*names), strict=True)
        }
        self.homes_may_change = False  # while that is so, only `at_home` looks where clients are served
        self._where: dict[str, int] = {}  # by user: in which slot he was served last
        self._sockets = sockets
        self._pools = 0 if by_address else pools
        self._done = asyncio.Event()
        self._progress: dict[str, int] = {}  # by client: how often it was served
        self._lines: dict[str, _Line] = {}  # by client

    @contextlib.asynccontextmanager
    async def present(self) -> AsyncIterator[Seen]:
        """Be there: all clients have been served when this begins, and served again before it ends."""
        names = itertools.cycle(self.homes)
        tasks = [asyncio.create_task(self._again(self._stay, name, name)) for name in self.homes]
        tasks += [asyncio.create_task(self._again(self._pool, f"pool-{n}", "")) for n in range(self._pools)]
        tasks += [asyncio.create_task(self._again(self._visit, f"visitor-{n}", "")) for n in range(8)]
        tasks += [
            asyncio.create_task(self._again(self._talk, f"socket-{n}", next(names))) for n in range(self._sockets)
        ]
        try:
            await self.served()
            yield self.seen
            await self.served()
        finally:
            self._done.set()
            await asyncio.wait_for(asyncio.gather(*tasks), 2 * PATIENCE_S)

    async def served(self) -> None:
        """Wait until each client has been served from now on."""
        before = dict(self._progress)
        expected = len(self.homes) + self._pools + 8 + self._sockets
        deadline = time.monotonic() + PATIENCE_S
        while sum(count > before.get(name, 0) for name, count in self._progress.items()) < expected:
            late = [name for name, count in self._progress.items() if count <= before.get(name, 0)]
            assert time.monotonic() < deadline, f"not served: {late}; {self.seen.failures[:5]}"
            await asyncio.sleep(0.02)

    async def at_home(self, homes: dict[str, int]) -> None:
        """Wait until each user is served in his slot of *homes*, and everybody was served since."""
        deadline = time.monotonic() + PATIENCE_S
        while late := {user: slot for user, slot in self._where.items() if slot != homes[user]}:
            assert time.monotonic() < deadline, f"not at home: {late} of {homes}"
            await asyncio.sleep(0.02)
        await self.served()

    async def _again(self, live: Callable[[str, str], Coroutine[Any, Any, None]], name: str, user: str) -> None:
        """Live as that client over and over, whatever happens."""
        self._progress.setdefault(name, 0)
        while not self._done.is_set():
            line = self._lines[name] = _Line(time.monotonic())
            try:
                await asyncio.wait_for(live(name, user), PATIENCE_S * 20)
            except (OSError, _Lost, TimeoutError, websockets.WebSocketException) as error:
                slots = {self.homes[each] for each in line.users or [user] if each}
                slots |= set() if line.slot is None else {line.slot}
                kind = name.partition("-")[0]
                failed = Failure(kind, slots, line.begin, time.monotonic(), not line.answers, repr(error))
                self.seen.failures.append(failed)
                await asyncio.sleep(self._think_s)

    async def _stay(self, name: str, user: str) -> None:
        async with self._connection(user) as streams:
            while not self._done.is_set() and await self._ask(streams, name, user):
                await asyncio.sleep(self._think_s)

    async def _pool(self, name: str, _: str) -> None:
        async with self._connection("") as streams:
            while not self._done.is_set() and await self._ask(streams, name, random.choice(list(self.homes))):
                await asyncio.sleep(self._think_s)

    async def _visit(self, name: str, _: str) -> None:
        user = random.choice(list(self.homes))
        async with self._connection(user) as streams:
            await self._ask(streams, name, user, "connection: close\r\n")
        await asyncio.sleep(self._think_s)

    async def _talk(self, name: str, user: str) -> None:
        local: dict[str, Any] = {"additional_headers": {"x-user": user}}
        if self._by_address:
            local = {"local_addr": (user, 0)}
        line = self._lines[name]
        line.asks(user)
        try:
            url = f"{'ws' if self._tls is None else 'wss'}://127.0.0.1:{self._port}/"
            async with connect(url, ssl=self._tls, compression=None, ping_interval=None, proxy=None, **local) as socket:
                facts = str(await socket.recv())
                line.answers, line.slot = 1, int(json.loads(facts)["slot"])
                if not self.homes_may_change:
                    self._check(name, user, f'"slot": {self.homes[user]},' in facts, facts)
                for number in itertools.count():
                    if self._done.is_set():
                        return
                    await socket.send(str(number))
                    if await socket.recv() != str(number):
                        raise _Lost("another frame than the one that was sent")
                    self.seen.echoes += 1
                    self._progress[name] += 1
                    await asyncio.sleep(5 * self._think_s)
        except websockets.ConnectionClosed as closed:
            if closed.rcvd is None or closed.rcvd.code != 1012:
                raise
            self.seen.restarted += 1

    @contextlib.asynccontextmanager
    async def _connection(self, user: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        local = (user, 0) if self._by_address else None
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=local, ssl=self._tls)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def _ask(
        self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], name: str, user: str, headers: str = ""
    ) -> bool:
        """Ask once; return whether the connection may be used again."""
        reader, writer = streams
        self._lines[name].asks(user)
        writer.write(f"GET / HTTP/1.1\r\nhost: h\r\nx-user: {user}\r\n{headers}\r\n".encode())
        async with asyncio.timeout(PATIENCE_S):
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
                body = (await reader.readexactly(length)).decode()
            except asyncio.IncompleteReadError as error:
                raise _Lost(f"end after {error.partial!r}") from None
        self._lines[name].answers += 1
        self._check(name, user, head.startswith("http/1.1 200 "), head)
        self._lines[name].slot = slot = int(json.loads(body)["slot"])
        if self.homes_may_change:
            self._where[user] = slot
        else:
            self._check(name, user, f'"slot": {self.homes[user]},' in body, body)
        self.seen.served += 1
        self._progress[name] += 1
        closes = "\r\nconnection: close\r\n" in head
        self.seen.told_to_close += closes and not headers
        return not closes

    def _check(self, name: str, user: str, is_right: bool, found: str) -> None:
        if not is_right:
            raise _Lost(f"{name}, at home in slot {self.homes[user]}, got {found!r}")


def reload(server: Limpet) -> dict[str, Any]:
    """Reload *server*; return what has become of it."""
    number = server.ask(command="reload")["change"]
    return finished(server, number)


def finished(server: Limpet, number: int) -> dict[str, Any]:
    """Return the change *number* of *server* when it is over."""

    def over() -> dict[str, Any] | None:
        change = server.ask(command="change", number=number)
        return None if change["state"] in ("waiting", "running") else change

    change: dict[str, Any] = wait_until(over, f"change {number} is over", 60)
    return change
