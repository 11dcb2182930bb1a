"""docs/benchmarks.md, its pictures, and the figures in the README, all from the results of bench.py.

    python benchmarks/page.py RESULTS...

Each file of results has another number of workers. What was not measured is said to be missing; a run with fewer rounds
than bench.py makes is said to be a short one. What limpet loses comes first.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bench import PARTS
from plots import Bar, Dot, bars, dots
from targets import DISPATCHER, KERNEL, TARGETS, Round, Target, held, medians, shown

ROOT: Final = Path(__file__).parents[1]
NUMBERS: Final = re.compile(r"(?<=<!-- numbers -->\n).*?(?=<!-- end of numbers -->)", re.DOTALL)
ROUNDS: Final = 5  # fewer are a short run
NAMES: Final = {
    "connection": "connection for each request",
    "storm": "the same, 500 at a time",
    "single": "keep-alive, one user for each connection",
    "kept": "keep-alive, one address for each connection",
    "mixed": "pooled, each request another user",
    "echo": "websocket, 64 bytes",
    "echo64k": "websocket, 64 KB",
    "events": "server-sent event",
    "upload": "upload of 1 MB",
    "download": "download of 1 MB",
    "idle": "idle websocket, bytes",
    "paced": "p99 at a quarter of capacity, ms",
}
LOADS: Final = [part for part in NAMES if part not in ("idle", "paced")]
SYSTEMS: Final = {
    KERNEL: "limpet, kernel backend by address",
    DISPATCHER: "limpet, dispatcher by header",
    "uvicorn": "`uvicorn --workers` (not sticky)",
    "gunicorn": "gunicorn with uvicorn's worker (not sticky)",
    "granian": "granian (not sticky)",
    "nginx": "nginx `hash` before uvicorns",
    "haproxy": "HAProxy `balance hdr` before uvicorns",
    "node cluster": "Node cluster (not sticky)",
    "node sticky ip": "sticky-session-custom, by address",
    "node sticky header": "sticky-session-custom, by header (per connection)",
    "node socket.io sticky": "@socket.io/sticky (Socket.IO's sessions; all else in turn)",
}
SHORT: Final = {KERNEL: "limpet kernel", DISPATCHER: "limpet dispatcher", "node sticky ip": "node sticky by address"}
PREFACE: Final = """\
# Benchmarks

This page is a reference. `make bench` loads limpet and the systems that people use today side by side. It measures the
CPU time of all processes of a system for each answer. Each figure is a ratio: limpet's value divided by the value of
another system in the same round. The tables show the geometric mean over the rounds and, in parentheses, the 95 %
interval of a bootstrap over the rounds. Below 1: limpet needs less. The measured application does nothing, so the
ratios of real applications are closer to 1. The page is made from the results in `benchmarks/results/`.
"""
METHOD: Final = """
## How it is measured, and what it does not say

    make bench                                                    # all of it: half an hour; writes this page
    python benchmarks/bench.py mixed --workers 4 --output FILE    # one part
    python benchmarks/page.py benchmarks/results/bench-2.json benchmarks/results/bench-4.json

- All systems of a part run at the same time and are loaded one after another. Each round begins with another system.
  Systems that no target names are loaded only in every third round.
- Before the rounds, the benchmark checks that each system that promises stickiness is sticky, and that nginx and
  HAProxy re-use their connections.
- The number of the round is the seed that chooses users (200) and addresses (512). 32 requests are in flight.
- The p99 is measured at a fixed rate, from the moment when a request was due. The rate is a quarter of what the slowest
  compared system answers to the same clients in a closed loop. So the p99 says nothing about the capacity of a machine.
- The load runs on the same machine. So there is no network, the load limits the throughput, and absolute times say more
  about the machine than about the systems. Absolute times differ by 10 % from run to run. Ratios within a run do not.
- On loopback the kernel does its work for received data while the client sends. So that work is in no system's figures.
- Every uvicorn runs on uvloop and httptools, as in limpet, also behind nginx and HAProxy. Access logs are off.
- Node's servers run the same application in another language, so their figures also compare the languages.
"""

Run = dict[str, Any]


def row(cells: Iterable[str]) -> str:
    """Return one row of a table."""
    return "| " + " | ".join(cells) + " |"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table."""
    yield ""
    yield row(head)
    yield row(["---"] * len(head))
    yield from map(row, rows)


def rounds_of(run: Run, part: str) -> list[Round]:
    """Return the rounds of *part*; none if it was not measured."""
    return [each for each in run["parts"].get(part, {}).get("rounds", []) if each]


def why_missing(run: Run, target: Target) -> str:
    """Return why there is no figure for *target*."""
    failed = run["parts"].get(target.part, {}).get("failed", {})
    reasons = [f"{name} failed" for name in held(target.part) if name in failed]
    return "not measured" + (f": {', '.join(reasons)}" if reasons else "")


def with_workers(run: Run) -> str:
    """Return what a column of *run* is called."""
    return f"{run['run']['workers']} workers"


def is_short(run: Run) -> bool:
    """Return whether something that limpet is held to has fewer rounds than are worth an interval, or is missing."""
    return any(len(rounds_of(run, name)) < min(ROUNDS, part.rounds) for name, part in PARTS.items() if held(name))


def losses(runs: Sequence[Run]) -> Iterator[str]:
    """Yield where another system needs less than limpet, what is lost most first."""
    rows: list[tuple[float, list[str]]] = []
    for part, own, other in ((part, own, other) for part in NAMES for own in (KERNEL, DISPATCHER) for other in SYSTEMS):
        pair = Target("", part, own, other, 1, PARTS[part].figure)
        found = [pair.found(rounds_of(run, part)) for run in runs]
        if other not in (KERNEL, DISPATCHER) and (most := max((each[0] for each in found if each), default=0)) > 1:
            cells = [shown(each) if each else "" for each in found]
            rows.append((most, [NAMES[part], SYSTEMS[own], SYSTEMS[other], *cells]))
    yield "\n## Where limpet loses"
    yield "\nEach load, and each system that needs less for it than limpet, with any number of workers:"
    ordered = [cells for _, cells in sorted(rows, key=lambda each: -each[0])]
    yield from table(["load", "limpet", "needs less", *map(with_workers, runs)], ordered)


def verdicts(runs: Sequence[Run]) -> list[tuple[Target, list[tuple[float, float, float] | None]]]:
    """Return all targets, and what was found of each in each run; what is farthest from being reached first."""
    found = [(target, [target.found(rounds_of(run, target.part)) for run in runs]) for target in TARGETS]

    def missed(of: tuple[Target, list[tuple[float, float, float] | None]]) -> float:
        return max(each[0] / of[0].most if each else 1.0 for each in of[1])

    return sorted(found, key=missed, reverse=True)


def targets(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the table of what limpet is held to."""
    yield "\n## What limpet is held to"
    yield "\n![each figure as a share of what it is held to](images/benchmarks-targets.svg)"
    rows = []
    for target, found in verdicts(runs):
        cells = []
        for run, value in zip(runs, found, strict=True):
            verdict = "reached" if value and value[0] <= target.most else "**not reached**"
            cells.append(f"{shown(value, target.unit)}, {verdict}" if value else why_missing(run, target))
        rows.append([target.what, SYSTEMS.get(target.against, ""), f"{target.most:g} {target.unit}".strip(), *cells])
    yield from table(["what", "against", "at most", *map(with_workers, runs)], rows)


def side_by_side(run: Run) -> Iterator[str]:
    """Yield what each system needs for each load, medians of the rounds."""
    parts = [part for part in LOADS if rounds_of(run, part)]
    median = {part: medians(rounds_of(run, part), "us") for part in parts}
    yield f"\n## All loads, {with_workers(run)}"
    yield f"\n![CPU time for each answer](images/benchmarks-loads-{run['run']['workers']}.svg)"
    yield "\nCPU microseconds for each answer, medians of the rounds. Empty: not what this system is for."
    rows = [
        [shown_as, *(f"{median[part][name]:.0f}" if name in median[part] else "" for part in parts)]
        for name, shown_as in SYSTEMS.items()
    ]
    yield from table(["", *(NAMES[part] for part in parts)], rows)
    if paced := rounds_of(run, "paced"):
        yield f"\nMilliseconds until the answer, at {run['parts']['paced']['rate']:.0f} requests a second:"
        found = {figure: medians(paced, f"{figure}_ms") for figure in ("p50", "p99", "p999")}
        rows = [[SYSTEMS[name], *(f"{each[name]:.2f}" for each in found.values())] for name in found["p50"]]
        yield from table(["", *found], rows)


def own_cost(runs: Sequence[Run]) -> Iterator[str]:
    """Yield what limpet's own processes and its operator's view cost."""
    yield "\n## What limpet's own processes cost"
    for run in runs:
        calls = run["parts"].get("dispatcher", {}).get("calls", {})
        if calls:
            named = ", ".join(f"{name} {count:.2f}" for name, count in sorted(calls.items(), key=lambda each: -each[1]))
            yield f"\nSystem calls of the dispatcher for each connection, {with_workers(run)}, under load: {named}."
    if any(rounds_of(run, "start") for run in runs):
        yield "\nSeconds from the start until all workers have answered, by the clock and of CPU time of all processes:"
        clocks, cpus = ([medians(rounds_of(run, "start"), figure) for run in runs] for figure in ("s", "cpu_s"))
        yield from table(
            ["", *map(with_workers, runs)],
            [
                [shown_as, *(f"{clock[name]:.2f}, {cpu[name]:.2f}" for clock, cpu in zip(clocks, cpus, strict=True))]
                for name, shown_as in SYSTEMS.items()
                if all(name in clock for clock in clocks)
            ],
        )
    rows = []
    for part, name in (
        (f"operator {load}", name) for load in ("mixed", "single") for name in ("metrics", "everything")
    ):
        cells = []
        for run in runs:
            found = Target("", part, f"limpet {name}", DISPATCHER, 1).found(rounds_of(run, part))
            cells.append(shown(found) if found else "not measured")
        what = "metrics, scraped once a second" + (", and an access log in JSON" if name == "everything" else "")
        rows.append([NAMES[part.removeprefix("operator ")], what, *cells])
    yield "\nCPU time for each request with the operator's view, as a ratio to limpet without it:"
    yield from table(["load", "switched on", *map(with_workers, runs)], rows)


def failures(runs: Sequence[Run]) -> Iterator[str]:
    """Yield which systems failed, and how."""
    lines = [
        f"- {with_workers(run)}, {part}: {name} failed: `{why}`"
        for run in runs
        for part, found in run["parts"].items()
        for name, why in found["failed"].items()
    ]
    if lines:
        yield "\n## What could not be measured\n"
        yield from lines


def machines(runs: Sequence[Run]) -> Iterator[str]:
    """Yield where and when the runs were made, and whether they are short."""
    for run in runs:
        about, where = run["run"], run["run"]["machine"]
        counts = sorted(len(rounds_of(run, name)) for name in PARTS if held(name) and PARTS[name].rounds >= ROUNDS)
        short = "**A short run, whose figures are an example**: " if is_short(run) else ""
        linux = where["kernel"].split("-")[0]
        yield (
            f"\n{short}{with_workers(run)}, {about['day']}, commit {about['commit']}, {about['minutes']:.0f} minutes, "
            f"{counts[0]} to {counts[-1]} rounds of what limpet is held to. {where['cpus']} shared cores "
            f"({where['cpu']}), Python {where['python']}, Linux {linux}; {', '.join(about['versions'])}."
        )


def page(runs: Sequence[Run]) -> str:
    """Return the page."""
    lines = [
        *machines(runs),
        *losses(runs),
        *targets(runs),
        *(line for run in runs for line in side_by_side(run)),
        *own_cost(runs),
        *failures(runs),
    ]
    return PREFACE + "\n".join(lines) + "\n" + METHOD


def readme(runs: Sequence[Run]) -> str:
    """Return the table of the README: the targets that are ratios to another system, what is lost first.

    A short run is no evidence, so the README has nothing of it.
    """
    if any(map(is_short, runs)):
        return "No full run is kept yet: `make bench` makes one, in half an hour, and writes its figures here.\n"
    rows = []
    for target, found in verdicts(runs):
        if target.against and not target.base:
            cells = [
                f"{shown(each)}{': **here we lose**' if each[0] > 1 else ''}" if each else "not measured"
                for each in found
            ]
            rows.append(
                (
                    max(each[0] for each in found if each) if any(found) else 1.0,
                    [target.what, SYSTEMS[target.against], *cells],
                )
            )
    ordered = [cells for _, cells in sorted(rows, key=lambda each: -each[0])]
    lines = table(["", "against", *map(with_workers, runs)], ordered)
    return "\n".join(lines) + "\n\n"


def pictures(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """Yield the name of each picture, and what is in it."""
    shares = []
    for target, found in verdicts(runs):
        against = f", against {SHORT.get(target.against, target.against)}" if target.against else ""
        for run, value in zip(runs, found, strict=True):
            if value:
                name = f"{target.what}{against}, {with_workers(run)}"
                shares.append(Dot(name, *(each / target.most for each in value)))
    yield "targets", dots("As a share of what it is held to: up to 1 it is reached", shares)
    for run in runs:
        panels = [
            (
                NAMES[part],
                [
                    Bar(SHORT.get(name, name), value, name.startswith("limpet"))
                    for name, value in medians(rounds_of(run, part), "us").items()
                ],
            )
            for part in LOADS
            if rounds_of(run, part)
        ]
        yield f"loads-{run['run']['workers']}", bars(f"CPU microseconds for each answer, {with_workers(run)}", panels)


def main() -> None:
    """Write them."""
    runs = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    (ROOT / "docs" / "benchmarks.md").write_text(page(runs))
    for name, drawn in pictures(runs):
        (ROOT / "docs" / "images" / f"benchmarks-{name}.svg").write_text(drawn)
    whole = ROOT / "README.md"
    whole.write_text(NUMBERS.sub(lambda _: readme(runs), whole.read_text()))


if __name__ == "__main__":
    main()
