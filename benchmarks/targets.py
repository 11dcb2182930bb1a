"""What limpet is held to, and what rounds of measurements amount to.

`TARGETS` is read by bench.py, which gives more rounds to the systems named in it, and by page.py. Pure: rounds come in,
figures go out. A round is `{system: {figure: value}}`; a system that failed, or is measured in fewer rounds, is not in
all of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

from measure import interval

Round = dict[str, dict[str, float]]


class Target(NamedTuple):
    """*subject*'s *figure* in *part* is *most* at most, as a ratio to that of *against* if that is given.

    With *base*, what counts is how much each has more than another system: *subject* than the first of *base*,
    *against* than the second.
    """

    what: str
    part: str
    subject: str
    against: str
    most: float
    figure: str = "us"
    base: tuple[str, str] | None = None
    unit: str = ""

    def found(self, rounds: Sequence[Round]) -> tuple[float, float, float] | None:
        """Return what it is in *rounds*, and its 95 % interval. None: these rounds do not have it."""
        names = {self.subject, self.against, *(self.base or ())} - {""}
        having = [each for each in rounds if names <= each.keys()]
        return interval(having, self._amounts_to) if having else None

    def _amounts_to(self, rounds: Sequence[Round]) -> float:
        if self.base:
            own, theirs = (
                sum(each[name][self.figure] - each[base][self.figure] for each in rounds)
                for name, base in zip((self.subject, self.against), self.base, strict=True)
            )
            return own / theirs
        if self.against:
            return ratio(rounds, self.subject, self.against, self.figure)
        return statistics.fmean(each[self.subject][self.figure] for each in rounds)


def ratio(rounds: Sequence[Round], subject: str, against: str, figure: str = "us") -> float:
    """Return the geometric mean of what *subject* needs of *figure* in each of *rounds*, as a ratio to *against*."""
    return math.exp(statistics.fmean(math.log(each[subject][figure] / each[against][figure]) for each in rounds))


def medians(rounds: Sequence[Round], figure: str) -> dict[str, float]:
    """Return the median of *figure* of each system in *rounds*."""
    names = {name: None for each in rounds for name in each}  # in their order
    return {name: statistics.median(each[name][figure] for each in rounds if name in each) for name in names}


KERNEL: Final = "limpet kernel"
DISPATCHER: Final = "limpet dispatcher"
_ADDED: Final = ("uvicorn", "node cluster")
TARGETS: Final = [
    Target("a connection for each request, kernel backend", "connection", KERNEL, "uvicorn", 1.00),
    Target("a connection for each request, dispatcher by header", "connection", DISPATCHER, "uvicorn", 1.12),
    Target("a connection for each request, dispatcher by header", "connection", DISPATCHER, "nginx", 1.10),
    Target("what balancing adds to a connection", "connection", DISPATCHER, "node sticky header", 0.08, base=_ADDED),
    Target("keep-alive, one user for each connection", "single", DISPATCHER, "nginx", 0.55),
    Target("pooled connections, each request another user", "mixed", DISPATCHER, "nginx", 0.85),
    Target("websocket, messages of 64 bytes", "echo", DISPATCHER, "nginx", 0.60),
    Target("websocket, messages of 64 KB", "echo64k", DISPATCHER, "nginx", 0.60),
    Target("p99 at a quarter of capacity, kernel backend", "paced", KERNEL, "uvicorn", 1.05, "p99_ms"),
    Target("p99 at a quarter of capacity, dispatcher by header", "paced", DISPATCHER, "uvicorn", 1.05, "p99_ms"),
    Target("memory of an idle websocket, kernel backend", "idle", KERNEL, "uvicorn", 1.05, "bytes"),
    Target("memory of an idle websocket, dispatcher by header", "idle", DISPATCHER, "uvicorn", 1.05, "bytes"),
    Target("the dispatcher's own CPU for a connection", "dispatcher", "dispatcher", "", 18, unit="us"),
    Target("resident memory of supervisor and dispatcher", "own memory", "both", "", 45, "rss_mb", unit="MB"),
]


def held(part: str) -> set[str]:
    """Return the systems that a target of *part* names."""
    return {name for each in TARGETS if each.part == part for name in (each.subject, each.against, *(each.base or ()))}


def shown(found: tuple[float, float, float], unit: str = "") -> str:
    """Return a figure and its interval, if there is more than one round of it, for people."""
    digits = 1 if unit else 2
    middle, low, high = (f"{each:.{digits}f}" for each in found)
    return f"{middle} {unit}".strip() + ("" if low == high == middle else f" ({low} to {high})")
