"""A real limpet for a test: started as users start it, asked as clients and operators ask it, and gone afterwards.

Its verbs read like operations. Every wait is for a state and has a deadline; nothing sleeps and nothing is mocked.
What a server logged is in `log`, shown when a wait fails. It goes to a file in memory, not through a pipe that somebody
has to read: what is logged before a test sees its effect is in `log` then, however busy the machine is.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE_S = 30.0
SECRET = "5a" * 32  # statistics over keys need a fixed one
HERE = Path(__file__).parent


def wait_until(state: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Return the first true value of *state*; fail after *timeout_s* naming *what* did not come."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (value := state()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:g} s still not: {what}")
        pause.wait(0.01)
    return value


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses now; for what cannot be told to choose one itself.

    It is one that the kernel gives to nobody, neither to a server nor to a client, so it is free a moment later, too.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = random.SystemRandom().randrange(10_000, max(lowest, 20_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@dataclass
class Reply:
    """One response, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


class Limpet:
    """`limpet run APP ARGS...` on a free port, with its own secret, control socket and log."""

    def __init__(
        self,
        app: str = "tests.apps:echo",
        *args: str,
        bind: str = "127.0.0.1:0",
        env: Mapping[str, str] | None = None,
        cwd: Path = HERE.parent,
        state: Path | None = None,
        fds: Sequence[int] = (),
        user: int | None = None,
        descriptors: tuple[int, int] | None = None,
        python: str = sys.executable,
        start_s: float = PATIENCE_S,
    ) -> None:
        self._own_state = None if state else tempfile.TemporaryDirectory(prefix="limpet-test-")
        self.state = state or Path(self._own_state.name if self._own_state else "")
        self.control = str(self.state / "control.sock")
        secret = self.state / "secret"
        if not secret.exists():
            secret.touch(mode=0o600)
            secret.write_text(SECRET)
        self.arguments = ["run", app, *args, "--secret-file", str(secret), "--control", self.control]
        if bind:
            self.arguments += ["--bind", bind]
        self._mark = str(uuid.uuid4())  # in the environment of all its processes, whoever is their parent
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("LIMPET_") and k != "WEB_CONCURRENCY"}
        self._env = {**inherited, "TEST_SERVER": self._mark, **(env or {})}
        self._cwd = cwd
        self._fds = fds
        self._command = [python, "-m", "limpet"]
        if descriptors is not None:  # the soft limit and the hard one
            soft, hard = descriptors
            limited = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
            self._command = ["sh", "-c", limited, "sh", *self._command]
        self._start_s = start_s  # heavy applications take longer than any other wait of a test
        self._user: dict[str, Any] = {}
        if user is not None:
            self._user = {"user": user, "group": user, "extra_groups": ()}
            for path in (self.state, secret):
                os.chown(path, user, user)
        self._lines: list[str] = []
        self._log_fd = -1
        self._log_at = 0  # bytes of the file that are in `_lines`
        self._log_lock = threading.Lock()  # a test's clients ask for the port at the same time
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Start it without waiting."""
        self._open_log()
        self.process = subprocess.Popen(
            [*self._command, *self.arguments],
            stderr=self._log_fd,
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
            env=self._env,
            cwd=self._cwd,
            pass_fds=self._fds,
            start_new_session=True,  # a process group of its own, as a shell gives it in a terminal
            **self._user,
        )
        return self

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_serving()
        except BaseException:
            self.kill()
            if self._own_state is not None:
                self._own_state.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.running and error is None:
                assert self.stop() == 0, self.log
        finally:
            self.kill()
            if error is not None:
                sys.stderr.write(f"\n--- limpet's log ---\n{self.log}")
            if self._own_state is not None:
                self._own_state.cleanup()

    @contextlib.contextmanager
    def launched(self) -> Iterator[Self]:
        """Start it, and leave to the test what comes of it."""
        try:
            yield self.start()
        finally:
            self.kill()
            if self._own_state is not None:
                self._own_state.cleanup()

    # --- operating it

    @property
    def log(self) -> str:
        """All that the server has logged."""
        return "".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """The lines that the server has logged; a test may append what it has written elsewhere."""
        self._read_log()
        return self._lines

    @property
    def running(self) -> bool:
        """Whether the supervisor lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        assert self.process is not None
        return self.process.pid

    @property
    def port(self) -> int:
        """The port of the first TCP bind."""
        found = re.search(r"serving .*?https?://\S*:(\d+)", self.log)
        assert found, self.log
        return int(found[1])

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    def wait_serving(self) -> None:
        """Wait until it says that it serves."""
        wait_until(lambda: "serving " in self.log or not self.running, "limpet serves or ended", self._start_s)
        if "serving " not in self.log:
            raise AssertionError(f"limpet ended with {self.wait_ended()}:\n{self.log}")

    def wait_ended(self) -> int:
        """Wait until it has ended; return its exit code."""
        assert self.process is not None
        return self.process.wait(PATIENCE_S)

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send the supervisor a signal."""
        os.kill(self.pid, number)

    def stop(self) -> int:
        """Stop it as an operator does; return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_ended()

    def kill(self) -> None:
        """End all of its processes at once."""
        if self.process is not None:
            if self.running:
                self.process.kill()
                self.process.wait()
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._close_log()

    def processes(self) -> set[int]:
        """Return the pids of all its processes that live, orphans and what an application started included."""
        pids = set()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is somebody else's
                if f"TEST_SERVER={self._mark}".encode() in path.read_bytes().split(b"\0"):
                    pids.add(int(path.parent.name))
        return pids

    def wait_gone(self) -> None:
        """Wait until none of its processes is left."""
        wait_until(lambda: not self.processes(), "all processes of the server have ended")

    def command(self, *args: str) -> Any:
        """Return the JSON that a `limpet` command prints about this server."""
        run = limpet_command(*args, "--control", self.control, "--json")
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer of the control socket: what `command` does, without a new process."""
        from limpet.operate.control_socket import ask

        return ask(self.control, request)

    def status(self) -> dict[str, Any]:
        """Return `limpet status`."""
        return self.ask(command="status")

    def totals(self) -> dict[str, int]:
        """Return the totals in `limpet status`."""
        totals: dict[str, int] = self.status()["totals"]
        return totals

    def where(self, *keys: str) -> list[dict[str, Any]]:
        """Return `limpet where KEYS`."""
        answer: list[dict[str, Any]] = self.ask(command="where", keys=list(keys))["keys"]
        return answer

    def worker(self, slot: int) -> dict[str, Any]:
        """Return the status of one slot."""
        entry: dict[str, Any] = self.status()["slots"][slot]
        return entry

    def dispatcher(self) -> int:
        """Return the pid of the first dispatcher."""
        pid: int = self.status()["dispatchers"][0]["pid"]
        return pid

    def wait_dispatcher(self, other_than: int) -> int:
        """Wait until a dispatcher, not the one with pid *other_than*, is ready; return its pid."""

        def ready() -> int | None:
            entry = self.status()["dispatchers"][0]
            return entry["pid"] if entry["state"] == "ready" and entry["pid"] != other_than else None

        pid: int = wait_until(ready, "a new dispatcher is ready")
        return pid

    def kill_worker(self, slot: int, *, wait_for_next: bool = True) -> int:
        """SIGKILL the worker in *slot*; return its pid."""
        pid: int = self.worker(slot)["pid"]
        os.kill(pid, signal.SIGKILL)
        if wait_for_next:
            self.wait_ready(slot, other_than=pid)
        return pid

    def wait_ready(self, slot: int, other_than: int = 0) -> dict[str, Any]:
        """Wait until a worker, not the one with pid *other_than*, is ready in *slot*; return its status."""

        def ready() -> dict[str, Any] | None:
            entry = self.worker(slot)
            return entry if entry["state"] == "ready" and entry["pid"] not in (None, other_than) else None

        entry: dict[str, Any] = wait_until(ready, f"a new worker is ready in slot {slot}")
        return entry

    # --- being its client

    def request(
        self, path: str = "/", method: str = "GET", body: bytes | None = None, source: str | None = None, **headers: str
    ) -> Reply:
        """Send one request on a new connection, from the address *source*; `x_user="u"` sends `x-user: u`."""
        with self.connection(source) as connection:
            return fetch(connection, path, method, body, **headers)

    @contextlib.contextmanager
    def connection(self, source: str | None = None) -> Iterator[http.client.HTTPConnection]:
        """Return a client connection that stays open for several requests."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=PATIENCE_S, source_address=(source, 0) if source else None
        )
        try:
            yield connection
        finally:
            connection.close()

    def _open_log(self) -> None:
        self._close_log()
        self._log_fd, self._log_at = os.memfd_create("log"), 0

    def _read_log(self, *, to_the_end: bool = False) -> None:
        """Take over the lines that are new; one that is not whole only *to_the_end*."""
        with self._log_lock:
            size = os.fstat(self._log_fd).st_size if self._log_fd >= 0 else 0
            data = os.pread(self._log_fd, size - self._log_at, self._log_at) if size > self._log_at else b""
            data = data if to_the_end else data[: data.rfind(b"\n") + 1]
            self._log_at += len(data)
            self._lines += io.StringIO(data.decode(errors="backslashreplace")).readlines()

    def _close_log(self) -> None:
        self._read_log(to_the_end=True)
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1


def limpet_command(*args: str, cwd: Path = HERE.parent) -> subprocess.CompletedProcess[str]:
    """Run a `limpet` command that ends by itself; return its exit code and what it printed."""
    command = [sys.executable, "-m", "limpet", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=cwd)


def fetch(
    connection: http.client.HTTPConnection,
    path: str = "/",
    method: str = "GET",
    body: bytes | None = None,
    **headers: str,
) -> Reply:
    """Send one request on *connection* and read its response."""
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
