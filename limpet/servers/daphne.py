"""The adapter for Daphne: its protocols serve an ASGI application on Twisted's reactor.

Owns the start and end of the application, which Daphne has none of, and of Daphne's server. asyncio runs beneath the
reactor: Daphne installs it so when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from daphne import server as daphne  # first: it chooses the reactor
from daphne.http_protocol import HTTPFactory
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet import reactor as chosen

from limpet.servers.asgi import framed
from limpet.servers.lifespan import Lifespan
from limpet.servers.twisted import listening
from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat

_RESTARTS: Final = 1012  # the close code of a websocket whose server goes and comes back


def serve(app: Callable[..., Any], seat: Seat) -> None:
    """Serve *app* until the order to drain has been carried out. Raises AppError when its start-up fails."""
    reactor: Any = chosen
    loop = daphne.twisted_loop
    lifespan = Lifespan((app, seat.settings.app))
    loop.run_until_complete(lifespan.startup())
    door = Door(seat)

    def closes() -> bool:
        return seat.home.router.chain.needs_head or door.draining

    server = _Server(framed(app, seat, lifespan.states[0], closes), seat)
    life = listening.Life(door, reactor, server.http_factory, server.close_websockets)
    life.end_with_responses(closes)
    reactor.callLater(1, server.application_checker)
    reactor.callLater(2, server.timeout_checker)
    reactor.addSystemEventTrigger("before", "shutdown", server.kill_all_applications)
    life.run()
    loop.run_until_complete(lifespan.shutdown())


class _Server(daphne.Server):  # type: ignore[misc]  # it has no types
    """Daphne's server without endpoints."""

    def __init__(self, app: Callable[..., Any], seat: Seat) -> None:
        settings = seat.settings
        super().__init__(app, endpoints=["none"], signal_handlers=False, root_path=settings.root_path)
        self.connections: dict[Any, Any] = {}
        self.http_factory = HTTPFactory(self)
        self.http_factory.timeOut = settings.keep_alive_timeout_s
        self.ws_factory = WebSocketFactory(self, server=self.server_name)
        self.ws_factory.setProtocolOptions(
            autoPingTimeout=self.ping_timeout,
            allowNullOrigin=True,
            openHandshakeTimeout=self.websocket_handshake_timeout,
            maxMessagePayloadSize=self.websocket_max_message_size,
            maxFramePayloadSize=self.websocket_max_frame_size,
        )

    def kill_all_applications(self) -> Any:
        """Cancel the applications that run still; Daphne itself stumbles over connections whose own has ended."""
        running = {each: found for each, found in self.connections.items() if found.get("application_instance")}
        self.connections = running
        return super().kill_all_applications()

    def close_websockets(self) -> None:
        """Tell the clients of those that are open that the server goes and comes back."""
        for protocol in list(self.connections):
            if isinstance(protocol, WebSocketProtocol) and protocol.state == protocol.STATE_OPEN:
                protocol.sendCloseFrame(_RESTARTS)  # `sendClose` takes the codes of applications alone
