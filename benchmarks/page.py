"""docs/benchmarks.md from the results of bench.py: `python benchmarks/page.py RESULTS... > docs/benchmarks.md`."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from measure import interval


class Target(NamedTuple):
    """What limpet is held to: the CPU of *subject* for the load *part*, as a ratio to that of *against*."""

    what: str
    part: str
    subject: str
    against: str
    most: float


TARGETS: Final = [
    Target("a connection for each request, kernel backend", "connection", "limpet kernel", "uvicorn", 1.00),
    Target("the same, dispatcher by header", "connection", "limpet dispatcher", "uvicorn", 1.12),
    Target("the same, dispatcher by header", "connection", "limpet dispatcher", "nginx", 1.10),
    Target("keep-alive, one user for each connection", "single", "limpet dispatcher", "nginx", 0.55),
    Target("pooled connections, each request another user", "mixed", "limpet dispatcher", "nginx", 0.85),
    Target("websocket, messages of 64 bytes", "echo", "limpet dispatcher", "nginx", 0.60),
    Target("websocket, messages of 64 KB", "echo64k", "limpet dispatcher", "nginx", 0.60),
]
NAMES: Final = {
    "connection": "connection for each request",
    "single": "keep-alive, one user for each connection",
    "mixed": "pooled, each request another user",
    "echo": "websocket, 64 bytes",
    "echo64k": "websocket, 64 KB",
    "events": "server-sent event",
    "upload": "upload of 1 MB",
    "download": "download of 1 MB",
}
SYSTEMS: Final = {
    "limpet kernel": "limpet, kernel backend by address",
    "limpet dispatcher": "limpet, dispatcher by header",
    "uvicorn": "`uvicorn --workers` (not sticky)",
    "gunicorn": "gunicorn with uvicorn's worker (not sticky)",
    "granian": "granian (not sticky)",
    "nginx": "nginx `hash` before uvicorns",
    "haproxy": "HAProxy `balance hdr` before uvicorns",
    "node cluster": "Node cluster (not sticky)",
    "node sticky ip": "sticky-session-custom, by address",
    "node sticky header": "sticky-session-custom, by header (per connection)",
}
PREFACE: Final = """\
# Benchmarks

    make bench

loads limpet and what people use today side by side, in one run, in rounds. What counts is the CPU time of all processes
of a system for each answer, as a ratio within each round: geometric mean, and the 95 % interval of a bootstrap over
rounds. Throughput and absolute times say more about the machine than about the systems. The application does nothing,
so ratios of real ones are nearer to 1. Raw results and the scripts are in `benchmarks/`; this page is made from them.
"""


def rows_of_targets(results: dict[str, Any]) -> Iterator[tuple[float, str]]:
    """Yield how far each target is from being reached, and its row."""
    for target in TARGETS:
        rounds = results.get(target.part, {}).get("rounds")
        if rounds:
            ratio, low, high = interval([each[target.subject]["us"] / each[target.against]["us"] for each in rounds])
            verdict = "reached" if ratio <= target.most else "**not reached**"
            cells = (
                target.what,
                SYSTEMS[target.against],
                f"{ratio:.2f} ({low:.2f} to {high:.2f})",
                f"{target.most:.2f}",
            )
            yield ratio / target.most, row([*cells, verdict])
    yield from _others(results)


def _others(results: dict[str, Any]) -> Iterator[tuple[float, str]]:
    """Yield the same for the targets that are no ratio of CPU for each answer."""
    if "connection" in results:
        median = {
            name: statistics.median(each[name]["us"] for each in results["connection"]["rounds"])
            for name in results["connection"]["rounds"][0]
        }
        if "node sticky header" in median:
            added = (median["limpet dispatcher"] - median["uvicorn"]) / (
                median["node sticky header"] - median["node cluster"]
            )
            yield _other("CPU that balancing adds to a connection", "sticky-session-custom, by header", added, 0.08)
    if "paced" in results:
        rounds = results["paced"]["rounds"]
        for name in ("limpet kernel", "limpet dispatcher"):
            late = statistics.median(each[name]["p99"] / each["uvicorn"]["p99"] for each in rounds)
            yield _other(f"p99 at half of capacity, {name.split()[1]}", SYSTEMS["uvicorn"], late, 1.05)
    if "idle" in results:
        used = results["idle"]["bytes"]
        for name in ("limpet kernel", "limpet dispatcher"):
            what = f"memory of an idle websocket, {name.split()[1]}"
            yield _other(what, SYSTEMS["uvicorn"], used[name] / used["uvicorn"], 1.05)
    if "dispatcher" in results:
        own = results["dispatcher"]
        rss = sum(each["rss"] for each in own["memory"].values()) / 1e6
        yield _other("resident memory of supervisor and dispatcher, MB", "", rss, 45)
        yield _other(
            "CPU of the dispatcher for each connection, us", "", statistics.median(e["us"] for e in own["rounds"]), 18
        )


def _other(what: str, against: str, found: float, most: float) -> tuple[float, str]:
    verdict = "reached" if found <= most else "**not reached**"
    return found / most, row([what, against, f"{found:.2f}", f"{most:.2f}", verdict])


def row(cells: Iterable[str]) -> str:
    """Return one row of a table."""
    return "| " + " | ".join(cells) + " |"


def side_by_side(results: dict[str, Any]) -> Iterator[str]:
    """Yield the table of all systems and loads: CPU microseconds for each answer, medians of the rounds."""
    parts = [part for part in NAMES if part in results]
    yield row(["", *(NAMES[part] for part in parts)])
    yield row(["---"] * (len(parts) + 1))
    for name, shown in SYSTEMS.items():
        cells = []
        for part in parts:
            rounds = results[part]["rounds"]
            cells.append(f"{statistics.median(each[name]['us'] for each in rounds):.0f}" if name in rounds[0] else "")
        if any(cells):
            yield row([shown, *cells])


def page(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines about one file of results."""
    first = next(iter(results.values()))
    where = first["machine"]
    yield f"\n## {first['workers']} workers\n"
    linux = where["kernel"].split("-")[0]
    yield f"{where['cpus']} shared cores ({where['cpu']}), Python {where['python']}, Linux {linux}.\n"
    yield row(["what", "against", "limpet needs", "held to", ""])
    yield row(["---"] * 5)
    for _, line in sorted(rows_of_targets(results), reverse=True):
        yield line
    yield "\nCPU microseconds for each answer:\n"
    yield from side_by_side(results)
    calls = results.get("dispatcher", {}).get("calls")
    if calls:
        shown = ", ".join(f"{name} {count:.2f}" for name, count in sorted(calls.items(), key=lambda item: -item[1]))
        yield f"\nSystem calls of the dispatcher for each connection, under load: {shown}."


def main() -> None:
    """Print the page."""
    print(PREFACE, end="")
    for name in sys.argv[1:]:
        print("\n".join(page(json.loads(Path(name).read_text()))))


if __name__ == "__main__":
    main()
