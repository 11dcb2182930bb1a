"""Warnings that help, from a real server: it sees for itself that a proxy hides its clients."""

from __future__ import annotations

import re
import socket

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
