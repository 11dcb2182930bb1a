"""Clients in known positions: being served, half-way through a head, waiting for a stopped process, or under load.

Tests of kills and stops decide by such states, not by time, which request may be lost: a process that is stopped
(SIGSTOP) takes nothing, and a request whose response has begun is in flight.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.harness import Limpet, Reply, fetch, wait_until
from tests.wire import Wire, request


class Home(NamedTuple):
    """Where a request was served."""

    slot: int
    pid: int

    @classmethod
    def of(cls, reply: Reply) -> Home:
        """Return what the *reply* of an application of these tests says."""
        assert reply.status == 200, reply
        return cls(reply.json()["slot"], reply.json()["pid"])


class Crowd(ExitStack):
    """Single connections to a server; they end with it."""

    def __init__(self, server: Limpet) -> None:
        super().__init__()
        self.server = server

    def connect(self) -> Wire:
        """Connect and say nothing."""
        return self.enter_context(Wire(("127.0.0.1", self.server.port)))

    def call(self, key: str, target: str = "/") -> Wire:
        """Send a request for *key* and leave the answer to be read."""
        return self.connect().send(request(target, x_user=key))

    def in_flight(self, key: str) -> tuple[Wire, Home]:
        """Send a request for *key* to `gated`; return it when it is being served, and by whom."""
        wire = self.call(key)
        status, _ = wire.head()
        assert status == 200
        facts = json.loads(wire.chunk())
        return wire, Home(facts["slot"], facts["pid"])


class Caller:
    """A client that asks again as soon as it has its answer, and notes what it got."""

    def __init__(self, server: Limpet, key: str, *, keep_alive: bool) -> None:
        self.slot: int = server.where(key)[0]["slot"]
        self.keep_alive = keep_alive
        self.answers: list[Home] = []
        self.failures: list[Exception] = []
        self.refused = False  # the server is gone: it has stopped to call
        self._server = server
        self._key = key
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def __repr__(self) -> str:
        kind = "one connection" if self.keep_alive else "new connections"
        return f"<caller of slot {self.slot} by {kind}, {len(self.answers)} answers, failures {self.failures}>"

    def hang_up(self) -> None:
        """Stop calling."""
        self._stop.set()
        self._thread.join()

    def _call(self) -> None:
        while not self._stop.is_set():
            try:
                with self._server.connection() as connection:
                    self._talk(connection)
            except ConnectionRefusedError:
                self.refused = True
                return
            except (OSError, http.client.HTTPException) as failure:
                self.failures.append(failure)

    def _talk(self, connection: http.client.HTTPConnection) -> None:
        while not self._stop.is_set():
            self.answers.append(Home.of(fetch(connection, x_user=self._key)))
            if not self.keep_alive:
                return


@contextlib.contextmanager
def load(server: Limpet, keys: Sequence[str], *, per_slot: int) -> Iterator[list[Caller]]:
    """Have *per_slot* callers in each slot with new connections, and as many with lasting ones; all are served."""
    slots = len(server.status()["slots"])
    callers = []
    try:
        for slot in range(slots):
            for number, key in enumerate(keys_of(server, slot, keys)[: 2 * per_slot]):
                callers.append(Caller(server, key, keep_alive=number % 2 == 0))
        assert len(callers) == slots * 2 * per_slot
        await_answers(callers)
        yield callers
    finally:
        for caller in callers:
            caller.hang_up()


def await_answers(callers: Sequence[Caller]) -> None:
    """Wait until each of *callers* has been served several times from now on."""
    before = [len(caller.answers) for caller in callers]
    wait_until(
        lambda: all(len(caller.answers) > seen + 3 for caller, seen in zip(callers, before, strict=True)),
        f"all of {callers} are served",
    )


def keys_of(server: Limpet, slot: int, keys: Sequence[str]) -> list[str]:
    """Return those of *keys* that live in *slot*."""
    return [key for key, entry in zip(keys, server.where(*keys), strict=True) if entry["slot"] == slot]


def homes(server: Limpet, keys: Sequence[str]) -> dict[str, Home]:
    """Return where one request for each of *keys* is served, on new connections."""
    return {key: Home.of(server.request(x_user=key)) for key in keys}


def freeze(pid: int) -> None:
    """Stop a process, and wait until it has stopped: then it takes nothing more."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T", f"{pid} has stopped")


def is_dead(pid: int) -> bool:
    """Return whether process *pid* has no connections any more: a zombie has none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def descriptors(pid: int) -> list[str]:
    """Return what a process has open."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.append(os.readlink(path))
    return found
