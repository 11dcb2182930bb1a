"""A server without processes, for tests of the actors: the actors and the fleet are real, and the children are values.

`Stage` starts no process. A child is a `Child` with a real line, whose far end the test reads, and a number that stands
for its exit. The test controls the clock.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from limpet.config.router import build_router
from limpet.config.settings import Settings
from limpet.coordination.interest import Memory
from limpet.coordination.place import Kept
from limpet.coordination.roster import Roster
from limpet.errors import LimpetError
from limpet.fleet.fleet import Fleet
from limpet.fleet.lifecycle import Event, State
from limpet.fleet.member import Member
from limpet.fleet.past import Past
from limpet.fleet.process import Child
from limpet.ipc.control_link import Link
from limpet.ipc.news import News, message
from limpet.ipc.orders import CODEC, Order
from limpet.ipc.scoreboard import Scoreboard
from limpet.supervisor.announcing import Announcer
from limpet.supervisor.lines import Lines
from limpet.supervisor.processes import Followers, Processes
from limpet.supervisor.rolling import Rolling
from limpet.supervisor.scaling import Scaling
from limpet.supervisor.shutdown import Shutdown


def state(member: Member) -> State:
    """Return the state of *member*. It is a function so that the type checker knows that the state may have changed."""
    return member.life.state


class Clock:
    """The monotonic time. It passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Process:
    """Stands for a process of the operating system."""

    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.returncode

    def kill(self) -> None:
        """End it as SIGKILL does."""
        self.returncode = -9 if self.returncode is None else self.returncode


@dataclass
class Channel:
    """Stands for a slot's channel, with the number of connections that wait in it."""

    waiting: int = 0
    fds: tuple[int, int] = (0, 1)

    def queued(self) -> int:
        """Return how many connections wait."""
        return self.waiting


@dataclass
class Backend:
    """A backend that records what it was told."""

    name: str = "dispatcher"
    urls: list[str] = field(default_factory=lambda: ["http://127.0.0.1:8000"])
    waiting: Counter[int] = field(default_factory=Counter)
    follows: list[list[int]] = field(default_factory=list)
    slots: int = 0
    is_listening: bool = False
    is_closed: bool = False
    refusal: LimpetError | None = None

    def queued(self, slot: int) -> int:
        """Return how many clients wait in the kernel for *slot*."""
        return self.waiting[slot]

    def grow(self, slots: int) -> None:
        """Make room for *slots* slots."""
        if self.refusal is not None:
            raise self.refusal
        self.slots = slots

    def follow(self, owners: Any) -> None:
        """Record that clients are sent to *owners*."""
        self.follows.append(list(owners))

    def listen(self) -> None:
        """Let clients connect."""
        self.is_listening = True

    def doors(self) -> list[Any]:
        """Return the sockets that listen: none."""
        return []

    def close(self) -> None:
        """Let no more clients connect."""
        self.is_closed = True


class Resources:
    """What children are given, without starting a process."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings = settings
        self.board = Scoreboard.create()
        self.channels: list[Channel] = []
        self.moves: list[Channel] = []
        self.past = Past()
        self.newest_serial = 0
        self.descriptors = 1024
        self.free_rows = {role: list(range(64)) for role in ("worker", "dispatcher", "terminator")}
        self.started: list[Child] = []
        self.refusal: OSError | None = None
        self.bus = Roster(Memory.create())
        self.kept = Kept(-1, "", -1)
        self._clock = clock
        self._far_ends: dict[int, socket.socket] = {}
        self.grow(settings.workers)

    def grow(self, slots: int) -> None:
        """Make room for *slots* slots."""
        while len(self.channels) < slots:
            self.channels.append(Channel())
            self.moves.append(Channel())
        self.past.grow(slots)

    def waits(self, slot: int) -> bool:
        """Return whether a connection waits in the channel of *slot*."""
        return self.channels[slot].waiting > 0

    def spawn(self, member: Member) -> Child:
        """Return a new process of *member*."""
        if self.refusal is not None:
            raise self.refusal
        self.newest_serial += 1
        link, far_end = Link.pair()
        far_end.setblocking(False)
        pid = 100 + self.newest_serial
        self._far_ends[pid] = far_end
        child = Child(
            pid=pid,
            role=member.role,
            row=self.newest_serial,
            serial=self.newest_serial,
            generation=member.life.generation,
            started_at=self._clock(),
            link=link,
            process=Process(pid),  # type: ignore[arg-type]  # a value in place of a process
        )
        self.started.append(child)
        return child

    def bury(self, member: Member, child: Child) -> None:
        """Forget *child*."""
        self._far_ends.pop(child.pid).close()

    def told(self, child: Child) -> list[Order]:
        """Return what *child* was told since the last call. Channels come without their descriptors."""
        far_end = self._far_ends.get(child.pid)
        if far_end is None:
            return []
        data = b""
        try:
            while part := far_end.recv(1 << 20):
                data += part
        except BlockingIOError:
            pass
        return [order for line in data.splitlines() if (order := CODEC.unpack(json.loads(line))) is not None]

    def renew(self, terminators: Any) -> None:
        """Read no certificate: there is none."""

    def say(self, child: Child, news: News) -> None:
        """Have *child* say *news*."""
        self._far_ends[child.pid].sendall(json.dumps(message(news)).encode() + b"\n")

    def close(self) -> None:
        """Close all lines."""
        for child in self.started:
            child.link.close()
        for far_end in self._far_ends.values():
            far_end.close()
        os.close(self.board.fd)


class Stage:
    """A server made of values, with its actors. `close` its resources at the end, or use it as a context."""

    def __init__(self, workers: int = 2, dispatchers: int = 1, terminators: int = 0, **given: Any) -> None:
        settings = Settings(app="app:app", workers=workers, **given)
        self.clock = Clock()
        self.backend = Backend()
        self.resources = Resources(settings, self.clock)
        self.fleet = Fleet(
            settings=settings,
            router=build_router(settings, b"secret"),
            backend=self.backend,  # type: ignore[arg-type]  # it has what the actors ask for
            resources=self.resources,  # type: ignore[arg-type]
            slots=[Member("worker", number) for number in range(workers)],
            dispatchers=[Member("dispatcher", number) for number in range(dispatchers)],
            terminators=[Member("terminator", number) for number in range(terminators)],
            began_at=self.clock(),
            started_in="/srv/shop",
        )
        self.events: deque[tuple[str, str]] = deque()
        self.lines = Lines(selectors.DefaultSelector(), lambda *said: None, lambda *refused: None)
        self.announcer = Announcer(self.fleet)
        followers = Followers(
            ready=self._ready,
            start_failed=lambda member: self._note("start failed", member),
            kept=lambda member: self._note("kept", member),
            crashed=lambda member, child, now: self._note("crashed", member),
            ended=lambda member: self._note("ended", member),
        )
        self.processes = Processes(
            self.fleet,
            self.lines,
            self.announcer,
            followers,
            left_s=lambda now: self.shutdown.left_s(now),
            now=self.clock,
        )
        self.rolling = Rolling(self.fleet, self.processes.apply)
        self.scaling = Scaling(self.fleet, self.rolling, self.announcer, self.processes.apply)
        self.shutdown = Shutdown(self.fleet, self.rolling, self.processes.apply, self.lines.hear)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.resources.close()
        self.lines._selector.close()

    def _note(self, what: str, member: Member) -> None:
        self.events.append((what, f"{member.role} {member.number}"))

    def _ready(self, member: Member) -> None:
        self._note("ready", member)
        self.rolling.succeeded(member)
        self.processes.let_take(member)

    def start(self) -> Stage:
        """Start all members, make them ready, and let clients connect."""
        for member in self.fleet.members():
            self.processes.apply(member, Event.START)
        for member in self.fleet.members():
            self.ready(member)
        self.fleet.is_serving = True
        for member in self.fleet.members():
            self.processes.let_take(member)
        for child in self.resources.started:
            self.resources.told(child)
        self.events.clear()
        return self

    def ready(self, member: Member) -> None:
        """Let the starting process of *member* say READY."""
        child = member.starting()
        assert child is not None, f"no process of {member} is starting"
        event = member.announced(child)
        assert event is not None
        self.processes.apply(member, event)

    def die(self, member: Member, child: Child, code: int = -9) -> None:
        """End *child* with the exit *code*, and reap it."""
        assert isinstance(child.process, Process)
        child.process.returncode = code
        self.processes.reap(member, child)

    def leave(self) -> None:
        """End all processes that were told to drain, until none is left that drains."""
        while leaving := [
            (member, child)
            for member, child in self.fleet.processes()
            if child in member.predecessors or member.life.state is State.DRAINING
        ]:
            for member, child in leaving:
                self.die(member, child, code=0)

    def told(self, member: Member) -> list[Order]:
        """Return what the process in charge of *member* was told since the last call."""
        assert member.child is not None
        return self.resources.told(member.child)
