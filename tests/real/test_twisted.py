"""Servers on Twisted's reactor: what they share with nobody else. tests/matrix has what all servers promise."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import unix_connect

from tests.harness import PATIENCE_S, Limpet, fetch
from tests.wire import Wire, request


def test_daphne_on_a_unix_socket_tells_websockets_that_it_restarts(tmp_path: Path) -> None:
    """Clients come back at once after 1012, and a worker that waits for them would wait for its whole time."""
    path = str(tmp_path / "web.sock")
    flags = ("--server", "daphne", "--workers", "1", "--graceful-timeout", "20")
    with Limpet("tests.server_apps:asgi", *flags, bind=f"unix:{path}") as server:
        with unix_connect(path, "ws://localhost/", open_timeout=PATIENCE_S) as websocket:
            websocket.recv(PATIENCE_S)
            server.signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(10)  # within the graceful timeout
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert server.wait_ended() == 0
        assert "Traceback" not in server.log


def test_clients_of_unix_sockets_and_of_both_families_are_served_side_by_side(tmp_path: Path) -> None:
    """The channel brings all of them through one listener; Twisted tells addresses apart by their length."""
    path = str(tmp_path / "web.sock")
    flags = ("--server", "twisted", "--workers", "1", "--access-log", "--bind", f"unix:{path}", "--bind", "127.0.0.1:0")
    with Limpet("tests.matrix.twisted_app:site", *flags, bind="[::1]:0") as server:
        for name in ("", str(tmp_path / "client"), "\0abc"):  # the last is as long as an address of IPv6
            with Wire(path, name) as wire:
                assert wire.send(request()).reply().json()["client"] == [name, 0]
        with server.connection("127.0.0.9") as connection:
            assert fetch(connection).json()["client"][0] == "127.0.0.9"
        port = int(server.status()["binds"][2].rpartition(":")[2])
        with Wire(("::1", port)) as wire:
            assert wire.send(request()).reply().json()["client"][0] == "::1"
        assert server.stop() == 0
        assert "Traceback" not in server.log
