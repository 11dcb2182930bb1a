"""Warnings that help, from a real server: it sees for itself that a proxy hides its clients."""

from __future__ import annotations

import http.client
import re
import socket

import pytest

from tests.harness import PATIENCE_S, Limpet, wait_until


def test_server_that_sees_one_address_says_so() -> None:
    """`--by ip` behind a proxy is the first mistake, and nothing fails: one worker does all the work."""
    arguments = ("--workers", "2", "--by", "ip", "--backend", "dispatcher")
    with Limpet("tests.apps:echo", *arguments) as server:
        for _ in range(1100):
            with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as client:
                client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                while client.recv(65536):
                    pass
        wait_until(lambda: "came from 1 address" in server.log, "it warns")
        server.stop()
        [line] = re.findall(r"WARNING .* connections came from 1 address.*", server.log)
    assert "behind a proxy `--by ip` sends everybody to one worker (hint: `--by forwarded --trust" in line


def test_name_that_no_client_sends_is_found() -> None:
    """A slip of the pen in the chain looks like clients without sessions."""
    with Limpet("tests.apps:echo", "--workers", "2", "--by", "header:x-usr,header:x-user") as server:
        for number in range(1100):
            with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as client:
                client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-user: u%d\r\nconnection: close\r\n\r\n" % number)
                while client.recv(65536):
                    pass
        wait_until(lambda: "`header:x-usr` of the key chain has found no key in" in server.log, "it warns")
        assert "`header:x-user` of the key chain" not in server.log


def ask(server: Limpet, target: str, **headers: str) -> None:
    """Send one GET on a connection of its own."""
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    client.request("GET", target, headers=headers)
    client.getresponse().read()
    client.close()


@pytest.mark.parametrize("app", ["asgi", "wsgi"])
def test_application_that_sets_the_cookie_that_is_the_key_is_warned_of_once(app: str) -> None:
    """Its session is in one worker, and the next request, with the new cookie, goes to another."""
    with Limpet(f"tests.session_app:{app}", "--workers", "3", "--by", "cookie:sid") as server:
        for _ in range(30):
            ask(server, "/new?cookie")
        wait_until(lambda: "sets a cookie that is the key (`cookie:sid`)" in server.log, "it warns")
        server.stop()
        [line] = re.findall(r"WARNING .*sets a cookie that is the key.*", server.log)
    assert "(hint: `--learn cookie:sid` keeps the client" in line


def test_nothing_is_said_of_cookies_that_stay_at_home() -> None:
    """Learned ids are where they were made, and a minted one is its worker's: nobody goes elsewhere."""
    flags = ("--workers", "3", "--by", "cookie:sid", "--learn", "cookie:sid")
    with Limpet("tests.session_app:asgi", *flags) as server:
        for _ in range(30):
            ask(server, "/new?cookie")
            ask(server, "/new?mint")
        assert server.totals()["learned"] == 30
        assert server.totals()["keys_set"] == 0


def test_cookie_key_is_no_reason_to_refuse_a_server_that_has_no_responses() -> None:
    """The warning needs an application of ASGI or WSGI; the routing does not."""
    with Limpet(
        "tests.matrix.aiohttp_app:app", "--workers", "2", "--by", "cookie:sid", "--server", "aiohttp"
    ) as server:
        ask(server, "/", Cookie="sid=1")
