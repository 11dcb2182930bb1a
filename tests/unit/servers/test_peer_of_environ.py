"""The client that a WSGI server names, whatever it says of the port."""

from __future__ import annotations

from typing import Any

import pytest

from limpet.routing.forwarded import Trust
from limpet.servers.asgi import reported
from limpet.sessions.middleware import of_environ

BASE: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.url_scheme": "http"}


@pytest.mark.parametrize(
    ("given", "address", "port"),
    [
        ({"REMOTE_ADDR": "10.0.0.1", "REMOTE_PORT": "5"}, "10.0.0.1", 5),
        ({"REMOTE_ADDR": "10.0.0.1"}, "10.0.0.1", 0),
        ({"REMOTE_ADDR": "10.0.0.1", "REMOTE_PORT": ""}, "10.0.0.1", 0),
        ({"REMOTE_ADDR": "10.0.0.1", "REMOTE_PORT": "none"}, "10.0.0.1", 0),
        ({"REMOTE_ADDR": "::ffff:10.0.0.1"}, "10.0.0.1", 0),
        ({"REMOTE_ADDR": "fe80::1%eth0"}, "fe80::1", 0),
        ({"REMOTE_ADDR": ""}, None, None),
        ({"REMOTE_ADDR": "localhost"}, None, None),  # waitress, of a unix socket
        ({}, None, None),
    ],
)
def test_address_alone_names_a_client(given: dict[str, str], address: str | None, port: int | None) -> None:
    """Without it all clients of such a server would have one key, and one session."""
    peer = of_environ({**BASE, **given}).peer
    assert (peer.address, peer.port) == (address, port)


def test_proxy_is_trusted_without_a_port() -> None:
    """Else what it reports would be ignored, and all of its clients be the proxy."""
    environ = {**BASE, "REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": "1.2.3.4"}
    assert reported(environ, Trust.parse("10.0.0.1"))["REMOTE_ADDR"] == "1.2.3.4"
