"""What one connection costs the dispatcher: `python benchmarks/dispatcher_costs.py [--instructions 1000]`.

Method: one limpet reads heads for the key (`--by header:x-user`), wrk sends requests of many users, each on a new
connection. Round by round the CPU time of the dispatcher's process by /proc, divided by the connections that it has
accepted by its own count; then its system calls, counted by `strace -c` in a load of its own. With `--instructions` it
runs under callgrind instead, which counts what it executes in user space: a count that no other process disturbs. All
shares one machine: with few connections at a time the dispatcher sleeps more often, and each waking counts.

With `--profile` perf samples where it is. Needs wrk, and strace, valgrind or perf. Sends to 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import APP, cpu_s, free_port, machine

RESULTS = Path(__file__).parent / "results"
USERS = 1000
HEAD = b"GET / HTTP/1.1\r\nhost: h\r\nx-user: user%d\r\nconnection: close\r\n\r\n"
LUA = """
local number = 0
request = function()
  number = number + 1
  return wrk.format("GET", "/", {["x-user"] = "user" .. number %% %d, ["connection"] = "close"})
end
"""


class Server:
    """A limpet that serves."""

    def __init__(self, folder: Path, port: int) -> None:
        self.control = folder / "control"
        self.script = folder / "users.lua"
        self.port = port

    def status(self) -> dict[str, Any]:
        """Return `limpet status --json`."""
        command = [sys.executable, "-m", "limpet", "status", "--json", "--control", str(self.control)]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    def dispatcher(self) -> int:
        """Return the pid of the one dispatcher."""
        [found] = self.status()["dispatchers"]
        return int(found["pid"])

    def accepted(self) -> int:
        """Return how many connections it has accepted."""
        return int(self.status()["totals"]["accepted"])

    def load(self, connections: int, seconds: float) -> None:
        """Send requests, each on a new connection, *connections* at a time."""
        load = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout=30s", f"-s{self.script}"]
        subprocess.run([*load, f"http://127.0.0.1:{self.port}/"], check=True, capture_output=True)


@contextlib.contextmanager
def limpet(folder: Path, workers: int, prefix: list[str]) -> Iterator[Server]:
    """Run limpet, and *prefix* in front of it."""
    (folder / "bench.py").write_text(APP)
    (folder / "users.lua").write_text(LUA % USERS)
    port = free_port()
    server = Server(folder, port)
    flags = [f"--bind=127.0.0.1:{port}", f"--workers={workers}", "--by=header:x-user", f"--control={server.control}"]
    flags += [f"--state-dir={folder}", "--backlog=4096", "--log-level=error", "--start-timeout=300"]
    flags += ["--hang-timeout=300"]
    command = [*prefix, sys.executable, "-m", "limpet", "run", "bench:app", *flags]
    with subprocess.Popen(command, cwd=folder) as process:
        try:
            until = time.monotonic() + 300
            while socket.socket().connect_ex(("127.0.0.1", port)):  # it listens when all is ready
                assert time.monotonic() < until, "limpet does not serve"
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()


def cpu_us(server: Server, connections: int, seconds: float) -> float:
    """Return the CPU time of the dispatcher for a connection, in microseconds."""
    pid, accepted = server.dispatcher(), server.accepted()
    used = cpu_s(pid)
    server.load(connections, seconds)
    return round((cpu_s(pid) - used) / (server.accepted() - accepted) * 1e6, 1)


def system_calls(server: Server, connections: int, seconds: float) -> dict[str, float]:
    """Return how many of each system call the dispatcher needs for a connection."""
    accepted = server.accepted()
    with tempfile.NamedTemporaryFile("r") as output:
        trace = ["strace", "-c", "-o", output.name, "-p", str(server.dispatcher())]
        tracer = subprocess.Popen(trace, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        try:
            assert "attached" in tracer.stderr.readline()
            server.load(connections, seconds)
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(30)
        accepted = server.accepted() - accepted
        found = {}
        for line in output.read().splitlines():
            words = line.split()
            if len(words) >= 5 and words[3].isdigit() and words[-1] != "total" and int(words[3]) / accepted >= 0.005:
                found[words[-1]] = round(int(words[3]) / accepted, 2)
    return found


def costs(server: Server, connections: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Return what a connection costs of *connections* at a time."""
    each = [cpu_us(server, connections, seconds) for _ in range(rounds)]
    calls = system_calls(server, connections, seconds)
    found = {"cpu_us": statistics.median(each), "rounds_cpu_us": each, "system_calls": calls}
    print(connections, "at a time:", json.dumps(found), flush=True)
    return found


def instructions(server: Server, folder: Path, connections: int) -> float:
    """Return how many thousand instructions the dispatcher executes in user space for a connection, one at a time."""
    pid = str(server.dispatcher())
    for do in ([], ["-i", "on"], ["-i", "off"], ["-d"]):
        if do:
            subprocess.run(["callgrind_control", *do, pid], check=True, capture_output=True)
        if do in ([], ["-i", "on"]):
            for number in range(connections):
                with socket.create_connection(("127.0.0.1", server.port)) as client:
                    client.sendall(HEAD % (number % USERS))
                    while client.recv(4096):
                        pass
    total = 0
    for file in folder.glob(f"callgrind.out.{pid}.*"):
        total += sum(map(int, re.findall(r"^totals: (\d+)", file.read_text(errors="replace"), re.MULTILINE)))
    return round(total / connections / 1000, 1)


def profile(server: Server, seconds: float) -> dict[str, float]:
    """Return the functions, of C and of the kernel, in which the dispatcher is found most often, with their shares."""
    with tempfile.NamedTemporaryFile() as samples:
        perf = [
            "perf",
            "record",
            "-q",
            "-o",
            samples.name,
            "-e",
            "cpu-clock",
            "-F",
            "999",
            "-p",
            str(server.dispatcher()),
        ]
        with subprocess.Popen(perf) as recorder:
            server.load(32, seconds)
            recorder.send_signal(signal.SIGINT)
        report = ["perf", "report", "-i", samples.name, "--no-children", "--sort", "symbol", "--stdio"]
        shown = subprocess.run(report, capture_output=True, text=True, check=True).stdout
    return {name: float(share) for share, name in re.findall(r"^ +([\d.]+)%  \[[.k]\] (\S+)", shown, re.MULTILINE)[:20]}


def main() -> None:
    """Measure, and write down what came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, nargs="+", default=[4, 64], help="at a time")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--instructions", type=int, metavar="N", help="count those of N connections instead")
    parser.add_argument("--profile", action="store_true", help="sample where it is instead, by perf")
    parser.add_argument("--out", type=Path, default=RESULTS / "dispatcher_costs.json")
    given = parser.parse_args()
    prefix = ["valgrind", "--quiet", "--tool=callgrind", "--trace-children=yes", "--instr-atstart=no"]
    prefix.append("--trace-children-skip-by-arg=worker")
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    found |= {"machine": machine(), "workers": given.workers}
    prefix = prefix if given.instructions else []
    with tempfile.TemporaryDirectory() as folder, limpet(Path(folder), given.workers, prefix) as server:
        if given.instructions:
            counted = instructions(server, Path(folder), given.instructions)
            found["thousand_instructions"] = {"one_at_a_time": counted, "connections": given.instructions}
            print(found["thousand_instructions"])
        elif given.profile:
            found["profile_percent"] = profile(server, given.seconds)
            print(json.dumps(found["profile_percent"], indent=1))
        else:
            server.load(64, 1)
            found["at_a_time"] = {
                str(connections): costs(server, connections, given.seconds, given.rounds)
                for connections in given.connections
            }
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
