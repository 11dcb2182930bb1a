"""The bus between real workers: on every kind of server, through kills, reloads and scalings."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from limpet.config.server_kinds import KINDS
from tests.harness import Limpet, wait_until

CHAIN = ("--by", "query:user")


class Crowd:
    """Clients that hear and publish in chosen slots: users of the key chain, or with *by_ip* addresses."""

    def __init__(self, limpet: Limpet, pool: ThreadPoolExecutor, *, by_ip: bool = False) -> None:
        self._limpet = limpet
        self._pool = pool
        self._names = [f"127.0.0.{number}" if by_ip else f"user{number}" for number in range(1, 100)]
        self._by_ip = by_ip

    def request(self, slot: int, path: str) -> Any:
        """Return the answer to a client whose home is *slot*."""
        homes = [found["slot"] for found in self._limpet.where(*self._names)]
        name = self._names[homes.index(slot)]
        reply = self._limpet.request(path, source=name) if self._by_ip else self._limpet.request(f"{path}&user={name}")
        answer = reply.json()
        assert answer["slot"] == slot
        return answer

    def hear(self, slot: int, topic: str, count: int) -> Future[list[Any]]:
        """Have a client in *slot* hear *count* messages of *topic*; it has subscribed when this returns."""
        before = self.subscriptions()
        path = f"/hear?topic={topic}&count={count}"
        heard = self._pool.submit(
            lambda: [(each["number"], lost) for _, each, lost in self.request(slot, path)["heard"]]
        )
        wait_until(lambda: self.subscriptions() > before, "the client has subscribed")
        return heard

    def publish(self, slot: int, topic: str, first: int, end: int) -> None:
        """Have the worker in *slot* publish numbers."""
        self.request(slot, f"/publish?topic={topic}&from={first}&to={end}")

    def received(self) -> int:
        """Return how many messages workers have taken from their channels."""
        return sum(each["bus"]["received"] for each in self._limpet.status()["slots"])

    def subscriptions(self) -> int:
        """Return how many subscriptions the workers have now."""
        return sum(each["bus"]["subscriptions"] for each in self._limpet.status()["slots"])


def whole(count: int) -> list[tuple[int, int]]:
    """Return the numbers of all messages, none of which was lost."""
    return [(number, 0) for number in range(count)]


SERVERS = [(name,) for name, kind in KINDS.items() if kind.interface in ("asgi", "wsgi")]
VARIANTS = [("hypercorn", "--loop", "trio"), ("gunicorn", "--worker-class", "gevent"), ("uvicorn", "--loop", "asyncio")]


@pytest.mark.parametrize("words", [*SERVERS, *VARIANTS], ids=" ".join)
def test_clients_of_two_workers_hear_each_other(words: tuple[str, ...]) -> None:
    """Without this, two people in one room see each other or not, as chance has put them."""
    server = words[0]
    app = f"tests.bus_app:{KINDS[server].interface}"
    by_ip = KINDS[server].takes != "any"
    chain = () if by_ip else CHAIN
    with Limpet(app, "--server", *words, *chain, "--workers", "2") as limpet, ThreadPoolExecutor() as pool:
        crowd = Crowd(limpet, pool, by_ip=by_ip)
        heard = [crowd.hear(slot, "room", 100) for slot in (0, 1, 1)]
        crowd.publish(0, "room", 0, 50)
        crowd.publish(0, "other", 0, 50)
        crowd.publish(0, "room", 50, 100)
        assert [each.result() for each in heard] == [whole(100)] * 3
        assert crowd.subscriptions() == 0


def test_bus_goes_on_through_kills_reloads_upgrades_and_scalings() -> None:
    """Every worker that is there hears everything, however it came to be there and whoever started it."""
    with Limpet("tests.bus_app:asgi", *CHAIN, "--workers", "2") as limpet, ThreadPoolExecutor() as pool:
        crowd = Crowd(limpet, pool)

        def everybody_hears(slots: int) -> None:
            heard = [crowd.hear(slot, "room", 10 * slots) for slot in range(slots)]
            for slot in range(slots):
                before = crowd.received()
                crowd.publish(slot, "room", 10 * slot, 10 * slot + 10)
                # The order holds for each publisher: the next one begins when all have heard this one.
                wait_until(lambda before=before: crowd.received() >= before + 10 * (slots - 1), "all have heard it")  # type: ignore[misc]
            assert [each.result() for each in heard] == [whole(10 * slots)] * slots

        everybody_hears(2)
        survivor = crowd.hear(0, "long", 3)
        limpet.kill_worker(1)
        crowd.publish(1, "long", 0, 1)
        everybody_hears(2)
        limpet.signal(signal.SIGUSR2)
        wait_until(lambda: "upgraded from" in limpet.log, "the supervisor was replaced")
        crowd.publish(1, "long", 1, 2)
        everybody_hears(2)
        limpet.kill_worker(1)
        crowd.publish(1, "long", 2, 3)
        assert survivor.result() == whole(3)
        limpet.command("scale", "4")
        everybody_hears(4)
        limpet.command("reload")
        everybody_hears(4)
        limpet.command("scale", "2")
        everybody_hears(2)


@pytest.mark.parametrize("engine", ["redis", "nats"])
def test_two_machines_hear_each_other_once(engine: str, request: pytest.FixtureRequest) -> None:
    """The same calls go on when a second machine comes, also after the bridge was killed."""
    flags = (*CHAIN, "--workers", "2", "--name", "shop", "--bus", request.getfixturevalue(engine))
    with (
        Limpet("tests.bus_app:asgi", *flags) as one,
        Limpet("tests.bus_app:asgi", *flags) as two,
        ThreadPoolExecutor() as pool,
    ):
        for limpet in (one, two):
            wait_until(lambda limpet=limpet: "the bus is bridged by" in limpet.log, "the bus is bridged")  # type: ignore[misc]
        near, far = Crowd(one, pool), Crowd(two, pool)

        def everybody_hears() -> None:
            heard = [crowd.hear(slot, "room", 200) for crowd in (near, far) for slot in range(2)]
            near.publish(0, "room", 0, 100)
            far.publish(1, "room", 100, 200)
            for each in heard:
                assert sorted(each.result()) == whole(200), "nothing twice, and nothing lost"

        everybody_hears()
        [bridge] = [
            pid for pid in two.processes() if b"limpet.entry.bridge" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(bridge, signal.SIGKILL)
        wait_until(lambda: two.log.count("the bus is bridged by") == 2, "another one bridges")
        everybody_hears()


def test_publisher_does_not_wait_for_a_stopped_worker_and_its_subscribers_learn_what_they_missed() -> None:
    """A worker in a debugger must cost the others nothing, and neither memory without a bound."""
    with Limpet("tests.bus_app:asgi", *CHAIN, "--workers", "2") as limpet, ThreadPoolExecutor() as pool:
        crowd = Crowd(limpet, pool)
        stopped = crowd.hear(1, "room", 1)
        everything = crowd.hear(0, "room", 30_000)
        pid = limpet.worker(1)["pid"]
        crowd.publish(1, "warm", 0, 1)
        os.kill(pid, signal.SIGSTOP)
        try:
            crowd.publish(0, "room", 0, 30_000)
            assert everything.result() == whole(30_000)
            sent, dropped = (limpet.worker(0)["bus"][name] for name in ("sent", "dropped"))
            assert sent + dropped == 30_000
            assert sent > 500
            assert 0 < limpet.worker(1)["bus"]["queued_bytes"] < 9 << 20, "a bounded part of the kernel's memory"
        finally:
            os.kill(pid, signal.SIGCONT)
        assert stopped.result() == whole(1)
        received = wait_until(lambda: limpet.worker(1)["bus"]["received"], "the worker has read its channel")
        assert received <= sent
