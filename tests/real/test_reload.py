"""Rolling reload under load, on both backends: new code in every slot, and no client that notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.crowd import Crowd
from tests.harness import Limpet, limpet_command, wait_until
from tests.public import Public, Seen, reload
from tests.wire import request

CHAINS = {"kernel": "ip", "dispatcher": "header:x-user"}


def renew(backend: str, times: int, *args: str) -> tuple[Seen, dict[str, Any]]:
    """Return what the public saw of *times* reloads, and the status at the end."""
    arguments = ["--workers", "2", "--by", CHAINS[backend], "--backend", backend, "--websocket-spread", "0.5", *args]
    with Limpet("tests.apps:echo", *arguments) as server:
        public = Public(server, by_address=backend == "kernel")
        before = [slot["pid"] for slot in server.status()["slots"]]

        async def both() -> Seen:
            async with public.present() as seen:
                for _ in range(times):
                    change = await asyncio.to_thread(reload, server)
                    assert (change["state"], change["renewed"]) == ("done", 2), change
            return seen

        seen = asyncio.run(both())
        status = server.status()
        assert not set(before) & {slot["pid"] for slot in status["slots"]}
        assert [slot["generation"] for slot in status["slots"]] == [times + 1] * 2
    return seen, status


@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_nobody_notices_a_reload(backend: str) -> None:
    """64 lasting connections, new ones, pooled ones and 50 websockets: no request fails, everybody is at home."""
    seen, status = renew(backend, 2)
    assert seen.failures == []
    assert seen.restarted > 0
    assert status["totals"]["given"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_fifty_reloads(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for longer; `make reloads`."""
    seen, _ = renew(backend, 50)
    with capsys.disabled():
        print(f"\n{backend}: 50 reloads of 2 workers, {seen}")
    assert seen.failures == []


def test_version_that_does_not_start_leaves_the_old_one_serving(tmp_path: Path) -> None:
    """A deployment that fails must cost nothing, and must be told: by exit code, log and status."""
    fault = tmp_path / "fault"
    with Limpet("tests.apps:fragile", "--workers", "2", "--by", "ip", env={"TEST_FAULT": str(fault)}) as server:
        before = [slot["pid"] for slot in server.status()["slots"]]
        fault.touch()

        failed = limpet_command("reload", "--control", server.control)

        assert failed.returncode == 4
        assert "error: reload failed: the start-up of `tests.apps:fragile` failed" in failed.stderr
        assert "hint: `limpet status`" in failed.stderr
        assert "reload failed: the start-up" in server.log
        status = server.status()
        assert status["change"]["state"] == "failed"
        assert [slot["pid"] for slot in status["slots"]] == before
        assert [slot["state"] for slot in status["slots"]] == ["ready"] * 2
        assert server.request().status == 200

        fault.unlink()
        assert limpet_command("reload", "--control", server.control).returncode == 0
        assert not set(before) & {slot["pid"] for slot in server.status()["slots"]}


def test_reload_renews_dispatchers_whose_clients_do_not_notice(tmp_path: Path) -> None:
    """Key functions run in them, so a reload that left them out would route by old code for ever."""
    module = tmp_path / "keys.py"
    module.write_text("def key(request): return 'old'\n")
    arguments = ["--workers", "2", "--by", "python:keys:key", "--app-dir", str(tmp_path), "--key-timeout", "60"]
    with Limpet("tests.apps:echo", *arguments) as server, Crowd(server) as crowd:
        old = server.dispatcher()
        silent, slow = crowd.connect(), crowd.connect().send(b"GET / HTTP/1.1\r\n")
        wait_until(lambda: server.status()["dispatchers"][0]["pending"] == 2, "both are with the dispatcher")
        module.write_text("def key(request): return 'a key of the new version'\n")
        assert reload(server)["state"] == "done"
        assert server.dispatcher() != old
        assert server.status()["dispatchers"][0]["draining"] == [old]

        module.write_text("def broken(:\n")
        change = reload(server)
        assert (change["state"], server.status()["dispatchers"][0]["state"]) == ("failed", "ready")
        for wire, rest in ((silent, request("/")), (slow, b"host: h\r\n\r\n")):
            assert wire.send(rest).reply().status == 200
        wait_until(lambda: server.status()["dispatchers"][0]["draining"] == [], "the old one has ended")


def test_websockets_are_told_to_go_one_after_another() -> None:
    """Their clients come back at once: all of them in one moment would be more than a new worker can bear."""
    arguments = ["--workers", "1", "--by", "ip", "--websocket-spread", "2"]

    async def told(server: Limpet) -> list[float]:
        async with contextlib.AsyncExitStack() as stack:
            url = f"ws://127.0.0.1:{server.port}/"
            sockets = [await stack.enter_async_context(connect(url, proxy=None)) for _ in range(20)]

            async def end(socket: ClientConnection) -> float:
                await socket.wait_closed()
                assert socket.close_code == 1012
                return time.monotonic()

            ends = [asyncio.create_task(end(socket)) for socket in sockets]
            await asyncio.to_thread(reload, server)
            return sorted(await asyncio.gather(*ends))

    with Limpet("tests.apps:echo", *arguments) as server:
        times = asyncio.run(told(server))
    assert times[-1] - times[0] > 1.0, "over 2 s"
    assert max(later - earlier for earlier, later in pairwise(times)) < times[-1] - times[0], "not in two crowds"


def test_hup_reloads_with_as_many_at_once_as_max_surge_says() -> None:
    """Service managers send signals; with room for it a reload need not take turns."""
    with Limpet("tests.apps:echo", "--workers", "4", "--by", "ip", "--max-surge", "4") as server:
        server.signal(signal.SIGHUP)
        wait_until(lambda: "reload done: 4 new workers" in server.log, "the reload is done")
        lines = [line for line in server.lines if "ready after" in line or "drains" in line]
        assert server.log.count("drains\n") == 4, lines


def test_progress_is_shown_on_a_terminal() -> None:
    """A reload of many slots takes minutes, and whoever waits wants to see that it goes on."""
    with Limpet("tests.apps:echo", "--workers", "2", "--by", "ip") as server:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "limpet", "reload", "--control", server.control]
        assert subprocess.run(command, stderr=theirs, check=False, timeout=60).returncode == 0
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO is the end of a terminal
            while data := os.read(ours, 4096):
                shown += data
        os.close(ours)
    assert b"] 1/2 running" in shown
    assert shown.rstrip().endswith(b"] 2/2 done")


def test_command_that_does_not_wait_returns_while_the_new_worker_starts(tmp_path: Path) -> None:
    """Scripts that only want to begin need not stay for a slow start."""
    gate = tmp_path / "gate"
    gate.touch()
    with Limpet("tests.apps:gated_start", "--workers", "4", "--by", "ip", env={"TEST_GATE": str(gate)}) as server:
        gate.unlink()
        assert limpet_command("reload", "--no-wait", "--control", server.control).returncode == 0
        wait_until(lambda: server.worker(3)["starting"], "slot 3 has a successor that starts")
        assert server.worker(3)["state"] == "ready"
        assert server.status()["change"]["state"] == "running"
        gate.touch()
        wait_until(lambda: server.status()["change"]["state"] == "done", "the reload is done")


def test_request_in_flight_is_finished_by_the_old_worker(tmp_path: Path) -> None:
    """Its response had begun: the connection lives on with the new worker afterwards."""
    gate = tmp_path / "gate"
    env = {"TEST_GATE": str(gate)}
    with (
        Limpet("tests.apps:gated", "--workers", "1", "--by", "header:x-user", env=env) as server,
        Crowd(server) as crowd,
    ):
        wire, before = crowd.in_flight("ada")
        reload(server)
        [old] = server.worker(0)["draining"]
        assert (old["pid"], old["connections"]) == (before.pid, 1)
        gate.touch()
        assert wire.chunk() == b""
        wait_until(lambda: not server.worker(0)["draining"], "the old worker has ended")
        wire.send(request("/", x_user="ada"))
        assert json.loads(wire.reply().body)["pid"] == server.worker(0)["pid"] != before.pid


def test_stream_that_does_not_end_is_bounded_by_the_graceful_timeout(tmp_path: Path) -> None:
    """Event streams would keep old versions alive for ever."""
    env = {"TEST_GATE": str(tmp_path / "gate")}
    arguments = ["--workers", "1", "--by", "ip", "--graceful-timeout", "0.5"]
    with Limpet("tests.apps:gated", *arguments, env=env) as server, Crowd(server) as crowd:
        wire, _ = crowd.in_flight("ada")
        reload(server)
        wait_until(lambda: not server.worker(0)["draining"], "the old worker has ended")
        assert wire.rest() == b""
