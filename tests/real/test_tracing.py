"""Tracing: limpet is no hop, so a trace passes it untouched; and spans can say where a request was served."""

from __future__ import annotations

from tests.harness import Limpet, fetch
from tests.traced_app import Span

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_trace_passes_untouched_also_through_moves() -> None:
    """A proxy would begin a span of its own, or lose the state: here the worker gets what the client sent."""
    with Limpet("tests.traced_app:app", "--workers", "2", "--by", "header:x-user") as server:
        homes = {user: server.where(user)[0] for user in ("ada", "bob", "cyd", "dan", "eve", "fay")}
        assert len({home["slot"] for home in homes.values()}) == 2
        with server.connection() as connection:
            for user, home in homes.items():
                answer = fetch(connection, x_user=user, traceparent=PARENT, tracestate="vendor=1,other=2").json()
                assert answer["headers"] == [["traceparent", PARENT], ["tracestate", "vendor=1,other=2"]]
                assert answer["span"] == {
                    "limpet.slot": home["slot"],
                    "limpet.generation": 1,
                    "limpet.route": "hash",
                    "limpet.digest": home["digest"],
                }
        assert server.totals()["returns"] > 0


def test_application_runs_without_limpet() -> None:
    """The hook stays in place when somebody starts the application by itself."""
    from limpet.integrations.opentelemetry import annotate

    span = Span()
    annotate(span, {"type": "http", "headers": []})
    assert span == {}
