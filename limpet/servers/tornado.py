"""The adapter for Tornado: its HTTP server serves a `tornado.web.Application` on the slot's connections.

Owns what limpet's settings say of each request and response, and the end of idle connections. Connections come through
the door.

1. Websockets are out of Tornado's hands, and of ours: the application closes them, or the graceful timeout does.
"""

from __future__ import annotations

import logging
from typing import Any

from tornado import http1connection, httpserver, httputil, web

from limpet.routing.forwarded import Trust
from limpet.servers import asyncio_loops
from limpet.servers.asgi import believed, debug_headers
from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat

_access = logging.getLogger("limpet.access")


def fits(app: object) -> bool:
    """Return whether *app* is an application of Tornado."""
    return isinstance(app, web.Application)


def serve(app: web.Application, seat: Seat) -> None:
    """Serve *app* until the order to drain has been carried out."""
    asyncio_loops.run(seat.settings, _serve(app, seat))


async def _serve(app: web.Application, seat: Seat) -> None:
    door = Door(seat)
    _frame(app, seat, door)
    server = _Server(app, idle_connection_timeout=seat.settings.keep_alive_timeout_s, max_header_size=1 << 16)
    server.seat, server.door, server.speaking = seat, door, {}
    server.conn_params = _Parameters(server)
    listeners = door.listeners()
    for each in listeners:
        each.listen()
    server.add_sockets(listeners)
    await asyncio_loops.told_to_stop(door)
    server.stop()
    server.close_idle()
    await asyncio_loops.all_ended(door)


class _Parameters(http1connection.HTTP1ConnectionParameters):
    """Tornado's own, but whether a connection is kept alive is asked for each request."""

    def __init__(self, server: _Server) -> None:
        self.__dict__.update(vars(server.conn_params))
        self.__dict__.pop("no_keep_alive")
        self._server = server

    @property
    def no_keep_alive(self) -> bool:  # type: ignore[override]
        """Whether responses end their connections."""
        return self._server.seat.home.router.chain.needs_head or self._server.door.draining


class _Server(httpserver.HTTPServer):
    """Tornado's server, which knows what its connections do."""

    seat: Seat
    door: Door
    speaking: dict[http1connection.HTTP1ServerConnection, Any]  # with the request that each reads or serves

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """Return what takes the next request."""
        assert isinstance(server_conn, http1connection.HTTP1ServerConnection)
        self.speaking[server_conn] = request_conn
        delegate = super().start_request(server_conn, request_conn)
        settings = self.seat.settings
        return _Proxied(delegate, request_conn, settings.trusted) if settings.trust else delegate

    def on_close(self, server_conn: object) -> None:
        """Forget a connection."""
        super().on_close(server_conn)
        self.speaking.pop(server_conn, None)  # type: ignore[call-overload]

    def close_idle(self) -> None:
        """End those that have no request."""
        for server_conn, request_conn in list(self.speaking.items()):
            if request_conn._request_start_line is None:
                server_conn.stream.close()


class _Proxied(httputil.HTTPMessageDelegate):
    """Tells a request which client and scheme the trusted proxies report."""

    def __init__(self, delegate: httputil.HTTPMessageDelegate, connection: Any, trust: Trust) -> None:
        self._delegate = delegate
        self._context = connection.context
        self._trust = trust
        self.data_received = delegate.data_received  # type: ignore[method-assign]
        self.finish = delegate.finish  # type: ignore[method-assign]
        self.on_connection_close = delegate.on_connection_close  # type: ignore[method-assign]

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> Any:
        """Pass the head on."""
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.get_all()]
        address, scheme = believed(self._context.address, raw, self._trust)
        self._context.remote_ip = address or self._context.address[0]
        self._context.protocol = scheme or "http"
        return self._delegate.headers_received(start_line, headers)


def _frame(app: web.Application, seat: Seat, door: Door) -> None:
    """Give *app* what limpet's settings say of each request and response."""
    headers = debug_headers(seat)

    class Labelled(web.OutputTransform):
        def transform_first_chunk(
            self, status_code: int, given: httputil.HTTPHeaders, chunk: bytes, finishing: bool
        ) -> tuple[int, httputil.HTTPHeaders, bytes]:
            for name, value in headers:
                given[name] = value
            return status_code, given, chunk

    if headers:
        app.add_transform(Labelled)
    its_own = app.settings.get("log_function")

    def ended(handler: web.RequestHandler) -> None:
        door.tally.requested()
        if its_own is not None:
            its_own(handler)
        elif seat.settings.access_log:
            request = handler.request
            _access.info("%s %s %s %d", request.remote_ip, request.method, request.uri, handler.get_status())

    app.settings["log_function"] = ended
