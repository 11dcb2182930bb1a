"""The application of the matrix as a resource of Twisted."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor, task
from twisted.web import resource, server

from tests.matrix.facts import facts, is_open


class _Facts(resource.Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes | int:
        client = request.getClientAddress()
        address = (client.host, client.port) if hasattr(client, "host") else client.name or ""
        reply = facts(address, request.content.read())
        if request.path != b"/gated":
            return reply
        request.write(reply)

        def look() -> None:
            if is_open():
                waiting.stop()
                request.finish()

        waiting = task.LoopingCall(look)
        waiting.clock = reactor
        waiting.start(0.01)
        return server.NOT_DONE_YET

    render_POST = render_GET


site = _Facts()  # type: ignore[no-untyped-call]
