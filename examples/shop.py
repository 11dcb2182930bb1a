"""A shop on several workers: `limpet run examples.shop:app --workers 4 --by affinity`. It needs Starlette.

Its reminders are sent by one worker only. docs/shared-state.md explains each part.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import limpet

reminders: list[int] = []


async def send_reminders() -> None:
    async with limpet.once("reminders"):
        while True:
            reminders.append(os.getpid())
            await asyncio.sleep(1)


def send_reminders_in_a_thread() -> None:
    with contextlib.suppress(limpet.WorkerEnds), limpet.once("reminders") as ending:
        while not ending.wait(1):
            reminders.append(os.getpid())


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    task = asyncio.create_task(send_reminders())
    yield
    task.cancel()


async def show_reminders(request: Request) -> JSONResponse:
    return JSONResponse({"pid": os.getpid(), "sent here": len(reminders)})


app = Starlette(lifespan=lifespan, routes=[Route("/reminders", show_reminders)])
