"""The start-up and the shutdown of an ASGI application, for servers that leave them to the adapter.

Owns the lifespan protocol and what counts as failed: an application that says so. One that raises before it has said
anything does not speak the protocol, and is served without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from limpet.errors import AppError
from limpet.worker import hooks

log = logging.getLogger("limpet.worker")


class _Reported(Exception):
    """Carries what the application said about its failed start-up as the cause of an AppError."""


class Lifespan:
    """The life of a worker's applications, and around it what they asked for (worker/hooks.py)."""

    def __init__(self, *named: tuple[Callable[..., Any], str]) -> None:
        self._lives = [_Life(app, name) for app, name in named]

    @property
    def states(self) -> list[dict[str, Any]]:
        """What each application left for its requests."""
        return [life.state for life in self._lives]

    async def startup(self) -> None:
        """Start the applications. Raises AppError when one says that it cannot."""
        await hooks.start()
        for life in self._lives:
            await life.startup()

    async def shutdown(self) -> None:
        """Let the applications end, in the opposite order."""
        for life in reversed(self._lives):
            await life.shutdown()
        await hooks.shutdown()


class _Life:
    """The life of one application. `state` is what it left for its requests."""

    def __init__(self, app: Callable[..., Any], name: str) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._name = name
        self._orders: asyncio.Queue[str] = asyncio.Queue()
        self._answers: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._is_spoken = False  # the application takes part
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Start the application. Raises AppError when it says that it cannot."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        answer, message = await self._order("startup")
        if answer == "failed":
            raise AppError(f"the start-up of `{self._name}` failed") from _Reported(message)
        self._is_spoken = answer == "complete"

    async def shutdown(self) -> None:
        """Let the application end, if it takes part."""
        if self._is_spoken:
            answer, message = await self._order("shutdown")
            if answer != "complete":
                log.error("the shutdown of `%s` failed: %s", self._name, message, extra={"event": "shutdown_failed"})

    async def _order(self, order: str) -> tuple[str, str]:
        self._orders.put_nowait(order)
        return await self._answers.get()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        reason = "it ended"
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as error:  # noqa: BLE001 - the protocol: whatever it is, it is an answer
            reason = repr(error)
        self._answers.put_nowait(("unspoken", reason))

    async def _receive(self) -> dict[str, Any]:
        return {"type": f"lifespan.{await self._orders.get()}"}

    async def _send(self, message: dict[str, Any]) -> None:
        self._answers.put_nowait((message["type"].rpartition(".")[2], message.get("message", "")))
