"""What a supervisor leaves to the one that replaces it in the same process: everything that must not start from zero.

Owns the form of that state, a memory file, and which settings may differ afterwards. supervisor/upgrade.py decides when
it is used and what must be true before.

How it works: descriptors keep their numbers over an exec, so the state contains their numbers. The processes stay
children, because the pid stays the same. Only what `pack` returns is passed on; everything else starts from zero.

1. The two versions must agree on the messages between their processes and on the memory that they share: `misfit`.
2. Settings that all processes of a server must agree on stay as they were, whatever the new settings say. Only those in
   CHANGEABLE may differ.

If you give the supervisor something that must outlast it, add it to `pack` and to `fleet`. Fields of members, children,
listeners and changes are passed on by themselves, except those that their class names in `ANEW`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from collections.abc import Collection, Iterator
from typing import Any, Final

from limpet.config import privileges
from limpet.config.bind import Bind
from limpet.config.settings import SETTINGS, Settings
from limpet.coordination import place, roster
from limpet.coordination.place import Kept
from limpet.coordination.roster import Roster
from limpet.errors import LimpetError
from limpet.fleet.changes import Change
from limpet.fleet.fleet import Fleet
from limpet.fleet.lifecycle import Life, State
from limpet.fleet.member import ROLES, Member
from limpet.fleet.past import Past
from limpet.fleet.process import Child
from limpet.fleet.resources import Resources
from limpet.ipc import baton, scoreboard
from limpet.ipc import channel as handoff
from limpet.ipc.channel import Channel
from limpet.ipc.control_link import Link, Unsent
from limpet.ipc.news import Failed
from limpet.ipc.scoreboard import Scoreboard
from limpet.moving import codec
from limpet.net import backend
from limpet.net.listener import Listener
from limpet.operate.control_socket import ControlServer
from limpet.routing.router import Router
from limpet.system import memfile, proc
from limpet.version import __version__

FORMAT: Final = 1  # of the state, and of the messages of ipc/control_link.py and ipc/boot.py
Packed = dict[str, Any]

CHANGEABLE: Final = frozenset(
    {
        *("config", "log_level", "log_file", "log_format", "access_log", "debug_header", "max_surge"),
        *("reload", "reload_dir", "bus"),
        *("block_warning_s", "hang_timeout_s", "max_requests", "max_memory_mib", "websocket_spread_s", "worker_class"),
        *("loop", "http", "ws", "server_config", "threads", "factory", "interface", "root_path"),
        *("max_copies", "max_pending", "head_timeout_s", "keep_alive_timeout_s", "key_timeout_s"),
        *("start_timeout_s", "graceful_timeout_s", "on_scale"),
    }
)
"""Settings that may differ between processes started before and after the upgrade."""


def pack(fleet: Fleet, control: ControlServer, admin_listener: Listener | None) -> Packed:
    """Return everything that the next supervisor must know about this one, including the numbers of its descriptors."""
    resources = fleet.resources
    return {
        "format": FORMAT,
        "version": __version__,
        "wire": wire(),
        "layout": scoreboard.layout(),
        "settings": fleet.settings.to_json(),
        "secret": resources.secret.hex(),
        "backend": fleet.backend.name,
        "listeners": [[_pack_listener(each) for each in members] for members in fleet.backend.listeners()],
        "control": control.pack(),
        "admin": admin_listener and _pack_listener(admin_listener),
        "board": resources.board.fd,
        "shared": resources.kept.pack(),
        "channels": [channel.fds for channel in resources.channels],
        "moves": [channel.fds for channel in resources.moves],
        "inner": [channel.fds for channel in resources.inner],
        "bus": resources.bus.pack(),
        "past": resources.past.packed(),
        "newest_serial": resources.newest_serial,
        "descriptors": resources.descriptors,
        "members": [_pack_member(member) for member in fleet.members()],
        "scaled": fleet.has_scaled,
        "changes": [_pack_change(change) for change in fleet.changes.known()],
        "upgrades": fleet.upgrades + 1,
        "started_in": fleet.started_in,
    }


def wire() -> list[Any]:
    """Return the formats of all messages and cells that the processes of a server share."""
    return [handoff.FORM, codec.FORM, baton.FORM]


def misfit(state: Packed) -> str | None:
    """Return why this version cannot continue from *state*, or None if it can."""
    if state["format"] != FORMAT:
        return f"its state has format {state['format']}, and this version needs format {FORMAT}"
    if state["wire"] != wire():
        return "its workers pass connections in another format"
    if state.get("shared", {}).get("layout", place.LAYOUT) != place.LAYOUT:
        return "its applications share memory of another format"
    part = scoreboard.misfit(state["layout"])
    return f"its processes use another format of {part}" if part else None


def descriptors(state: Packed) -> Iterator[int]:
    """Yield the descriptors that *state* names."""
    yield state["board"]
    yield from (state["shared"][name] for name in ("fd", "outer_fd") if state.get("shared", {}).get(name, -1) >= 0)
    yield state["control"]["fd"]
    yield from (caller["fd"] for caller in state["control"]["callers"])
    if admin := state.get("admin"):
        yield admin["fd"]
    yield from roster.descriptors(state.get("bus"))
    for pair in (*state["channels"], *state["moves"], *state.get("inner", ())):
        yield from pair
    for members in state["listeners"]:
        yield from (member["fd"] for member in members)
    for member in state["members"]:
        yield from (child["link"] for child in member["children"] if child["link"] >= 0)
        yield from (child["stack_fd"] for child in member["children"] if _stack_fd(child) >= 0)


def write(state: Packed) -> int:
    """Return the descriptor of a memory file with *state*. The caller closes it."""
    return memfile.create("limpet-upgrade", json.dumps(state).encode())


def read(fd: int) -> Packed:
    """Return the state that the previous supervisor wrote into *fd*. Raises LimpetError if it cannot be taken over.

    Owns all descriptors that the state names from then on, and closes *fd*.
    """
    state: Packed = json.loads(memfile.read(fd))
    if why := misfit(state):
        raise LimpetError(
            f"version {state['version']} cannot be replaced in place by version {__version__}: {why}",
            hint="stop and start the server; with socket activation its sockets stay open",
        )
    for number in descriptors(state):
        os.set_inheritable(number, False)
    return state


def settled(wanted: Settings, state: Packed) -> tuple[Settings, list[str]]:
    """Return the settings to continue with, and a line for each of *wanted* that cannot change in place."""
    before = Settings.from_json(state["settings"])
    names = [field.name for field in dataclasses.fields(Settings)]
    kept = [name for name in names if name not in CHANGEABLE and getattr(before, name) != getattr(wanted, name)]
    flags = {each.name: each.flag for each in SETTINGS}
    lines = [f"`{flags[name]}` cannot change in place and stays `{_text(getattr(before, name))}`" for name in kept]
    return dataclasses.replace(wanted, **{name: getattr(before, name) for name in kept}), lines


def listeners(state: Packed) -> list[list[Listener]]:
    """Return the listeners of each bind."""
    return [[_unpack_listener(each) for each in members] for members in state["listeners"]]


def admin(state: Packed) -> Listener | None:
    """Return the listener of the admin process, or None."""
    return _unpack_listener(state["admin"]) if state.get("admin") else None


def fleet(settings: Settings, chosen: backend.Backend, router: Router, board: Scoreboard, state: Packed) -> Fleet:
    """Return the server that `pack` was called on, with *settings* from now on."""
    members = [_unpack_member(each) for each in state["members"]]
    of = {role: [member for member in members if member.role == role] for role in ROLES}
    resources = _unpack_resources(settings, chosen, board, state)
    found = Fleet(
        settings=settings,
        router=router,
        backend=chosen,
        resources=resources,
        slots=of["worker"],
        dispatchers=of["dispatcher"],
        terminators=of["terminator"],
        began_at=time.monotonic(),
        started_in=resources.started_in,
        is_serving=True,
        has_scaled=bool(state.get("scaled")),
        upgrades=state["upgrades"],
    )
    found.changes.adopt(_unpack_change(each) for each in state["changes"])
    return found


def _unpack_resources(settings: Settings, chosen: backend.Backend, board: Scoreboard, state: Packed) -> Resources:
    """Return what outlives the children, as it was."""
    started_in = state.get("started_in") or proc.working_directory()  # older versions did not say
    bus = Roster.adopt(state.get("bus"))
    owner = privileges.wanted(settings)
    shared = state.get("shared")  # older versions had none
    kept = Kept.adopt(shared) if shared else Kept.create(owner and owner[:2])
    resources = Resources(settings, bytes.fromhex(state["secret"]), chosen, board, kept, started_in, bus)
    resources.channels = [Channel.inherit(fds) for fds in state["channels"]]
    resources.moves = [Channel.inherit(fds) for fds in state["moves"]]
    resources.inner = [Channel.inherit(fds) for fds in state.get("inner", ())]
    resources.past = Past.adopt(state["past"])
    resources.newest_serial = state["newest_serial"]
    resources.descriptors = state.get("descriptors", resources.descriptors)
    for member in state["members"]:
        for child in member["children"]:
            resources.free_rows[member["role"]].remove(child["row"])
    return resources


def _text(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _kept(found: Any, but: Collection[str]) -> Packed:
    """Return the fields of a dataclass, except those in *but*."""
    names = [each.name for each in dataclasses.fields(found) if each.name not in but]
    return {name: getattr(found, name) for name in names}


def _pack_listener(listener: Listener) -> Packed:
    kept = _kept(listener, ("sock", "bind"))
    return {"fd": listener.sock.fileno(), "bind": listener.bind.text, **kept}


def _unpack_listener(packed: Packed) -> Listener:
    kept = {name: value for name, value in packed.items() if name not in ("fd", "bind", "inode")}
    inode = packed["inode"] and tuple(packed["inode"])
    return Listener(socket.socket(fileno=packed["fd"]), Bind.parse(packed["bind"]), inode=inode, **kept)


_PARTS: Final = ("child", "successor", "predecessors")


def _pack_member(member: Member) -> Packed:
    """Return *member* with its children, each with the name of its part."""
    parts = [("child", member.child), ("successor", member.successor), *(("old", old) for old in member.predecessors)]
    return {
        **_kept(member, (*Member.ANEW, *_PARTS, "life")),
        "life": dataclasses.asdict(member.life),
        "children": [_pack_child(part, child) for part, child in parts if child is not None],
    }


def _pack_child(part: str, child: Child) -> Packed:
    unsent = [(each.line.decode(), each.fds, each.is_latest) for each in child.link.unsent]
    line = {"link": child.link.fileno(), "unread": child.link.unread.hex(), "unsent": unsent}
    failure = child.failure and dataclasses.asdict(child.failure)
    return {"part": part, **line, **_kept(child, Child.ANEW), "failure": failure}


def _unpack_member(packed: Packed) -> Member:
    kept = {name: value for name, value in packed.items() if name not in ("life", "children")}
    member = Member(**kept, life=Life(**{**packed["life"], "state": State(packed["life"]["state"])}))
    for each in packed["children"]:
        of_line = ("part", "link", "unread", "unsent")
        kept = {name: each[name] for name in each if name not in of_line} | {"stack_fd": _stack_fd(each)}
        failure = each["failure"]
        names = ("message", "hint", "code", "detail")
        kept["failure"] = failure and Failed(**{name: failure[name] for name in names if name in failure})
        kept.setdefault("is_ready", each["part"] == "old" or member.life.state.serves)  # older versions did not say
        child = Child.adopt(_unpack_link(each), kept)
        match each["part"]:
            case "child":
                member.child = child
            case "successor":
                member.successor = child
            case _:
                member.predecessors.append(child)
    return member


def _stack_fd(child: Packed) -> int:
    """Return the descriptor of the stacks, or -1.

    Older versions wrote a number that is only valid in the child's process, which is of no use here.
    """
    found: int = child["stack_fd"] if "shows_stack" in child else -1
    return found


def _unpack_link(packed: Packed) -> Link:
    """Return the line to a child. If the child has hung up and is still to be reaped, the line is closed."""
    if packed["link"] >= 0:
        unsent = (Unsent(line.encode(), tuple(fds), latest) for line, fds, latest in packed["unsent"])
        return Link(socket.socket(fileno=packed["link"]), bytes.fromhex(packed["unread"]), unsent, takes_fds=False)
    ours, theirs = Link.pair()
    theirs.close()
    ours.close()
    return ours


def _pack_change(change: Change) -> Packed:
    return {**dataclasses.asdict(change), "under_way": list(change.under_way)}


def _unpack_change(packed: Packed) -> Change:
    change = Change(**{**packed, "under_way": set(packed["under_way"])})
    change.slots = packed["slots"]  # Change counts them itself, so it must be set again
    return change
