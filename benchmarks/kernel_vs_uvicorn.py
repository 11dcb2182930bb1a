"""CPU per request of the kernel backend, against uvicorn's own workers without stickiness.

    python benchmarks/kernel_vs_uvicorn.py [--workers 2] [--rounds 20] [--seconds 3] [--precision 0.01] [--output FILE]

Both systems run the same application on as many uvicorn processes (uvloop, httptools) and are loaded in turn, in one
run, the first one changing from round to round. The load is made here, by one process that keeps 32 requests in
flight from 512 addresses of 127.0.0.0/8: `connection` opens a connection for each request, `keep-alive` has 32 that
stay, each from an address of its own. What counts is the CPU time of all processes of the system under test (user +
system, from /proc), supervisors included, divided by the requests that were answered; never the load's own, never a
wall clock. The ratio is formed within each round. Reported is its geometric mean over the rounds, with the 95 %
interval of a bootstrap over rounds; rounds go on, at most `--most`, until that is no wider than +- `--precision`.

Before the measurement each address is asked five times: limpet must answer with one worker each, and use all.

On loopback the kernel's work for a new connection, the program of the kernel backend included, is done while the
client sends, so it is not in the figures of either system; the program takes some 400 instructions.

Sends to 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from loads import ADDRESSES, IN_FLIGHT, PATIENCE_S, connect
from measure import APP, cpu_s, free_port, interval, machine

KINDS = ("connection", "keep-alive")
SYSTEMS = ("limpet", "uvicorn")
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n"
REQUESTS = {"connection": REQUEST + b"Connection: close\r\n\r\n", "keep-alive": REQUEST + b"\r\n"}


class System:
    """One system under test: its processes and its port."""

    def __init__(self, name: str, workers: int, where: Path) -> None:
        self.port = free_port()
        common = ["--workers", str(workers), "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
        limpet = ["run", "bench_app:app", "--backend", "kernel", "--by", "ip", "--bind", f"127.0.0.1:{self.port}"]
        limpet += ["--control", str(where / "control"), "--state-dir", str(where)]
        own = {"limpet": limpet, "uvicorn": ["bench_app:app", "--port", str(self.port)]}[name]
        command = [sys.executable, "-m", name, *own, *common, "--log-level", "warning"]
        self.name = name
        self.process = subprocess.Popen(command, cwd=where)

    def wait_up(self, workers: int) -> None:
        """Wait until all workers have answered."""
        seen: set[int] = set()
        deadline = time.monotonic() + PATIENCE_S
        for address in cycle(ADDRESSES):
            try:
                seen.add(ask(self.port, address))
            except OSError:
                time.sleep(0.05)
            if len(seen) == workers:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: {len(seen)} of {workers} workers have answered")

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes."""
        return cpu_s(self.process.pid)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(PATIENCE_S)


def ask(port: int, address: str) -> int:
    """Return which process answers a client at *address*."""
    with connect(port, address) as sock:
        sock.settimeout(PATIENCE_S)
        sock.sendall(REQUESTS["connection"])
        reply = sock.makefile("rb").read()
    return int(json.loads(reply.partition(b"\r\n\r\n")[2])["pid"])


def is_whole(reply: bytes) -> bool:
    """Return whether *reply* is a whole response of the application. Raises RuntimeError for any other."""
    if not reply.startswith(b"HTTP/1.1 200"[: len(reply)]):
        raise RuntimeError(f"not what the application says: {reply!r}")
    return reply.endswith(b"}")


def load(port: int, kind: str, seconds: float, addresses: Iterator[str]) -> int:
    """Keep `IN_FLIGHT` requests in flight for *seconds*; return how many were answered."""
    epoll, request = select.epoll(), REQUESTS[kind]
    connections: dict[int, socket.socket] = {}
    replies: dict[int, bytes] = {}
    answered, until = 0, time.monotonic() + seconds

    def start() -> None:
        sock = connect(port, next(addresses))
        connections[sock.fileno()], replies[sock.fileno()] = sock, b""
        epoll.register(sock, select.EPOLLIN)
        sock.send(request)  # over loopback a connection is there at once, if the server has room for it

    for _ in range(IN_FLIGHT):
        start()
    while connections:
        for fd, _ in epoll.poll(PATIENCE_S):
            sock = connections[fd]
            data = sock.recv(65536)
            replies[fd] += data
            goes_on = time.monotonic() < until
            if kind == "keep-alive" and is_whole(replies[fd]):
                answered += 1
                replies[fd] = b""
                if goes_on:
                    sock.send(request)
                    continue
            elif data:
                continue
            elif is_whole(replies[fd]):
                answered += 1
            else:
                raise RuntimeError(f"the connection ended after {replies[fd]!r}")
            connections.pop(fd).close()
            if goes_on:
                start()
    epoll.close()
    return answered


def check_sticky(system: System, workers: int) -> None:
    """Fail unless limpet serves each address by one worker, and by each worker some."""
    seen: dict[str, set[int]] = defaultdict(set)
    for address in ADDRESSES * 5:
        seen[address].add(ask(system.port, address))
    used = len(set.union(*seen.values()))
    sticky = sum(len(pids) == 1 for pids in seen.values())
    print(f"{system.name}: {sticky} of {len(seen)} addresses met one worker, {used} workers used")
    assert used == workers
    assert system.name != "limpet" or sticky == len(seen)


def measure(system: System, kind: str, seconds: float, addresses: Iterator[str]) -> dict[str, float]:
    """Load *system* once; return requests and CPU microseconds per request."""
    before = system.cpu_s()
    requests = load(system.port, kind, seconds, addresses)
    return {"requests": requests, "us_per_request": (system.cpu_s() - before) / requests * 1e6}


def compare(systems: list[System], kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return all rounds of one *kind*, and what they amount to."""
    addresses = cycle(random.Random(7).sample(ADDRESSES, len(ADDRESSES)))
    rounds: list[dict[str, dict[str, float]]] = []
    for system in systems:
        measure(system, kind, options.seconds, addresses)  # for warmth
    while True:
        order = systems if len(rounds) % 2 else systems[::-1]
        rounds.append({system.name: measure(system, kind, options.seconds, addresses) for system in order})
        ratios = [each["limpet"]["us_per_request"] / each["uvicorn"]["us_per_request"] for each in rounds]
        ratio, low, high = interval(ratios)
        summary = {"ratio": ratio, "low": low, "high": high}
        is_precise = summary["high"] / summary["low"] <= (1 + options.precision) ** 2
        if len(rounds) >= options.most or (len(rounds) >= options.rounds and is_precise):
            break
    for name in SYSTEMS:
        summary[name] = statistics.median(each[name]["us_per_request"] for each in rounds)
    print(
        f"{kind}: {summary['ratio']:.3f} ({summary['low']:.3f} to {summary['high']:.3f}) in {len(rounds)} rounds; "
        f"limpet {summary['limpet']:.1f} us, uvicorn {summary['uvicorn']:.1f} us per request"
    )
    return {"summary": summary, "rounds": rounds}


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--most", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--precision", type=float, default=0.01)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bench_app.py").write_text(APP)
        systems = [System(name, options.workers, Path(folder)) for name in SYSTEMS]
        try:
            for system in systems:
                system.wait_up(options.workers)
                check_sticky(system, options.workers)
            found = {kind: compare(systems, kind, options) for kind in options.kind or KINDS}
        finally:
            for system in systems:
                system.stop()
    if options.output:
        given = {name: getattr(options, name) for name in ("workers", "seconds", "precision")}
        options.output.parent.mkdir(exist_ok=True)
        options.output.write_text(json.dumps({"machine": machine(), **given, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
