"""What the benchmarks have in common: the application, what a system's processes use, and what ratios amount to."""

from __future__ import annotations

import math
import os
import platform
import random
import re
import socket
import statistics
from pathlib import Path
from typing import Any

BOOTSTRAPS = 4000

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
    """Return the CPU seconds that *pid* and its descendants have used, user and system."""
    ticks = 0
    for each in tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """Return *pid* and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in tree(int(child)))]


def pss_bytes(pid: int) -> int:
    """Return the memory of *pid*; what it shares with others is divided among them."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Return the geometric mean of *ratios* and its 95 % interval, by a bootstrap over rounds."""
    logs, chance = [math.log(ratio) for ratio in ratios], random.Random(1)
    means = sorted(statistics.fmean(chance.choices(logs, k=len(logs))) for _ in range(BOOTSTRAPS))
    low, high = means[int(0.025 * BOOTSTRAPS)], means[int(0.975 * BOOTSTRAPS)]
    return math.exp(statistics.fmean(logs)), math.exp(low), math.exp(high)


def machine() -> dict[str, Any]:
    """Return where this runs, and what of it limits the figures."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpus": os.cpu_count(),
        "cpu": model[1] if model else platform.machine(),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }
