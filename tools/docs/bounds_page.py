"""docs/bounds.md, made from the declarations in config/settings.py and ipc/scoreboard.py.

Run as `python -m tools.docs.bounds_page`.

Owns which limit is shown by which figure, and in words what a client gets that meets it. The settings' defaults and
meanings, and that the figures exist, stand where they are declared.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from limpet.config.settings import SETTINGS
from limpet.coordination.bus import UNDER_WAY_BYTES
from limpet.coordination.interest import TOPICS
from limpet.coordination.packet import INLINE_BYTES
from limpet.coordination.subscription import MOST_BYTES, MOST_MESSAGES
from limpet.ipc.scoreboard import DISPATCHER_CELLS, SUPERVISOR_CELLS, WORKER_CELLS
from limpet.routing.learned_ids import ROWS, WAYS


class Limit(NamedTuple):
    """One bound: *setting* is the key of its setting, or a text where it has none."""

    setting: str
    figures: tuple[str, ...]  # of the scoreboard; `status` and the metrics show them
    answer: str


LIMITS: Final = (
    Limit("max-head", ("refused_431", "heads_too_large"), "431"),
    Limit("max-headers", ("refused_431", "heads_too_large"), "431"),
    Limit(
        "head-timeout",
        ("refused_408", "head_timeouts"),
        "408 when this time has passed since the connection was accepted, or since a later head began, however fast "
        "bytes arrive. A connection on which no byte has arrived is closed without an answer",
    ),
    Limit(
        "max-pending",
        ("pending", "room", "crowded_out"),
        "503 to the connection that has waited longest, so that the new one may wait. If three quarters of the "
        "dispatcher's free descriptors are fewer than the setting, they are the bound. The figure `room` and "
        "`max_pending` in `limpet status` show the bound that is in effect",
    ),
    Limit("max-connections-per-address", ("refused_429", "address_refused"), "429"),
    Limit(
        "queue",
        ("refused_503",),
        "503 at once. A connection that waits in a dispatcher because the slot's channel is full gets 503 after "
        "`--wait-timeout`",
    ),
    Limit(
        "max-connections-per-worker", ("refused_503",), "503 to a client without a key if all workers have that many"
    ),
    Limit("backlog", ("backlog_drops",), "none: the kernel drops the attempt to connect, and the client repeats it"),
    Limit(
        "max-copies",
        ("copies",),
        "none: the worker closes the copy that was used longest ago. The connection stays open",
    ),
    Limit("wait-timeout", ("returns_refused",), "503 to a request that moves if its slot does not take it in time"),
    Limit(
        f"learned ids: {WAYS} of each slot in each of {ROWS} rows",
        ("learned", "learned_evicted"),
        "none: the id that was seen longest ago is forgotten. Requests with it go to the slot of its hash",
    ),
    Limit(
        f"messages that wait in a subscription: {MOST_MESSAGES:,}, or {MOST_BYTES >> 20} MiB of payloads",
        ("bus_lost",),
        "none: the oldest message is lost, and `lost` of the next one says so",
    ),
    Limit(
        "messages that wait in a worker's channel of the bus: 4 MiB of the kernel's memory",
        ("bus_dropped",),
        "none: the publisher does not send the message, and `lost` tells the subscriptions of this worker",
    ),
    Limit(
        f"payloads over {INLINE_BYTES >> 10} KiB that wait for a worker: {UNDER_WAY_BYTES >> 20} MiB",
        ("bus_dropped",),
        "as for a full channel",
    ),
    Limit(
        f"topics of a worker: {TOPICS:,}",
        ("bus_received",),
        "none: the worker hears everything, and drops what nobody asked for",
    ),
    Limit(
        "threads",
        (),
        "none: the request waits for a thread. A thread whose client neither reads nor sends for 0.05 s lets another "
        "request run in addition (but not with `--threads 1`)",
    ),
    Limit(
        "threads of a worker that wait for the clients of a WSGI application, on servers that call ASGI: 256, each for "
        "120 s, 1 MiB of response ahead of its client",
        (),
        "408, or the end of the connection if the response has begun. This happens to the client that has waited "
        "longest if there are too many, and to a client that has waited too long. The application gets a "
        "`TimeoutError`",
    ),
    Limit(
        "descriptors of a dispatcher (`ulimit -Hn`)",
        ("accept_errors", "no_descriptor"),
        "none for 5 s: clients wait in the backlog, and the dispatcher tries again every quarter of a second. After "
        "that it answers 503 to up to 32 clients at a time, with descriptors that it keeps for this, until it can "
        "accept a client again",
    ),
    Limit(
        "descriptors of a terminator (`ulimit -Hn`), two for each connection of TLS",
        ("room", "accept_errors"),
        "none: clients wait in the backlog, and the terminator tries again every quarter of a second",
    ),
    Limit(
        "descriptors of a worker (`ulimit -Sn`)",
        ("take_errors",),
        "none: connections wait in the slot's channel, where `--queue` is their bound (`queued` in `limpet status`), "
        "or in the slot's listener on the kernel backend. The worker tries again every half second",
    ),
    Limit(
        "descriptors of the supervisor (`ulimit -Hn`)",
        (),
        "none: commands at the control socket wait, and a worker that died is replaced as soon as there are "
        "descriptors",
    ),
)

PREFACE = """\
# Bounds

This page is a reference. Every wait has a deadline, and every queue has a bound. The table shows what a client gets
when a bound is reached, and which figure of `limpet status` and the [metrics](metrics.md) shows it.

"""

POSTSCRIPT = """
Slow clients cost descriptors and memory, but little CPU time. A dispatcher looks at a head only when new bytes have
arrived. After the first 32 looks, it looks at the head at most 20 times a second.

`make slowloris` measures what 10,000 slow clients do to 1,000 honest requests a second on 2 cores. The 99th
percentile is 1.36 times that without, and 1.14 times if the slow clients are connected to another server of the
same machine. Together they send 3,300 single bytes and open 830 connections a second. They have the lowest priority for
the processors, because such clients would normally run on their own machines. The dispatcher grows from 21 to 40 MiB,
and the kernel keeps 4 KiB for each of them. `make slowhttp` runs slowhttptest in its four modes.

After a refusal, limpet sends FIN. The client then has two seconds to read the response and to close its side.
"""


def page() -> str:
    """Return docs/bounds.md."""
    by_key = {each.key: each for each in SETTINGS}
    known = {**WORKER_CELLS, **DISPATCHER_CELLS, **SUPERVISOR_CELLS}
    lines = ["| Limit | Default | What is bounded | Figure | Answer |", "| --- | --- | --- | --- | --- |"]
    for setting, figures, answer in LIMITS:
        found = by_key.get(setting)
        name, default, meaning = (f"`{found.flag}`", found.default, found.meaning) if found else (setting, "", "")
        shown = ", ".join(f"`{figure}`" for figure in figures if known[figure])
        lines.append(f"| {name} | {default} | {meaning} | {shown} | {answer} |")
    return PREFACE + "\n".join(lines) + "\n" + POSTSCRIPT


if __name__ == "__main__":
    print(page(), end="")
