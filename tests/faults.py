"""What can go wrong, and what that may cost: the table of docs/faults.md, by which `make faults` judges.

Each row says what clients see, what is lost, and how soon everybody is served again. The words are for people, `loses`
and the rest for the test; the page is made from both, so they say the same: `python -m tests.faults docs/faults.md`.
How a fault is made is said in tests/real/test_faults.py, by the same names.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from tests.harness import HERE

RESULTS: Final = HERE.parent / "benchmarks" / "results" / "faults.json"
BACKENDS: Final = ("kernel", "dispatcher")


class Loses(Enum):
    """What a fault may cost, in words."""

    NOTHING = "nothing"
    OF_THE_WORKER = "all connections of that worker: requests on them without an answer, websockets"
    REFUSED = "nothing for 5 s; then some new connections get 503 and `Retry-After` (`no_descriptor`)"
    HEADS = "connections whose request head was incomplete, or that waited in the dispatcher because a channel was full"


@dataclass(frozen=True)
class Fault:
    """One row."""

    name: str
    seen: str  # by clients, in words
    loses: Loses = Loses.NOTHING
    says_goodbye: bool = False  # websockets may be told 1012, responses may say `Connection: close`
    again_s: float = 10.0  # until all slots have a worker and everybody is served, where a server starts within 1 s
    backends: tuple[str, ...] = BACKENDS


FAULTS: Final[Mapping[str, Fault]] = {
    row.name: row
    for row in (
        Fault(
            "SIGKILL of a worker",
            "its connections end; new connections wait for the slot's next worker",
            loses=Loses.OF_THE_WORKER,
        ),
        Fault(
            "a worker stopped (SIGSTOP) that goes on before `--hang-timeout`",
            "its clients wait",
        ),
        Fault(
            "a worker stopped for longer",
            "its clients wait; then the same as after SIGKILL",
            loses=Loses.OF_THE_WORKER,
        ),
        Fault(
            "SIGTERM to a worker",
            "websockets are closed with 1012; responses that have not begun say `Connection: close`",
            says_goodbye=True,
        ),
        Fault(
            "SIGKILL of a dispatcher",
            "new connections wait for the next dispatcher; connections that have a worker are not affected",
            loses=Loses.HEADS,
            backends=("dispatcher",),
        ),
        Fault(
            "reload",
            "websockets are closed with 1012; responses that have not begun say `Connection: close`",
            says_goodbye=True,
            again_s=20.0,
        ),
        Fault(
            "scaling",
            "as in a reload, in slots that are removed; clients whose slot changes reach another worker, and their "
            "websockets are closed with 1012",
            says_goodbye=True,
            again_s=20.0,
        ),
        Fault("drain and undrain of a slot", "nothing; new clients go to other slots", backends=("dispatcher",)),
        Fault("upgrade (SIGUSR2)", "nothing", again_s=20.0),
        Fault("full disk for the log file", "nothing; log lines go to stderr"),
        Fault("no free descriptors in a worker", "connections that arrive or move there wait until there are some"),
        Fault(
            "no free descriptors in a dispatcher",
            "new connections wait until there are some",
            loses=Loses.REFUSED,
            backends=("dispatcher",),
        ),
        Fault(
            "no free descriptors in the supervisor",
            "nothing; limpet replaces dead processes and answers commands when there are some",
        ),
    )
}


def row(fault: Fault) -> str:
    """Return the line of *fault* in the table."""
    only = "" if fault.backends == BACKENDS else f" ({', '.join(fault.backends)} backend)"
    return f"| {fault.name}{only} | {fault.seen} | {fault.loses.value} | {fault.again_s:g} s |"


def table() -> str:
    """Return the table."""
    head = ["| fault | what clients see | what is lost | served again within |", "|---|---|---|---|"]
    return "\n".join([*head, *map(row, FAULTS.values())])


def figures(results: Mapping[str, Any]) -> str:
    """Return what the last run of each backend has shown, as a table and a line."""
    lines = ["| fault | " + " | ".join(f"{name}: times, median, longest" for name in results) + " |"]
    lines += ["|---|" + "---|" * len(results)]
    for name in FAULTS:
        cells = [_times(found["again_s"].get(name)) for found in results.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for backend, found in results.items():
        lost = ", ".join(f"{count} by {name}" for name, count in found["lost"].items()) or "none"
        lines += [
            "",
            f"{backend}: {found['faults']} faults with seed {found['seed']}, {found['served']:,} requests served, "
            f"{found['echoes']:,} frames echoed, {found['restarted']:,} websockets told 1012; lost: {lost}.",
        ]
    return "\n".join(lines)


def _times(found: list[float] | None) -> str:
    return f"{len(found)}, {statistics.median(found):.1f} s, {max(found):.1f} s" if found else "-"


def inserted(text: str, results: Mapping[str, Any]) -> str:
    """Return the page *text* with the tables between its marks."""
    for mark, made in (("table", table()), ("figures", figures(results))):
        before, _, rest = text.partition(f"<!-- {mark} -->\n")
        text = f"{before}<!-- {mark} -->\n\n{made}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(inserted(page.read_text(), json.loads(RESULTS.read_text())))
