"""Where the CPU time of `mixed.py` goes: user and system time, context switches and system calls for each request.

    python benchmarks/mixed_costs.py [--workers 2] [--kind mixed] [--requests 2000] [--instructions]

The same systems and the same load as in mixed.py. Times and switches are those of all processes of a system, from
/proc; system calls are counted by `strace -c` on limpet's workers in a load of its own. With `--instructions` limpet
runs under callgrind instead, which counts what its workers execute in user space for the *requests* that eight
connections send one after the other: a count that no other process on the machine disturbs.

Needs what mixed.py needs, and strace or valgrind. Sends to 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import re
import signal
import subprocess
import tempfile
from pathlib import Path

from measure import tree
from mixed import LUA, USERS, System, ask, check_sticky, load, start_systems

CONNECTIONS = 8


def figures(system: System) -> tuple[int, int, int]:
    """Return the ticks in user and system mode and the context switches of all processes of *system* so far."""
    user = kernel = switches = 0
    for process in system.processes:
        for pid in tree(process.pid):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            user, kernel = user + int(fields[11]), kernel + int(fields[12])
            switches += sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())))
    return user, kernel, switches


def workers(system: System) -> list[int]:
    """Return the pids of limpet's workers: those who answer, found by asking."""
    connection = http.client.HTTPConnection("127.0.0.1", system.port, timeout=60)
    pids = {ask(system.port, f"user{number}", connection)["pid"] for number in range(USERS)}
    connection.close()
    return sorted(pids)


def time_and_switches(systems: list[System], script: Path, kind: str, rounds: int) -> None:
    """Print what each of *systems* needs for a request, alternating."""
    tick_us = 1e6 / os.sysconf("SC_CLK_TCK")
    for number in range(rounds):
        for system in systems:
            before = figures(system)
            requests = load(system, script, number, kind, 3)["requests"]
            user, kernel, switches = (after - early for after, early in zip(figures(system), before, strict=True))
            print(
                f"{kind} {system.name}: {user * tick_us / requests:.1f} us in user mode, "
                f"{kernel * tick_us / requests:.1f} us in the kernel, {switches / requests:.2f} context switches"
            )


def system_calls(system: System, script: Path, kind: str) -> None:
    """Print the system calls of limpet's workers for each request."""
    pids = [argument for pid in workers(system) for argument in ("-p", str(pid))]
    with tempfile.NamedTemporaryFile("r") as output:
        tracer = subprocess.Popen(["strace", "-f", "-c", "-o", output.name, *pids], stderr=subprocess.DEVNULL)
        try:
            requests = load(system, script, 7, kind, 3)["requests"]
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(30)
        for line in output.read().splitlines():
            words = line.split()
            if len(words) >= 5 and words[3].isdigit() and int(words[3]) / requests >= 0.005:
                print(f"  {words[-1]}: {int(words[3]) / requests:.2f}")


def instructions(system: System, kind: str, count: int, where: Path) -> None:
    """Print how many instructions limpet's workers execute in user space for each of *count* requests."""
    pids = workers(system)
    rng = random.Random(1)
    connections = [http.client.HTTPConnection("127.0.0.1", system.port, timeout=60) for _ in range(CONNECTIONS)]
    for switch in ("on", "off"):
        for number in range(count):
            at = number % CONNECTIONS
            ask(system.port, f"user{rng.randrange(USERS) if kind == 'mixed' else at}", connections[at])
        for pid in pids:
            subprocess.run(["callgrind_control", "-i", switch, str(pid)], check=True, capture_output=True)
    for connection in connections:
        connection.close()
    for pid in pids:
        subprocess.run(["callgrind_control", "-d", str(pid)], check=True, capture_output=True)
    total = 0
    for file in where.glob("callgrind.out.*.1"):
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
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        os.chmod(where, 0o755)  # nginx's workers are another user
        script = where / "users.lua"
        script.write_text(LUA.replace("USERS", str(USERS)))
        os.environ["LIMPET_KEEP_ALIVE_TIMEOUT"] = "600"  # callgrind_control may take longer than 5 s
        prefix = ["valgrind", "--tool=callgrind", "--trace-children=yes", "--instr-atstart=no"]
        systems = start_systems(options.workers, where, prefix if options.instructions else [])
        try:
            systems = systems[:1] if options.instructions else systems
            for system in systems:
                system.wait_up()
                check_sticky(system)
            if options.instructions:
                instructions(systems[0], options.kind, options.requests, where)
            else:
                print(f"{options.workers} workers")
                time_and_switches(systems, script, options.kind, options.rounds)
                system_calls(systems[0], script, options.kind)
        finally:
            for system in systems:
                system.stop()


if __name__ == "__main__":
    main()
