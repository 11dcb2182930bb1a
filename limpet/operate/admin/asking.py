"""The server as the admin process sees it: questions at its control socket.

Owns how often the server is asked. operate/status.py makes the answers. app.py and live.py ask; each question runs in a
thread, because the control socket's client blocks.

1. Figures are shared: however many callers ask for them, the server is asked once in _FRESH_S.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from limpet.operate import control_socket

_FRESH_S: Final = 0.25  # figures younger than this are not asked for again
_TIMEOUT_S: Final = 5.0


class Server:
    """A running server, asked without blocking the event loop."""

    def __init__(self, control: str) -> None:
        """*control* is the path of its control socket."""
        self._control = control
        self._figures: dict[str, Any] = {}
        self._asked_at = float("-inf")
        self._one_at_a_time = asyncio.Lock()

    async def ask(self, command: str, **request: Any) -> dict[str, Any]:
        """Return the answer to *command*. Raises ControlError."""
        asked = {"command": command, **request}
        return await asyncio.to_thread(control_socket.ask, self._control, asked, timeout_s=_TIMEOUT_S)

    async def figures(self) -> dict[str, Any]:
        """Return all figures, at most _FRESH_S old. Raises ControlError."""
        async with self._one_at_a_time:
            if time.monotonic() - self._asked_at > _FRESH_S:
                now = time.monotonic()  # the answer is at most as old as the question
                self._figures = await self.ask("figures")
                self._asked_at = now
            return self._figures
