"""The parts of bench.py: each starts the systems it compares, loads them in turn, and returns its rounds.

A round is `{system: {figure: value}}`. A system that fails is left out from there on, and what it failed with is kept
beside the rounds: `{"rounds": [...], "failed": {system: why}}`. Systems that no target of the part names are in each
third round only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import loads
from measure import cpu_s, pss_bytes
from scraper import Scraper
from systems import System
from targets import DISPATCHER, KERNEL, Round, held

READERS: Final = 200  # of server-sent events
EVERY: Final = 3  # rounds have those that no target names
FAILURES: Final = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    http.client.HTTPException,
    subprocess.SubprocessError,
)
ASGI: Final = [KERNEL, DISPATCHER, "uvicorn", "nginx", "haproxy", "gunicorn", "granian"]
NODE: Final = ["node cluster", "node sticky ip", "node sticky header", "node socket.io sticky"]
OPERATOR: Final = [DISPATCHER, "limpet metrics", "limpet everything"]


class Amount(NamedTuple):
    """How much is measured, with how many workers."""

    workers: int
    rounds: int
    seconds: float
    websockets: int


Found = dict[str, Any]


class Running:
    """The systems that run, and why the others do not."""

    def __init__(self, folder: Path, names: Sequence[str], workers: int) -> None:
        self.systems: list[System] = []
        self.failed: dict[str, str] = {}
        self._folder, self._names, self._workers = folder, names, workers

    def __enter__(self) -> Running:
        """Start them."""
        try:
            for name in self._names:
                where = self._folder / name.replace(" ", "-")
                where.mkdir(mode=0o755)
                with self.guard(name):
                    self.systems.append(System(name, self._workers, where))
        except BaseException:  # a signal
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for system in self.systems:
            system.stop()

    @contextlib.contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Stop the system *name* if what is done with it fails; note why."""
        try:
            yield
        except FAILURES as error:
            self.failed[name] = f"{type(error).__name__}: {error}"[:500]
            print(f"{name} FAILED: {self.failed[name]}", file=sys.stderr, flush=True)
            for system in [each for each in self.systems if each.name == name]:
                self.systems.remove(system)
                system.stop()

    def each(self, do: Callable[[System], None]) -> None:
        """Do it with each system; those with which it fails run no longer."""
        for system in list(self.systems):
            with self.guard(system.name):
                do(system)

    def rounds(self, number: int, do: Callable[[System, int], dict[str, float]], part: str) -> list[Round]:
        """Return *number* rounds, of what *do* returns for each system; each begins with another system."""
        rounds, wanted = [], held(part)
        for at in range(number):
            each: Round = {}
            turn = [system for system in self.systems if system.name in wanted or not wanted or at % EVERY == 0]
            first = at % max(1, len(turn))
            for system in turn[first:] + turn[:first]:
                with self.guard(system.name):
                    each[system.name] = do(system, at)
            rounds.append(each)
        return rounds


@contextlib.contextmanager
def running(names: Sequence[str], workers: int) -> Iterator[Running]:
    """Start the systems *names*; stop them afterwards."""
    with loads.work_folder() as folder, Running(Path(folder), names, workers) as found:
        yield found


def measured(system: System, kind: str, seconds: float, seed: int) -> dict[str, float]:
    """Load *system* once; return how much was answered, and the CPU microseconds for each answer."""
    before = system.cpu_s()
    if kind == "events":
        answered = loads.events(system.port, READERS, seconds)
    else:
        answered = loads.closed(system.port, kind, seconds, seed)
    used = system.cpu_s() - before
    if not answered or not used:
        raise RuntimeError(f"{answered} answers took {used:.3f} s of CPU time; {system.last_words()}")
    return {"answered": answered, "us": used / answered * 1e6}


def side_by_side(part: str, names: Sequence[str], amount: Amount, kind: str = "") -> Found:
    """Return all rounds of the load *kind*; that of the part's own name, if none is given."""
    kind = kind or part

    def warm(system: System) -> None:
        system.check_sticky()
        answered = measured(system, kind, 0.5, seed=0)["answered"]
        if kind in ("connection", "single", "mixed"):
            system.check_reuse(int(answered))

    with running(names, amount.workers) as found, contextlib.ExitStack() as scraped:
        found.each(warm)
        scrapers = {each: scraped.enter_context(Scraper(each.plan.admin)) for each in found.systems if each.plan.admin}
        rounds = found.rounds(amount.rounds, lambda system, at: measured(system, kind, amount.seconds, at), part)
        for system, scraper in scrapers.items():
            if (log := system.where / "requests.log").exists():
                with found.guard(system.name):
                    scraper.check(log)
    return {"rounds": rounds, "failed": found.failed}


def paced(part: str, names: Sequence[str], amount: Amount) -> Found:
    """Return how long answers take at a quarter of what the slowest of *names* does in a closed loop.

    At half of it the load itself, which shares the machine, was late on one of two machines, and opened more and more.
    """
    with running(names, amount.workers) as found:
        most: list[float] = []
        found.each(lambda system: most.append(loads.closed(system.port, "kept", 2, seed=0) / 2))
        rate = min(most, default=0) / 4

        def percentiles(system: System, at: int) -> dict[str, float]:
            took = loads.paced(system.port, rate, amount.seconds, at)
            shares = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
            return {name: took[int(share * (len(took) - 1))] * 1e3 for name, share in shares.items()}

        rounds = found.rounds(amount.rounds, percentiles, part)
    return {"rate": rate, "rounds": rounds, "failed": found.failed}


def idle(part: str, names: Sequence[str], amount: Amount) -> Found:
    """Return the bytes that each of many websockets takes that say nothing, in all processes of a system."""
    each: Round = {}
    failed: dict[str, str] = {}
    for name in names:
        with running([name], amount.workers) as found:

            def measure(system: System) -> None:
                with loads.idle(system.port, loads.IN_FLIGHT * 4):  # what the first ones bring stays
                    pass
                before = system.pss_bytes()
                with loads.idle(system.port, amount.websockets):
                    used = system.pss_bytes() - before
                each[system.name] = {"bytes": used / amount.websockets}

            found.each(measure)
        failed |= found.failed
    return {"websockets": amount.websockets, "rounds": [each], "failed": failed}


def dispatcher(part: str, names: Sequence[str], amount: Amount) -> Found:
    """Return the dispatcher's own CPU time and system calls for each connection."""
    with running(names, amount.workers) as found:
        rounds: list[Round] = []
        calls: dict[str, float] = {}

        def measure(system: System) -> None:
            pid = _own(system)["dispatcher"]
            measured(system, "connection", 1, seed=0)
            for at in range(amount.rounds):
                before = cpu_s(pid)
                answered = loads.closed(system.port, "connection", amount.seconds, at)
                rounds.append({"dispatcher": {"answered": answered, "us": (cpu_s(pid) - before) / answered * 1e6}})
            calls.update(system_calls([pid], system.port, "connection"))

        found.each(measure)
    return {"rounds": rounds, "calls": calls, "failed": found.failed}


def own_memory(part: str, names: Sequence[str], amount: Amount) -> Found:
    """Return the memory of supervisor and dispatcher, after some load."""
    each: Round = {}
    with running(names, amount.workers) as found:

        def measure(system: System) -> None:
            measured(system, "connection", 1, seed=0)
            for name, pid in _own(system).items():
                each[name] = {"rss_mb": _rss_bytes(pid) / 1e6, "pss_mb": pss_bytes(pid) / 1e6}
            each["both"] = {name: sum(one[name] for one in each.values()) for name in ("rss_mb", "pss_mb")}

        found.each(measure)
    return {"rounds": [each], "failed": found.failed}


def start(part: str, names: Sequence[str], amount: Amount) -> Found:
    """Return the seconds, by the clock and of CPU time, that each system takes until all its workers have answered."""
    rounds: list[Round] = []
    failed: dict[str, str] = {}
    for _ in range(amount.rounds):
        each: Round = {}
        for name in [name for name in names if name not in failed]:
            since = time.monotonic()
            with running([name], amount.workers) as found:
                took = time.monotonic() - since
                each |= {system.name: {"s": took, "cpu_s": system.cpu_s()} for system in found.systems}
            failed |= found.failed
        rounds.append(each)
    return {"rounds": rounds, "failed": failed}


def _own(system: System) -> dict[str, int]:
    """Return the pids of limpet's own processes."""
    line = [sys.executable, "-m", "limpet", "status", "--json", "--control", str(system.where / "control")]
    status = json.loads(subprocess.run(line, check=True, capture_output=True).stdout)
    return {"supervisor": status["pid"], "dispatcher": status["dispatchers"][0]["pid"]}


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def system_calls(pids: Sequence[int], port: int, kind: str) -> dict[str, float]:
    """Return how many system calls of each name the processes *pids* make for each answer to the load *kind*."""
    line = ["strace", "-f", "-c", "-U", "name,calls", *(word for pid in pids for word in ("-p", str(pid)))]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        try:
            for _ in pids:
                strace.stderr.readline()  # attached
            answered = loads.closed(port, kind, 2, seed=1)
        finally:
            strace.send_signal(signal.SIGINT)
        shown = strace.stderr.read()
    found = re.findall(r"^(\w+) +(\d+)$", shown, re.M)
    return {name: int(calls) / answered for name, calls in found if name != "total"}
