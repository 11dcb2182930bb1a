"""Memory and descriptors over a long life: after many connections and many generations of workers they are as before.

    python benchmarks/generations.py [--connections 100000] [--generations 500] [--backend kernel] [--output FILE]

A server with 2 workers is reloaded again and again, each reload being two generations, while clients connect from many
addresses of 127.0.0.0/8, ask once and leave. At 11 points in between, the first after a tenth of all, everybody is let
go, and then are read: the proportional set size (PSS, /proc/PID/smaps_rollup) and the number of descriptors of the
supervisor, of the dispatcher, which a reload renews too, and of one worker that is fresh but for a few requests.

Flat means, for each of them: no more descriptors at the last point than at the first, and a PSS that is at most 3 % and
0.5 MiB larger. Ends with exit code 1 otherwise. Sends to 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import APP, free_port

from limpet.errors import ControlError
from limpet.operate.control_socket import ask

POINTS = 11
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
BACKENDS = ("dispatcher", "kernel")
ALLOWED = 1.03  # of the PSS at the first point,
ALLOWED_KIB = 512  # and that
PATIENCE_S = 60.0


@contextlib.contextmanager
def server(backend: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Run a server; return its control socket and its port."""
    port, control = free_port(), str(folder / "control")
    (folder / "bench_app.py").write_text(APP)
    command = [sys.executable, "-m", "limpet", "run", "bench_app:app", "--app-dir", str(folder), "--workers", "2"]
    command += ["--bind", f"127.0.0.1:{port}", "--by", "ip", "--backend", backend, "--control", control]
    command += ["--state-dir", str(folder), "--log-level", "warning"]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not serves(control):
                assert time.monotonic() < deadline, "it does not serve"
            yield control, port
        finally:
            process.terminate()


def serves(control: str) -> bool:
    try:
        return all(slot["state"] == "ready" for slot in ask(control, {"command": "status"})["slots"])
    except ControlError:
        time.sleep(0.05)
        return False


def connect(port: int, number: int) -> None:
    """Connect, from an address of this *number*, ask, and read to the end."""
    with socket.socket() as client:
        client.bind((f"127.{1 + number % 200}.{number // 200 % 200}.1", 0))
        client.connect(("127.0.0.1", port))
        client.sendall(REQUEST)
        answer = b""
        while data := client.recv(4096):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 "), answer


def renew(control: str) -> None:
    """Reload, and wait until that is done and the old workers have ended."""
    change = ask(control, {"command": "reload"})
    deadline = time.monotonic() + PATIENCE_S
    while change["state"] in ("waiting", "running") or not is_quiet(control):
        assert time.monotonic() < deadline, change
        time.sleep(0.02)
        change = ask(control, {"command": "change", "number": change["change"]})
    assert change["state"] == "done", change


def is_quiet(control: str) -> bool:
    status = ask(control, {"command": "status"})
    return not any(each["draining"] for each in status["slots"] + status["dispatchers"])


def pss_kib(pid: int) -> int:
    """Return the proportional set size of process *pid*: shared memory counts by the share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Pss:")))


def descriptors(pid: int) -> int:
    """Return how many descriptors process *pid* keeps open: for an answer to `limpet status` it has one more."""
    found = []
    for _ in range(5):
        found.append(len(os.listdir(f"/proc/{pid}/fd")))
        time.sleep(0.02)
    return min(found)


def sample(control: str, port: int) -> dict[str, dict[str, int]]:
    """Return memory and descriptors of one process of each kind, when all connections have ended."""
    for number in range(400):  # so that a fresh worker has done everything once
        connect(port, number)
    deadline = time.monotonic() + PATIENCE_S
    while ask(control, {"command": "status"})["totals"]["connections"]:
        assert time.monotonic() < deadline, "connections do not end"
        time.sleep(0.02)
    status = ask(control, {"command": "status"})
    pids = {"supervisor": status["pid"], "worker": status["slots"][0]["pid"]}
    if status["dispatchers"]:
        pids["dispatcher"] = status["dispatchers"][0]["pid"]
    return {kind: {"pss_kib": pss_kib(pid), "descriptors": descriptors(pid)} for kind, pid in pids.items()}


def live(backend: str, connections: int, generations: int) -> dict[str, Any]:
    """Return what was read at the points of a life."""
    points: list[dict[str, Any]] = []
    reloads = max(POINTS - 1, generations // 2)
    due = [round(reloads * point / (POINTS - 1)) for point in range(1, POINTS)]
    made = 0
    with tempfile.TemporaryDirectory() as folder, server(backend, Path(folder)) as (control, port):
        for reload in range(1, reloads + 1):
            while made < connections * reload // reloads:
                connect(port, made)
                made += 1
            renew(control)
            if reload in due:
                found = {"generations": 2 * reload, "connections": made, **sample(control, port)}
                points.append(found)
                print(f"{backend}: {json.dumps(found)}", flush=True)
    return {"connections": made, "generations": 2 * reloads, "points": points, "faults": list(faults(points))}


def faults(points: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what has grown from the first to the last point."""
    first, last = points[0], points[-1]
    for kind in ("supervisor", "dispatcher", "worker"):
        if kind in first:
            before, after = first[kind], last[kind]
            if after["descriptors"] > before["descriptors"]:
                yield f"{kind}: {before['descriptors']} descriptors, {after['descriptors']} at the end"
            if after["pss_kib"] > before["pss_kib"] * ALLOWED + ALLOWED_KIB:
                yield f"{kind}: {before['pss_kib']} KiB, {after['pss_kib']} KiB at the end"


def line(backend: str, found: dict[str, Any]) -> str:
    """Return *found* as docs/lifecycle.md shows it."""
    first, last = found["points"][0], found["points"][-1]
    parts = [
        f"{kind} {first[kind]['pss_kib'] / 1024:.1f} -> {last[kind]['pss_kib'] / 1024:.1f} MiB, "
        f"{first[kind]['descriptors']} -> {last[kind]['descriptors']} descriptors"
        for kind in ("supervisor", "dispatcher", "worker")
        if kind in first
    ]
    return f"{backend}, from generation {first['generations']} to {last['generations']}: {'; '.join(parts)}"


def main() -> int:
    """Measure; return 1 if anything has grown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=100_000)
    parser.add_argument("--generations", type=int, default=500)
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    grown = []
    for backend in options.backend or BACKENDS:
        found = live(backend, options.connections, options.generations)
        print(line(backend, found))
        grown += [f"{backend}: {fault}" for fault in found["faults"]]
        if options.output is not None:
            kept = json.loads(options.output.read_text()) if options.output.exists() else {}
            options.output.write_text(json.dumps(kept | {backend: found}, indent=1, sort_keys=True) + "\n")
    print("\n".join(grown) or "nothing has grown")
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
