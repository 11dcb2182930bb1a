"""A log that nobody reads: no process waits for its reader, and what is lost is counted and said."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.harness import HERE, PATIENCE_S, Limpet, wait_until

PATH = f"/{'p' * 2000}"  # each line of the access log has it


class Unread:
    """The reading end of a server's stderr. Nobody reads until `read` is called."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._said = b""
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """End; all who could write have ended."""
        if self._thread is not None:
            self._thread.join(PATIENCE_S)
        os.close(self._fd)

    def read(self) -> None:
        """Begin to read."""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    @property
    def text(self) -> str:
        return self._said.decode()

    def _read(self) -> None:
        os.set_blocking(self._fd, True)
        with contextlib.suppress(OSError):  # the end of a terminal
            while data := os.read(self._fd, 65536):
                self._said += data


class Stalled(Limpet):
    """A server whose stderr is the descriptor *writing*, which this owns."""

    def __init__(self, writing: int, *arguments: str) -> None:
        super().__init__("tests.apps:echo", *arguments)
        self._writing = writing

    def _open_log(self) -> None:
        self._log_fd = self._writing


@contextlib.contextmanager
def stalled(kind: str, *arguments: str) -> Iterator[tuple[Limpet, Unread]]:
    """Run a server whose stderr is a *kind* of thing of which nobody reads, and fill that."""
    if kind == "pipe":
        reading, writing = os.pipe()
    elif kind == "socket":
        ends = socket.socketpair()
        reading, writing = (end.detach() for end in ends)
    else:
        reading, writing = pty.openpty()
    arguments = ("--workers", "1", "--by", "header:x-user", "--access-log", *arguments)
    with Stalled(writing, *arguments).launched() as server:
        wait_until(lambda: connects(server.control), "it has begun")
        wait_until(lambda: server.status()["slots"][0]["state"] == "ready", "the worker is ready")
        server.lines.append(f"serving at {server.status()['binds'][0]}\n")  # where `port` looks
        wait_until(lambda: connects(("127.0.0.1", server.port)), "it serves")
        assert os.get_blocking(writing), "the description is shared with others"
        fill(writing)
        unread = Unread(reading)
        yield server, unread
    unread.close()


def fill(fd: int) -> None:
    """Write into *fd* until there is no room, without changing its description, which the server has."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        with socket.socket(fileno=os.dup(fd)) as end, contextlib.suppress(BlockingIOError):
            while end.send(b"\n", socket.MSG_DONTWAIT):
                pass
        return
    own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    while select.select([], [own], [], 0.1)[1]:  # a terminal has room again when the kernel has moved what was written
        for size in (4096, 1):  # what is left of the last page, too
            with contextlib.suppress(BlockingIOError):
                while os.write(own, b"\n" * size):
                    pass
    os.close(own)


def connects(address: tuple[str, int] | str) -> bool:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        return client.connect_ex(address) == 0


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_log_that_nobody_reads_stops_nothing(kind: str) -> None:
    """A reader that hangs, as of a container's log, must not hang clients, the supervisor, or the stop."""
    with stalled(kind) as (server, _):
        pid = server.worker(0)["pid"]
        for _ in range(2):
            assert server.request(x_user="u").status == 200
        wait_until(lambda: server.worker(0)["requests"] >= 2, "they are counted")
        assert server.worker(0)["pid"] == pid
        server.kill_worker(0)
        os.kill(server.dispatcher(), signal.SIGKILL)
        assert server.request(x_user="u").status == 200
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.worker(0)["generation"] >= 3, "it is reloaded")
        server.signal(signal.SIGTERM)
        assert server.wait_ended() == 0


def test_lost_log_lines_are_counted_and_said() -> None:
    """Whoever reads the log later must know that lines are missing, and an operator how many, while they are."""
    with stalled("pipe") as (server, unread):
        with server.connection() as client:
            for _ in range(200):
                client.request("GET", PATH, headers={"X-User": "u"})
                assert client.getresponse().read()
        lost = wait_until(lambda: server.totals()["log_lines_lost"], "lines are lost")
        unread.read()
        pid = server.worker(0)["pid"]
        wait_until(lambda: f"log lines of process {pid} were lost" in unread.text, "it is said")
        said = [line for line in unread.text.splitlines() if "log lines of process" in line]
        assert sum(int(line.split("WARNING")[1].split()[0]) for line in said) >= lost
        assert server.stop() == 0
        wait_until(lambda: "stopped" in unread.text, "all is written at the end")


def test_pipe_that_the_user_may_not_open_does_not_block() -> None:
    """`sudo -u` leaves the pipe to another user, so a description of one's own cannot be had."""
    if os.getuid() != 0:
        pytest.skip("needs root")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import logging, os; from limpet import logs\n"
        "os.setuid(65534); logs.configure('info', None, 'text')\n"
        "assert logs.own_fd() < 0\n"
        "for number in range(500): logging.getLogger('limpet').info('x' * 1000)\n"
    )
    reading, writing = os.pipe()
    try:
        command = [sys.executable, "-c", code, str(HERE.parent)]
        assert subprocess.run(command, stderr=writing, timeout=PATIENCE_S, check=False).returncode == 0
    finally:
        os.close(reading)
        os.close(writing)
