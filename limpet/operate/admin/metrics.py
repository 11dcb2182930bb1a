"""Figures as metrics: their names and units in the conventions of OpenMetrics, and docs/metrics.md.

Owns the public name of each figure. The declarations in ipc/scoreboard.py and ipc/figures.py say which figures exist
and what they mean. app.py calls `render`; tools/docs/metrics_page.py prints the page.

1. The name of a metric is built from the figure's name: `limpet_`, `limpet_dispatcher_`, `limpet_terminator_` or
   `limpet_slot_`, then the figure, its unit, and `_total` if it only grows. Labels are slots, statuses and tables,
   never a pid and never a client.
2. prometheus-client is imported only here, and only to render.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from limpet.coordination.metrics import collect
from limpet.ipc import figures
from limpet.ipc.figures import Figure, Kind
from limpet.ipc.scoreboard import DISPATCHER_CELLS, SUPERVISOR_CELLS, TERMINATOR_CELLS, WORKER_CELLS

log = logging.getLogger("limpet")
_PART: Final = re.compile(r"_(?:\d+|sum_ns)$")

PREFACE: Final = """\
# Metrics

`GET /metrics` at the address of `--admin` returns these metrics, in OpenMetrics or, if the client asks for it, in the
older text format. It needs the extra `limpet[metrics]`. Metrics that only grow end in `_total`: compute rates from
them. Replacing a worker or a dispatcher does not reset a total, except `limpet_slot_cpu_seconds_total`, which starts
again at zero. The metrics that the application has registered with `prometheus_client` are in the same answer
([how](shared-state.md#show-the-applications-metrics-on-one-page)).

[examples/grafana.json](../examples/grafana.json) is a dashboard for these metrics. The command `figures` of the control
socket returns the same figures under the names in the code.
"""


class Family(NamedTuple):
    """One metric. *sources* are the figures in it, each with its values for the labels after slot."""

    name: str  # without `_total`
    kind: str
    unit: str
    factor: float
    meaning: str
    labels: tuple[str, ...]
    sources: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def shown(self) -> str:
        """The name as a scrape shows it."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


def _families(prefix: str, declared: Mapping[str, Figure], labels: tuple[str, ...]) -> Iterator[Family]:
    """Yield the metrics for the figures *declared*."""
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
    """Return the meaning of figures that form one metric: what they share, then what is special to each label."""
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
    Family("limpet_table_used", "gauge", "", 1, "how many entries of a bounded table are used", ("table", "slot"), ()),
    Family("limpet_table_bound", "gauge", "", 1, "how many entries the table may have", ("table", "slot"), ()),
)
OF_APPLICATION: Final = (
    Family(
        "limpet_application_metrics_readable",
        "gauge",
        "",
        1,
        "1 if the application's own metrics are in this answer, 0 if a worker has spoilt their files",
        (),
        (),
    ),
)
FAMILIES: Final = (*OF_SERVER, *OF_DISPATCHERS, *OF_TERMINATORS, *OF_SLOTS, *OF_TABLES, *OF_APPLICATION)


def of_application(where: tuple[str, int] | None, *, by_slot: bool) -> list[Any] | None:
    """Return the application's own metrics; None if a worker has spoilt their files. *where* is what `collect` takes.

    Raises ImportError without prometheus-client.
    """
    try:
        return list(collect(*where, by_slot=by_slot)) if where is not None else []
    except ImportError:
        raise
    except Exception:  # a worker can write anything into the files, and limpet's own metrics must be shown still
        log.exception("the metrics of the application cannot be read", extra={"event": "metrics_unreadable"})
        return None


def render(found: Mapping[str, Any], accept: str, own: Iterable[Any] | None = ()) -> tuple[bytes, str]:
    """Return the metrics for *found*, the answer to the command `figures`, and *own*, and their content type.

    The format is OpenMetrics if the header *accept* allows it. Raises ImportError without prometheus-client.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    class Once:
        def collect(self) -> Iterable[Any]:
            yield from _collected(found)
            readable = _metric(OF_APPLICATION[0])
            readable.add_metric((), own is not None)
            yield readable
            yield from own or ()

        def describe(self) -> Iterable[Any]:  # otherwise the registry would collect to learn the names
            return ()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Once())
    encode, kind = choose_encoder(accept)
    return encode(registry), kind


def _collected(found: Mapping[str, Any]) -> Iterator[Any]:
    """Yield each metric in prometheus-client's form."""
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
    """Add the values of *family* in *values* for one set of *labels*."""
    if family.kind == "histogram":
        counts, total = figures.cumulative(_PART.sub("", family.sources[0][0]), values)
        buckets = [("+Inf" if bound == float("inf") else repr(bound), count) for bound, count in counts]
        metric.add_metric(labels, buckets, total)
        return
    for name, extra in family.sources:
        if name in values or family.kind == "counter":  # a total that was never counted is 0
            metric.add_metric(labels + extra, values.get(name, 0) * family.factor)


def page() -> str:
    """Return docs/metrics.md."""
    lines = [PREFACE, "| Metric | Type | Labels | Meaning |", "|---|---|---|---|"]
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.shown}` | {family.kind} | {labels} | {family.meaning} |")
    lines += [
        "",
        "## Tables",
        "",
        "The bounded tables, by the label `table`:",
        "",
        "| Table | What it is |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in figures.TABLES.items()]
    return "\n".join(lines) + "\n"
