"""A million messages on the bus, while workers are killed, renewed, added, removed and stopped: the sums must agree.

    python -m tests.storm 1000000

Publishers in all workers publish numbers; subscribers come and go, some of them too slow. For each subscription that
was not killed: nothing twice, nothing out of order for its publisher and topic, nothing that was published before it
began; and what it did not hear is as much as it was told that it lost. tests/storm_app.py is the application.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.harness import Limpet, wait_until

WORKERS: Final = 4
STOPPED: Final = 1  # the slot whose worker is stopped, and not killed: its subscribers lose most, and must say so
STOPPED_S: Final = 10.0
_RATE: Final = 900  # messages a second of each publisher, at most
_PATIENCE_S: Final = 3600


def events(limpet: Limpet) -> Iterator[tuple[float, str, Callable[[], object]]]:
    """Yield what happens to the server: after which part of all messages, what it is, and how it is done."""

    def stop() -> None:
        pid = limpet.worker(STOPPED)["pid"]
        os.kill(pid, signal.SIGSTOP)
        until = time.monotonic() + STOPPED_S
        wait_until(lambda: time.monotonic() > until, "it was stopped for long enough", STOPPED_S + 5)
        os.kill(pid, signal.SIGCONT)

    def upgrade() -> None:
        before = limpet.log.count("upgraded from")
        limpet.signal(signal.SIGUSR2)
        wait_until(lambda: limpet.log.count("upgraded from") > before, "the supervisor was replaced", 60)

    def kill() -> None:
        limpet.kill_worker(random.choice([slot for slot in range(WORKERS) if slot != STOPPED]))

    def reload() -> None:
        limpet.command("reload")

    yield 0.05, "kill", kill
    yield 0.10, "kill", kill
    yield 0.15, "reload", reload
    yield 0.25, "stop", stop
    yield 0.40, "upgrade", upgrade
    yield 0.45, "kill", kill
    yield 0.50, "scale to 6", lambda: limpet.command("scale", "6")
    yield 0.55, "kill", kill
    yield 0.60, "scale to 4", lambda: limpet.command("scale", "4")
    yield 0.70, "reload", reload
    yield 0.80, "kill", kill
    yield 0.85, "kill", kill


def run(total: int, rate: float = _RATE) -> dict[str, Any]:
    """Publish *total* messages and return the sums. Raises AssertionError if something is wrong."""
    with tempfile.TemporaryDirectory(prefix="limpet-storm-") as directory:
        place = Path(directory)
        (place / "progress").touch()
        env = {"STORM_PLACE": directory, "STORM_RATE": str(rate)}
        os.environ.update(env)
        from tests import storm_app

        progress = storm_app.progress
        progress.cells[storm_app.TOTAL] = total
        options = ("--workers", str(WORKERS), "--graceful-timeout", "1", "--hang-timeout", "60")
        with Limpet("tests.storm_app:app", *options, env=env) as limpet:
            happened: Counter[str] = Counter()
            for part, what, act in events(limpet):
                due = part * total
                wait_until(lambda due=due: progress.published() >= due, f"{part:.0%} published", _PATIENCE_S)  # type: ignore[misc]
                act()
                happened[what] += 1
            wait_until(lambda: progress.published() >= total, "all published", _PATIENCE_S)
            progress.cells[storm_app.FINISH] = 1
            alive = {slot["pid"] for slot in limpet.status()["slots"]}
            subscribers = 3 * len(alive)
            wait_until(
                lambda: sum(each["final"] for each in _records(place) if each["pid"] in alive) == subscribers,
                "all have heard everything",
                120,
            )
            totals = limpet.totals()
        records = _records(place)
        sums = Counter(subscriptions=len(records), final=subscribers)
        for record in records:
            sums.update(_check(record, progress))
        return {
            "published": progress.published(),
            "publishers": progress.cells[storm_app.COUNT],
            "happened": dict(happened),
            **sums,
            **{name: count for name, count in totals.items() if name.startswith("bus_")},
        }


def _records(place: Path) -> list[dict[str, Any]]:
    """Return what subscriptions have written down; the last line of a killed worker may not be whole."""
    lines = [line for path in place.glob("heard-*") for line in path.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _check(record: dict[str, Any], progress: Any) -> Counter[str]:
    """Return the sums of one subscription. Raises AssertionError if they do not agree."""
    assert not record["faults"], f"twice or out of order: {record}"
    heard, least, most = 0, 0, 0
    end = progress.done(record["topics"]) if record["final"] else record["end_begun"]
    for key in {*end, *record["heard"]}:
        before, after = record["before"].get(key, 0), record["after"].get(key, 0)
        first, last, count = record["heard"].get(key, (0, 0, 0))
        heard += count
        assert not count or first > before, f"{key}: heard {first}, which was published before: {record}"
        # What was published while the subscription began may have been heard or not; so may a killed worker's last.
        surely = end.get(key, 0) if record["final"] else last
        least += max(0, surely - max(after, before) - count)
        most += max(0, max(end.get(key, 0), last) - before - count) + (1 if record["final"] else 0)
    lost = record["lost"] if record["final"] else record["told"]
    assert least <= lost <= most, f"heard {heard}, missed {least} to {most}, and was told {lost}: {record}"
    is_exact = lost == least
    exact = {"exact": int(is_exact), "final_exact": int(is_exact and record["final"])}
    return Counter(heard=heard, lost=lost, missed=least, **exact)


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1])), indent=2))
