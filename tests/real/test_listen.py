"""`limpet.listen` and `limpet.Cluster`: a server that a program starts, asks and ends."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import limpet
from limpet.errors import AppError, ListenError, SettingsError
from tests.harness import HERE, PATIENCE_S, Limpet, wait_until

ECHO = "tests.apps:echo"


class Program(Limpet):
    """tests/programs/script.py in place of `limpet run`."""

    def __init__(self, *arguments: str, **env: str) -> None:
        super().__init__()
        self._env |= {"TEST_CONTROL": self.control, "LIMPET_STATE_DIR": str(self.state), **env}
        self._command = [sys.executable, str(HERE / "programs" / "script.py"), *arguments]

    def start(self) -> Self:
        self._open_log()
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log_fd,
            text=True,
            env=self._env,
            cwd="/",
            start_new_session=True,
        )
        return self

    def kill(self) -> None:
        super().kill()
        if self.process is not None:
            for file in (self.process.stdin, self.process.stdout):
                assert file is not None
                file.close()

    def stop(self) -> int:
        """Let the program come to its end."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.wait_ended()

    def supervisor(self) -> int:
        """Return the pid of the server."""
        return int(self.status()["pid"])


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[..., limpet.Handle]]:
    """`limpet.listen` for a server that keeps its secret for the test alone and is closed after it."""
    with contextlib.ExitStack() as stack:

        def listened(app: Any = ECHO, port: int | str = 0, *args: Any, **options: Any) -> limpet.Handle:
            given: dict[str, Any] = {
                "workers": 2,
                "state_dir": str(tmp_path),
                "control": str(tmp_path / "control"),
            } | options
            handle = limpet.listen(app, port, *args, **given)
            stack.callback(handle.close, timeout=5)
            return handle

        yield listened


def get(address: str, path: str = "/", **headers: str) -> Any:
    request = urllib.request.Request(address + path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return json.load(response)


def test_program_gets_a_handle_of_a_server_that_brings_clients_home(listen: Callable[..., limpet.Handle]) -> None:
    """What `limpet run` does for an operator, `listen` does for a program, with the same words."""
    told: list[str] = []
    handle = listen(by=limpet.Header("x-user"), on_ready=lambda h: told.append(h.address))
    with handle:
        users = [f"user-{number}" for number in range(20)]
        homes = {user: entry["slot"] for user, entry in zip(users, handle.where(*users), strict=True)}
        assert set(homes.values()) == {0, 1}
        assert {user: get(handle.address, x_user=user)["slot"] for user in users} == homes
        status = handle.status()
        assert status["by"] == "header:x-user"
        assert status["pid"] != os.getpid()
    wait_until(lambda: told == [handle.address], "on_ready was called, once")
    with pytest.raises(OSError, match="refused"):
        get(handle.address)


def test_reload_gives_each_slot_a_new_worker_or_says_why_not(
    listen: Callable[..., limpet.Handle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that has changed its application's files or data knows when all workers have them."""
    monkeypatch.setenv("TEST_FAULT", str(tmp_path / "fault"))
    with listen("tests.apps:fragile") as handle:
        handle.reload()
        assert [slot["generation"] for slot in handle.status()["slots"]] == [2, 2]
        (tmp_path / "fault").touch()
        with pytest.raises(AppError, match="reload failed"):
            handle.reload()
        assert get(handle.address)["slot"] in (0, 1)


def test_scale_changes_the_number_of_workers(listen: Callable[..., limpet.Handle]) -> None:
    """A program that knows its load need not start anew, and most clients stay where they are."""
    with listen(by="header:x-user") as handle:
        users = [f"user-{number}" for number in range(30)]
        before = [entry["slot"] for entry in handle.where(*users)]
        handle.scale(3)
        after = [entry["slot"] for entry in handle.where(*users)]
        assert all(new in (old, 2) for old, new in zip(before, after, strict=True))
        handle.scale(2)
        assert [entry["slot"] for entry in handle.where(*users)] == before


def test_handle_can_be_closed_from_anywhere_and_again(listen: Callable[..., limpet.Handle]) -> None:
    """Two parts of a program may both think that they are the last: neither is wrong, and both wait for the end."""
    ended: list[str] = []
    handle = listen(on_ready=lambda h: h.close(), on_closed=lambda h: ended.append(repr(h)))
    closers = [threading.Thread(target=handle.close) for _ in range(4)]
    handle.wait_closed(PATIENCE_S)
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(PATIENCE_S)
        assert not closer.is_alive()
    handle.close(wait_for_connections=True)
    wait_until(lambda: ended and "closed" in ended[0], "on_closed was called")
    assert len(ended) == 1
    with pytest.raises(limpet.LimpetError, match="has ended"):
        handle.status()


def test_closing_a_server_that_has_not_started_is_no_failure(listen: Callable[..., limpet.Handle]) -> None:
    """A program that changes its mind has nothing to report."""
    handle = listen(app="tests.apps:gated_start", workers=4)  # it will never be ready: there is no gate
    with pytest.raises(TimeoutError, match="not ready"):
        handle.wait_ready(0.1)
    handle.close(timeout=PATIENCE_S)
    handle.wait_closed(0)
    with pytest.raises(limpet.LimpetError, match="closed before it was ready"):
        handle.wait_ready()


def test_close_waits_for_connections_when_told_and_for_no_longer_than_told(
    listen: Callable[..., limpet.Handle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response under way is worth as much waiting as the program says, the graceful timeout notwithstanding."""
    monkeypatch.setenv("TEST_GATE", str(tmp_path / "gate"))
    handle = listen("tests.apps:gated", graceful_timeout=0)
    handle.wait_ready()
    port = int(handle.address.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", "/")
    response = connection.getresponse()
    closing = threading.Thread(target=handle.close, kwargs={"wait_for_connections": True})
    closing.start()
    wait_until(lambda: _states(handle) == {"draining"}, "the workers drain")
    closing.join(1.0)
    assert closing.is_alive()
    Path(os.environ["TEST_GATE"]).touch()
    assert json.loads(response.read())["path"] == "/"
    connection.close()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()


def _states(handle: limpet.Handle) -> set[str]:
    return {slot["state"] for slot in handle.status()["slots"] if slot["connections"]}


def test_timeout_ends_what_would_not_end(listen: Callable[..., limpet.Handle]) -> None:
    """A program must be able to say how long its own end may take."""
    handle = listen("tests.apps:slow")
    handle.wait_ready()
    port = int(handle.address.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", "/?600")
    wait_until(lambda: handle.status()["totals"]["connections"], "the request is in flight")
    handle.close(wait_for_connections=True, timeout=0.2)
    handle.wait_closed(0)
    connection.close()


def test_signals_that_the_program_blocks_reach_the_server(listen: Callable[..., limpet.Handle]) -> None:
    """A mask is inherited: neither supervisor nor applications would ever see a signal that a thread waits for."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    handle = listen(by="header:x-user")
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    handle.wait_ready()
    status = handle.status()
    pids = [status["pid"], *(entry["pid"] for entry in status["slots"] + status["dispatchers"])]
    blocked = [re.findall(r"SigBlk:\t(\w+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids]
    assert blocked == [["0" * 16]] * 4


def test_server_works_beside_an_event_loop(listen: Callable[..., limpet.Handle]) -> None:
    """`async with` must not block the loop while the server starts and ends."""
    ticks = 0

    async def main() -> None:
        nonlocal ticks

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        task = asyncio.create_task(tick())
        async with listen() as handle:
            before = ticks
            assert (await asyncio.to_thread(get, handle.address))["slot"] in (0, 1)
        task.cancel()
        assert before > 5  # it started while others ran
        assert ticks > before

    asyncio.run(main())


@pytest.mark.parametrize(
    ("app", "options", "error", "says"),
    [
        ("tests.nowhere:app", {}, AppError, "no module `tests.nowhere`"),
        ("tests.apps:fails_to_start", {}, AppError, "start-up"),
        (ECHO, {"port": "127.0.0.1:1", "host": None}, ListenError, "cannot listen|permission"),
    ],
)
def test_failure_to_start_is_raised_as_the_command_line_would_show_it(
    listen: Callable[..., limpet.Handle], app: str, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    """The supervisor is another process, but its reasons must not stay there."""
    if error is ListenError:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as taken:
            handle = listen(app, taken.getsockname()[1])
            with pytest.raises(error, match=says):
                handle.wait_ready(PATIENCE_S)
    else:
        with pytest.raises(error, match=says), listen(app):
            pass


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": 0}, "`workers` must be a whole number from 1 to 256"),
        ({"graceful_timout": 3}, "unknown setting `graceful_timout`"),
        ({"by": "cookie"}, "`cookie` is not an element"),
        ({"by": [limpet.Ip(), 3]}, "`3` is not an element"),
        ({"trust": ["nonsense"]}, "`trust`"),
        ({"by": lambda request: None}, "no name under which a worker could import it"),
    ],
)
def test_mistake_is_raised_at_once_in_the_words_of_the_program(options: dict[str, Any], says: str) -> None:
    """A keyword is not a flag, and nothing has to be started to see that it is wrong."""
    with pytest.raises(SettingsError, match=re.escape(says)):
        limpet.listen(ECHO, 0, **options)


def test_program_serves_its_own_application_and_key_function() -> None:
    """The least that a user writes is one file, run from anywhere; the supervisor imports none of it."""
    with Program() as program:
        address = wait_until(lambda: program.status()["binds"][0], "it serves")
        homes = {name: entry["slot"] for name, entry in _homes_of_tenants(program).items()}
        assert set(homes.values()) == {0, 1}
        assert {name: get(address, x_tenant=name)["slot"] for name in homes} == homes
        assert "script" not in Path(f"/proc/{program.supervisor()}/cmdline").read_text()
        assert program.process is not None
        output, _ = program.process.communicate("", PATIENCE_S)
        assert output.endswith("closed\n")
        program.wait_gone()


def _homes_of_tenants(program: Program) -> dict[str, dict[str, Any]]:
    names = [f"tenant-{number}" for number in range(20)]
    return dict(zip(names, program.where(*names), strict=True))


@pytest.mark.parametrize("arguments", [[], ["fork"]])
def test_server_ends_gracefully_when_its_program_is_killed(arguments: list[str]) -> None:
    """A crash of the program loses no request, and leaves no server behind, whatever the program had forked."""
    with Program(*arguments).launched() as server:
        assert server.process is not None
        wait_until(lambda: "serving" in server.log, "it serves")
        os.kill(server.process.pid, signal.SIGKILL)
        wait_until(lambda: "stopped" in server.log, "the server has stopped")
        assert "the program that started this server has ended" in server.log


def test_ctrl_c_reaches_the_program_alone() -> None:
    """The program decides what Ctrl-C means; the server learns of it by being closed."""
    with Program() as program:
        assert program.process is not None
        os.killpg(program.process.pid, signal.SIGINT)
        wait_until(lambda: "KeyboardInterrupt" in program.log, "the program was interrupted")
        program.wait_gone()
        assert "stopped" in program.log
        assert "the program that started this server has ended" not in program.log
        program.wait_ended()


@pytest.mark.parametrize("path", ["/close", "/close-wait"])
def test_worker_can_close_the_whole_server(path: str) -> None:
    """An application that knows that it is done need not know who started it."""
    with Program() as program:
        address = program.status()["binds"][0]
        assert get(address, path)["slot"] in (0, 1)
        wait_until(lambda: "stopped" in program.log, "the server has stopped")
        assert re.search(r"worker \d \(pid \d+\) asked to stop the server", program.log)


def test_server_in_a_server_is_refused_with_the_way_out() -> None:
    """A script without the usual guard would start servers without end, as its workers import it."""
    with Program(TEST_PROGRAM="bare").launched() as program:
        assert program.wait_ended() == 1
        assert "must not start another server while it imports its code" in program.log
        assert '__name__ == "__main__"' in program.log


def test_cluster_shares_workers_and_homes_over_its_listeners(tmp_path: Path) -> None:
    """A client that comes by two ports has one home; another cluster is another server."""
    keep = {"state_dir": str(tmp_path), "by": "header:x-user"}
    cluster = limpet.Cluster(workers=2, control=str(tmp_path / "a"), **keep)
    cluster.listen(ECHO, 0)
    cluster.listen(ECHO, f"unix:{tmp_path}/web.sock")
    other = limpet.Cluster(workers=2, control=str(tmp_path / "b"), **keep)
    other.listen(ECHO, 0)
    with cluster.start() as handle, other.start() as second:
        users = [f"user-{number}" for number in range(8)]
        assert handle.addresses[1] == f"unix:{tmp_path}/web.sock"
        assert handle.where(*users)[0]["slot"] == second.where(*users)[0]["slot"]  # one name, one secret
        assert {s["pid"] for s in handle.status()["slots"]}.isdisjoint(s["pid"] for s in second.status()["slots"])


def test_cluster_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """`cluster.run()` is the last line of a program that is nothing but a server, and obeys as `limpet run` does."""
    mark = uuid.uuid4().hex
    text = f"""
import limpet
cluster = limpet.Cluster(workers=1, name="n{mark}", state_dir={str(tmp_path)!r}, control={str(tmp_path / "c")!r})
cluster.listen({ECHO!r}, 0)
cluster.run()
"""
    with subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE, text=True, cwd=HERE.parent) as program:
        assert program.stderr is not None
        log = ""
        while "serving" not in log:
            log += program.stderr.readline()
        program.terminate()
        assert "stopped" in program.stderr.read()
        assert program.wait(PATIENCE_S) == 0
