"""examples/channels_chat: login sessions, groups and real websockets, on four workers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.harness import HERE, PATIENCE_S, Limpet

EXAMPLE = HERE.parent / "examples" / "channels_chat"
PEOPLE = 16


async def talk(limpet: Limpet) -> None:
    """Log people in, and have each say one thing in their room; fail unless all in the room have heard it."""
    address = f"ws://127.0.0.1:{limpet.port}/ws"
    with pytest.raises(InvalidStatus, match="403"):
        await connect(f"{address}/one")
    cookies = [login(limpet, f"person{number}") for number in range(PEOPLE)]
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        entered = asyncio.Barrier(PEOPLE)

        async def be(number: int) -> list[dict[str, Any]]:
            room = "one" if number % 2 else "two"
            async with connect(f"{address}/{room}", additional_headers={"Cookie": cookies[number]}) as socket:
                await entered.wait()
                await socket.send(json.dumps({"text": f"from {number}"}))
                heard = [json.loads(await socket.recv()) for _ in range(PEOPLE // 2)]
                await entered.wait()
                return heard

        people = [group.create_task(be(number)) for number in range(PEOPLE)]
    for number, person in enumerate(people):
        heard = person.result()
        roommates = range(number % 2, PEOPLE, 2)
        assert {(each["sender"], each["text"]) for each in heard} == {(f"person{n}", f"from {n}") for n in roommates}
    assert {each["slot"] for person in people for each in person.result()} == {"0", "1", "2", "3"}


def login(limpet: Limpet, name: str) -> str:
    """Log somebody in, and return the cookies of their browser."""
    with limpet.connection() as connection:
        connection.request("GET", f"/login?name={name}")
        answer = connection.getresponse()
        assert json.loads(answer.read()) == {"name": name}
        set_cookies = [value for each, value in answer.getheaders() if each.lower() == "set-cookie"]
    return "; ".join(value.partition(";")[0] for value in set_cookies)


def test_everybody_in_a_room_hears_everything_on_whatever_worker() -> None:
    """That is what people add Redis for."""
    with Limpet(
        "app:app", "--workers", "4", "--by", "affinity", cwd=EXAMPLE, env={"SECRET_KEY": "of this test"}
    ) as limpet:
        asyncio.run(talk(limpet))
