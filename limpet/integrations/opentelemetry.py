"""Attributes for traces: the slot that served a request, and how the request was routed there.

    OpenTelemetryMiddleware(app, server_request_hook=limpet.integrations.opentelemetry.annotate)

It imports nothing of OpenTelemetry: any object with `set_attribute` is a span. limpet itself neither reads nor changes
`traceparent`; a request that moves to another worker has the same bytes there.
"""

from __future__ import annotations

from typing import Any, Protocol

from limpet import current
from limpet.sessions import sessions
from limpet.sessions.middleware import of_scope


class Span(Protocol):
    """The part of a span that is needed here."""

    def set_attribute(self, key: str, value: Any) -> object:
        """Record *value* under *key*."""


def annotate(span: Span, scope: dict[str, Any]) -> None:
    """Set `limpet.slot`, `limpet.generation`, `limpet.route` and `limpet.digest` on *span*, for the ASGI *scope*.

    The route is hash, learned, cookie or placed, as in the access log, according to the key chain of the first bind.
    Outside limpet it does nothing.
    """
    here = sessions.here()
    if here is None or scope["type"] not in ("http", "websocket"):
        return
    info = current.current_worker()
    span.set_attribute("limpet.slot", info.slot)
    span.set_attribute("limpet.generation", info.generation)
    request = of_scope(scope, scope.get("root_path", "").rstrip("/").encode())
    route = here.router.route(request.peer, request)
    span.set_attribute("limpet.route", "placed" if route is None else route.how)
    if route is not None:
        span.set_attribute("limpet.digest", here.router.hasher.show(route.digest))
