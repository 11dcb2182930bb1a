"""`limpet.once`: never two workers in one body, and never long without one, whatever happens to the workers.

The witness is a journal that all bodies write to (tests/once_app.py).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.harness import Limpet, wait_until

SEED: Final = int(os.environ.get("LIMPET_ONCE_SEED", "22"))
NUMBER: Final = int(os.environ.get("LIMPET_ONCE", "100"))
GAP_S: Final = 0.5  # docs/shared-state.md: 0.05 s, and what a busy machine adds
HANG_S: Final = 1
HUNG_S: Final = HANG_S + 3.0  # until the watchdog has noticed a stopped worker, as docs/faults.md has it


class Note(NamedTuple):
    """One line of the journal."""

    what: str
    name: str
    pid: int
    at_s: float


def notes(journal: Path, name: str) -> list[Note]:
    """Return the lines about the task or the thread in the order in which they were written."""
    lines = [line.split() for line in journal.read_text().splitlines()]
    return [Note(what, of, int(pid), int(at_ns) / 1e9) for what, of, pid, _, at_ns in lines if of == name]


def check(found: list[Note]) -> list[float]:
    """Fail if two processes were in the body at a time. Return how long each gap between two bodies was."""
    gaps: list[float] = []
    holder, last = 0, None
    for note in found:
        if note.what == "begin":
            gaps += [note.at_s - last.at_s] if last else []
            holder = note.pid
        assert note.pid == holder, f"{note} while process {holder} is in the body"
        last = note
    return gaps


def holder(journal: Path, name: str) -> int:
    """Return the process that was last in the body."""
    return notes(journal, name)[-1].pid


def kill(server: Limpet, journal: Path, name: str) -> None:
    os.kill(holder(journal, name), signal.SIGKILL)


def stop(server: Limpet, journal: Path, name: str) -> None:
    os.kill(holder(journal, name), signal.SIGSTOP)


def terminate(server: Limpet, journal: Path, name: str) -> None:
    os.kill(holder(journal, name), signal.SIGTERM)


def reload(server: Limpet, journal: Path, name: str) -> None:
    server.command("reload")


def scale(server: Limpet, journal: Path, name: str) -> None:
    server.command("scale", "2" if len(server.status()["slots"]) == 3 else "3")


def upgrade(server: Limpet, journal: Path, name: str) -> None:
    before = server.log.count("upgraded from version")
    server.signal(signal.SIGUSR2)
    wait_until(lambda: server.log.count("upgraded from version") > before, "it is upgraded")


FAULTS: Final[tuple[Callable[[Limpet, Path, str], None], ...]] = (kill, stop, terminate, reload, scale, upgrade)


def is_well(server: Limpet) -> bool:
    """Return whether each slot has its worker and no worker drains."""
    return all(
        slot["state"] == "ready" and not slot["draining"] and not slot["starting"] for slot in server.status()["slots"]
    )


def run_again(server: Limpet, journal: Path, since_s: float) -> bool:
    """Return whether both bodies have run after *since_s* and all workers are there."""
    return min(notes(journal, each)[-1].at_s for each in ("task", "thread")) > since_s and is_well(server)


def went_on(journal: Path, name: str, gaps: int) -> bool:
    """Return whether the body has begun again since there were *gaps* gaps."""
    return len(check(notes(journal, name))) > gaps


def endure(journal: Path, faults: list[Callable[[Limpet, Path, str], None]], chance: random.Random) -> dict[str, float]:
    """Make *faults* one after another. Return the longest gap after each kind of them."""
    longest: dict[str, float] = {}
    arguments = ["--workers", "3", "--hang-timeout", str(HANG_S), "--graceful-timeout", "5"]
    with Limpet("tests.once_app:app", *arguments, env={"TEST_JOURNAL": str(journal)}) as server:
        for fault in faults:
            name = chance.choice(["task", "thread"])
            wait_until(partial(notes, journal, name), "the body runs")
            counts = {each: len(check(notes(journal, each))) for each in ("task", "thread")}
            began = time.monotonic()
            fault(server, journal, name)
            wait_until(partial(run_again, server, journal, began), f"both run again after {fault.__name__}")
            if fault in (kill, stop, terminate):
                wait_until(partial(went_on, journal, name, counts[name]), "another worker is in the body")
            for each in ("task", "thread"):
                for gap in check(notes(journal, each))[counts[each] :]:
                    longest[fault.__name__] = max(longest.get(fault.__name__, 0.0), gap)
                    assert gap < (HUNG_S if fault is stop else GAP_S), f"{gap:.2f} s without {each}: {fault.__name__}"
    return longest


def test_one_worker_at_a_time_and_soon_another(tmp_path: Path) -> None:
    """A scheduler that runs twice sends every mail twice, and one that is gone sends none."""
    endure(tmp_path / "journal", [kill, reload, terminate, stop, scale, upgrade], random.Random(SEED))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_worker_at_a_time_for_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same with many faults in random order, `make once`."""
    chance = random.Random(SEED)
    longest = endure(tmp_path / "journal", chance.choices(FAULTS, k=NUMBER), chance)
    with capsys.disabled():
        print(f"\n{NUMBER} faults; longest time without a body after each: {longest}")
