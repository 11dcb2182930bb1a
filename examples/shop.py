"""A shop on several workers: `limpet run examples.shop:app --workers 4 --by affinity`.

A cart survives the death of its worker, logins are limited over all workers, and one worker sends the reminders:
docs/shared-state.md explains each part. It needs Starlette and prometheus-client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import prometheus_client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import limpet

orders = prometheus_client.Counter("orders", "orders by fruit", ["fruit"])
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


async def put_into_cart(request: Request) -> JSONResponse:
    user, fruit = request.path_params["user"], request.path_params["fruit"]
    cart = limpet.stash.get(f"cart:{user}", {})
    cart[fruit] = cart.get(fruit, 0) + 1
    limpet.stash.set(f"cart:{user}", cart, ttl=3600)
    limpet.counter("sold").add()
    orders.labels(fruit).inc()
    return JSONResponse(cart)


async def log_in(request: Request) -> JSONResponse:
    if not limpet.limit("login", request.path_params["user"], 5, per=60):
        return JSONResponse({"error": "try again in a minute"}, status_code=429)
    return JSONResponse({"welcome": request.path_params["user"]})


async def show_sold(request: Request) -> JSONResponse:
    return JSONResponse({"sold": limpet.counter("sold").value})


async def show_reminders(request: Request) -> JSONResponse:
    return JSONResponse({"pid": os.getpid(), "sent here": len(reminders)})


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/cart/{user}/{fruit}", put_into_cart),
        Route("/login/{user}", log_in),
        Route("/sold", show_sold),
        Route("/reminders", show_reminders),
    ],
)
