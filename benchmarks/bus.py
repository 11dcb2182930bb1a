"""What a message between workers costs: limpet's bus, Redis by its unix socket, and NATS by loopback, loaded in turn.

    python benchmarks/bus.py --output benchmarks/results/bus.json

Four workers publish a fourth of the messages each, and each hears all of them. For each rate: the CPU time of all
processes (workers, and the engine) for each delivered message, and the 99th percentile of the time on the way. `none`
publishes nothing and shows what the rest of the workers costs, for example waking up for the next message; it is taken
off in `net`. A machine that does something else makes all latencies worse.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tests.harness import Limpet, free_port, wait_until  # noqa: E402

WORKERS: Final = 4
_START_S: Final = 8.0
RATES: Final = (100, 1000, 10_000)


def cpu_s(pid: int) -> float:
    """Return the CPU time that all threads of process *pid* have used."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in threads) / 1e9


@contextlib.contextmanager
def engine(way: str, place: Path) -> Iterator[tuple[str, int | None]]:
    """Run what *way* needs, and yield how workers reach it, and its process id."""
    if way in ("limpet", "none"):
        yield way, None
        return
    port = free_port()
    socket = place / "redis.sock"
    words = {
        "redis": ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"],
        "nats": ["nats-server", "-a", "127.0.0.1", "-p", str(port)],
    }[way]
    program = shutil.which(words[0])
    assert program, f"{words[0]} is not installed"
    log = place / "log"
    with open(log, "w") as file:
        process = subprocess.Popen([program, *words[1:]], stdout=file, stderr=file, cwd=place)
    try:
        wait_until(lambda: "eady to accept" in log.read_text() or "is ready" in log.read_text(), "the engine is ready")
        yield (f"unix://{socket}" if way == "redis" else f"nats://127.0.0.1:{port}"), process.pid
    finally:
        process.terminate()
        process.wait(10)


def measure(way: str, rate: int, seconds: float) -> dict[str, float]:
    """Return what messages cost on *way* at *rate* messages a second."""
    with tempfile.TemporaryDirectory(prefix="limpet-bus-") as directory:
        place = Path(directory)
        with engine(way, place) as (url, pid):
            begin_at = time.monotonic() + _START_S
            env = {
                "BUS_WAY": url,
                "BUS_RATE": str(rate / WORKERS),
                "BUS_SECONDS": str(seconds),
                "BUS_PLACE": directory,
                "BUS_BEGIN_AT": str(begin_at),
            }
            with Limpet("benchmarks.bus_app:app", "--workers", str(WORKERS), env=env, cwd=HERE.parent):
                assert time.monotonic() < begin_at - 1, "the workers have started too late"
                time.sleep(max(0.0, begin_at - time.monotonic()))
                before = cpu_s(pid) if pid else 0.0
                time.sleep(seconds + 0.5)
                of_engine = cpu_s(pid) - before if pid else 0.0
                wait_until(lambda: len(list(place.glob("*.json"))) == WORKERS, "all workers have written", 30)
        results = [json.loads(path.read_text()) for path in place.glob("*.json")]
    published = sum(each["published"] for each in results)
    latencies = sorted(latency for each in results for latency in each["latencies_s"])
    return {
        "published": published,
        "delivered": len(latencies),
        "cpu_s": sum(each["cpu_s"] for each in results) + of_engine,
        "engine_cpu_s": of_engine,
        "median_ms": statistics.median(latencies) * 1e3 if latencies else 0.0,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3 if latencies else 0.0,
    }


def main() -> None:
    """Measure all, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rates", type=int, nargs="*", default=RATES)
    given = parser.parse_args()
    rows = []
    for rate in given.rates:
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(given.rounds):
            for way in ("none", "limpet", "redis", "nats"):  # in turn, so that all meet the same moods of the machine
                found.setdefault(way, []).append(measure(way, rate, given.seconds))
        idle_s = statistics.median(each["cpu_s"] for each in found["none"])
        row: dict[str, Any] = {"rate": rate}
        for way in ("limpet", "redis", "nats"):
            each = found[way]
            row[way] = {
                "us": statistics.median(one["cpu_s"] / one["delivered"] for one in each) * 1e6,
                "net_us": statistics.median((one["cpu_s"] - idle_s) / one["delivered"] for one in each) * 1e6,
                "median_ms": statistics.median(one["median_ms"] for one in each),
                "p99_ms": statistics.median(one["p99_ms"] for one in each),
                "heard": min(one["delivered"] / (WORKERS * one["published"]) for one in each),
            }
        row["of_redis"] = row["limpet"]["us"] / row["redis"]["us"]
        row["net_of_redis"] = row["limpet"]["net_us"] / row["redis"]["net_us"]
        rows.append(row)
        print(json.dumps(row), flush=True)
    if given.output:
        found_on = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        given.output.write_text(json.dumps({**found_on, "seconds": given.seconds, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
