"""An application with something to do at the start and at the end of its worker: it notes what is called and when.

`TEST_NOTE` is the file with the notes, `TEST_GATE` one that the end waits for; with `TEST_FAULT` the start fails.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import limpet
from tests import server_apps


def note(text: str) -> None:
    with open(os.environ["TEST_NOTE"], "a") as file:
        file.write(f"{text}\n")


@limpet.on_start
def first() -> None:
    note("first start")
    if Path(os.environ["TEST_FAULT"]).exists():
        raise RuntimeError("no database")


@limpet.on_start
async def second() -> None:
    await asyncio.sleep(0)
    note("second start")


@limpet.on_shutdown
async def last() -> None:
    note("last end")
    while not Path(os.environ["TEST_GATE"]).exists():
        await asyncio.sleep(0.01)
    note("gate")


@limpet.on_shutdown
def fails() -> None:
    note("failing end")
    raise RuntimeError("as asked")


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "lifespan":
        await server_apps.asgi(scope, receive, send)
        return
    for _ in range(2):
        message = await receive()
        note(message["type"])
        await send({"type": f"{message['type']}.complete"})


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    return server_apps.wsgi(environ, start_response)
