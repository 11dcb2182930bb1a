"""An application that says to the supervisor whatever a request asks for, as a worker that is broken might."""

from __future__ import annotations

import gc
from typing import Any

from limpet.ipc.control_link import Link


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Put the body of a POST onto the line to the supervisor, as it is; answer any request."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if body:
        [line] = [each for each in gc.get_objects() if isinstance(each, Link)]
        line._end.setblocking(True)
        line._end.sendall(body)
        line._end.setblocking(False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"said"})
