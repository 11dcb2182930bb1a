"""Killed workers under mixed traffic: what was in flight on them is lost, and nothing else; nobody hangs.

Each client has one connection for all users, and a new one whenever that has ended. A lost request must be explained
by a kill: of the worker that had the connection until then, or of the one at whose home the request was due.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from tests.harness import Limpet, wait_until
from tests.traffic import Exchange, batches, homes, perform, serve
from tests.wire import Wire

PLANS = [("httptools", "uvloop"), ("httptools", "asyncio"), ("h11", "uvloop"), ("h11", "asyncio")]
CLIENTS = 10
SAFE = ("GET", "HEAD")
SERVED_BETWEEN_KILLS = 30
PATIENCE_S = 60.0  # a worker may have to start on a busy machine before a request is served


@dataclass
class Loss:
    """A request that was not answered."""

    where: set[int]  # the slots that may have had it
    begin: float  # when the batch before it was sent, monotonic: later the worker may have died unnoticed
    end: float
    how: str
    repeats: bool  # a client repeats it: safe, on a connection that had served, and not a byte of an answer came


@dataclass
class Client(threading.Thread):
    """Sends batch after batch until told to stop, and checks every answer."""

    port: int
    home: Mapping[str, int]
    seed: int
    done: threading.Event
    served: int = 0
    refused: int = 0
    connections: int = 0
    lost: list[Loss] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return self.seed

    def run(self) -> None:
        traffic = batches(10_000_000, self.seed, heavy_every=60)
        while not self.done.is_set():
            try:
                wire = Wire(("127.0.0.1", self.port))
            except ConnectionRefusedError:
                return  # the server has stopped
            with wire:
                self.connections += 1
                wire.sock.settimeout(PATIENCE_S)
                before: set[int] = set()
                begin = time.monotonic()
                for batch in traffic:
                    now = time.monotonic()
                    if self.done.is_set() or not self._perform(wire, batch, before, begin):
                        break
                    before, begin = {self.home[batch[-1].user]}, now

    def _perform(self, wire: Wire, batch: list[Exchange], before: set[int], begin: float) -> bool:
        """Send *batch* and check what is answered; return whether the connection goes on.

        *before* is the slot that has the connection, *begin* is when that was sent its last batch.
        """
        answered = 0
        try:
            for exchange in batch:
                if exchange.waits and wire.send(exchange.data[: exchange.waits]).reply().status != 100:
                    self.refused += 1
                    return False
            wire.send(b"".join(exchange.data[exchange.waits :] for exchange in batch))
            for exchange in batch:
                reply = wire.reply(to=exchange.method)
                if reply.status == 503:
                    self.refused += 1
                    return False
                exchange.check(reply, self.home)
                before = {self.home[exchange.user]}
                answered += 1
                if reply.headers.get("connection") == "close":
                    return False  # what was sent behind it may be sent again
            return True
        except (OSError, AssertionError) as error:
            if isinstance(error, AssertionError) and "the connection ended" not in str(error):
                self.wrong.append(str(error))
            where = before | {self.home[batch[answered].user]}
            how = f"{error!r} {batch[answered].path}"
            repeats = batch[answered].method in SAFE and bool(before) and not wire.answered
            self.lost.append(Loss(where, begin, time.monotonic(), how, repeats))
            return False
        finally:
            self.served += answered


def start(server: Limpet, home: Mapping[str, int]) -> tuple[list[Client], threading.Event]:
    """Start clients that go on until the event is set."""
    done = threading.Event()
    clients = [Client(server.port, home, seed, done) for seed in range(CLIENTS)]
    for client in clients:
        client.start()
    return clients, done


def served(clients: list[Client]) -> int:
    """Return how many requests of all *clients* were answered."""
    return sum(client.served for client in clients)


def descriptors(server: Limpet) -> Counter[str]:
    """Return how many descriptors the processes have once all connections and copies are gone."""

    def idle() -> bool:
        slots = server.status()["slots"]
        return all(slot["state"] == "ready" and not slot["connections"] + slot["copies"] for slot in slots)

    wait_until(idle, "no connection and no copy is left")
    status = server.status()
    pids = {"supervisor": server.pid, "dispatcher": status["dispatchers"][0]["pid"]}
    pids |= {f"worker {slot['slot']}": slot["pid"] for slot in status["slots"]}
    return Counter({name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()})


def kill(server: Limpet, clients: list[Client], number: int) -> list[tuple[int, float, float]]:
    """Kill *number* workers, one after another under traffic; return slot, and since and until when it died."""
    chance = random.Random(number)
    killed: set[int] = set()
    kills = []

    def victims() -> list[tuple[int, int]]:
        slots = server.status()["slots"]
        ready = [slot for slot in slots if slot["state"] == "ready" and slot["pid"] not in killed]
        return [(slot["slot"], slot["pid"]) for slot in ready if slot["connections"] + slot["copies"]]

    for _ in range(number):
        slot, pid = chance.choice(wait_until(victims, "a worker serves"))
        enough = served(clients) + SERVED_BETWEEN_KILLS
        wait_until(lambda enough=enough: served(clients) >= enough, "clients are served", PATIENCE_S)  # type: ignore[misc]
        since = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
        wait_until(lambda slot=slot, pid=pid: server.worker(slot)["pid"] != pid, "it is dead")  # type: ignore[misc]
        kills.append((slot, since, time.monotonic()))
    return kills


def endure(number: int, http: str, loop: str) -> str:
    """Fail unless *number* kills cost no more than they must; return the figures."""
    with serve("--http", http, "--loop", loop) as server:
        home = homes(server)
        for _ in range(2):  # what is opened once, such as for the first request of an application, is no leak
            with Wire(("127.0.0.1", server.port)) as wire:
                for batch in batches(100, seed=0):
                    perform(wire, batch, home)
        before = descriptors(server)
        clients, done = start(server, home)
        try:
            kills = kill(server, clients, number)
        finally:
            done.set()
            for client in clients:
                client.join(2 * PATIENCE_S)
        assert not any(client.is_alive() for client in clients)
        lost = [loss for client in clients for loss in client.lost]
        assert [wrong for client in clients for wrong in client.wrong] == []
        unexplained = [
            loss
            for loss in lost
            if not any(slot in loss.where and loss.begin <= until and since <= loss.end for slot, since, until in kills)
        ]
        assert unexplained == [], kills
        assert len(lost) + sum(client.refused for client in clients) <= CLIENTS * number
        wait_until(lambda: descriptors(server) <= before, f"no more descriptors than {before}")
        assert server.log.count("was killed by SIGKILL") == number
    return f"{http}, {loop}: {number} kills, {served(clients)} served, {len(lost)} lost in flight, 0 misplaced, 0 hung"


@pytest.mark.timeout(180)
def test_twelve_kills_cost_what_was_in_flight_and_nothing_else() -> None:
    """No client hangs, no request reaches a wrong worker, no descriptor stays open."""
    endure(12, *PLANS[0])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("http", "loop"), PLANS)
def test_two_hundred_kills(http: str, loop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for longer; `make soak`."""
    figures = endure(200, http, loop)
    with capsys.disabled():
        print(f"\n{figures}")


@pytest.mark.parametrize(("http", "loop"), [PLANS[0], PLANS[3]])
def test_stop_under_mixed_traffic_loses_no_request(http: str, loop: str) -> None:
    """A deployment is no accident: each request is served or refused, or left to its client to repeat."""
    with serve("--http", http, "--loop", loop) as server:
        home = homes(server)
        clients, done = start(server, home)
        wait_until(lambda: all(client.served > 20 for client in clients), "all clients are at work")
        server.signal(signal.SIGTERM)
        try:
            assert server.wait_ended() == 0
        finally:
            done.set()
        for client in clients:
            client.join(PATIENCE_S)
        assert not any(client.is_alive() for client in clients)
        assert [wrong for client in clients for wrong in client.wrong] == []
        assert [loss for client in clients for loss in client.lost if not loss.repeats] == []
