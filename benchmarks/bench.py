"""The side-by-side run of limpet and what people use today: `make bench`, or one part of it.

    python benchmarks/bench.py [PART...] [--workers 2] [--rounds 5] [--seconds 2] [--output FILE]

A part is a load of loads.py, `idle` (memory of websockets that say nothing), `events` (server-sent events), `paced`
(how long answers take at a fixed rate) or `dispatcher` (what limpet's own processes cost). Without a name all are run.

All systems that can take a load run at once and are loaded in turn, in rounds that begin with another one each time.
What counts is the CPU time of all processes of the system under test (user + system, from /proc), divided by what was
answered; never the load's own, never a wall clock. Ratios are formed within each round; reported is their geometric
mean over the rounds with the 95 % interval of a bootstrap. Before the measurement each system that promises stickiness
is held to it.

On loopback the kernel's work for what a client sends is done while it sends, so it is in no system's figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import loads
from measure import cpu_s, machine, pss_bytes
from systems import SYSTEMS, System

ASGI: Final = ["limpet kernel", "limpet dispatcher", "uvicorn", "nginx", "haproxy", "gunicorn", "granian"]
NODE: Final = ["node cluster", "node sticky ip", "node sticky header"]
LOADS: Final = {
    "connection": ASGI + NODE,
    "single": ASGI + NODE,
    "mixed": ["limpet dispatcher", "nginx", "haproxy"],  # who brings each request of a connection to its own worker
    "echo": ASGI,
    "echo64k": ASGI,
    "upload": ASGI,
    "download": ASGI,
}
READERS: Final = 200  # of server-sent events


@contextlib.contextmanager
def running(names: list[str], workers: int) -> Iterator[list[System]]:
    """Start the systems *names*; stop them afterwards."""
    systems: list[System] = []
    with loads.work_folder() as folder:
        try:
            for name in names:
                where = Path(folder) / name.replace(" ", "-")
                where.mkdir(mode=0o755)
                systems.append(System(name, workers, where))
            yield systems
        finally:
            for system in systems:
                system.stop()


def measured(system: System, kind: str, seconds: float, seed: int) -> dict[str, float]:
    """Load *system* once."""
    before = system.cpu_s()
    if kind == "events":
        answered = loads.events(system.port, READERS, seconds)
    else:
        answered = loads.closed(system.port, kind, seconds, seed)
    return {"answered": answered, "us": (system.cpu_s() - before) / answered * 1e6}


def side_by_side(kind: str, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return all rounds of the load *kind*."""
    with running(names, options.workers) as systems:
        for system in systems:
            system.check_sticky()
            measured(system, kind, 1, seed=0)  # for warmth
        rounds = []
        for number in range(options.rounds):
            turn = number % len(systems)
            order = systems[turn:] + systems[:turn]
            rounds.append({system.name: measured(system, kind, options.seconds, number) for system in order})
    for name in names:
        print(f"{kind}: {name} {statistics.median(each[name]['us'] for each in rounds):.1f} us", flush=True)
    return {"rounds": rounds}


def paced(options: argparse.Namespace) -> dict[str, Any]:
    """Return how long answers take at half of what the slower system can do, for limpet and uvicorn."""
    names = ["limpet kernel", "limpet dispatcher", "uvicorn"]
    with running(names, options.workers) as systems:
        most = min(_capacity(system) for system in systems)
        rounds = []
        for number in range(options.rounds):
            order = systems if number % 2 else systems[::-1]
            rounds.append({system.name: _percentiles(system, most / 2, options.seconds, number) for system in order})
    print(f"paced: {most / 2:.0f} requests a second", {name: rounds[-1][name] for name in names}, flush=True)
    return {"rate": most / 2, "rounds": rounds}


def _capacity(system: System) -> float:
    """Return how many requests a second *system* answers when each is sent as soon as possible, from one process."""
    for rate in range(500, 20_000, 500):
        began = time.monotonic()
        loads.paced(system.port, rate, 1, seed=0)
        if time.monotonic() - began > 1.1:
            return rate
    return 20_000


def _percentiles(system: System, rate: float, seconds: float, seed: int) -> dict[str, float]:
    took = loads.paced(system.port, rate, max(seconds, 5), seed)
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
    return {name: took[int(share * (len(took) - 1))] * 1e3 for name, share in shares.items()}


def idle(options: argparse.Namespace) -> dict[str, Any]:
    """Return the bytes that each of many websockets takes that say nothing, in all processes of a system."""
    found = {}
    for name in ("limpet kernel", "limpet dispatcher", "uvicorn", "nginx"):
        with running([name], options.workers) as (system,):
            for sock in loads.idle(system.port, loads.IN_FLIGHT * 4):  # what the first ones bring stays
                sock.close()
            before = system.pss_bytes()
            socks = loads.idle(system.port, options.websockets)
            found[name] = (system.pss_bytes() - before) / options.websockets
            for sock in socks:
                sock.close()
        print(f"idle: {name} {found[name]:.0f} bytes for each of {options.websockets} websockets", flush=True)
    return {"websockets": options.websockets, "bytes": found}


def dispatcher(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the processes of limpet's own cost: memory, CPU and system calls for each connection."""
    with running(["limpet dispatcher"], options.workers) as (system,):
        line = [sys.executable, "-m", "limpet", "status", "--json", "--control", str(system.where / "control")]
        status = json.loads(subprocess.run(line, check=True, capture_output=True).stdout)
        pids = {"supervisor": status["pid"], "dispatcher": status["dispatchers"][0]["pid"]}
        measured(system, "connection", 1, seed=0)
        rounds = []
        for number in range(options.rounds):
            before = cpu_s(pids["dispatcher"])
            answered = loads.closed(system.port, "connection", options.seconds, number)
            rounds.append({"answered": answered, "us": (cpu_s(pids["dispatcher"]) - before) / answered * 1e6})
        memory = {name: {"pss": pss_bytes(pid), "rss": _rss_bytes(pid)} for name, pid in pids.items()}
        calls = _system_calls(pids["dispatcher"], system.port)
    print(f"dispatcher: {statistics.median(each['us'] for each in rounds):.1f} us for each connection")
    print(f"dispatcher: {memory}, {calls}", flush=True)
    return {"rounds": rounds, "memory": memory, "calls": calls}


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _system_calls(pid: int, port: int) -> dict[str, float]:
    """Return how many system calls of each name process *pid* makes for each connection."""
    line = ["strace", "-f", "-c", "-U", "name,calls", "-p", str(pid)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        strace.stderr.readline()  # attached
        answered = loads.closed(port, "connection", 2, seed=1)
        strace.send_signal(signal.SIGINT)
        shown = strace.stderr.read()
    return {
        name: int(calls) / answered for name, calls in re.findall(r"^(\w+) +(\d+)$", shown, re.M) if name != "total"
    }


def main() -> None:
    """Run the parts that are asked for; keep what the results file has of the others."""
    parts = [*LOADS, "events", "paced", "idle", "dispatcher"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--websockets", type=int, default=10_000)
    parser.add_argument("--without", action="append", default=[], choices=list(SYSTEMS), help="leave a system out")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing stays behind
    if unknown := set(options.parts) - set(parts):
        parser.error(f"no such part: {', '.join(unknown)}")
    own = {"paced": paced, "idle": idle, "dispatcher": dispatcher}
    for part in options.parts or parts:
        if part in own:
            found = own[part](options)
        else:
            names = [name for name in LOADS.get(part, ASGI) if name not in options.without]
            found = side_by_side(part, names, options)
        if options.output:
            kept = json.loads(options.output.read_text()) if options.output.exists() else {}
            found |= {"machine": machine(), "workers": options.workers, "seconds": options.seconds}
            options.output.write_text(json.dumps(kept | {part: found}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
