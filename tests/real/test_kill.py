"""Killed workers: the promise of both backends that a crash costs what was in flight on it, and nobody's home.

200 clients, each with an address of its own, connect, ask and leave without a pause, while workers that serve are
killed at random, several at a time. Each answer must come from the client's slot. A request may be lost only if it was
in flight when a worker of its slot was killed; one that waited for the next worker must be served.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from tests.crowd import is_dead
from tests.harness import HERE, Limpet, wait_until

WORKERS = 4
ADDRESSES = [f"127.{number}.{number}.1" for number in range(1, 201)]
AT_ONCE = 4  # requests to one slot, so that one without a worker does not keep all clients busy waiting
NOBODY = 65534
REQUEST = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"


@dataclass
class Seen:
    """What the clients saw, and when workers were killed: from and until, monotonic."""

    served: int = 0
    misplaced: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    lost: list[tuple[int, float, float]] = field(default_factory=list)  # slot, begin and end of the request
    kills: dict[int, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))  # by slot

    def lost_without_reason(self) -> list[tuple[int, float, float]]:
        """Return the lost requests that were not in flight when their worker was killed."""
        return [
            (slot, begin, end)
            for slot, begin, end in self.lost
            if not any(begin <= until and since <= end for since, until in self.kills[slot])
        ]


async def play(server: Limpet, seen: Seen, slots: dict[str, int], done: asyncio.Event) -> None:
    """Be all clients until *done*."""
    turns = {slot: asyncio.Semaphore(AT_ONCE) for slot in range(WORKERS)}
    port = server.port

    async def client(address: str) -> None:
        while not done.is_set():
            async with turns[slots[address]]:
                begin = time.monotonic()
                try:
                    await ask(address)
                except ConnectionRefusedError as error:
                    seen.refused.append(f"{address}: {error}")
                except (OSError, EOFError):
                    seen.lost.append((slots[address], begin, time.monotonic()))

    async def ask(address: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
        try:
            writer.write(REQUEST)
            reply = await reader.read()
        finally:
            writer.transport.abort()
        if not reply.startswith(b"HTTP/1.1 200 ") or not reply.endswith(b"}"):
            raise EOFError
        seen.served += 1
        if f'"slot": {slots[address]},'.encode() not in reply:
            seen.misplaced.append(f"{address}: {reply!r}")

    await asyncio.gather(*(client(address) for address in ADDRESSES))


def kill(server: Limpet, seen: Seen, kills: int) -> None:
    """Kill workers, each once it has served somebody. Blocks until all are ready again."""
    killed: set[int] = set()

    def victims() -> list[tuple[int, int]]:
        slots = server.status()["slots"]
        live = [
            slot for slot in slots if slot["state"] == "ready" and slot["connections"] and slot["pid"] not in killed
        ]
        return [(slot["slot"], slot["pid"]) for slot in live]

    for _ in range(kills):
        slot, pid = random.choice(wait_until(victims, "a worker serves"))
        since = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
        wait_until(partial(is_dead, pid), "the worker is dead")
        seen.kills[slot].append((since, time.monotonic()))
    for number in range(WORKERS):
        server.wait_ready(number)


def nobody() -> dict[str, Any]:
    """Return how to start a server as a user without any right, with a Python that this user may run."""
    if os.getuid() != 0:
        return {}  # that is who runs these tests
    paths = os.pathsep.join([str(HERE.parent), *(path for path in sys.path if path.endswith("site-packages"))])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python, env in (
        (sys.executable, {}),
        (f"/usr/bin/{version}", {"PYTHONPATH": paths}),
    ):
        with contextlib.suppress(OSError):
            command = [python, "-c", "import limpet, uvicorn"]
            how: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": (), "env": env, "cwd": HERE.parent}
            if subprocess.run(command, check=False, stderr=subprocess.DEVNULL, **how).returncode == 0:
                return {"user": NOBODY, "python": python, "env": env}
    if os.environ.get("CI"):
        pytest.fail("no Python that user 65534 may run")
    pytest.skip("no Python that user 65534 may run")


def endure(backend: str, kills: int, **how: Any) -> Seen:
    """Return what clients saw of *kills* deaths."""
    arguments = ["--workers", str(WORKERS), "--by", "ip", "--backend", backend]
    with Limpet("tests.apps:echo", *arguments, **how) as server:
        assert server.status()["backend"] == backend
        slots = {address: place["slot"] for address, place in zip(ADDRESSES, server.where(*ADDRESSES), strict=True)}
        seen = Seen()

        async def both() -> None:
            done = asyncio.Event()
            clients = asyncio.create_task(play(server, seen, slots, done))
            try:
                await asyncio.to_thread(kill, server, seen, kills)
            finally:
                done.set()
            await clients

        asyncio.run(both())
        assert {home["slot"] for home in server.where(*ADDRESSES)} == set(range(WORKERS))
        assert server.log.count("was killed by SIGKILL") == kills
    return seen


def check(seen: Seen, kills: int) -> None:
    """Fail unless the promise was kept."""
    assert sum(map(len, seen.kills.values())) == kills
    assert seen.served > 10 * kills
    assert seen.misplaced == []
    assert seen.refused == []
    assert seen.lost_without_reason() == []
    assert len(seen.lost) <= AT_ONCE * kills


@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_kills_cost_what_was_in_flight_and_nobody_their_home(backend: str) -> None:
    """Ten crashes under load: no request on a wrong worker, no connection refused, nothing lost that waited."""
    check(endure(backend, 10), 10)


def test_unprivileged_user_has_the_kernel_backend_and_its_promise() -> None:
    """Neither root nor a capability is needed."""
    check(endure("kernel", 10, **nobody()), 10)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_a_hundred_kills(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for longer; `make kill`."""
    seen = endure(backend, 100)
    with capsys.disabled():
        print(f"\n{backend}: 100 kills, {seen.served} served, {len(seen.lost)} lost in flight, 0 refused, 0 misplaced")
    check(seen, 100)


def test_dispatcher_that_was_stopped_while_idle_is_replaced() -> None:
    """It waits for nothing then, so it looks as it does when all is well; but whoever connects would wait for ever."""
    with Limpet("tests.apps:echo", "--by", "header:x-user", "--workers", "1", "--hang-timeout", "1") as server:
        stopped = server.dispatcher()
        os.kill(stopped, signal.SIGSTOP)
        assert server.request(x_user="ada").status == 200
        assert server.wait_dispatcher(other_than=stopped)
        assert f"(pid {stopped}) was stopped for 1 s; it is killed" in server.log
