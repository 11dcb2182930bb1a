"""The application's own metrics at the admin address: one page for all workers, whatever becomes of them."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.harness import Limpet, wait_until
from tests.real.test_admin import OPENMETRICS, admin

NUMBER: Final = int(os.environ.get("LIMPET_METRICS", "100"))
DEADLINE_S: Final = 10.0  # for a busy machine: a worker that is stopped would be waited for until it is replaced
ARGUMENTS: Final = ("--by", "header:x-user", "--admin", "127.0.0.1:0")


def scrape(server: Limpet, query: str = "") -> dict[tuple[str, str], float]:
    """Return the values of the application's metrics by name and labels."""
    reply = admin(server, f"/metrics{query}", accept=OPENMETRICS)
    assert reply.status == 200, reply
    families: Any = text_string_to_metric_families(reply.body.decode())  # type: ignore[no-untyped-call]
    return {
        (sample.name, " ".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if not family.name.startswith("limpet_")
    }


class Clients(threading.Thread):
    """Clients that ask without a pause, and count what was answered and what was sent."""

    def __init__(self, server: Limpet, user: str) -> None:
        super().__init__()
        self.acknowledged = self.sent = 0
        self._server = server
        self._user = user
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.is_set():
            self.sent += 1
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.acknowledged += self._server.request("/cart", x_user=self._user).status == 200

    def end(self) -> None:
        self._done.set()
        self.join()


@contextlib.contextmanager
def asking(server: Limpet, number: int) -> Iterator[list[Clients]]:
    clients = [Clients(server, str(user)) for user in range(number)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.end()


def endure(kills: int, chance: random.Random) -> None:
    """Kill *kills* workers under load, and scrape after each."""
    before: dict[tuple[str, str], float] = {}
    with Limpet("tests.metrics_app:app", "--workers", "3", *ARGUMENTS) as server:
        with asking(server, 4) as clients:
            for _ in range(kills):
                acknowledged = sum(client.acknowledged for client in clients)
                found = scrape(server)
                sent = sum(client.sent for client in clients)
                assert acknowledged <= found.get(("asked_total", "path=/cart"), 0) <= sent
                assert found.get(("took_seconds_count", ""), 0) <= sent
                falling = [key for key, value in before.items() if "here" not in key[0] and found[key] < value]
                assert not falling or all("each" in key[0] for key in falling), falling
                before = {key: value for key, value in found.items() if key[0] not in ("here", "each")}
                server.kill_worker(chance.randrange(3))
        found = scrape(server)
        assert (
            sum(c.acknowledged for c in clients) <= found["asked_total", "path=/cart"] <= sum(c.sent for c in clients)
        )
        assert found["here", ""] == 3
        assert {key: value for key, value in found.items() if key[0] == "each"} == {
            ("each", f"slot={slot}"): 1 for slot in range(3)
        }


def test_totals_never_fall_and_the_dead_leave_no_rows() -> None:
    """A counter that falls looks like a restart, and its rate is a lie."""
    endure(6, random.Random(22))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_totals_never_fall_over_a_hundred_kills() -> None:
    """The same for longer, `make counts`."""
    endure(NUMBER, random.Random(22))


def test_slots_are_shown_where_asked_for_and_a_reload_loses_nothing() -> None:
    """Whether one worker is worse than the others is a question that a sum cannot answer."""
    with Limpet("tests.metrics_app:app", "--workers", "2", *ARGUMENTS) as server:
        slots = [server.request("/cart", x_user=str(user)).json()["slot"] for user in range(12)]
        server.command("reload")
        slots += [server.request("/cart", x_user=str(user)).json()["slot"] for user in range(12)]
        found = scrape(server, "?by=slot")
        for slot in (0, 1):
            assert found["asked_total", f"path=/cart slot={slot}"] == slots.count(slot)
        assert scrape(server)["asked_total", "path=/cart"] == 24


def test_scrape_waits_for_no_worker_and_says_which_is_stopped() -> None:
    """What a monitor wants to know most is what it sees while something hangs."""
    with Limpet("tests.metrics_app:app", "--workers", "2", *ARGUMENTS) as server:
        slots = [server.request("/cart", x_user=str(user)).json()["slot"] for user in range(12)]
        pid = server.worker(0)["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert scrape(server)["asked_total", "path=/cart"] == len(slots)
            assert time.monotonic() - began < DEADLINE_S

            def is_said() -> bool:
                lines = admin(server, "/metrics").body.decode().splitlines()
                of = [line.split() for line in lines if line.startswith("limpet_slot_heartbeat_age_seconds{")]
                ages = [float(value) for _, value in sorted(of)]
                return len(ages) == 2 and ages[0] > 2.5 > ages[1]

            wait_until(is_said, "the page says that the worker of slot 0 is stopped")
        finally:
            os.kill(pid, signal.SIGCONT)


def test_spoilt_files_cost_only_the_metrics_of_the_application() -> None:
    """A hostile worker may write what it likes, and operators still see the server."""
    with Limpet("tests.metrics_app:app", "--workers", "1", *ARGUMENTS) as server:
        server.request("/cart")
        maps = Path(f"/proc/{server.worker(0)['pid']}/maps").read_text()
        path = next(line.split()[-1] for line in maps.splitlines() if line.endswith(".db") and "counter_" in line)
        Path(path).write_bytes(b"\x7f" * 100)
        text = admin(server, "/metrics").body.decode()
        assert "limpet_application_metrics_readable 0" in text
        assert "limpet_serving 1" in text
