"""An application with metrics of its own: it counts each request before it answers."""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from tests import apps

ASKED = Counter("asked", "requests, by path", ["path"])
TOOK = Histogram("took_seconds", "time of a request", buckets=(0.1, 1.0))
HERE = Gauge("here", "1 for each worker", multiprocess_mode="livesum")
EACH = Gauge("each", "1 in each worker")

HERE.set(1)
EACH.set(1)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        ASKED.labels(scope["path"]).inc()
        TOOK.observe(0.5)
    await apps.echo(scope, receive, send)
