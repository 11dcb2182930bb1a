"""Each process in turn has no free descriptor: clients are refused or wait, nothing leaks, and it passes."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
from collections.abc import Iterator

from tests.harness import Limpet, wait_until
from tests.real.test_hostile import UNFINISHED, cpu_s, tcp
from tests.real.test_upgrade import upgrade
from tests.wire import Wire, request


def open_numbers(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def at_rest(pid: int) -> int:
    """Return how many descriptors the process has when all that was just asked of it is over."""
    counts = [0]

    def is_steady() -> bool:
        counts.append(open_numbers(pid))
        return len(counts) > 20 and len(set(counts[-20:])) == 1

    wait_until(is_steady, "its number of descriptors is steady")
    return counts[-1]


def queued_and_served(server: Limpet) -> int:
    slot = server.worker(0)
    return int(slot["queued"] + slot["connections"])


@contextlib.contextmanager
def at_most(pid: int, more: int) -> Iterator[None]:
    """Let the process have about so many descriptors more than it has, until this ends."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    gaps = highest + 1 - open_numbers(pid)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + max(0, more - gaps), before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_short_shortage_in_the_dispatcher_costs_no_request() -> None:
    """Who waits in the backlog loses a moment; a 503 would be a lost request to every client that is no balancer."""
    with Limpet("tests.apps:echo", "--by", "header:x-user", "--workers", "1") as server:
        before = at_rest(server.dispatcher())
        with contextlib.ExitStack() as stack, at_most(server.dispatcher(), 20):
            crowd = [stack.enter_context(Wire(tcp(server))).send(UNFINISHED) for _ in range(40)]
            waiting = [stack.enter_context(Wire(tcp(server))).send(request(x_user="honest")) for _ in range(5)]
            wait_until(lambda: server.totals()["accept_errors"] > 1, "nobody is let in")
            for wire in crowd:
                wire.close()
            assert [wire.reply().status for wire in waiting] == [200] * 5
        assert server.totals()["no_descriptor"] == 0
        assert server.log.count("clients wait in the backlog") == 1
        wait_until(lambda: open_numbers(server.dispatcher()) == before, "no descriptor is left open")


def test_dispatcher_that_stays_without_descriptors_says_503_until_it_has_some() -> None:
    """Clients that are left in the backlog would look at a dead server, and who holds descriptors may be hostile."""
    with Limpet("tests.apps:echo", "--by", "header:x-user", "--workers", "1", "--head-timeout", "60") as server:
        assert server.request(x_user="before").status == 200
        dispatcher = server.dispatcher()
        before = at_rest(dispatcher)
        with at_most(dispatcher, 20), contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(Wire(tcp(server))).send(UNFINISHED) for _ in range(40)]
            wait_until(lambda: server.totals()["no_descriptor"], "clients are refused")
            for _ in range(5):
                with Wire(tcp(server)) as wire:
                    reply = wire.send(request(x_user="honest")).reply()
                    assert (reply.status, reply.headers["retry-after"], wire.rest()) == (503, "1", b"")
            assert server.totals()["accept_errors"] < 100  # it looks now and then, and does not spin
            for wire in crowd:
                wire.close()
            wait_until(lambda: server.request(x_user="honest").status == 200, "it serves again by itself")
        wait_until(lambda: open_numbers(dispatcher) == before, "no descriptor is left open")
        assert server.dispatcher() == dispatcher


def test_slow_clients_cannot_have_all_descriptors_of_a_dispatcher() -> None:
    """`--max-pending` allows more than `ulimit -n` may: the slow ones have to make room for each other, not others."""
    more = ["--by", "header:x-user", "--workers", "1", "--head-timeout", "60"]
    with Limpet("tests.apps:echo", *more, descriptors=(200, 200)) as server, contextlib.ExitStack() as stack:
        most = server.status()["dispatchers"][0]["max_pending"]
        assert 100 < most < 150
        for _ in range(200):
            stack.enter_context(Wire(tcp(server))).send(UNFINISHED)
        wait_until(lambda: server.status()["dispatchers"][0]["pending"] == most, "as many are awaited as may be")
        assert server.request(x_user="honest").status == 200
        assert server.totals()["crowded_out"] >= 50
        assert server.totals()["no_descriptor"] == 0


def test_soft_limit_is_raised_for_all_but_workers() -> None:
    """With the usual 1024 `--max-pending 8192` would be 750; but an application may use select(), as far as 1023."""

    def limits(server: Limpet) -> list[tuple[int, int]]:
        pids = server.pid, server.dispatcher(), server.worker(0)["pid"]
        return [resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids]

    arguments = ["--by", "header:x-user", "--workers", "1", "--max-pending", "600"]
    with Limpet("tests.apps:echo", *arguments, descriptors=(256, 1024)) as server:
        assert limits(server) == [(1024, 1024), (1024, 1024), (256, 1024)]
        assert server.status()["dispatchers"][0]["max_pending"] == 600
        upgrade(server)
        server.kill_worker(0)
        assert limits(server)[2] == (256, 1024)


def test_dispatcher_without_descriptors_learns_of_a_new_slot_later() -> None:
    """Its death would cost all whose head it awaits, and the reason is a moment's."""
    with Limpet("tests.apps:echo", "--by", "header:x-user", "--workers", "1") as server:
        dispatcher = server.dispatcher()
        with at_most(dispatcher, 0):
            server.command("scale", "2")
        users = [f"user {number}" for number in range(20)]
        at_home_in_1 = users[[home["slot"] for home in server.where(*users)].index(1)]
        assert server.request(x_user=at_home_in_1).json()["slot"] == 1
        assert server.dispatcher() == dispatcher
        assert "Traceback" not in server.log


def test_worker_without_descriptors_lets_clients_wait_and_then_503() -> None:
    """What is in the channel is in nobody's way there, and no client of another slot sees anything of it."""
    flags = ["--by", "header:x-user", "--workers", "2", "--queue", "5", "--keep-alive-timeout", "60"]
    with Limpet("tests.apps:echo", *flags) as server:
        users = [f"user {number}" for number in range(20)]
        slots = [home["slot"] for home in server.where(*users)]
        here, elsewhere = users[slots.index(0)], users[slots.index(1)]
        assert server.request(x_user=here).status == 200
        worker = server.worker(0)["pid"]
        wait_until(lambda: server.worker(0)["connections"] == 0, "it has no connection")
        before = at_rest(worker)
        with at_most(worker, 10), contextlib.ExitStack() as stack:
            held: list[Wire] = []
            while not server.totals()["take_errors"]:
                held.append(stack.enter_context(Wire(tcp(server))).send(request(x_user=here)))
                wait_until(lambda: queued_and_served(server) == len(held), "it is taken, or it waits")
            waiting = [held.pop() for _ in range(server.worker(0)["queued"])]
            while len(waiting) < 5:
                waiting.append(stack.enter_context(Wire(tcp(server))).send(request(x_user=here)))
            wait_until(lambda: server.worker(0)["queued"] == 5, "as many wait as may")
            with Wire(tcp(server)) as late:
                assert late.send(request(x_user=here)).reply().status == 503
            assert server.request(x_user=elsewhere).json()["slot"] == 1

            for wire in held:
                assert wire.reply().status == 200
                wire.close()
            assert {wire.reply().json()["pid"] for wire in waiting} == {worker}
        assert server.log.count("cannot take connections") == 1
        wait_until(lambda: open_numbers(worker) == before, "no descriptor is left open")
        assert server.request(x_user=here).json()["pid"] == worker


def test_supervisor_without_descriptors_lets_callers_wait_and_serves_on() -> None:
    """It can start nobody and hear nobody then; those who serve do not need it, and nobody has to restart anything."""
    flags = ["--by", "header:x-user", "--workers", "2", "--wait-timeout", "60"]
    with Limpet("tests.apps:echo", *flags) as server:
        users = [f"user {number}" for number in range(20)]
        slots = [home["slot"] for home in server.where(*users)]
        killed, other = users[slots.index(0)], users[slots.index(1)]
        worker = server.worker(0)["pid"]
        before = at_rest(server.pid)
        with socket.socket(socket.AF_UNIX) as caller, Wire(tcp(server)) as waiting:
            with at_most(server.pid, 0):
                caller.connect(server.control)
                caller.sendall(json.dumps({"command": "status"}).encode() + b"\n")
                os.kill(worker, signal.SIGKILL)
                wait_until(lambda: "next try" in server.log, "the worker cannot be replaced")
                used = cpu_s(server.pid)
                waiting.send(request(x_user=killed))
                for _ in range(20):
                    assert server.request(x_user=other).json()["slot"] == 1
                wait_until(lambda: server.log.count("next try") > 2, "it is tried again")
                assert cpu_s(server.pid) - used < 0.5  # a caller that cannot be let in keeps nothing busy
            assert waiting.reply().json()["slot"] == 0
            assert json.loads(caller.makefile("rb").readline())["pid"] == server.pid
        assert server.status()["slots"][0]["state"] == "ready"
        assert at_rest(server.pid) == before
