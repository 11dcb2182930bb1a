"""What clients see when a process of the server is killed: SIGKILL to each kind, under load and in every position.

A request that is being served by the killed process is lost whatever one does. These tests allow exactly that.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
from pathlib import Path

import pytest

from tests.crowd import Crowd, Home, await_answers, descriptors, freeze, homes, keys_of, load
from tests.harness import Limpet, fetch, wait_until
from tests.wire import Wire, request

WORKERS = 4
KEYS = [f"user-{number}" for number in range(100)]
CHAIN = ("--workers", str(WORKERS), "--by", "header:x-user")
FUNCTION = ("--workers", str(WORKERS), "--by", "header:x-user,python:tests.apps:key", "--key-timeout", "0.5")


@pytest.fixture(name="gate")
def _gate(tmp_path: Path) -> Path:
    """The file that `gated` waits for."""
    return tmp_path / "gate"


@pytest.fixture(name="gated")
def _gated(gate: Path) -> Limpet:
    """A server that answers when the gate opens; not started."""
    return Limpet("tests.apps:gated", *CHAIN, env={"TEST_GATE": str(gate)})


def test_kill_of_a_worker_under_load_concerns_its_slot_only() -> None:
    """Whoever lives elsewhere must not notice; who lives there loses one request at most, and no home."""
    with Limpet("tests.apps:echo", *CHAIN) as server, load(server, KEYS, per_slot=2) as callers:
        pids = {slot: {server.worker(slot)["pid"]} for slot in range(WORKERS)}
        for slot in (0, 2):
            server.kill_worker(slot)
            pids[slot].add(server.worker(slot)["pid"])
            await_answers(callers)

            for caller in callers:
                assert set(caller.answers) == {Home(caller.slot, pid) for pid in pids[caller.slot]}
                assert len(caller.failures) <= len(pids[caller.slot]) - 1, caller


def test_connections_that_wait_for_a_killed_worker_are_served_by_the_next(gated: Limpet, gate: Path) -> None:
    """Nothing but what the worker was serving may be lost: the channel outlives it."""
    with gated as server, Crowd(server) as crowd:
        keys = keys_of(server, 1, KEYS)
        lost = [crowd.in_flight(key)[0] for key in keys[:5]]
        elsewhere, _ = crowd.in_flight(keys_of(server, 2, KEYS)[0])
        pid = server.worker(1)["pid"]
        freeze(pid)
        waiting = [crowd.call(key) for key in keys]
        wait_until(lambda: server.worker(1)["queued"] == len(waiting), "all of them wait")

        os.kill(pid, signal.SIGKILL)
        gate.touch()

        assert {Home.of(wire.reply()) for wire in waiting} == {Home(1, server.worker(1)["pid"])} != {Home(1, pid)}
        assert [wire.rest() for wire in lost] == [b""] * 5  # no last chunk
        assert elsewhere.chunk() == b""
        assert server.worker(1)["generation"] == 2


def test_slot_whose_next_worker_cannot_start_keeps_its_clients_until_one_can(tmp_path: Path) -> None:
    """A database that is away for a minute must not cost those who wait, nor anybody in other slots."""
    fault = tmp_path / "fault"
    with Limpet("tests.apps:fragile", *CHAIN, env={"TEST_FAULT": str(fault)}) as server, Crowd(server) as crowd:
        before = homes(server, KEYS)
        keys = keys_of(server, 1, KEYS)
        fault.touch()
        server.kill_worker(1, wait_for_next=False)
        wait_until(lambda: server.worker(1)["state"] == "backoff", "the next worker has failed")
        waiting = [crowd.call(key) for key in keys]
        wait_until(lambda: server.worker(1)["queued"] == len(waiting), "all of them wait")
        assert homes(server, others := sorted(set(KEYS) - set(keys))) == {key: before[key] for key in others}
        fault.unlink()

        assert {Home.of(wire.reply()) for wire in waiting} == {Home(1, server.worker(1)["pid"])}
        assert server.worker(1)["generation"] >= 3  # the one that was killed, and one at least that could not start
        assert re.search(r"worker 1 .*did not start, next try in 0\.\d s: the start-up of .* failed", server.log)


def test_supervisor_without_free_descriptors_tries_again() -> None:
    """It must survive what every process of a busy machine meets one day, or all workers end with it."""
    with Limpet("tests.apps:echo", *CHAIN) as server, Crowd(server) as crowd:
        key = keys_of(server, 1, KEYS)[0]
        pid = server.worker(1)["pid"]
        enough = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (8, enough[1]))
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "cannot start worker 1: too many open files" in server.log, "it has tried")
        waiting = crowd.call(key)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, enough)

        assert Home.of(waiting.reply()) == Home(1, server.wait_ready(1, other_than=pid)["pid"])


def test_kill_of_the_dispatcher_under_load_moves_nobody() -> None:
    """It is not in the way of the data: who has a connection goes on, who makes one waits in the backlog."""
    with Limpet("tests.apps:echo", *CHAIN) as server, load(server, KEYS, per_slot=2) as callers:
        for kills in (1, 2):
            pid = server.dispatcher()
            os.kill(pid, signal.SIGKILL)
            server.wait_dispatcher(other_than=pid)
            await_answers(callers)

            for caller in callers:
                assert set(caller.answers) == {Home(caller.slot, server.worker(caller.slot)["pid"])}
                assert len(caller.failures) <= (0 if caller.keep_alive else kills), caller


def test_kill_of_the_dispatcher_loses_heads_that_are_under_way_and_no_more(gated: Limpet, gate: Path) -> None:
    """In the backlog, in a channel and at a worker a connection is not in the dispatcher's hands."""
    with gated as server, Crowd(server) as crowd:
        keys = keys_of(server, 3, KEYS)
        served, home = crowd.in_flight(keys[0])
        freeze(home.pid)
        handed = [crowd.call(key) for key in keys]
        wait_until(lambda: server.worker(3)["queued"] == len(handed), "all of them wait in the channel")
        half = crowd.connect().send(b"GET / HTTP/1.1\r\nx-user: user-1")
        wait_until(lambda: server.status()["dispatchers"][0]["pending"] == 1, "half a head has come")
        pid = server.dispatcher()
        freeze(pid)
        accepted = [crowd.call(key) for key in KEYS]  # by the kernel: they are in the backlog

        os.kill(pid, signal.SIGKILL)
        server.wait_dispatcher(other_than=pid)
        os.kill(home.pid, signal.SIGCONT)
        gate.touch()

        assert served.chunk() == b""
        assert {Home.of(wire.reply()) for wire in handed} == {home}
        assert [Home.of(wire.reply()).slot for wire in accepted] == [entry["slot"] for entry in server.where(*KEYS)]
        with contextlib.suppress(ConnectionResetError):
            assert half.rest() == b""


def test_kill_of_the_supervisor_ends_everything_after_what_is_in_flight(gated: Limpet, gate: Path) -> None:
    """Nobody is left to replace or to stop the children: they must end by themselves, but finish first."""
    with gated.launched() as server, Crowd(server) as crowd:
        server.wait_serving()
        wire, home = crowd.in_flight("user-1")
        server.signal(signal.SIGKILL)
        wait_until(lambda: server.processes() == {home.pid}, "only the worker that has a request is left")
        with pytest.raises(ConnectionRefusedError):
            server.request()

        gate.touch()

        assert wire.chunk() == b""
        server.wait_gone()


def test_server_starts_again_where_a_killed_one_was(tmp_path: Path) -> None:
    """What a killed server leaves in the file system must not stand in the way of the next."""
    path = str(tmp_path / "bind.sock")
    with Limpet(bind=f"unix:{path}", state=tmp_path).launched() as killed:
        killed.wait_serving()
        killed.signal(signal.SIGKILL)
        killed.wait_gone()

        with Limpet(bind=f"unix:{path}", state=tmp_path) as server, Wire(path) as wire:
            assert wire.send(request()).reply().json()["pid"] in server.processes()


@pytest.mark.parametrize("fault", ["x_hang", "x_exit"])
def test_key_function_that_ends_its_dispatcher_costs_nobody_else_anything(fault: str) -> None:
    """Users' code runs there, on what clients send; a watchdog replaces a dispatcher that does not move."""
    with Limpet("tests.apps:echo", *FUNCTION) as server, Crowd(server) as crowd, server.connection() as lasting:
        before = homes(server, KEYS)
        assert Home.of(fetch(lasting, x_user=KEYS[0])) == before[KEYS[0]]
        for _ in range(2):
            pid = server.dispatcher()
            victim = crowd.connect().send(request(**{fault: "yes"}))
            server.wait_dispatcher(other_than=pid)

            with contextlib.suppress(ConnectionResetError):
                assert victim.rest() == b""
            assert Home.of(fetch(lasting, x_user=KEYS[0])) == before[KEYS[0]]
            assert homes(server, KEYS) == before
    assert {home.slot for home in before.values()} == set(range(WORKERS))


@pytest.mark.parametrize("fault", ["x_hang", "x_exit"])
def test_key_function_that_ends_a_worker_concerns_its_slot_only(fault: str) -> None:
    """A worker asks it too, for the later requests of a connection; there it must not hang for ever either."""
    with Limpet("tests.apps:echo", *FUNCTION) as server, server.connection() as victim:
        before = homes(server, KEYS)
        slot, pid = Home.of(fetch(victim, x_user=KEYS[0]))
        victim.request("GET", "/", headers={fault.replace("_", "-"): "yes"})
        now = server.wait_ready(slot, other_than=pid)

        expected = {key: Home(slot, now["pid"]) if home.slot == slot else home for key, home in before.items()}
        assert homes(server, KEYS) == expected


def test_slow_key_functions_of_a_crowd_are_none_that_hangs() -> None:
    """A turn of the dispatcher that takes seconds, 30 ms for each client, must not cost anybody a request."""
    with Limpet("tests.apps:echo", *FUNCTION) as server, Crowd(server) as crowd:
        pid = server.dispatcher()
        freeze(pid)
        waiting = [crowd.connect().send(request(x_slow="0.03")) for _ in range(50)]
        os.kill(pid, signal.SIGCONT)

        assert {wire.reply().status for wire in waiting} == {200}
        assert server.dispatcher() == pid


def test_worker_is_replaced_although_a_process_it_started_lives_on() -> None:
    """What multiprocessing forks has every descriptor of the worker: that must not make the worker seem alive."""
    with Limpet("tests.apps:forking", *CHAIN) as server:
        pid = server.kill_worker(0)
        key = keys_of(server, 0, KEYS)[0]

        assert Home.of(server.request(x_user=key)) == Home(0, server.worker(0)["pid"]) != Home(0, pid)


def test_eight_kills_leak_no_descriptor() -> None:
    """The supervisor lives for months, and each replacement takes descriptors."""
    with Limpet("tests.apps:echo", *CHAIN) as server:
        homes(server, KEYS)
        stay = server.pid, server.dispatcher()
        before = [len(descriptors(pid)) for pid in stay]
        for _ in range(2):
            pids = [server.kill_worker(slot, wait_for_next=False) for slot in range(WORKERS)]
            for slot, pid in enumerate(pids):
                server.wait_ready(slot, other_than=pid)
            homes(server, KEYS)

        assert [entry["generation"] for entry in server.status()["slots"]] == [3] * WORKERS
        wait_until(
            lambda: all(len(descriptors(pid)) <= number for pid, number in zip(stay, before, strict=True)),
            f"{stay} have no more than {before} descriptors",
            timeout_s=5,
        )
