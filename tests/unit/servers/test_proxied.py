"""What an application is told about a client behind a proxy: the address that the key chain would take."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from limpet.routing.forwarded import Trust
from limpet.servers.asgi import Proxied

PROXY = ("127.0.0.1", 4711)


def seen(
    client: Any, headers: dict[str, str], *, kind: str = "http", trust: str = "127.0.0.0/8,unix"
) -> dict[str, Any]:
    """Return client and scheme as the application sees them."""
    scope = {
        "type": kind,
        "client": client,
        "scheme": {"http": "http", "websocket": "ws"}.get(kind),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    found: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        found.append(scope)

    asyncio.run(Proxied(app, Trust.parse(trust))(scope, None, None))
    return {"client": found[0]["client"], "scheme": found[0]["scheme"]}


@pytest.mark.parametrize(
    ("client", "headers", "expected"),
    [
        (PROXY, {"x-forwarded-for": "203.0.113.9"}, ("203.0.113.9", 0)),
        (PROXY, {"forwarded": 'for="[2001:db8::1]:4711"'}, ("2001:db8::1", 0)),
        (None, {"x-forwarded-for": "203.0.113.9"}, ("203.0.113.9", 0)),
        (("::ffff:127.0.0.1", 4711), {"x-forwarded-for": "203.0.113.9"}, ("203.0.113.9", 0)),
        (PROXY, {"x-forwarded-for": "unknown"}, PROXY),
        (PROXY, {}, PROXY),
        (("192.0.2.1", 4711), {"x-forwarded-for": "203.0.113.9"}, ("192.0.2.1", 4711)),
    ],
    ids=["list", "forwarded", "unix", "mapped", "unknown", "nothing", "untrusted"],
)
def test_client_is_who_called_the_first_trusted_proxy(client: Any, headers: dict[str, str], expected: Any) -> None:
    """An application that logs or limits by address must see the one that decided about the slot."""
    assert seen(client, headers)["client"] == expected


@pytest.mark.parametrize(("kind", "scheme"), [("http", "https"), ("websocket", "wss")])
def test_scheme_is_the_one_that_the_proxy_reports(kind: str, scheme: str) -> None:
    """Links and cookies must be made for what the browser speaks, not for what the proxy speaks to us."""
    assert seen(PROXY, {"x-forwarded-proto": "https"}, kind=kind)["scheme"] == scheme


def test_scheme_of_an_untrusted_peer_is_not_believed() -> None:
    """Else any client could claim to be on TLS."""
    assert seen(("192.0.2.1", 1), {"x-forwarded-proto": "https"})["scheme"] == "http"


def test_lifespan_is_left_alone() -> None:
    """It has no client."""
    assert seen(None, {}, kind="lifespan") == {"client": None, "scheme": None}
