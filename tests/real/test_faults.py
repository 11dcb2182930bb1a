"""Random faults under load, one after another and two at once, on both backends: each costs what its row says.

The rows are in tests/faults.py, which docs/faults.md shows. The public (tests/public.py) notices whatever fails. After
each fault all slots must have a worker again, everybody must be served at home within the time of the row, and each
failure must be explained by a fault whose row allows it: the kind, the slot, the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.crowd import descriptors, freeze, is_dead
from tests.faults import FAULTS, RESULTS, Fault, Loses, inserted
from tests.harness import HERE, Limpet, wait_until
from tests.public import Failure, Public, finished

SEED: Final = int(os.environ.get("LIMPET_FAULTS_SEED", "6"))
NUMBER: Final = int(os.environ.get("LIMPET_FAULTS", "200"))
CHAINS: Final = {"kernel": "ip", "dispatcher": "header:x-user"}
MOST: Final = 3  # workers
THINK_S: Final = 0.1  # of a client: what counts is who is there, not how much is asked
HOLD_S: Final = 1.0  # how long what ends by itself goes on; less than the 2 s after which a worker counts as late
FEW_DESCRIPTORS: Final = 512  # with as many a worker accepts for itself: see uvicorn_listening.py, rule 3


_MARKS_OF_503: Final = ("got 'http/1.1 503 ", "InvalidStatus(Response(status_code=503,")  # of a request, of a websocket


def aside(log: Path) -> Path:
    """Return where the log file is while its disk is full."""
    return log.with_suffix(".aside")


@dataclass
class Happened:
    """One fault that was made."""

    row: Fault
    slot: int | None = None  # which it concerns; None for all
    since: float = field(default_factory=time.monotonic)
    until: float = float("inf")  # when the process was dead, or all was well again
    while_scaling: bool = False  # whose home that slot was is in motion

    def explains(self, failure: Failure) -> bool:
        """Return whether this may have cost what failed."""
        if not (failure.begin <= self.until and self.since <= failure.end):
            return False
        if self.row.loses is Loses.OF_THE_WORKER:
            return self.slot in failure.slots or self.while_scaling
        if self.row.loses is Loses.REFUSED:
            return any(mark in failure.what for mark in _MARKS_OF_503)
        return self.row.loses is Loses.HEADS and failure.is_first


class Stage:
    """A server with its public, and all that has happened to it."""

    def __init__(self, server: Limpet, public: Public, log: Path, chance: random.Random, pace: float) -> None:
        """*pace* is how many times as long as one second the server took to start: so slow is the machine."""
        self.pace = max(1.0, pace)
        self.server = server
        self.public = public
        self.log = log
        self.chance = chance
        self.status: dict[str, Any] = {}  # as of the beginning of this turn
        self.happened: list[Happened] = []
        self.again_s: dict[str, list[float]] = defaultdict(list)
        self.lost: Counter[str] = Counter()
        self.held: set[int] = set()  # pids that stay stopped until they are killed, whatever else is made

    def note(self, name: str, slot: int | None = None) -> Happened:
        """Note that the fault *name* is made now."""
        self.happened.append(Happened(FAULTS[name], slot, while_scaling=self.public.homes_may_change))
        return self.happened[-1]

    def logged(self) -> str:
        """Return all that the server has logged."""
        kept = [path for path in (self.log, aside(self.log)) if path.is_file()]
        return self.server.log + "".join(path.read_text() for path in kept if not path.is_symlink())

    def some_slot(self) -> dict[str, Any]:
        """Return one of the slots."""
        slot: dict[str, Any] = self.chance.choice(self.status["slots"])
        return slot

    async def wait(self, state: Callable[[], object], what: str, timeout_s: float = 20.0) -> Any:
        """Return the first true value of *state*, while the public goes on."""
        return await asyncio.to_thread(wait_until, state, what, timeout_s * self.pace)

    def is_well(self) -> bool:
        """Return whether each slot has its worker and nobody drains."""
        status = self.server.status()
        slots, dispatchers = status["slots"], status["dispatchers"]
        return (
            all(slot["state"] in ("ready", "draining") and slot["pid"] for slot in slots)
            and not any(slot["draining"] or slot["starting"] for slot in slots)
            and all(each["state"] == "ready" for each in dispatchers)
        )

    async def turn(self, names: list[str]) -> None:
        """Make the faults *names*, the later ones within the first, and check what they have cost."""
        self.status = await asyncio.to_thread(self.server.status)
        first = len(self.happened)
        before = (self.public.seen.restarted, self.public.seen.told_to_close)
        async with contextlib.AsyncExitStack() as stack:
            for name in names:
                await stack.enter_async_context(MADE[name](self))
            ended = time.monotonic()
        rows = [happened.row for happened in self.happened[first:]]
        await self.wait(self.is_well, f"all is well after {names}", sum(row.again_s for row in rows))
        await self.public.served()
        now = time.monotonic()
        for happened in self.happened[first:]:
            happened.until = min(happened.until, now)
        if len(names) == 1:
            self.again_s[names[0]].append(round(now - ended, 2))
        assert now - ended < sum(row.again_s for row in rows) * self.pace, f"{names} took {now - ended:.1f} s"
        self.judge()
        if not any(row.says_goodbye for row in rows):
            assert (self.public.seen.restarted, self.public.seen.told_to_close) == before, f"{names} said goodbye"
        totals = self.server.totals()
        assert all(totals[name] >= was for name, was in self.status["totals"].items() if name != "connections")

    def judge(self) -> None:
        """Fail unless each failure is explained."""
        failures, self.public.seen.failures[:] = list(self.public.seen.failures), []
        for failure in failures:
            found = next((each for each in reversed(self.happened) if each.explains(failure)), None)
            assert found is not None, f"{failure} is explained by none of {self.happened[-3:]}"
            self.lost[found.row.name] += 1


Made = Callable[[Stage], contextlib.AbstractAsyncContextManager[None]]
MADE: Final[dict[str, Made]] = {}


def makes(name: str) -> Callable[[Callable[[Stage], AsyncIterator[None]]], None]:
    """Let the decorated function make the fault *name*; behind its `yield` the cause has ended."""

    def add(function: Callable[[Stage], AsyncIterator[None]]) -> None:
        MADE[name] = contextlib.asynccontextmanager(function)

    return add


async def kill(stage: Stage, pid: int, happened: Happened) -> None:
    with contextlib.suppress(ProcessLookupError):  # another fault was faster
        os.kill(pid, signal.SIGKILL)
    await stage.wait(partial(is_dead, pid), "it is dead")
    happened.until = time.monotonic()


@makes("SIGKILL of a worker")
async def _kill_worker(stage: Stage) -> AsyncIterator[None]:
    slot = stage.some_slot()
    await kill(stage, slot["pid"], stage.note("SIGKILL of a worker", slot["slot"]))
    yield


@makes("SIGKILL of a dispatcher")
async def _kill_dispatcher(stage: Stage) -> AsyncIterator[None]:
    pid = stage.chance.choice(stage.status["dispatchers"])["pid"]
    await kill(stage, pid, stage.note("SIGKILL of a dispatcher"))
    yield


@makes("a worker stopped (SIGSTOP) that goes on before `--hang-timeout`")
async def _stop_worker(stage: Stage) -> AsyncIterator[None]:
    slot = stage.some_slot()
    stage.note("a worker stopped (SIGSTOP) that goes on before `--hang-timeout`", slot["slot"])
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        freeze(slot["pid"])
    try:
        yield
        await asyncio.sleep(HOLD_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            if slot["pid"] not in stage.held:
                os.kill(slot["pid"], signal.SIGCONT)


@makes("a worker stopped for longer")
async def _hang_worker(stage: Stage) -> AsyncIterator[None]:
    slot = stage.some_slot()
    happened = stage.note("a worker stopped for longer", slot["slot"])
    stage.held.add(slot["pid"])
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        freeze(slot["pid"])
    yield
    await stage.wait(partial(is_dead, slot["pid"]), "it was noticed")
    happened.until = time.monotonic()


@makes("SIGTERM to a worker")
async def _terminate_worker(stage: Stage) -> AsyncIterator[None]:
    slot = stage.some_slot()
    stage.note("SIGTERM to a worker", slot["slot"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(slot["pid"], signal.SIGTERM)
    yield
    await stage.wait(partial(is_dead, slot["pid"]), "it has drained")


@makes("reload")
async def _reload(stage: Stage) -> AsyncIterator[None]:
    stage.note("reload")
    change = await asyncio.to_thread(partial(stage.server.ask, command="reload"))
    yield
    await asyncio.to_thread(finished, stage.server, change["change"])


@makes("scaling")
async def _scale(stage: Stage) -> AsyncIterator[None]:
    stage.note("scaling")
    now = len(stage.status["slots"])
    wanted = stage.chance.choice([slots for slots in range(2, MOST + 1) if slots != now])
    stage.public.homes_may_change = True
    change = await asyncio.to_thread(partial(stage.server.ask, command="scale", slots=wanted))
    yield
    await asyncio.to_thread(finished, stage.server, change["change"])
    await stage.wait(stage.is_well, "all have their workers")
    names = list(stage.public.homes)
    homes = {each: entry["slot"] for each, entry in zip(names, stage.server.where(*names), strict=True)}
    await stage.public.at_home(homes)
    stage.public.homes.update(homes)
    stage.public.homes_may_change = False


@makes("drain and undrain of a slot")
async def _drain(stage: Stage) -> AsyncIterator[None]:
    slot = stage.some_slot()["slot"]
    stage.note("drain and undrain of a slot", slot)
    await asyncio.to_thread(partial(stage.server.ask, command="drain", slot=slot))
    yield
    await stage.public.served()
    await asyncio.to_thread(partial(stage.server.ask, command="undrain", slot=slot))


@makes("upgrade (SIGUSR2)")
async def _upgrade(stage: Stage) -> AsyncIterator[None]:
    stage.note("upgrade (SIGUSR2)")

    def ends() -> int:
        logged = stage.logged()
        return logged.count("upgraded from version") + logged.count("not upgraded")  # as without free descriptors

    before = ends()
    stage.server.signal(signal.SIGUSR2)
    yield
    await stage.wait(lambda: ends() > before, "it is upgraded")


@makes("full disk for the log file")
async def _fill_disk(stage: Stage) -> AsyncIterator[None]:
    stage.note("full disk for the log file")
    stage.log.rename(aside(stage.log))
    stage.log.symlink_to("/dev/full")
    stage.server.signal(signal.SIGUSR1)
    try:
        yield
        await stage.public.served()
    finally:
        aside(stage.log).replace(stage.log)  # whoever reads /dev/full reads for ever


@contextlib.contextmanager
def without_descriptors(pid: int) -> Any:
    """Let process *pid* have no free descriptor number for a while; it keeps what it has."""
    enough = None
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # another fault was faster
        used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        enough = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), enough[1]))
    yield
    if enough is not None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, enough)


async def _starve(stage: Stage, name: str, pid: int, slot: int | None = None) -> AsyncIterator[None]:
    stage.note(name, slot)
    with without_descriptors(pid):
        yield
        await asyncio.sleep(HOLD_S)


@makes("no free descriptors in a worker")
async def _starve_worker(stage: Stage) -> AsyncIterator[None]:
    slot = stage.some_slot()
    async for _ in _starve(stage, "no free descriptors in a worker", slot["pid"], slot["slot"]):
        yield


@makes("no free descriptors in a dispatcher")
async def _starve_dispatcher(stage: Stage) -> AsyncIterator[None]:
    pid = stage.chance.choice(stage.status["dispatchers"])["pid"]
    async for _ in _starve(stage, "no free descriptors in a dispatcher", pid):
        yield


@makes("no free descriptors in the supervisor")
async def _starve_supervisor(stage: Stage) -> AsyncIterator[None]:
    async for _ in _starve(stage, "no free descriptors in the supervisor", stage.server.pid):
        yield


LAST: Final = ("no free descriptors", "a worker stopped (SIGSTOP)")  # of a turn, so first to end: others wait for them


def turns(backend: str, number: int, chance: random.Random, *, together: float) -> list[list[str]]:
    """Return *number* faults in turns, of one or, as often as *together* says, of two; each kind as often as any."""
    kinds = [name for name, row in FAULTS.items() if backend in row.backends]
    drawn: list[str] = []
    while len(drawn) < number:
        drawn += chance.sample(kinds, len(kinds))
    drawn, made = drawn[:number], []
    while drawn:
        size = 2 if len(drawn) > 1 and drawn[0] != drawn[1] and chance.random() < together else 1
        made.append(sorted(drawn[:size], key=lambda name: name.startswith(LAST)))
        drawn = drawn[size:]
    return made


def endure(backend: str, faults: int, folder: Path, *, crowd: tuple[int, int, int], together: float) -> dict[str, Any]:
    """Return the figures of a run with *faults* faults; *crowd* is how many clients, websockets and pools there are."""
    chance = random.Random(f"{SEED} {backend}")
    log = folder / "log"
    arguments = ["--by", CHAINS[backend], "--backend", backend, "--log-file", str(log), "--workers", str(MOST)]
    arguments += ["--hang-timeout", "1", "--websocket-spread", "0.3", "--graceful-timeout", "5"]
    server = Limpet("tests.apps:echo", *arguments, descriptors=(FEW_DESCRIPTORS, FEW_DESCRIPTORS))
    clients, sockets, pools = crowd
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(server.launched())
        stack.callback(lambda: print(log.read_text()) if log.is_file() and not log.is_symlink() else None)
        wait_until(lambda: log.exists() and "serving tests.apps:echo at" in log.read_text(), "it serves")
        pace = time.monotonic() - began
        server.lines.append(log.read_text())  # where `port` looks
        public = Public(
            server, by_address=backend == "kernel", think_s=THINK_S, clients=clients, sockets=sockets, pools=pools
        )
        stage = Stage(server, public, log, chance, pace)

        async def play() -> None:
            async with public.present():
                for names in turns(backend, faults, chance, together=together):
                    await stage.turn(names)
            stage.judge()

        before = len(descriptors(server.pid))
        asyncio.run(play())
        assert len(descriptors(server.pid)) <= before + 1, "the supervisor leaks descriptors"
        assert server.stop() == 0
        assert server.processes() == set()
        seen = public.seen
    return {
        **{"faults": len(stage.happened), "seed": SEED, "served": seen.served, "echoes": seen.echoes},
        **{"restarted": seen.restarted, "lost": dict(stage.lost), "again_s": stage.again_s},
    }


@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_faults_cost_what_their_rows_say(backend: str, tmp_path: Path) -> None:
    """A few of them, with fewer clients."""
    endure(backend, 6, tmp_path, crowd=(12, 6, 1), together=0.5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_two_hundred_faults(backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for longer, `make faults`; what was found is kept for docs/faults.md.

    LIMPET_FAULTS_SEED is the seed, LIMPET_FAULTS another number of faults.
    """
    found = endure(backend, NUMBER, tmp_path, crowd=(40, 24, 4), together=0.3)
    with capsys.disabled():
        print(f"\n{backend}: {json.dumps({**found, 'again_s': '...'})}")
    RESULTS.write_text(json.dumps(json.loads(RESULTS.read_text()) | {backend: found}, indent=1, sort_keys=True) + "\n")


def test_page_says_what_the_test_allows() -> None:
    """An operator reads there what a fault costs."""
    page = (HERE.parent / "docs" / "faults.md").read_text()
    assert page == inserted(page, json.loads(RESULTS.read_text())), "run `make docs`"
    assert set(MADE) == set(FAULTS)
