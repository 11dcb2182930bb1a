"""Standard streams and signals as shells, service managers and terminals leave them to a server."""

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import secure
from tests.harness import HERE, PATIENCE_S, SECRET, Limpet, wait_until

TO_ALL = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU]


def behind(folder: Path, *words: str) -> str:
    """Return a program that stands in for Python, started by a shell with *words* around it."""
    path = folder / "python"
    path.write_text("#!/bin/sh\n" + " ".join(words).format(python=f'{shlex.quote(sys.executable)} "$@"') + "\n")
    path.chmod(0o700)
    return str(path)


def streams(pid: int) -> list[str]:
    """Return what the standard streams of a process are."""
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]


def roles(server: Limpet) -> set[str]:
    """Return which kinds of process the server has now."""
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0") for pid in server.processes()]
    return {line[4] if line[3] == "limpet.entry.child" else line[3] for line in lines if "limpet" in line[3]}


@contextlib.contextmanager
def of_all_kinds(folder: Path, python: str = sys.executable) -> Iterator[Limpet]:
    """Run a server that has every kind of process, which logs to the file `log` and whose streams may be closed."""
    secure.make_pair(folder, "localhost")
    watched = folder / "watched"
    watched.mkdir()
    more = ["--reload", "--reload-dir", str(watched), "--admin", "127.0.0.1:0", "--log-file", str(folder / "log")]
    arguments = ["--workers", "1", "--by", "header:x-user", *secure.flags(folder), *more]
    with Limpet("tests.apps:echo", *arguments, python=python).launched() as server:
        wait_until(lambda: (folder / "log").exists() and "serving " in (folder / "log").read_text(), "it serves")
        kinds = {"worker", "dispatcher", "terminator", "limpet.operate.admin", "limpet.operate.watch"}
        wait_until(lambda: roles(server) >= kinds, "there is one of each kind")
        server.lines.append((folder / "log").read_text())  # where `port` looks
        yield server


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_nothing_of_the_server(tmp_path: Path, closed: str) -> None:
    """What a C library says would be written over the scoreboard, or to a client, if that had the number of stderr."""
    with of_all_kinds(tmp_path, behind(tmp_path, "exec {python}", closed)) as server:
        of_old = {"/dev/null", "/memfd:log (deleted)"}
        for pid in server.processes():
            assert set(streams(pid)) <= of_old, Path(f"/proc/{pid}/cmdline").read_bytes()
        with secure.secured(server) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-User: u\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
        assert server.stop() == 0


def test_program_without_standard_streams_has_a_server_with_them(tmp_path: Path) -> None:
    """A daemon that calls `limpet.listen` has closed its own; the line to the server must not take their place."""
    said = tmp_path / "said"
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text(SECRET)
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, sys\n"
        "os.closerange(0, 3)\n"
        f"sys.path.insert(0, {str(HERE.parent)!r})\n"
        "import limpet\n"
        f"handle = limpet.listen('tests.apps:echo', 0, workers=1, by='header:x-user',\n"
        f"    control={str(tmp_path / 'control')!r},\n"
        f"    secret_file={str(tmp_path / 'secret')!r}, app_dir={str(HERE.parent)!r})\n"
        "status = handle.status()\n"
        "pids = [status['pid'], status['slots'][0]['pid'], status['dispatchers'][0]['pid']]\n"
        "streams = [os.readlink(f'/proc/{pid}/fd/{fd}') for pid in pids for fd in range(3)]\n"
        "own = [fd for fd in range(3) if os.path.exists(f'/proc/self/fd/{fd}')]\n"
        f"open({str(said)!r}, 'w').write(json.dumps([streams, own]))\n"
        "handle.close()\n"
    )
    assert subprocess.run([sys.executable, str(program)], check=False, timeout=PATIENCE_S).returncode == 0
    assert said.read_text() == '[["/dev/null", "/dev/null", "/dev/null", "/dev/null", "/dev/null", "/dev/null", ' + (
        '"/dev/null", "/dev/null", "/dev/null"], []]'
    )


def test_children_ignore_what_is_sent_to_all_processes(tmp_path: Path) -> None:
    """`systemctl kill --signal=USR1` reaches a whole control group: it must end no process."""
    with of_all_kinds(tmp_path) as server:
        before = server.processes() - {server.pid}
        for pid in before:
            for number in TO_ALL:
                os.kill(pid, number)
        with secure.secured(server) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-User: u\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
        assert server.processes() - {server.pid} == before
        assert "was killed" not in (tmp_path / "log").read_text()
        states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in before]
        assert not {"T", "Z"} & set(states)


@pytest.mark.parametrize("server_name", ["gunicorn", "hypercorn", "granian", "waitress"])
def test_workers_of_other_servers_ignore_what_is_sent_to_all(server_name: str) -> None:
    """Servers set up signals by themselves, and some of them give back to the kernel those that they do not want."""
    app = "tests.apps:wsgi" if server_name in ("gunicorn", "waitress") else "tests.apps:echo"
    with Limpet(app, "--workers", "1", "--server", server_name) as server:
        pid = server.worker(0)["pid"]
        for number in TO_ALL:
            os.kill(pid, number)
        assert [server.request().status for _ in range(3)] == [200] * 3
        assert server.worker(0)["pid"] == pid


def test_hangup_that_was_ignored_at_the_start_stays_ignored(tmp_path: Path) -> None:
    """`nohup` is to keep a server from a terminal's end: a reload would end all sessions."""
    ignoring = behind(tmp_path, "trap '' HUP INT QUIT; exec {python}")
    with Limpet("tests.apps:echo", "--workers", "1", python=ignoring) as server:
        before = server.processes()
        for pid in before:
            for number in (signal.SIGHUP, signal.SIGQUIT):
                os.kill(pid, number)
        server.signal(signal.SIGINT)
        server.signal(signal.SIGUSR1)
        assert server.request().status == 200
        assert server.worker(0)["generation"] == 1
        assert server.processes() == before
        assert "reload" not in server.log


def test_quit_is_a_graceful_stop() -> None:
    """Images that were made for nginx have `STOPSIGNAL SIGQUIT`; by default it would leave a core and orphans."""
    with Limpet("tests.apps:echo", "--workers", "1") as server:
        server.signal(signal.SIGQUIT)
        assert server.wait_ended() == 0
        assert "stopped" in server.log


def test_end_of_the_terminal_is_the_end_of_its_server(tmp_path: Path) -> None:
    """Who closes a terminal ends what runs there, by the signal that elsewhere asks for a reload."""
    leader, follower = pty.openpty()
    # The first process of a session that opens a terminal has it for its controlling one.
    python = behind(tmp_path, "exec {python}", f"<{os.ttyname(follower)}")
    with Limpet("tests.apps:echo", "--workers", "1", python=python) as server:
        os.close(follower)
        os.close(leader)
        assert server.wait_ended() == 0
        assert "stopped" in server.log


@pytest.mark.parametrize("backend", ["dispatcher", "kernel"])
def test_programs_of_an_application_have_no_descriptor_of_the_server(backend: str) -> None:
    """One that outlives the server would keep its port, and the next start would fail."""
    with Limpet("tests.apps:spawning", "--workers", "1", "--backend", backend) as server:

        def programs() -> list[int]:
            named = [pid for pid in server.processes() if Path(f"/proc/{pid}/comm").read_text() == "sleep\n"]
            return named if len(named) == 2 else []

        for pid in wait_until(programs, "the application has started them"):
            assert {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()} == {0, 1, 2}
        port = server.port
        assert server.stop() == 0
        with socket.socket() as taker:
            taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taker.bind(("127.0.0.1", port))
            taker.listen()


def test_worker_that_was_left_behind_is_named_by_the_next_start() -> None:
    """After `kill -9` of the supervisor a blocked worker has the port still: whoever starts anew must find it."""
    arguments = ("--workers", "1", "--backend", "kernel", "--block-warning", "0.1")
    with Limpet("tests.apps:busy", *arguments).launched() as server:
        server.wait_serving()
        worker, port = server.worker(0)["pid"], server.port
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /?1000 HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_until(lambda: "block" in server.log, "the worker is blocked")
            os.kill(server.pid, signal.SIGKILL)
            server.wait_ended()
            with Limpet(bind=f"127.0.0.1:{port}").launched() as second:
                assert second.wait_ended() == 3
                assert f"address already in use by process {worker} (`" in second.log
                assert ", running since 20" in second.log
