"""Orders: what the supervisor tells a child. Each kind of order is a class.

This file owns the kinds and their fields. It does not know how a child obeys. In the supervisor, `Child.tell` calls
`send`. Each child calls `receive`: dispatchers, terminators, and the server adapters of workers. ipc/news.py has the
other direction.

1. Names and fields are an interface between versions: see rule 2 of ipc/codec.py.
2. A child whose supervisor is gone acts as after a `Drain` that is the last one. `Link.receive` raises LinkClosedError.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from limpet.ipc.codec import Codec
from limpet.ipc.control_link import Link


@dataclass(frozen=True, slots=True)
class Accept:
    """Take connections from now on."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Which slots are up, and which worker is in each slot. Only the latest of these orders counts."""

    slots: int  # how many there are in the table
    rows: list[int | None]  # of each slot: the row of the scoreboard of the worker that is ready, or None
    up: list[bool]  # of each slot: whether its clients are sent there
    held: list[int]  # the slots that get no new clients
    refused: list[int]  # the slots whose clients are refused
    alive: list[int]  # the serial numbers of all workers that live
    newest: int  # the serial number of the worker that was started last
    scaled: bool  # whether the number of slots has ever changed


@dataclass(frozen=True, slots=True)
class Slot:
    """The channels of one slot, for a process that was started before the slot was there or had no descriptor free."""

    slot: int
    fds: Sequence[int] = ()  # Owns: the sender keeps its copies, the receiver gets its own


@dataclass(frozen=True, slots=True)
class Certificate:
    """Use another certificate and key for new handshakes."""

    pem: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no more connections, finish what is here, and end."""

    timeout: float | None  # seconds; None: as long as it takes
    last: bool  # the server stops: no other process takes what still waits
    succeeded: bool = False  # the successor is ready already


@dataclass(frozen=True, slots=True)
class Stop(Drain):
    """The name of `Drain` for a dispatcher or terminator when the server stops."""


Order = Accept | Workers | Slot | Certificate | Drain
CODEC: Final = Codec[Order](
    "do",
    {
        "accept": Accept,
        "workers": Workers,
        "slot": Slot,
        "certificate": Certificate,
        "drain": Drain,
        "stop": Stop,
    },
)


def send(link: Link, order: Order) -> None:
    """Send *order* on *link*. Blocks never."""
    said = CODEC.pack(order)
    link.send(said, said.pop("fds", ()), is_latest=isinstance(order, Workers))


def receive(link: Link) -> list[Order]:
    """Return the orders that have arrived. Raises LinkClosedError at the end of the line. Blocks never."""
    orders = []
    for said in link.receive():
        order = CODEC.unpack(said)
        if order is not None:
            orders.append(order)
        else:
            for fd in said.get("fds", ()):  # of an order that only newer versions know
                os.close(fd)
    return orders
