"""What every connection costs in each of uvicorn's protocols as a worker uses them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from limpet.servers.uvicorn.construction import maker
from limpet.servers.uvicorn.moving import _CHUNKS, MovingH11, MovingHttpTools, first_blank_line
from limpet.servers.uvicorn.protocols import SeatedH11, SeatedHttpTools


def arguments() -> dict[str, Any]:
    """Return what uvicorn makes protocols of. Needs an event loop."""
    config = uvicorn.Config("unused:app", interface="asgi3", ws="none", lifespan="off", log_config=None)
    config.load_app = lambda: unused  # type: ignore[method-assign]
    config.load()
    return {"config": config, "server_state": ServerState(), "app_state": {}}


async def unused(scope: Any, receive: Any, send: Any) -> None:
    """An application that is a function, which a class would make a method."""


@pytest.mark.parametrize("protocol", [SeatedHttpTools, SeatedH11, MovingHttpTools, MovingH11])
def test_connection_has_no_more_attributes_than_cpython_finds_at_once(protocol: type[Any]) -> None:
    """Beyond 30, slots not counted, each access is a search in a dict: 4 to 7 % of the instructions of a request."""

    async def make() -> dict[str, Any]:
        attributes: dict[str, Any] = vars(protocol(**arguments()))
        return attributes

    assert len(asyncio.run(make())) <= 30 - 1  # `url` comes with the first request


@pytest.mark.parametrize("protocol", [SeatedHttpTools, MovingHttpTools])
def test_protocol_that_is_made_in_a_lean_way_is_as_uvicorn_makes_it(protocol: type[Any]) -> None:
    """What uvicorn makes for each connection each has for itself; all else is the very same."""

    async def make() -> tuple[Any, Any, Any]:
        given = arguments()
        make = maker(protocol, **given)
        return protocol(**given), make(), make()

    plain, lean, other = asyncio.run(make())
    for name, value in vars(plain).items():
        found = getattr(lean, name)
        assert type(found) is type(value)
        if name in ("parser", "pipeline"):
            assert found is not getattr(other, name)
        else:
            assert found is value
    assert len(vars(lean)) < 5


@pytest.mark.parametrize("what", [list, object])
def test_protocol_with_something_unknown_is_made_by_uvicorn(what: type[object]) -> None:
    """Another version may have more for each connection, and two connections must not share that."""

    class Later(SeatedHttpTools):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.more = what()

    async def make() -> tuple[Any, Any]:
        make = maker(Later, **arguments())
        return make(), make()

    one, other = asyncio.run(make())
    assert one.more is not other.more


@pytest.mark.parametrize("line", [b"%x", b"%X", b"000%x", b"%x;e=f", b"%02x;" + b"e" * 200])
def test_small_chunks_are_counted_without_a_loop(line: bytes) -> None:
    """A loop in Python over chunks of a few bytes takes four times as long as their parser does."""
    run = b"".join(line % size + b"\r\n" + (b"\r\n" * size)[:size] + b"\r\n" for size in range(1, 256))
    match = _CHUNKS.match(run + b"100\r\nrest")
    assert match is not None
    assert (match.start(1), match[1]) == (len(run), b"100")


@pytest.mark.parametrize("behind", [b"0\r\n\r\n", b"00\r\n\r\n", b"5\r\nabc", b"5", b"0005;e", b"g\r\n", b""])
def test_chunk_that_is_not_whole_or_not_small_is_left(behind: bytes) -> None:
    """What is counted as a chunk is given to the parser at once: no byte behind the message may be among it."""
    run = b"3\r\nabc\r\nff\r\n" + b"x" * 255 + b"\r\n"
    match = _CHUNKS.match(run + behind)
    assert match is not None
    assert (match.start(1) if match[1] is not None else match.end()) == len(run)


def test_first_blank_line_is_where_find_says() -> None:
    """Where a head ends is where the next request begins, whoever it belongs to."""
    chance = random.Random(1)
    pieces = [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"a", b"x" * 300, b"y" * 5000]
    for _ in range(5000):
        data = b"".join(chance.choices(pieces, (3, 3, 5, 1, 5, 2, 1), k=chance.randrange(1, 60)))
        start = chance.choice([0, 1, 2, 3, chance.randrange(len(data))])
        assert first_blank_line(data, start) == data.find(b"\r\n\r\n", start), (data, start)
