"""Two applications for two binds: each names itself in all that it answers, and keeps what its lifespan left."""

from __future__ import annotations

import json
import os
from typing import Any


class Named:
    """An application with a name. Unhashable, as a dataclass may be."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self._name = name

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                scope["state"]["started"] = self._name
                with open(os.environ["TEST_NOTE"], "a") as file:
                    file.write(f"{message['type']} {self._name}\n")
                await send({"type": f"{message['type']}.complete"})
            return
        facts = {"app": self._name, "state": scope["state"]["started"], "slot": int(os.environ["LIMPET_SLOT"])}
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": json.dumps(facts)})
            return
        body = json.dumps(facts).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


shop = Named("shop")
admin = Named("admin")
