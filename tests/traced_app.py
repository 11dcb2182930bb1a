"""An application that answers what a tracer would see: the headers of the trace, and the attributes of a span."""

from __future__ import annotations

import json
from typing import Any

from limpet.integrations import opentelemetry


class Span(dict[str, Any]):
    """Keeps its attributes."""

    def set_attribute(self, key: str, value: Any) -> None:
        """Note *value* under *key*."""
        self[key] = value


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with the attributes, and the headers as they came."""
    if scope["type"] != "http":
        raise NotImplementedError
    span = Span()
    opentelemetry.annotate(span, scope)
    headers = [(name.decode(), value.decode()) for name, value in scope["headers"] if name.startswith(b"trace")]
    body = json.dumps({"span": span, "headers": headers}).encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})
