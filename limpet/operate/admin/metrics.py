"""Figures as metrics: their names and units by the conventions of OpenMetrics, and docs/metrics.md.

Owns how a figure is called outside. What figures there are, and what they mean, stands where each is declared
(ipc/scoreboard.py, ipc/figures.py). tools/docs/metrics_page.py prints the page.

1. A metric's name is made from the figure's: `limpet_`, `limpet_dispatcher_`, `limpet_terminator_` or `limpet_slot_`,
   the figure, its unit, and `_total` for what only grows. Labels are slots, statuses and tables: never a pid, never a
   client.
2. prometheus-client is imported only here, and only to render.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from limpet.ipc import figures
from limpet.ipc.figures import Figure, Kind
from limpet.ipc.scoreboard import DISPATCHER_CELLS, SUPERVISOR_CELLS, TERMINATOR_CELLS, WORKER_CELLS

_PART: Final = re.compile(r"_(?:\d+|sum_ns)$")

PREFACE: Final = """\
# Metrics

What `GET /metrics` at the address of `--admin` answers: OpenMetrics, or the older text format for who asks for that.
It needs the extra `limpet[metrics]`. Rates are for the reader to compute: what only grows ends in `_total`. A total
does not go back when a worker or a dispatcher is replaced, but for `limpet_slot_cpu_seconds_total`, which begins anew.

[examples/grafana.json](../examples/grafana.json) is a dashboard of them. The command `figures` of the control socket
has the same figures under the names by which they are declared.
"""


class Family(NamedTuple):
    """One metric. *sources* are the figures that it is made from, each with its own values of the labels after slot."""

    name: str  # without _total
    kind: str
    unit: str
    factor: float
    meaning: str
    labels: tuple[str, ...]
    sources: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def shown(self) -> str:
        """The name as it is read in a scrape."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


def _families(prefix: str, declared: Mapping[str, Figure], labels: tuple[str, ...]) -> Iterator[Family]:
    """Yield the metrics that the figures *declared* are shown as."""
    grouped: dict[str, list[tuple[str, Figure]]] = {}
    for name, figure in declared.items():
        if figure.kind is Kind.PART:
            grouped.setdefault(_PART.sub("_ns", name), []).append((name, figure))
        elif figure.kind is not Kind.CLOCK:
            grouped.setdefault(name.removesuffix(f"_{figure.label[1]}" if figure.label else ""), []).append(
                (name, figure)
            )
    for name, members in grouped.items():
        bare, unit, factor = figures.unit(name)
        first = members[0][1]
        extra = (first.label[0],) if first.label else ()
        values = [(each, (figure.label[1],) if figure.label else ()) for each, figure in members]
        yield Family(
            "_".join(filter(None, (prefix, bare, unit))),
            first.kind.value,
            unit,
            factor,
            _meaning([figure for _, figure in members]),
            labels + extra,
            tuple(values),
        )


def _meaning(members: list[Figure]) -> str:
    """Return the meaning of figures that are shown as one: what they have in common, then each label's own."""
    if members[0].label is None:
        return members[0].meaning
    common = members[0].meaning.partition(": ")[0]
    own = "; ".join(f"{each.label[1]}: {each.meaning.partition(': ')[2]}" for each in members if each.label)
    return f"{common}, by {members[0].label[0]}. {own}"


OF_SERVER: Final = tuple(_families("limpet", {**figures.SERVER, **SUPERVISOR_CELLS}, ()))
OF_DISPATCHERS: Final = tuple(_families("limpet_dispatcher", DISPATCHER_CELLS, ()))
OF_TERMINATORS: Final = tuple(_families("limpet_terminator", TERMINATOR_CELLS, ()))
OF_SLOTS: Final = tuple(_families("limpet_slot", {**figures.SLOT, **WORKER_CELLS}, ("slot",)))
OF_TABLES: Final = (
    Family("limpet_table_used", "gauge", "", 1, "what is used of a bounded table", ("table", "slot"), ()),
    Family("limpet_table_bound", "gauge", "", 1, "how much there may be of it", ("table", "slot"), ()),
)
FAMILIES: Final = (*OF_SERVER, *OF_DISPATCHERS, *OF_TERMINATORS, *OF_SLOTS, *OF_TABLES)


def render(found: Mapping[str, Any], accept: str) -> tuple[bytes, str]:
    """Return the metrics for the answer *found* to the command `figures`, and their content type.

    In OpenMetrics if the header *accept* allows it. Raises ImportError without prometheus-client.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    class Once:
        def collect(self) -> Iterable[Any]:
            return _collected(found)

        def describe(self) -> Iterable[Any]:  # else the registry would collect to learn the names
            return ()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Once())
    encode, kind = choose_encoder(accept)
    return encode(registry), kind


def _collected(found: Mapping[str, Any]) -> Iterator[Any]:
    """Yield prometheus-client's form of each metric."""
    slots = [((str(slot["slot"]),), slot["figures"]) for slot in found["slots"]]
    for group, rows in (
        (OF_SERVER, [((), found["server"])]),
        (OF_DISPATCHERS, [((), found["dispatchers"])]),
        (OF_TERMINATORS, [((), found["terminators"])]),
        (OF_SLOTS, slots),
    ):
        for family in group:
            metric = _metric(family)
            for labels, values in rows:
                _add(metric, family, labels, values)
            yield metric
    whole = [("", found["tables"]), *((str(slot["slot"]), slot["tables"]) for slot in found["slots"])]
    for position, family in enumerate(OF_TABLES):
        metric = _metric(family)
        for slot, tables in whole:
            for table, pair in tables.items():
                metric.add_metric([table, slot], pair[position])
        yield metric


def _metric(family: Family) -> Any:
    from prometheus_client import core

    kind = {
        "counter": core.CounterMetricFamily,
        "gauge": core.GaugeMetricFamily,
        "histogram": core.HistogramMetricFamily,
    }[family.kind]
    return kind(family.name, family.meaning, labels=family.labels, unit=family.unit)


def _add(metric: Any, family: Family, labels: tuple[str, ...], values: Mapping[str, float]) -> None:
    """Add what *values* have of *family* for one set of *labels*."""
    if family.kind == "histogram":
        counts, total = figures.cumulative(_PART.sub("", family.sources[0][0]), values)
        buckets = [("+Inf" if bound == float("inf") else repr(bound), count) for bound, count in counts]
        metric.add_metric(labels, buckets, total)
        return
    for name, extra in family.sources:
        if name in values or family.kind == "counter":  # a total that nobody has begun to count is 0
            metric.add_metric(labels + extra, values.get(name, 0) * family.factor)


def page() -> str:
    """Return docs/metrics.md."""
    lines = [PREFACE, "| Metric | Type | Labels | Meaning |", "|---|---|---|---|"]
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.shown}` | {family.kind} | {labels} | {family.meaning} |")
    lines += ["", "## Tables", "", "What is bounded, by the label `table`:", "", "| Table | What it is |", "|---|---|"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in figures.TABLES.items()]
    return "\n".join(lines) + "\n"
