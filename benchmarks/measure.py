"""What the benchmarks have in common: the application, what a system's processes use, and what ratios amount to."""

from __future__ import annotations

import os
import platform
import random
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
BOOTSTRAPS = 4000
LISTENS = "0A"  # in /proc/net/tcp

APP = """
import json, os
body = json.dumps({"pid": os.getpid()}).encode()
headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that *pid* and its descendants have used, user and system.

    They are the scheduler's, in nanoseconds: those in /proc/PID/stat are hundredths of a second.
    """
    threads = (each for one in tree(pid) for each in Path(f"/proc/{one}/task").glob("*/schedstat"))
    return sum(int(each.read_text().split()[0]) for each in threads) / 1e9


def tree(pid: int) -> list[int]:
    """Return *pid* and all its descendants; nothing if it is gone."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(found for child in children for found in tree(int(child)))]


def birth(pid: int) -> int:
    """Return when *pid* was started, which tells it from one that has its number later; 0: it is gone."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if state == "Z" else int(fields[18])


def connections(port: int) -> int:
    """Return how many connections to *port* there are, or were within the last minute (TIME_WAIT)."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, state = line.split()[1:4]
        ends = {local, remote}
        if state != LISTENS and any(int(end.rpartition(":")[2], 16) == port for end in ends):
            found.add(frozenset(ends))
    return len(found)


def pss_bytes(pid: int) -> int:
    """Return the memory of *pid*; what it shares with others is divided among them."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


def interval(samples: Sequence[T], of: Callable[[Sequence[T]], float]) -> tuple[float, float, float]:
    """Return what *samples* amount to by *of*, and the 95 % interval of that by a bootstrap over them."""
    chance = random.Random(1)
    found = sorted(of(chance.choices(samples, k=len(samples))) for _ in range(BOOTSTRAPS))
    return of(samples), found[int(0.025 * BOOTSTRAPS)], found[int(0.975 * BOOTSTRAPS)]


def machine() -> dict[str, Any]:
    """Return where this runs, and what of it limits the figures."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpus": os.cpu_count(),
        "cpu": model[1] if model else platform.machine(),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }
