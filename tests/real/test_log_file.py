"""The log file: rotated without a line in the wrong place, and never a reason not to serve."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.harness import Limpet, wait_until


def test_rotated_log_is_followed_by_every_process(tmp_path: Path) -> None:
    """A process that goes on writing to the old file keeps a disk full and its lines from whoever looks."""
    path, old = tmp_path / "limpet.log", tmp_path / "limpet.log.1"
    arguments = ("--workers", "2", "--by", "header:x-user", "--log-file", str(path), "--access-log")
    with Limpet("tests.apps:echo", *arguments).launched() as server:
        wait_until(lambda: path.exists() and "serving tests.apps:echo at" in path.read_text(), "it serves")
        server.lines.append(path.read_text())  # where `port` looks
        server.request("/before")
        wait_until(lambda: "/before" in path.read_text(), "the worker has logged")
        path.rename(old)
        before = old.read_text()

        server.signal(signal.SIGUSR1)

        wait_until(path.exists, "there is a new file")
        wait_until(lambda: "the log file was reopened" in path.read_text(), "the supervisor uses it")
        for user in range(8):
            server.request("/after", x_user=str(user))
        wait_until(lambda: path.read_text().count("/after") == 8, "the workers use it")
        os.kill(server.dispatcher(), signal.SIGKILL)
        wait_until(lambda: "dispatcher 0" in path.read_text(), "it says that it was killed")
        assert server.stop() == 0
        assert "stopped" in path.read_text()
        assert old.read_text() == before


def test_full_disk_for_the_log_stops_nothing() -> None:
    """What cannot be logged must not cost a request; the lines are still to be had."""
    arguments = ("--workers", "1", "--by", "header:x-user", "--log-file", "/dev/full", "--access-log")
    with Limpet("tests.apps:echo", *arguments) as server:
        assert server.request("/one", x_user="ada").status == 200
        wait_until(lambda: "/one" in server.log, "the line is on stderr")
        server.signal(signal.SIGUSR1)
        server.kill_worker(0)
        assert server.request("/two", x_user="ada").status == 200
        words = "cannot write the log file `/dev/full`, logging to stderr: no space left"
        wait_until(lambda: server.log.count(words) == 3, "each process has said so once")


def test_stderr_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """Without a log file it is stderr that a full disk concerns."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@" 2>/dev/full\n')
    python.chmod(0o700)
    arguments = ("--workers", "1", "--by", "header:x-user", "--access-log")
    with Limpet("tests.apps:echo", *arguments, python=str(python)).launched() as server:
        wait_until(lambda: _connects(server.control), "it has begun")
        server.lines.append(f"serving at {server.status()['binds'][0]}")  # where `port` looks
        wait_until(lambda: _connects(("127.0.0.1", server.port)), "it serves")
        assert server.request("/one", x_user="ada").status == 200
        server.kill_worker(0)
        assert server.request("/two", x_user="ada").status == 200
        assert server.stop() == 0


def _connects(address: tuple[str, int] | str) -> bool:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        return client.connect_ex(address) == 0


@pytest.mark.parametrize("place", ["missing/limpet.log", "."])
def test_log_file_that_cannot_be_is_an_error_at_the_start(tmp_path: Path, place: str) -> None:
    """Better to hear of it now than when the log is needed."""
    with Limpet("tests.apps:echo", "--log-file", str(tmp_path / place)).launched() as server:
        assert server.wait_ended() == 2
        assert "error: cannot open the log file" in server.log
