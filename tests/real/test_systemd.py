"""What a service manager sees: the notify protocol, and sockets that it passes on. The tests are the manager."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Limpet, free_port, wait_until
from tests.manager import Manager, manager, passing

WATCHDOG_S = 0.6


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Manager]:
    with manager(tmp_path) as made:
        yield made


def variables(pid: int) -> set[str]:
    """Return the names of the environment variables of a process."""
    return {entry.partition("=")[0] for entry in Path(f"/proc/{pid}/environ").read_text().split("\0")}


def test_manager_hears_of_start_readiness_and_end(systemd: Manager, tmp_path: Path) -> None:
    """What is ordered after the service must not start before clients can connect."""
    gate = tmp_path / "gate"
    env = {**systemd.variables, "TEST_GATE": str(gate)}
    with Limpet("tests.apps:gated_start", "--workers", "4", env=env).launched() as server:
        systemd.wait("STATUS=starting, 3 of 4 workers ready")
        assert not any("READY=1" in message for message in systemd.said)
        gate.touch()

        assert systemd.wait("READY=1") == f"READY=1\nMAINPID={server.pid}"
        systemd.wait("STATUS=4 of 4 workers ready")
        server.wait_serving()
        assert server.request().status == 200
        server.signal()
        systemd.wait("STOPPING=1")
        systemd.wait(lambda message: message.startswith("EXTEND_TIMEOUT_USEC="))
        assert server.wait_ended() == 0


def test_watchdog_is_fed_while_workers_can_be_had(systemd: Manager, tmp_path: Path) -> None:
    """A server that cannot start any worker any more should be restarted by the manager, like one that hangs."""
    fault = tmp_path / "fault"
    env = {**systemd.variables, "WATCHDOG_USEC": f"{WATCHDOG_S * 1e6:.0f}", "TEST_FAULT": str(fault)}
    with Limpet("tests.apps:fragile", "--workers", "2", env=env) as server:
        for _ in range(3):
            systemd.wait("WATCHDOG=1", WATCHDOG_S)
        fault.touch()
        for slot in (0, 1):
            server.kill_worker(slot, wait_for_next=False)
        wait_until(lambda: server.log.count("did not start") >= 2, "both slots have failed to get a worker")
        systemd.wait_silence(2 * WATCHDOG_S)

        fault.unlink()
        systemd.wait("WATCHDOG=1")


def test_stopped_supervisor_does_not_feed_the_watchdog(systemd: Manager) -> None:
    """A thread that feeds would hide a loop that hangs."""
    env = {**systemd.variables, "WATCHDOG_USEC": f"{WATCHDOG_S * 1e6:.0f}"}
    with Limpet("tests.apps:echo", "--workers", "1", env=env) as server:
        systemd.wait("WATCHDOG=1")
        server.signal(signal.SIGSTOP)
        systemd.wait_silence(2 * WATCHDOG_S)
        server.signal(signal.SIGCONT)
        systemd.wait("WATCHDOG=1")


def test_children_do_not_hear_of_the_manager(systemd: Manager, tmp_path: Path) -> None:
    """An application that says READY for itself, or takes sockets that are not its own, would mislead the manager."""
    with (
        socket.create_server(("127.0.0.1", 0)) as given,
        passing(tmp_path, {"web": given}) as start,
        Limpet("tests.apps:echo", "--workers", "1", bind="", env=systemd.variables, **start) as server,
    ):
        assert {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID"} <= variables(server.pid)
        for pid in server.processes() - {server.pid}:
            assert not {name for name in variables(pid) if name.startswith(("NOTIFY", "LISTEN", "WATCHDOG"))}


def test_manager_that_is_gone_does_no_harm(systemd: Manager) -> None:
    """The server serves; that it could not say so is a warning."""
    systemd.close()
    with Limpet("tests.apps:echo", "--workers", "1", env=systemd.variables) as server:
        assert server.request().status == 200
        assert server.log.count("cannot send messages to the service manager: connection refused") == 1


def test_passed_sockets_are_served_without_a_bind(tmp_path: Path) -> None:
    """Socket activation: who connects before the start waits, and the sockets outlive the server."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.create_connection(tcp.getsockname()) as early,
    ):
        unix.bind(str(tmp_path / "web.sock"))
        unix.listen()
        early.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        for _ in range(2):
            with (
                passing(tmp_path, {"a": tcp, "b": unix}) as start,
                Limpet("tests.apps:echo", "--workers", "1", bind="", **start) as server,
            ):
                assert server.port == tcp.getsockname()[1]
                assert server.request().status == 200
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(tmp_path / "web.sock"))
                    client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    assert client.recv(64).startswith(b"HTTP/1.1 200")
        assert early.recv(64).startswith(b"HTTP/1.1 200")
        with socket.create_connection(tcp.getsockname()):
            pass


def test_bind_can_name_a_passed_socket(tmp_path: Path) -> None:
    """The order of the sockets in a unit is nothing to rely on."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
        passing(tmp_path, {"admin": one, "web": other}) as start,
    ):
        with Limpet("tests.apps:echo", "--workers", "1", bind="fd:web", **start) as server:
            assert server.port == other.getsockname()[1]
        with Limpet("tests.apps:echo", bind="fd:wbe", **start).launched() as server:
            assert server.wait_ended() == 3
            assert "no sockets of that name were passed; all names: `admin`, `web`" in server.log


def test_sockets_for_another_process_are_left_alone(tmp_path: Path) -> None:
    """The variables are inherited by everybody that a service starts."""
    port = free_port()
    env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LIMPET_BIND": f"127.0.0.1:{port}"}
    with Limpet("tests.apps:echo", "--workers", "1", bind="", env=env) as server:
        assert server.port == port


@pytest.mark.parametrize("by", ["ip", "header:x-user"])
def test_kept_listeners_outlive_a_killed_supervisor(systemd: Manager, tmp_path: Path, by: str) -> None:
    """With FDSTORE nobody is refused between SIGKILL of the supervisor and the next start; orphans just end."""
    env = {**systemd.variables, "FDSTORE": "16"}
    arguments = ("tests.apps:slow", "--workers", "2", "--by", by)
    members = 2 if by == "ip" else 1
    with Limpet(*arguments, env=env).launched() as server:
        server.wait_serving()
        port = server.port
        wait_until(lambda: systemd.next(1) and len(systemd.kept) == members, "the manager has the listeners")
        with socket.create_connection(("127.0.0.1", port)) as lasting:
            lasting.sendall(b"GET /?0.3 HTTP/1.1\r\nhost: x\r\n\r\n")
            wait_until(
                lambda: server.status()["slots"][0]["connections"] + server.status()["slots"][1]["connections"],
                "it is served",
            )
            os.kill(server.pid, signal.SIGKILL)
            server.wait_ended()
            assert lasting.recv(64).startswith(b"HTTP/1.1 200")
        server.wait_gone()

        with socket.create_connection(("127.0.0.1", port), 0.9) as waiting, passing(tmp_path, systemd.kept) as start:
            waiting.settimeout(30)
            waiting.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            with Limpet(*arguments, env=env, **start) as successor:
                assert successor.port == port
                assert waiting.recv(64).startswith(b"HTTP/1.1 200")
                assert successor.request().status == 200
                assert not any("FDSTOREREMOVE" in message for message in systemd.said)


def test_kept_listeners_of_another_bind_are_given_up(systemd: Manager, tmp_path: Path) -> None:
    """A socket that nobody accepts from would let clients wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as old:
        port = old.getsockname()[1]
        env = {**systemd.variables, "FDSTORE": "16"}
        with passing(tmp_path, {f"limpet/0/127.0.0.1={port}": old}) as start:
            old.close()
            with Limpet("tests.apps:echo", "--workers", "1", env=env, **start) as server:
                assert server.port != port
                systemd.wait(f"FDNAME=limpet/0/127.0.0.1={port}")
                assert systemd.said[-1].startswith("FDSTOREREMOVE=1")
                links = [os.readlink(path) for path in Path(f"/proc/{server.pid}/fd").iterdir()]
                assert f"socket:[{os.fstat(start['fds'][0]).st_ino}]" not in links
