"""Workers that do not do well: hung, blocked, grown, crashed again and again; and slots that get no new clients."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.crowd import Crowd, freeze
from tests.harness import Limpet, limpet_command, wait_until

CHAINS = {"kernel": "ip", "dispatcher": "header:x-user"}


@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_stopped_worker_is_replaced_and_its_clients_are_served(backend: str) -> None:
    """It has not died, so nothing but the missing heartbeat tells that its clients wait in vain."""
    arguments = ["--workers", "1", "--by", CHAINS[backend], "--backend", backend, "--hang-timeout", "1"]
    with Limpet("tests.apps:echo", *arguments) as server:
        pid = server.worker(0)["pid"]
        freeze(pid)
        assert server.request(x_user="ada").json()["pid"] not in (pid, None)
        assert server.totals()["hung"] == 1
        assert f"worker 0 (pid {pid}) hangs: no heartbeat and no CPU time used for 1 s" in server.log


def test_worker_that_is_busy_is_warned_of_and_shows_its_stack_but_lives() -> None:
    """C code may be busy for seconds: to kill it would lose what it does."""
    arguments = ["--workers", "1", "--by", "ip", "--hang-timeout", "1", "--block-warning", "0.5"]
    with Limpet("tests.apps:busy", *arguments) as server, Crowd(server) as crowd:
        pid = server.worker(0)["pid"]
        wire = crowd.call("ada", "/?3")
        wait_until(lambda: server.totals()["loops_blocked"] == 1, "the blocked loop is noticed")
        shown = limpet_command("stack", "0", "--control", server.control)
        assert "in busy" in shown.stdout, shown
        assert json.loads(wire.reply().body)["pid"] == server.worker(0)["pid"] == pid
        assert "has blocked its event loop for" in server.log
        assert server.totals()["hung"] == 0


def test_worker_is_renewed_after_so_many_requests_and_nothing_is_lost() -> None:
    """Applications that leak need a new process now and then."""
    with Limpet("tests.apps:echo", "--workers", "1", "--by", "ip", "--max-requests", "20") as server:
        pid = server.worker(0)["pid"]
        with server.connection() as connection:
            for _ in range(20):
                connection.request("GET", "/")
                assert json.loads(connection.getresponse().read())["pid"] == pid
            server.wait_ready(0, other_than=pid)
            wait_until(lambda: pid not in server.processes(), "the old worker has left")
            connection.request("GET", "/")
            assert json.loads(connection.getresponse().read())["pid"] != pid
        assert server.totals()["recycled"] == 1
        assert "is recycled: it has served" in server.log


def test_worker_is_renewed_when_it_has_too_much_memory() -> None:
    """Before the kernel kills it, with everybody's requests."""
    with Limpet("tests.apps:growing", "--workers", "1", "--by", "ip", "--max-memory", "150") as server:
        while server.worker(0)["generation"] == 1 and "MiB of memory" not in server.log:
            server.request()
        wait_until(lambda: server.worker(0)["generation"] > 1, "it is renewed")


def test_worker_that_is_too_large_from_the_start_is_said_and_not_renewed() -> None:
    """Its successor would be as large: all workers would be renewed every 30 seconds, and always be cold."""
    with Limpet("tests.apps:echo", "--workers", "1", "--by", "ip", "--max-memory", "1") as server:
        wait_until(lambda: "when it began to serve, more than `--max-memory 1`" in server.log, "it is said")
        assert server.worker(0)["generation"] == 1


def test_crash_loop_is_named_and_shown() -> None:
    """A worker that dies after each start serves nobody, and one line for each death hides that."""
    with Limpet("tests.apps:echo", "--workers", "1", "--by", "ip") as server:
        for _ in range(5):
            assert not server.worker(0)["crash_loop"]
            server.kill_worker(0)
        assert server.worker(0)["crash_loop"]
        assert server.worker(0)["last_end"] == "was killed by SIGKILL"
        assert "worker 0 keeps crashing: 5 times within 60 s" in server.log


def test_drained_slot_keeps_its_clients_and_gets_no_new_ones() -> None:
    """Before maintenance a slot is emptied without a session being lost; crash and reload do not undo it."""
    with Limpet("tests.apps:echo", "--workers", "2", "--by", "header:x-user") as server:
        at_home = next(entry for entry in range(50) if server.where(f"u{entry}")[0]["slot"] == 1)
        assert limpet_command("drain", "1", "--control", server.control).returncode == 0
        assert server.worker(1)["state"] == "draining"
        assert server.request(x_user=f"u{at_home}").json()["slot"] == 1
        assert {server.request().json()["slot"] for _ in range(8)} == {0}

        server.signal(signal.SIGHUP)
        wait_until(lambda: "reload done" in server.log, "the reload is done")
        assert server.worker(1)["state"] == "draining"
        assert {server.request().json()["slot"] for _ in range(4)} == {0}

        assert limpet_command("undrain", "1", "--control", server.control).returncode == 0
        assert server.worker(1)["state"] == "ready"
        # The comparison of slots begins anew: of each two clients, each slot gets one, in a random order.
        wait_until(lambda: server.request().json()["slot"] == 1, "it gets new clients again")


def test_kernel_backend_refuses_to_drain_a_slot() -> None:
    """It cannot tell new clients from others: to say yes would be a lie."""
    with Limpet("tests.apps:echo", "--workers", "2", "--by", "ip") as server:
        refused = limpet_command("drain", "1", "--control", server.control)
        assert refused.returncode == 5
        assert "routes by address" in refused.stderr


@pytest.mark.parametrize("way", ["refuse", "wait"])
def test_clients_of_a_slot_that_stays_down_are_refused_or_served_elsewhere(tmp_path: Path, way: str) -> None:
    """Who is refused at once can go elsewhere; who waits does not wait for ever. Both come home again."""
    gate = tmp_path / "gate"
    gate.touch()
    arguments = ["--workers", "4", "--by", "header:x-user", "--on-down", way, "--wait-timeout", "0.5"]
    env = {"TEST_GATE": str(gate)}
    with Limpet("tests.apps:gated_start", *arguments, env=env) as server, Crowd(server) as crowd:
        user = next(f"u{n}" for n in range(99) if server.where(f"u{n}")[0]["slot"] == 3)
        gate.unlink()
        server.kill_worker(3, wait_for_next=False)
        wait_until(lambda: server.worker(3)["state"] == "starting", "slot 3 is down")
        early = crowd.call(user)
        if way == "refuse":
            reply = server.request(x_user=user)
            assert (reply.status, "retry-after" in reply.headers) == (503, True)
        else:
            wait_until(lambda: server.where(user)[0]["slot"] != 3, "its clients go elsewhere")
            assert json.loads(early.reply().body)["slot"] == server.where(user)[0]["slot"], "who had waited, too"
            assert server.totals()["failed_over"] == 1
            assert server.request(x_user=user).json()["slot"] == server.where(user)[0]["slot"] != 3
        gate.touch()
        server.wait_ready(3)
        assert server.request(x_user=user).json()["slot"] == 3
