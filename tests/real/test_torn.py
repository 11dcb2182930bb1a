"""What workers share, over processes that are killed or stopped at any instant of a write.

The processes are forks (tests/sharing.py). A fork acknowledges a number in memory that its parent sees, in one store,
after the call has returned: what the parent finds when the fork is dead must be that number, or the next one.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any, Final

import pytest

import limpet
from tests.sharing import Cells, fork, join, kill, payload, server, stopped

SEED: Final = int(os.environ.get("LIMPET_TORN_SEED", "22"))
NUMBER: Final = int(os.environ.get("LIMPET_TORN", "10000"))
SIZES: Final = (8, 200, 4000, 60_000)
LONGEST_S: Final = 0.0005  # between a write of a process and its death: some writes
MOST_FIRST: Final = 3  # writes before that
LATE_S: Final = 0.5  # for what waits for nobody, on a busy machine


def write(stash: limpet.Stash, acknowledged: Cells, size: int) -> None:
    """Write one number after another, until killed."""
    count = limpet.counter("written")
    number = acknowledged[0]
    while True:
        number += 1
        stash["cart"] = payload(number, size)
        acknowledged[0] = number
        count.add()
        acknowledged[1] += 1


def endure(folder: Path, kills: int, chance: random.Random) -> dict[str, int]:
    """Kill *kills* processes that write. Return how many writes there were, and how many were cut off."""
    acknowledged, cut_off = Cells(2), 0
    with server(folder) as stash:
        stash["cart"] = payload(0, 8)
        for _ in range(kills):
            size, first = chance.choice(SIZES), acknowledged[0] + chance.randrange(MOST_FIRST)
            pid = fork(lambda size=size: write(stash, acknowledged, size))  # type: ignore[misc]
            until = time.monotonic() + 30
            while acknowledged[0] < first and time.monotonic() < until:
                time.sleep(0)
            time.sleep(chance.uniform(0, LONGEST_S))
            kill(pid)
            found: bytes = stash["cart"]
            number = int.from_bytes(found[:8], "little")
            assert found == payload(number, len(found)), "torn"
            assert number in (acknowledged[0], acknowledged[0] + 1), f"{number} after {acknowledged[0]}"
            unanswered = 1 + (number - acknowledged[0]) + (acknowledged[0] - acknowledged[1])
            assert acknowledged[1] <= limpet.counter("written").value <= acknowledged[1] + unanswered
            cut_off += number != acknowledged[0]
            acknowledged[0] = number
            acknowledged[1] = limpet.counter("written").value
        left = len(os.listdir(folder / "stash" / "new"))
        assert len(stash) == 1
    assert acknowledged[0] >= kills, "most were killed before they have written"
    return {"kills": kills, "writes": acknowledged[0], "renamed but not acknowledged": cut_off, "files left": left}


def test_value_is_the_last_acknowledged_one_after_any_kill(tmp_path: Path) -> None:
    """A cart that is older than what the shop has shown is worse than none."""
    endure(tmp_path, 150, random.Random(SEED))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_value_is_the_last_acknowledged_one_after_ten_thousand_kills(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same for longer, `make torn`."""
    found = endure(tmp_path, NUMBER, random.Random(SEED))
    with capsys.disabled():
        print(f"\n{found}")


def stop_in_rename(*arguments: Any) -> None:
    """Stop this process where it would rename a file."""
    os.kill(os.getpid(), signal.SIGSTOP)


def test_writer_that_is_stopped_in_the_middle_delays_nobody_beyond_the_deadline(tmp_path: Path) -> None:
    """One worker that the machine has stopped must not take the other ones with it."""
    with server(tmp_path) as stash:
        stash["cart"] = "before"

        def write_and_stop() -> None:
            setattr(os, "rename", stop_in_rename)  # noqa: B010 - not for mypy to see
            stash["cart"] = "after"

        pid = fork(write_and_stop)
        stopped(pid)
        began = time.monotonic()
        stash["other"] = 1
        assert stash["cart"] == "before"
        limpet.counter("visits").add()
        assert time.monotonic() - began < LATE_S
        with pytest.raises(limpet.StashBusy):
            stash["cart"] = "mine"
        assert time.monotonic() - began < 2 * LATE_S + LATE_S
        kill(pid)
        stash["cart"] = "mine"
        assert stash["cart"] == "mine"


def test_limit_is_kept_and_answers_while_a_process_is_stopped_in_it(tmp_path: Path) -> None:
    """The answer is no within its deadline; other keys are not affected, and all is well after its death."""
    from limpet.coordination import limits

    with server(tmp_path):

        def ask_and_stop() -> None:
            limits._admitted = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)  # type: ignore[assignment]
            limpet.limit("login", "ada", 5, per=60)

        pid = fork(ask_and_stop)
        stopped(pid)
        began = time.monotonic()
        assert not limpet.limit("login", "ada", 5, per=60)
        admitted = sum(limpet.limit("login", str(number), 5, per=60) for number in range(20))
        assert admitted >= 17  # of 256 shards: four or more of 20 keys are in its shard once in a million runs
        assert time.monotonic() - began < LATE_S
        kill(pid)
        assert [limpet.limit("login", "ada", 5, per=60) for _ in range(6)] == [True] * 5 + [False]


def test_limit_holds_in_every_window_and_is_used_up(tmp_path: Path) -> None:
    """Four processes ask without a pause: never more than n in any window, and n where more ask."""
    n, per_s, windows, most = 20, 0.4, 5, 400
    stamps = Cells(4 * 2 * most)
    counts = Cells(4)
    with server(tmp_path):

        def ask(process: int) -> None:
            until = time.monotonic() + windows * per_s
            while time.monotonic() < until:
                before_ns = time.monotonic_ns()
                if limpet.limit("login", "ada", n, per=per_s):
                    at = 2 * (process * most + counts[process])
                    stamps[at], stamps[at + 1] = before_ns, time.monotonic_ns()
                    counts[process] += 1

        join([fork(lambda process=process: ask(process)) for process in range(4)])  # type: ignore[misc]
    admitted = sorted(
        (stamps[2 * (process * most + number) + 1], stamps[2 * (process * most + number)])
        for process in range(4)
        for number in range(counts[process])
    )
    for first in range(len(admitted) - n):
        within = admitted[first : first + n + 1]
        assert max(after for after, _ in within) - min(before for _, before in within) >= per_s * 1e9
    assert n * windows - n <= len(admitted) <= n * (windows + 1), len(admitted)


def test_limit_holds_over_kills_in_the_middle(tmp_path: Path) -> None:
    """A process that is killed while it counts leaves nothing that admits more."""
    chance, admitted, begun = random.Random(SEED), Cells(2), Cells(1)
    with server(tmp_path):

        def ask() -> None:
            while True:
                begun[0] = 1
                if limpet.limit("login", "ada", 100, per=3600):
                    admitted[0] += 1

        for _ in range(40):
            begun[0] = 0
            pid = fork(ask)
            while not begun[0]:
                time.sleep(0)
            time.sleep(chance.uniform(0, 0.0002))
            kill(pid)
        while limpet.limit("login", "ada", 100, per=3600):
            admitted[0] += 1
    assert 60 <= admitted[0] <= 100


def test_bound_holds_and_expired_entries_make_room(tmp_path: Path) -> None:
    """A stash that grows without end takes the machine with it."""
    most, size = 1 << 20, 10_000

    def taken() -> int:
        files = (tmp_path / "stash" / "entries").iterdir()
        return sum(1024 + -(-file.stat().st_size // 4096) * 4096 for file in files)

    with server(tmp_path, most) as stash:
        stash["first"] = "kept"

        def fill(process: int) -> None:
            for number in range(10_000):
                try:
                    stash.set(f"{process} {number}", b"x" * size, ttl=0.8)
                except limpet.StashFull:
                    return
            raise AssertionError("the stash is never full")

        join([fork(lambda process=process: fill(process)) for process in range(4)])  # type: ignore[misc]
        assert 0.8 * most < taken() <= most
        time.sleep(0.9)
        assert stash.get("0 0") is None
        stash.set("more", b"x" * (most // 2))
        assert taken() < 0.6 * most
        assert stash["first"] == "kept"


def test_of_several_that_add_one_succeeds(tmp_path: Path) -> None:
    """Applications make locks and first-come lists of it."""
    winners = Cells(8)
    with server(tmp_path) as stash:

        def add(process: int) -> None:
            for number in range(50):
                winners[process] += stash.add(str(number), process)

        join([fork(lambda process=process: add(process)) for process in range(4)])  # type: ignore[misc]
        assert sum(winners[process] for process in range(4)) == 50


def test_fork_of_a_process_counts_for_itself(tmp_path: Path) -> None:
    """Applications use pools of processes; two writers of one cell would lose counts."""
    with server(tmp_path):
        limpet.counter("visits").add(5)

        def count() -> None:
            for _ in range(1000):
                limpet.counter("visits").add()

        join([fork(count) for _ in range(4)])
        limpet.counter("visits").add(5)
        assert limpet.counter("visits").value == 4010
