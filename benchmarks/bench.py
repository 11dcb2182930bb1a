"""The side-by-side run of limpet and what people use today: `make bench`, or one part of it.

    python benchmarks/bench.py [PART...] [--workers 2] [--rounds N] [--seconds S] [--without SYSTEM] [--output FILE]

A part is a load of loads.py, `events` (server-sent events), `paced` (how long answers take at a fixed rate), `idle`
(memory of websockets that say nothing), `start`, `dispatcher` and `own memory` (what limpet's own processes cost), or
`operator mixed` and `operator single` (metrics and access log on and off). Without a name all are run, as `PARTS` says.

All systems that can take a load run at once and are loaded in turn, in rounds that begin with another one each time.
What counts is the CPU time of all processes of the system under test (user + system, from /proc), divided by what was
answered; never the load's own, never a wall clock. Ratios are formed within each round; reported is their geometric
mean over the rounds with the 95 % interval of a bootstrap. Before the measurement each system that promises stickiness
is held to it, and a balancer to keeping its connections to its workers.

A system that fails is noted with its error and left out from there on. The output is written after each part;
`--resume` goes on with a run that was ended, or for which there was no time, with the parts that are not in it. What
runs is ended with the run.

On loopback the kernel's work for what a client sends is done while it sends, so it is in no system's figures. Sends to
127.0.0.1 only. Needs wrk, nginx, haproxy, node and strace on the path.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import functools
import importlib.metadata
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

from measure import machine
from parts import ASGI, NODE, OPERATOR, Amount, Found, dispatcher, idle, own_memory, paced, side_by_side, start
from systems import SYSTEMS
from targets import DISPATCHER, KERNEL, TARGETS, medians, shown

HERE: Final = Path(__file__).parent


class Part(NamedTuple):
    """What is measured how, with which systems, and how much of it unless the command line says otherwise."""

    run: Callable[[str, list[str], Amount], Found]
    names: list[str]
    rounds: int
    seconds: float
    figure: str = "us"


MIXED: Final = functools.partial(side_by_side, kind="mixed")
SINGLE: Final = functools.partial(side_by_side, kind="single")
BY_USER: Final = [name for name in ASGI + NODE if name not in (KERNEL, "node sticky ip")]  # wrk has one address
# What limpet is held to comes first: where the time is limited, what is left out is the rest.
PARTS: Final = {
    "connection": Part(side_by_side, ASGI + NODE, 15, 1),
    "mixed": Part(side_by_side, [DISPATCHER, "nginx", "haproxy"], 15, 1),  # who is sticky for each request
    "single": Part(side_by_side, BY_USER, 12, 1),
    "echo": Part(side_by_side, ASGI, 12, 1),
    "echo64k": Part(side_by_side, ASGI, 9, 1),
    "paced": Part(paced, [KERNEL, DISPATCHER, "uvicorn"], 9, 3, "p99_ms"),
    "dispatcher": Part(dispatcher, [DISPATCHER], 9, 1),
    "own memory": Part(own_memory, [DISPATCHER], 1, 1, "rss_mb"),
    "idle": Part(idle, [KERNEL, DISPATCHER, "uvicorn", "nginx"], 1, 0, "bytes"),
    "kept": Part(side_by_side, [KERNEL, DISPATCHER, "uvicorn", "node sticky ip"], 6, 1),
    "operator mixed": Part(MIXED, OPERATOR, 6, 1),
    "operator single": Part(SINGLE, OPERATOR, 6, 1),
    "upload": Part(side_by_side, ASGI, 3, 1),
    "download": Part(side_by_side, ASGI, 3, 1),
    "events": Part(side_by_side, ASGI, 3, 2),
    "storm": Part(side_by_side, ASGI, 3, 1),
    "start": Part(start, [KERNEL, DISPATCHER, "uvicorn", "gunicorn"], 3, 0, "cpu_s"),
}


def summary(part: str, found: Found) -> str:
    """Return what *found* amounts to, for people."""
    rounds, figure = [each for each in found["rounds"] if each], PARTS[part].figure
    lines = [f"{part}: {name} {value:.2f} {figure}" for name, value in medians(rounds, figure).items()]
    for target in TARGETS:
        if target.part == part and (value := target.found(rounds)):
            against = f" x {target.against}" if target.against else ""
            lines.append(f"{part}: {target.what}: {shown(value, target.unit)}{against}, at most {target.most:g}")
    return "\n".join([*lines, *(f"{part}: {name} FAILED: {why}" for name, why in found["failed"].items())])


def about(workers: int) -> dict[str, Any]:
    """Return what was measured where, and when."""
    line = ["git", "-C", str(HERE), "log", "-1", "--format=%h"]
    commit = subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()
    day = time.strftime("%Y-%m-%d", time.gmtime())
    found = {"machine": machine(), "workers": workers, "commit": commit, "day": day, "minutes": 0.0}
    return found | {"versions": list(versions())}


def versions() -> Iterator[str]:
    """Yield what limpet is compared with, and on what it runs."""
    for name in ("uvicorn", "uvloop", "httptools", "gunicorn", "granian"):
        yield f"{name} {importlib.metadata.version(name)}"
    for name, option in (("nginx", "-v"), ("haproxy", "-v"), ("node", "--version")):
        with contextlib.suppress(FileNotFoundError):  # then that system fails, and the results say so
            said = subprocess.run([name, option], capture_output=True, text=True, check=False)
            number = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
            yield f"{name} {number[0] if number else '?'}"


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="as many of each part")
    parser.add_argument("--seconds", type=float, help="of each load")
    parser.add_argument("--websockets", type=int, default=10_000)
    parser.add_argument("--without", action="append", default=[], choices=list(SYSTEMS), help="leave a system out")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no part after so many")
    parser.add_argument("--resume", action="store_true", help="leave out the parts that the output has")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    return options


def end(number: int, frame: FrameType | None) -> None:
    """End the run, and what it has started. Runs in a signal handler; a second signal changes nothing."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    """Run the parts that are asked for; keep what the results file has of the others."""
    options = arguments()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end)
    compileall.compile_dir(HERE.parent / "limpet", quiet=1)  # as an installer does; else processes are slow to start
    wanted = options.parts or list(PARTS)
    kept = json.loads(options.output.read_text()) if options.output and options.output.exists() else {"parts": {}}
    done = kept["parts"] if options.resume or options.parts else {}
    wanted = [name for name in wanted if not (options.resume and name in done)]
    results = {"run": about(options.workers), "parts": {name: done[name] for name in done if name not in wanted}}
    earlier = kept["run"]["minutes"] if done else 0.0
    began = time.monotonic()
    for name in wanted:
        if time.monotonic() - began > options.minutes * 60:
            print(f"{name}: left out, since {options.minutes:g} minutes are over", flush=True)
            continue
        part = PARTS[name]
        rounds, seconds = options.rounds or part.rounds, options.seconds or part.seconds
        amount = Amount(options.workers, rounds, seconds, options.websockets)
        since = time.monotonic()
        found = part.run(name, [each for each in part.names if each not in options.without], amount)
        found |= {"seconds": seconds, "took_s": round(time.monotonic() - since, 1)}
        print(f"{summary(name, found)}\n{name}: took {found['took_s']:.0f} s", flush=True)
        results["parts"][name] = found
        results["run"]["minutes"] = round(earlier + (time.monotonic() - began) / 60, 1)
        if options.output:
            options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
