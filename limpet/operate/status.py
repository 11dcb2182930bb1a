"""What a running server reports about itself: the answers to `limpet status` and `limpet where`, and its figures.

Owns the shapes of these answers. They are a contract: keys may be added, never renamed. Reads the `Fleet` and the
scoreboard and changes nothing. supervisor/commands.py calls it. Figures have the names of their declarations in
ipc/scoreboard.py and ipc/figures.py.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from limpet.fleet.fleet import Fleet
from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.ipc.figures import Kind
from limpet.ipc.scoreboard import MAX_WORKERS, Row
from limpet.routing import buckets
from limpet.routing.elements import AFFINITY, Key
from limpet.routing.learned_ids import CAPACITY
from limpet.system import proc
from limpet.version import __version__

_MOST_RANKED = 8  # slots in the `rank` of a key


def status(fleet: Fleet, admin_url: str | None) -> dict[str, Any]:
    """Return the answer to `limpet status`. *admin_url* is the address of the admin page."""
    slots = [_slot(fleet, member) for member in fleet.shown()]
    counted = Counter(_of_dispatchers(fleet)) + Counter(fleet.resources.board.supervisor().of_kind(Kind.TOTAL))
    counted.update(_of_terminators(fleet))
    for member in fleet.slots:
        counted.update(_of_slot(fleet, member))
    board = fleet.resources.board
    rows = (board.worker(0), board.dispatcher(0), board.supervisor(), board.terminator(0))
    names = [name for row in rows for name in row.of_kind(Kind.TOTAL)]
    dispatchers = [
        {
            "pid": member.child.pid if member.child else None,
            "state": member.word,
            "pending": _pending(fleet, [member]),
            "max_pending": board.dispatcher(member.child.row)["room"] if member.child else 0,
            "draining": [child.pid for child in member.predecessors],
        }
        for member in fleet.dispatchers
    ]
    return {
        "pid": os.getpid(),
        "version": __version__,
        "app": fleet.settings.app,
        "backend": fleet.backend.name,
        "binds": fleet.backend.urls,
        "admin": admin_url,
        "by": fleet.router.chain.spec,
        "slots": slots,
        "dispatchers": dispatchers,
        "terminators": [_terminator(fleet, member) for member in fleet.terminators],
        "change": fleet.changes.summary(),
        "upgrades": {"done": fleet.upgrades, "refused": fleet.upgrade_refusal},
        "totals": {"connections": sum(_connections(slot) for slot in slots), **{name: counted[name] for name in names}},
    }


def where(fleet: Fleet, keys: list[str | dict[str, Any]]) -> dict[str, Any]:
    """Return the answer to `limpet where`: one entry for each of *keys*. Raises SettingsError.

    A key is text, `[ELEMENT=]KEY`, or has the form of cli/explain.py: what an element found, or an affinity cookie. The
    entry of a cookie is None if this server did not make it.
    """
    return {"keys": [None if (key := _key(fleet, each)) is None else _home(fleet, key) for each in keys]}


def _key(fleet: Fleet, asked: str | dict[str, Any]) -> Key | None:
    if isinstance(asked, str):
        return fleet.router.chain.from_text(asked)
    if "cookie" in asked:
        opened = fleet.router.jar.open(bytes.fromhex(asked["cookie"])) if fleet.router.jar else None
        return opened and Key(opened.digest.to_bytes(8, "big"), AFFINITY, False)
    return Key(bytes.fromhex(asked["value"]), asked["element"], asked["is_address"])


def _home(fleet: Fleet, key: Key) -> dict[str, Any]:
    """Return where *key* is served, and why."""
    route = fleet.router.where(key)
    member = fleet.slots[route.slot]
    return {
        "digest": fleet.router.hasher.show(route.digest),
        "bucket": route.bucket,
        "slot": route.slot,
        "home": route.home,
        "pid": member.child.pid if member.child else None,
        "state": member.word,
        "element": key.element,
        "learned": route.learned is not None,
        "how": route.how,
        "rank": buckets.rank(route.bucket, fleet.router.slots)[:_MOST_RANKED],
        "backend": fleet.backend.name,
    }


def routing(fleet: Fleet) -> dict[str, Any]:
    """Return what another process needs to find keys as this server does.

    Only the server can say where they are served.
    """
    router, settings = fleet.router, fleet.settings
    return {
        "binds": list(settings.bind),
        "chains": [router.chain.at(bind).spec for bind in range(len(settings.bind))],
        "trust": list(settings.trust),
        "cookies": router.jar.names if router.jar else [],
        "app_dir": [os.path.join(fleet.started_in, each) for each in settings.app_dir] or [fleet.started_in],
        "backend": fleet.backend.name,
        "place": settings.place,
    }


def figures(fleet: Fleet) -> dict[str, Any]:
    """Return all figures: of the server, of each slot and its tables, and of dispatchers and terminators."""
    now, board = time.monotonic(), fleet.resources.board
    awaited = _now(fleet.dispatchers, board.dispatcher)
    return {
        "server": {
            "serving": int(fleet.is_serving),
            "stopping": int(fleet.is_stopping),
            "slots": fleet.router.slots,
            "upgrades": fleet.upgrades,
            "uptime_s": now - fleet.began_at,
            **board.supervisor().of_kind(Kind.TOTAL),
        },
        "slots": [_figures_of(fleet, member, now) for member in fleet.shown()],
        "processes": [_ahead(fleet, member) for member in (*fleet.terminators, *fleet.dispatchers)],
        "dispatchers": {**_of_dispatchers(fleet), **awaited},
        "terminators": {**_of_terminators(fleet), **_now(fleet.terminators, board.terminator)},
        "tables": {
            "pending": (awaited["pending"], awaited["room"]),
            "workers": (MAX_WORKERS - len(fleet.resources.free_rows["worker"]), MAX_WORKERS),
        },
    }


def _ahead(fleet: Fleet, member: Member) -> dict[str, Any]:
    """Return the figures of a process that connections pass before they reach their worker."""
    child, is_dispatcher = member.child, member.role == "dispatcher"
    row_of = fleet.resources.board.dispatcher if is_dispatcher else fleet.resources.board.terminator
    held = row_of(child.row).of_kind(Kind.NOW) if child else Counter[str]()
    return {
        "name": f"{member.role} {member.number}",
        "state": member.word,
        "pid": child.pid if child else None,
        "cpu_s": _cpu_s(child),
        "resident_bytes": proc.memory(child.pid) if child else 0,
        "holds": "heads awaited" if is_dispatcher else "connections",
        "held": held["pending"] if is_dispatcher else held["relayed"] + held["handshakes"],
        "room": held["room"],
    }


def _cpu_s(child: Child | None) -> float:
    return proc.cpu_ticks(child.pid) / os.sysconf("SC_CLK_TCK") if child else 0


def _figures_of(fleet: Fleet, member: Member, now: float) -> dict[str, Any]:
    """Return the figures of one slot, and for each of its tables how much is used and the bound."""
    board, number, child = fleet.resources.board, member.number, member.child
    held_back = _held_back(fleet, number)
    in_charge = board.worker(child.row).of_kind(Kind.NOW, Kind.CLOCK) if child else {}
    beat_ns = in_charge.get("beat_ns", 0)
    rows = [board.worker(each.row) for each in member.children]
    return {
        "slot": number,
        "state": member.word,
        "pid": child.pid if child else None,
        "figures": {
            "up": int(member.life.state.serves),
            "generation": child.generation if child else member.life.generation,
            "queued": _queued(fleet, number),
            "draining": len(member.predecessors),
            **({"heartbeat_age_s": max(0.0, now - beat_ns / 1e9)} if beat_ns else {}),
            "resident_bytes": proc.memory(child.pid) if child else 0,
            "cpu_s": _cpu_s(child),
            **_of_slot(fleet, member),
            **{name: sum(row[name] for row in rows) for name in ("connections", "copies")},
            **_bus(fleet, member),
            "lag_ns": in_charge.get("lag_ns", 0),
        },
        "tables": {
            "learned": (fleet.router.learned.size(number) if fleet.router.learned else 0, CAPACITY),
            "copies": (in_charge.get("copies", 0), fleet.settings.max_copies),
            "queue": (held_back, fleet.settings.queue * len(fleet.dispatchers)),
        },
    }


def counted(fleet: Fleet) -> tuple[list[Counter[str]], Counter[str]]:
    """Return what the workers of each slot in the table have counted, and what all dispatchers have counted."""
    return [_of_slot(fleet, member) for member in fleet.slots[: fleet.router.slots]], _of_dispatchers(fleet)


def _of_slot(fleet: Fleet, member: Member) -> Counter[str]:
    """Return what all workers of a slot have counted."""
    counted = Counter(fleet.resources.past.slots[member.number])
    for child in member.children:
        counted.update(fleet.resources.board.worker(child.row).of_kind(Kind.TOTAL, Kind.PART))
    return counted


def _of_dispatchers(fleet: Fleet) -> Counter[str]:
    """Return what all dispatchers have counted."""
    counted = Counter(fleet.resources.past.dispatchers)
    for child in _processes(fleet.dispatchers):
        counted.update(fleet.resources.board.dispatcher(child.row).of_kind(Kind.TOTAL, Kind.PART))
    return counted


def _of_terminators(fleet: Fleet) -> Counter[str]:
    """Return what all terminators have counted."""
    counted = Counter(fleet.resources.past.terminators)
    for child in _processes(fleet.terminators):
        counted.update(fleet.resources.board.terminator(child.row).of_kind(Kind.TOTAL))
    return counted


def _now(members: list[Member], row_of: Callable[[int], Row]) -> Counter[str]:
    """Return the current figures of all processes of *members*, added up."""
    found = Counter(dict.fromkeys(row_of(0).of_kind(Kind.NOW), 0))
    for child in _processes(members):
        found.update(row_of(child.row).of_kind(Kind.NOW))
    return found


def _terminator(fleet: Fleet, member: Member) -> dict[str, Any]:
    """Return the entry of a terminator: the process in charge, and those that end with their connections."""
    board, in_charge = fleet.resources.board, member.child
    return {
        "pid": in_charge.pid if in_charge else None,
        "state": member.word,
        "handshakes": board.terminator(in_charge.row)["handshakes"] if in_charge else 0,
        "connections": board.terminator(in_charge.row)["relayed"] if in_charge else 0,
        "max_connections": board.terminator(in_charge.row)["room"] if in_charge else 0,
        "draining": [
            {"pid": child.pid, "connections": board.terminator(child.row)["relayed"]} for child in member.predecessors
        ],
    }


def _pending(fleet: Fleet, dispatchers: list[Member]) -> int:
    """Return how many connections in *dispatchers* wait for their request head."""
    return sum(fleet.resources.board.dispatcher(child.row)["pending"] for child in _processes(dispatchers))


def _processes(members: list[Member]) -> list[Child]:
    return [child for member in members for child in member.children]


def _held_back(fleet: Fleet, number: int) -> int:
    """Return how many connections dispatchers hold because the channel of slot *number* is full."""
    return sum(fleet.resources.board.waiting(child.row, number)["waiting"] for child in _processes(fleet.dispatchers))


def _queued(fleet: Fleet, number: int) -> int:
    """Return how many connections wait for the worker of slot *number*, in all places."""
    return fleet.resources.channels[number].queued() + _held_back(fleet, number) + fleet.backend.queued(number)


def _slot(fleet: Fleet, member: Member) -> dict[str, Any]:
    """Return the entry of a slot: the worker in charge, and what all its workers have counted."""
    number, board = member.number, fleet.resources.board
    counted = _of_slot(fleet, member)
    in_charge = board.worker(member.child.row).values() if member.child else {}
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
        "learned": learned.size(number) if (learned := fleet.router.learned) else 0,
        "queued": _queued(fleet, number),
        "bus": {name.removeprefix("bus_"): value for name, value in _bus(fleet, member).items()}
        | {name: counted[f"bus_{name}"] for name in ("published", "sent", "dropped", "received", "lost", "invalid")},
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


def _bus(fleet: Fleet, member: Member) -> dict[str, int]:
    """Return what the workers of a slot have now: their subscriptions, and what waits in their channels of the bus."""
    resources, rows = fleet.resources, [child.row for child in member.children]
    return {
        "bus_subscriptions": sum(resources.board.worker(row)["bus_subscriptions"] for row in rows),
        "bus_queued_bytes": sum(resources.bus.queued_bytes(row) for row in rows),
    }


def _connections(slot: dict[str, Any]) -> int:
    return int(slot["connections"] + sum(child["connections"] for child in slot["draining"]))
