"""Where the CPU time of mixed requests goes: user and system time, context switches and system calls for each request.

    python benchmarks/mixed_costs.py [--workers 2] [--kind mixed] [--requests 2000] [--instructions]

The same systems and the same load as in `bench.py mixed` (or `single`). Times and switches are those of all processes
of a system, from /proc; system calls are counted by `strace -c` on limpet's workers in a load of its own. With
`--instructions` limpet runs under callgrind instead, which counts what its workers execute in user space for the
*requests* that eight connections send one after the other: a count that no other process on the machine disturbs.

Needs wrk, nginx, and strace or valgrind. Sends to 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import random
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import loads
from parts import running, system_calls
from systems import USERS, System
from targets import DISPATCHER

CONNECTIONS = 8
CALLGRIND = ["valgrind", "--tool=callgrind", "--trace-children=yes", "--instr-atstart=no"]


class Used(NamedTuple):
    """What all processes of a system have used so far: ticks in user and system mode, and context switches."""

    user: int
    kernel: int
    switches: int


def used(system: System) -> Used:
    """Return what *system* has used."""
    user = kernel = switches = 0
    for pid in system.processes():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, kernel = user + int(fields[11]), kernel + int(fields[12])
        switches += sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())))
    return Used(user, kernel, switches)


def workers(system: System) -> list[int]:
    """Return the pids of limpet's workers: those who answer, found by asking."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", system.port, timeout=60)) as connection:
        return sorted({system.ask(user, connection=connection) for user in loads.USERS})


def time_and_switches(system: System, kind: str, seed: int) -> None:
    """Print what *system* needs for a request."""
    tick_us = 1e6 / os.sysconf("SC_CLK_TCK")
    before = used(system)
    answered = loads.closed(system.port, kind, 3, seed)
    user, kernel, switches = (after - early for after, early in zip(used(system), before, strict=True))
    print(
        f"{kind} {system.name}: {user * tick_us / answered:.1f} us in user mode, "
        f"{kernel * tick_us / answered:.1f} us in the kernel, {switches / answered:.2f} context switches"
    )


def instructions(system: System, kind: str, count: int) -> None:
    """Print how many instructions limpet's workers execute in user space for each of *count* requests."""
    pids = workers(system)
    chance = random.Random(1)
    opened = [http.client.HTTPConnection("127.0.0.1", system.port, timeout=60) for _ in range(CONNECTIONS)]
    for switch in ("on", "off"):
        for number in range(count):
            at = number % CONNECTIONS
            system.ask(f"10.0.0.{chance.randrange(USERS) if kind == 'mixed' else at}", connection=opened[at])
        for pid in pids:
            subprocess.run(["callgrind_control", "-i", switch, str(pid)], check=True, capture_output=True)
    for connection in opened:
        connection.close()
    for pid in pids:
        subprocess.run(["callgrind_control", "-d", str(pid)], check=True, capture_output=True)
    total = 0
    for file in system.where.glob("callgrind.out.*.1"):
        total += sum(map(int, re.findall(r"^totals: (\d+)", file.read_text(errors="replace"), re.MULTILINE)))
    print(
        f"{kind}, {len(pids)} workers: {total / count / 1000:.1f} thousand instructions of the workers for each request"
    )


def main() -> None:
    """Run what the arguments ask for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kind", choices=("mixed", "single"), default="mixed")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--instructions", action="store_true")
    options = parser.parse_args()
    if options.instructions:
        os.environ["LIMPET_KEEP_ALIVE_TIMEOUT"] = "600"  # callgrind_control may take longer than 5 s
        os.environ["LIMPET_ON_DOWN"] = "refuse"  # under callgrind a start takes so long that slots would be failed over
        with loads.work_folder() as folder:
            system = System(DISPATCHER, options.workers, Path(folder), CALLGRIND)
            with contextlib.ExitStack() as stack:
                stack.callback(system.stop)
                instructions(system, options.kind, options.requests)
        return
    print(f"{options.workers} workers")
    with running([DISPATCHER, "nginx"], options.workers) as found:
        found.each(System.check_sticky)
        for number in range(options.rounds):
            for system in found.systems:
                time_and_switches(system, options.kind, number)
        for name, calls in system_calls(workers(found.systems[0]), found.systems[0].port, options.kind).items():
            print(f"  {name}: {calls:.2f}")


if __name__ == "__main__":
    main()
