"""What a running server says of itself: the answers to `limpet status` and `limpet where`, and its figures.

Owns the shapes of these answers, a contract: keys may be added, never renamed. Reads the supervisor's state and the
scoreboard; changes nothing. Figures are called as they are declared, in ipc/scoreboard.py and ipc/figures.py.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from limpet.errors import SettingsError
from limpet.fleet.lifecycle import State
from limpet.fleet.process import Child
from limpet.ipc.figures import Kind
from limpet.ipc.scoreboard import MAX_WORKERS, Row
from limpet.routing import buckets
from limpet.routing.elements import AFFINITY, Key
from limpet.routing.learned_ids import CAPACITY
from limpet.system import proc
from limpet.version import __version__

_MOST_RANKED = 8  # slots that a key's entry names

if TYPE_CHECKING:
    from limpet.fleet.member import Member
    from limpet.supervisor.supervisor import Supervisor


def status(server: Supervisor) -> dict[str, Any]:
    """Return the answer to `limpet status`."""
    slots = [_slot(server, member) for member in _shown(server)]
    counted = Counter(_of_dispatchers(server)) + Counter(server.estate.board.supervisor().of_kind(Kind.TOTAL))
    counted.update(_of_terminators(server))
    for member in server.slots:
        counted.update(_of_slot(server, member))
    board = server.estate.board
    rows = (board.worker(0), board.dispatcher(0), board.supervisor(), board.terminator(0))
    names = [name for row in rows for name in row.of_kind(Kind.TOTAL)]
    dispatchers = [
        {
            "pid": member.child.pid if member.child else None,
            "state": member.word,
            "pending": _pending(server, [member]),
            "max_pending": board.dispatcher(member.child.row)["room"] if member.child else 0,
            "draining": [child.pid for child in member.predecessors],
        }
        for member in server.dispatchers
    ]
    return {
        "pid": os.getpid(),
        "version": __version__,
        "app": server.settings.app,
        "backend": server.backend.name,
        "binds": server.backend.urls,
        "admin": server.beside.admin.url,
        "by": server.router.chain.spec,
        "slots": slots,
        "dispatchers": dispatchers,
        "terminators": [_terminator(server, member) for member in server.terminators],
        "change": server.rolling.changes.summary(),
        "upgrades": {"done": server.upgrade.done, "refused": server.upgrade.refusal},
        "totals": {"connections": sum(_connections(slot) for slot in slots), **{name: counted[name] for name in names}},
    }


def where(server: Supervisor, request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to `limpet where`: one entry for each of the *request*'s keys.

    A key is text, `[ELEMENT=]KEY`, or as cli/explain.py has it: what an element found, or an affinity cookie, whose
    entry is None if it is not this server's.
    """
    keys = request.get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, str | dict) for key in keys):
        return {"error": "`where` needs `keys`, a list of texts"}
    try:
        return {"keys": [None if (key := _key(server, each)) is None else _home(server, key) for each in keys]}
    except SettingsError as error:
        return {"error": error.message, "hint": error.hint}
    except (KeyError, TypeError, ValueError):
        return {"error": "`where` has a key in a form that this server does not know"}


def _key(server: Supervisor, asked: str | dict[str, Any]) -> Key | None:
    if isinstance(asked, str):
        return server.router.chain.from_text(asked)
    if "cookie" in asked:
        opened = server.router.jar.open(bytes.fromhex(asked["cookie"])) if server.router.jar else None
        return opened and Key(opened.digest.to_bytes(8, "big"), AFFINITY, False)
    return Key(bytes.fromhex(asked["value"]), str(asked["element"]), bool(asked["is_address"]))


def _home(server: Supervisor, key: Key) -> dict[str, Any]:
    """Return where *key* is served, and why there."""
    route = server.router.where(key)
    member = server.slots[route.slot]
    return {
        "digest": server.router.hasher.show(route.digest),
        "bucket": route.bucket,
        "slot": route.slot,
        "home": route.home,
        "pid": member.child.pid if member.child else None,
        "state": member.word,
        "element": key.element,
        "learned": route.learned is not None,
        "how": route.how,
        "rank": buckets.rank(route.bucket, server.router.slots)[:_MOST_RANKED],
        "backend": server.backend.name,
    }


def routing(server: Supervisor) -> dict[str, Any]:
    """Return what another process needs to find keys as this server does; where they live only this one can say."""
    router, settings = server.router, server.settings
    return {
        "binds": list(settings.bind),
        "chains": [router.chain.at(bind).spec for bind in range(len(settings.bind))],
        "trust": list(settings.trust),
        "cookies": router.jar.names if router.jar else [],
        "app_dir": [os.path.abspath(each) for each in settings.app_dir] or [os.getcwd()],
        "backend": server.backend.name,
        "place": settings.place,
    }


def figures(server: Supervisor) -> dict[str, Any]:
    """Return all figures: of the server, of each slot with what is used of its tables, and of the dispatchers."""
    now, board = time.monotonic(), server.estate.board
    awaited = _now(server.dispatchers, board.dispatcher)
    return {
        "server": {
            "serving": int(server.serving),
            "stopping": int(server.stopping),
            "slots": server.router.slots,
            "upgrades": server.upgrade.done,
            "uptime_s": now - server.beside.began_at,
            **board.supervisor().of_kind(Kind.TOTAL),
        },
        "slots": [_figures_of(server, member, now) for member in _shown(server)],
        "processes": [_ahead(server, member) for member in (*server.terminators, *server.dispatchers)],
        "dispatchers": {**_of_dispatchers(server), **awaited},
        "terminators": {**_of_terminators(server), **_now(server.terminators, board.terminator)},
        "tables": {
            "pending": (awaited["pending"], awaited["room"]),
            "workers": (MAX_WORKERS - len(server.estate.free_rows["worker"]), MAX_WORKERS),
        },
    }


def _ahead(server: Supervisor, member: Member) -> dict[str, Any]:
    """Return the figures of a process that connections pass before their worker."""
    child, is_dispatcher = member.child, member.role == "dispatcher"
    row_of = server.estate.board.dispatcher if is_dispatcher else server.estate.board.terminator
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


def _figures_of(server: Supervisor, member: Member, now: float) -> dict[str, Any]:
    """Return the figures of one slot, and what is used of its tables and may be."""
    board, number, child = server.estate.board, member.number, member.child
    held_back = _held_back(server, number)
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
            "queued": _queued(server, number),
            "draining": len(member.predecessors),
            **({"heartbeat_age_s": max(0.0, now - beat_ns / 1e9)} if beat_ns else {}),
            "resident_bytes": proc.memory(child.pid) if child else 0,
            "cpu_s": _cpu_s(child),
            **_of_slot(server, member),
            **{name: sum(row[name] for row in rows) for name in ("connections", "copies")},
            "lag_ns": in_charge.get("lag_ns", 0),
        },
        "tables": {
            "learned": (server.router.learned.size(number) if server.router.learned else 0, CAPACITY),
            "copies": (in_charge.get("copies", 0), server.settings.max_copies),
            "queue": (held_back, server.settings.queue * len(server.dispatchers)),
        },
    }


def counted(server: Supervisor) -> tuple[list[Counter[str]], Counter[str]]:
    """Return what the workers of each slot in the table have counted, and all dispatchers."""
    return [_of_slot(server, member) for member in server.slots[: server.router.slots]], _of_dispatchers(server)


def _shown(server: Supervisor) -> list[Member]:
    """Return the slots that are in the table, or have processes still."""
    return [
        member
        for member in server.slots
        if member.number < server.router.slots or member.children or member.life.state is not State.STOPPED
    ]


def _of_slot(server: Supervisor, member: Member) -> Counter[str]:
    """Return what all workers of a slot have counted."""
    counted = Counter(server.estate.past.slots[member.number])
    for child in member.children:
        counted.update(server.estate.board.worker(child.row).of_kind(Kind.TOTAL, Kind.PART))
    return counted


def _of_dispatchers(server: Supervisor) -> Counter[str]:
    """Return what all dispatchers have counted."""
    counted = Counter(server.estate.past.dispatchers)
    for child in _processes(server.dispatchers):
        counted.update(server.estate.board.dispatcher(child.row).of_kind(Kind.TOTAL, Kind.PART))
    return counted


def _of_terminators(server: Supervisor) -> Counter[str]:
    """Return what all terminators have counted."""
    counted = Counter(server.estate.past.terminators)
    for child in _processes(server.terminators):
        counted.update(server.estate.board.terminator(child.row).of_kind(Kind.TOTAL))
    return counted


def _now(members: list[Member], row_of: Callable[[int], Row]) -> Counter[str]:
    """Return what all processes of *members* have in hand, and may have."""
    found = Counter(dict.fromkeys(row_of(0).of_kind(Kind.NOW), 0))
    for child in _processes(members):
        found.update(row_of(child.row).of_kind(Kind.NOW))
    return found


def _terminator(server: Supervisor, member: Member) -> dict[str, Any]:
    """Return what to say of a terminator: of the process in charge, and of those that end with their connections."""
    board, in_charge = server.estate.board, member.child
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


def _pending(server: Supervisor, dispatchers: list[Member]) -> int:
    """Return how many connections wait for their head in *dispatchers*."""
    return sum(server.estate.board.dispatcher(child.row)["pending"] for child in _processes(dispatchers))


def _processes(members: list[Member]) -> list[Child]:
    return [child for member in members for child in member.children]


def _held_back(server: Supervisor, number: int) -> int:
    """Return how many connections dispatchers hold since the channel of slot *number* is full."""
    return sum(server.estate.board.waiting(child.row, number)["waiting"] for child in _processes(server.dispatchers))


def _queued(server: Supervisor, number: int) -> int:
    """Return how many connections wait for the worker of slot *number*, wherever that is."""
    return server.estate.channels[number].queued() + _held_back(server, number) + server.backend.queued(number)


def _slot(server: Supervisor, member: Member) -> dict[str, Any]:
    """Return what to say of a slot: of the worker in charge, and what all its workers have counted."""
    number, board = member.number, server.estate.board
    counted = _of_slot(server, member)
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
        "learned": learned.size(number) if (learned := server.router.learned) else 0,
        "queued": _queued(server, number),
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
