"""The adapter for Twisted: a factory of its protocols, a site or a resource on the slot's connections.

Owns what a resource becomes. Keys that are per request need HTTP, which of Twisted's factories are only sites.
"""

from __future__ import annotations

import logging
from typing import Any

from twisted.internet import interfaces
from twisted.web import http, resource, server

from limpet.errors import SettingsError
from limpet.servers.twisted import listening
from limpet.worker.listener_bridge import Door
from limpet.worker.seat import Seat

_access = logging.getLogger("limpet.access")


def fits(app: object) -> bool:
    """Return whether *app* is a resource, or a factory of protocols, which a site is."""
    return _is_resource(app) or bool(interfaces.IProtocolFactory.providedBy(app))


def serve(app: Any, seat: Seat) -> None:
    """Serve *app* until the order to drain has been carried out."""
    from twisted.internet import reactor  # by now the application has chosen which

    settings = seat.settings
    is_per_request = seat.home.router.chain.needs_head
    factory: Any = server.Site(app) if _is_resource(app) else app  # type: ignore[no-untyped-call]
    is_http = isinstance(factory, http.HTTPFactory)
    if is_per_request and not is_http:
        raise SettingsError(
            f"`{settings.app}` is no site of Twisted, and the key chain `{settings.by}` looks into requests",
            hint="`--by ip`, or `--by python:module:function` with a function of a `limpet.Peer`",
        )
    door = Door(seat)
    life = listening.Life(door, reactor, factory)
    if is_http:
        factory.timeOut = settings.keep_alive_timeout_s
        factory.log = _log(seat, door)
        life.end_with_responses(lambda: is_per_request or door.draining)
    life.run()


def _is_resource(app: object) -> bool:
    return bool(resource.IResource.providedBy(app))


def _log(seat: Seat, door: Door) -> Any:
    """Return what a site calls for each request that it has answered."""

    def answered(request: Any) -> None:
        door.tally.requested()
        if seat.settings.access_log:
            line = f"{request.method.decode()} {request.uri.decode(errors='replace')}"
            client = getattr(request.getClientAddress(), "host", "unix")
            _access.info("%s %s %d", client, line, request.code)

    return answered
