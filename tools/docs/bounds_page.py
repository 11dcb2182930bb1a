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
        "408 when so much time has passed since the connection was accepted, or since a later head began, however fast "
        "bytes come; without an answer where none has come",
    ),
    Limit(
        "max-pending",
        ("pending", "room", "crowded_out"),
        "503 to the one that has waited longest; the new one may wait; the bound is three quarters of the dispatcher's "
        "free descriptors where those are fewer: `room` is what is in effect, `max_pending` in `limpet status`",
    ),
    Limit("max-connections-per-address", ("refused_429", "address_refused"), "429"),
    Limit(
        "queue", ("refused_503",), "503; at once, and after `--wait-timeout` in a dispatcher's own part of the queue"
    ),
    Limit(
        "max-connections-per-worker", ("refused_503",), "503 to a client without a key when all workers have as many"
    ),
    Limit("backlog", ("backlog_drops",), "none: the kernel drops the attempt to connect, and the client repeats it"),
    Limit("max-copies", ("copies",), "none: the copy that was used longest ago is closed, the connection lives on"),
    Limit("wait-timeout", ("returns_refused",), "503 to a request that moves and that its slot does not take in time"),
    Limit(
        f"learned ids: {WAYS} of each slot in each of {ROWS} rows",
        ("learned", "learned_evicted"),
        "none: the id that was seen longest ago is forgotten; requests with it go where its hash says",
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
        "none: the request waits for a thread; one whose client neither reads nor sends for 0.05 s lends its place to "
        "another request (but not with `--threads 1`)",
    ),
    Limit(
        "threads of a worker that wait for the clients of a WSGI application, on servers that call ASGI: 256, each for "
        "120 s, 1 MiB of response ahead of its client",
        (),
        "408 if the application has not answered, else the connection ends: to the one that has waited longest when "
        "there are too many, and to one that has waited too long; the application gets a `TimeoutError`",
    ),
    Limit(
        "descriptors of a dispatcher (`ulimit -Hn`)",
        ("accept_errors", "no_descriptor"),
        "none for 5 s: clients wait in the backlog, and accepting is tried again each quarter of a second; then, until "
        "somebody can be taken again, 503 to as many at a time as descriptors are kept for that (32)",
    ),
    Limit(
        "descriptors of a terminator (`ulimit -Hn`), two for each connection of TLS",
        ("room", "accept_errors"),
        "none: who comes waits in the backlog, and a quarter of a second later accepting is tried again",
    ),
    Limit(
        "descriptors of a worker (`ulimit -Sn`)",
        ("take_errors",),
        "none: connections wait in the slot's channel, where `--queue` counts (`queued` in `limpet status`), or in its "
        "listener on the kernel backend; half a second later it is tried again",
    ),
    Limit(
        "descriptors of the supervisor (`ulimit -Hn`)",
        (),
        "none: who calls at the control socket waits, and a worker that died is replaced as soon as that can be",
    ),
)

PREFACE = """\
# Bounds

Every wait has a deadline and every queue a bound. What a client gets that meets one, and which figure in `limpet
status` and the [metrics](metrics.md) then moves:

"""

POSTSCRIPT = """
Slow clients cost descriptors and memory, not time: bytes that stand still are not looked at, and a head that comes
byte by byte is looked at 20 times a second at most after its first 32 looks. `make slowloris` measures what 10,000 of
them do to 1,000 honest requests a second on 2 cores: with them the 99th percentile is 1.36 times that without, and
1.14 times if they sit at another server of the same machine. They send 3,300 single bytes and open 830 connections a
second on the processors that nobody else wants, as a crowd on its own machines would. The dispatcher grows from 21 to
40 MiB, and the kernel keeps 4 KiB for each of them. `make slowhttp` has slowhttptest try its four modes.
An answer that is refused is followed by FIN; the client has two seconds to read it and close.
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
