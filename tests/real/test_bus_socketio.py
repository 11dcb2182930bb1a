"""Socket.IO over the bus: all that goes through a client manager, and the same on python-socketio's own for Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import socketio

from tests.clientele import run_peers
from tests.harness import PATIENCE_S, Limpet

FLAGS = ("--for", "socketio", "--by", "query:user", "--workers", "3", "--graceful-timeout", "1")


class Client:
    """A client in one worker, with everything that it was told."""

    def __init__(self) -> None:
        self.peer = socketio.AsyncClient(reconnection=False)
        self.told: list[Any] = []
        self.peer.on("told", self.told.append)
        self.peer.on("question", lambda question: [question, "answered"])

    @property
    def sid(self) -> str:
        """Its id at the server."""
        return str(self.peer.get_sid())

    async def does(self, what: str, *data: Any) -> Any:
        """Call a handler of the application, and return what it returned."""
        return await self.peer.call(what, data, timeout=PATIENCE_S)

    async def hears(self, last: str) -> list[Any]:
        """Return what it was told until *last*, and forget it."""
        async with asyncio.timeout(PATIENCE_S):
            while last not in self.told:
                await asyncio.sleep(0.01)
        heard, self.told[:] = list(self.told), []
        return heard


async def connected(limpet: Limpet, transport: str) -> list[Client]:
    """Return three clients in three workers."""
    clients = [Client() for _ in range(3)]
    names = [f"user{number}" for number in range(100)]
    homes = [found["slot"] for found in limpet.where(*names)]
    for number, client in enumerate(clients):
        name = names[homes.index(number)]
        await client.peer.connect(f"{limpet.url}?user={name}", transports=[transport])
        assert await client.does("slot") == number
    return clients


async def script(limpet: Limpet) -> list[Any]:
    """Return what three clients in three workers see of everything that one of them does."""
    clients = await connected(limpet, "websocket")
    one, two, three = clients
    seen: list[Any] = []

    async def all_see(what: str) -> None:
        """Wait until all that was done before has come to everybody: messages of one publisher are in order."""
        await one.does("tell", None, what, None)
        seen.append([await client.hears(what) for client in clients])

    async def settled(client: Client) -> None:
        """Wait until what *client* has done elsewhere is done: it goes before this on the same way."""
        await client.does("tell", None, "settled", None)
        for each in clients:
            async with asyncio.timeout(PATIENCE_S):
                while "settled" not in each.told:
                    await asyncio.sleep(0.01)
            each.told.remove("settled")

    try:
        await two.does("join", "room")
        await one.does("tell", "room", "to the room", None)
        await all_see("after the room")
        await one.does("tell", "room", {"binary": b"\0\xff", "n": [1, None]}, None)
        await all_see("after binary data")
        await one.does("pull", three.sid, "room")
        await settled(one)
        await one.does("tell", "room", "to two", two.sid)
        await all_see("after skipping one")
        seen.append(await one.does("ask", three.sid, "how are you"))
        await one.does("push", two.sid, "room")
        await settled(one)
        await one.does("tell", "room", "to three alone", None)
        await all_see("after leaving")
        await one.does("clear", "room")
        await settled(one)
        await one.does("tell", "room", "to nobody", None)
        await all_see("after closing")
        limpet.request("/announce?user=nobody")
        seen.append([await client.hears("announced") for client in clients])
        gone = asyncio.Event()
        two.peer.on("disconnect", lambda *_: gone.set())
        await one.does("kick", two.sid)
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()
        seen.append("kicked")
    finally:
        for client in clients:
            await client.peer.disconnect()
    return seen


EXPECTED = [
    [["after the room"], ["to the room", "after the room"], ["after the room"]],
    [["after binary data"], [{"binary": b"\0\xff", "n": [1, None]}, "after binary data"], ["after binary data"]],
    [["after skipping one"], ["after skipping one"], ["to two", "after skipping one"]],
    ["how are you", "answered"],
    [["after leaving"], ["after leaving"], ["to three alone", "after leaving"]],
    [["after closing"]] * 3,
    [["announced"]] * 3,
    "kicked",
]


@pytest.mark.parametrize("manager", ["limpet", "redis"])
def test_everything_that_goes_through_a_manager_works_across_workers(
    manager: str, request: pytest.FixtureRequest
) -> None:
    """What an application does with Redis today, it does without it; on Redis, the script shows that it is right."""
    url = request.getfixturevalue("redis") if manager == "redis" else "limpet"
    with Limpet("tests.room_app:app", *FLAGS, env={"ROOM_MANAGER": url}) as limpet:
        assert run_peers(script(limpet)) == EXPECTED


async def threaded(limpet: Limpet) -> None:
    """Fail unless a room and a call with an answer reach clients of other workers."""
    one, two, three = clients = await connected(limpet, "polling")
    try:
        await two.does("join", "room")
        await one.does("tell", "room", "to the room", None)
        await one.does("tell", None, "to all", None)
        assert [await client.hears("to all") for client in clients] == [
            ["to all"],
            ["to the room", "to all"],
            ["to all"],
        ]
        assert await one.does("ask", three.sid, "how are you") == ["how are you", "answered"]
    finally:
        for client in clients:
            await client.peer.disconnect()


def test_rooms_of_a_server_in_threads_span_workers() -> None:
    """Flask-SocketIO is such a server; its preset gives it the manager, and the application changes nothing."""
    flags = ("--for", "flask-socketio", "--by", "query:user", "--workers", "3", "--graceful-timeout", "1")
    with Limpet("tests.room_threads_app:app", *flags) as limpet:
        run_peers(threaded(limpet))
