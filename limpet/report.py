"""What a running server says of itself: the answers to `limpet status` and `limpet where`.

Owns the shapes of these answers, a contract: keys may be added, never renamed. Reads the supervisor's state and the
scoreboard; changes nothing.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from limpet import __version__
from limpet.errors import SettingsError
from limpet.lifecycle import State
from limpet.scoreboard import Row, Scoreboard

if TYPE_CHECKING:
    from limpet.supervisor import Supervisor

_STATES_OF_NOW = frozenset({"connections", "pending", "copies", "busy_since_ns", "asking_since_ns", "beat_ns"})


class Past:
    """What processes that have ended had counted, so that no total goes back when one is replaced."""

    def __init__(self, slots: int) -> None:
        self.slots: list[Counter[str]] = [Counter() for _ in range(slots)]
        self.dispatchers: Counter[str] = Counter()

    def grow(self, slots: int) -> None:
        """Make room for *slots* slots."""
        self.slots += [Counter() for _ in range(slots - len(self.slots))]

    def add_worker(self, slot: int, row: Row) -> None:
        """Take over the figures of a dead worker of *slot*, and clear its row for the next."""
        self.slots[slot].update(_totals(row))
        row.clear()

    def add_dispatcher(self, board: Scoreboard, index: int) -> None:
        """Take over the figures of a dead dispatcher, and clear what it had in hand."""
        self.dispatchers.update(_totals(board.dispatcher(index)))
        board.dispatcher(index).clear()
        for slot in range(len(self.slots)):
            board.waiting(index, slot).set("waiting", 0)


def status(server: Supervisor) -> dict[str, Any]:
    """Return the answer to `limpet status`."""
    slots = [
        _slot(server, member.number)
        for member in server.slots
        if member.number < server.router.slots or member.children or member.life.state is not State.STOPPED
    ]
    totals = sum((Counter(past) for past in server.estate.past.slots), Counter()) + Counter(
        server.estate.past.dispatchers
    )
    for member in server.slots:
        for child in member.children:
            totals.update(_totals(server.estate.board.worker(child.row)))
    dispatchers = []
    for member in server.dispatchers:
        row = server.estate.board.dispatcher(member.number)
        totals.update(_totals(row))
        pid = member.child.pid if member.child else None
        dispatchers.append({"pid": pid, "state": member.word, "pending": row["pending"]})
    totals.update(_totals(server.estate.board.supervisor()))
    rows = (server.estate.board.worker(0), server.estate.board.dispatcher(0), server.estate.board.supervisor())
    names = [name for row in rows for name in _totals(row)]
    return {
        "pid": os.getpid(),
        "version": __version__,
        "app": server.settings.app,
        "backend": server.backend.name,
        "binds": server.backend.urls,
        "by": server.router.chain.spec,
        "slots": slots,
        "dispatchers": dispatchers,
        "change": server.rolling.changes.summary(),
        "upgrades": {"done": server.upgrade.done, "refused": server.upgrade.refusal},
        "totals": {"connections": sum(_connections(slot) for slot in slots), **{name: totals[name] for name in names}},
    }


def where(server: Supervisor, request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to `limpet where`: one entry for each of the *request*'s keys."""
    keys = request.get("keys")
    if not isinstance(keys, list) or not all(isinstance(text, str) for text in keys):
        return {"error": "`where` needs `keys`, a list of texts"}
    answers = []
    for text in keys:
        try:
            key = server.router.chain.from_text(text)
        except SettingsError as error:
            return {"error": error.message, "hint": error.hint}
        route = server.router.where(key)
        member = server.slots[route.slot]
        answers.append(
            {
                "digest": server.router.hasher.show(route.digest),
                "bucket": route.bucket,
                "slot": route.slot,
                "home": route.home,
                "pid": member.child.pid if member.child else None,
                "state": member.word,
                "element": key.element,
                "learned": route.learned is not None,
            }
        )
    return {"keys": answers}


def _slot(server: Supervisor, number: int) -> dict[str, Any]:
    """Return what to say of a slot: of the worker in charge, and what all its workers have counted."""
    member, board = server.slots[number], server.estate.board
    rows = [board.worker(child.row) for child in member.children]
    counted = Counter(server.estate.past.slots[number])
    for row in rows:
        counted.update(_totals(row))
    in_charge = board.worker(member.child.row).values() if member.child else {}
    waiting = sum(board.waiting(index, number)["waiting"] for index in range(len(server.dispatchers)))
    return {
        "slot": number,
        "pid": member.child.pid if member.child else None,
        "generation": member.child.generation if member.child else member.life.generation,
        "state": member.word,
        "connections": in_charge.get("connections", 0),
        "requests": counted["requests"],
        "returns": counted["returns"],
        "batons": counted["batons"],
        "misrouted": counted["misrouted"],
        "copies": in_charge.get("copies", 0),
        "learned": learned.size(number) if (learned := server.router.learned) else 0,
        "queued": server.estate.channels[number].queued() + waiting + server.backend.queued(number),
        "crash_loop": member.life.is_crash_loop(time.monotonic()),
        "last_end": member.last_end,
        "starting": member.successor.pid if member.successor else None,
        "draining": [
            {
                "pid": child.pid,
                "generation": child.generation,
                "connections": board.worker(child.row)["connections"],
            }
            for child in member.predecessors
        ],
    }


def _connections(slot: dict[str, Any]) -> int:
    return int(slot["connections"] + sum(child["connections"] for child in slot["draining"]))


def _totals(row: Row) -> dict[str, int]:
    """Return the cells of *row* that only ever grow."""
    return {name: value for name, value in row.values().items() if name not in _STATES_OF_NOW}
