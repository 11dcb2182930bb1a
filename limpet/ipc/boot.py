"""What a child process gets at its start: its place, its settings, and the numbers of its inherited descriptors.

This file owns the form in which that travels: a memory file, whose descriptor number is an argument of the child. So
neither `ps` nor the environment ever shows the secret. It does not know what a child does with its place. The
supervisor writes the file (fleet/resources.py), and the child reads it once (entry/child.py).

1. After an update on disk, a running supervisor of an older version starts children with the new code. So a new field
   needs a default value, and no field may be removed.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from limpet.config.settings import Settings
from limpet.system import descriptors, memfile


class BusPlace(NamedTuple):
    """The place of a participant of the bus (coordination/roster.py)."""

    memory_fds: tuple[int, int]
    row: int
    serial: int
    receiving_fd: int
    line_fd: int  # on which the channels of later participants come
    peers: tuple[tuple[int, int, int], ...]  # row, serial number and sending end of each other participant

    @property
    def inherited_fds(self) -> tuple[int, ...]:
        """Return the descriptors that the participant must inherit."""
        return (*self.memory_fds, self.receiving_fd, self.line_fd, *(fd for *_, fd in self.peers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """The place of a child. The numbers of descriptors are the same in parent and child."""

    settings: Settings
    secret: str  # hex
    pem: str  # certificate and key of TLS; "" if there are none
    link_fd: int
    scoreboard_fd: int
    # (sending, receiving). Dispatcher: channels of all slots. Worker: of its slot. Terminator: inner ones of all binds.
    channel_fds: tuple[tuple[int, int], ...]
    listeners: tuple[tuple[int, str], ...]  # (descriptor or -1, text) of each bind; for a worker those of its slot
    index: int  # number of the dispatcher or terminator; for a worker its slot
    generation: int = 0  # how many workers the slot has had, including this one
    row: int = 0  # row of the scoreboard
    serial: int = 0  # serial number of the worker, counted over all workers of the server
    descriptors: int = 0  # how many a worker may have; 0: as many as the supervisor
    is_inner: bool = False  # for a dispatcher: its listeners are inner channels, on which terminators send connections
    stack_fd: int = -1  # for a worker: the file for its stacks (system/stack.py)
    log_fd: int = -1  # open file description of stderr from the supervisor: `--user` may not open one (logs.py)
    shared_fd: int = -1  # for a worker: the memory file of coordination/place.py
    shared_directory: str = ""  # and its directory
    shared_stash: str = ""  # the directory of `--stash`
    move_fds: tuple[int, ...] = ()  # for a worker: sending ends of all slots' move channels, then its own receiving end
    bus: BusPlace | None = None  # for a worker; None from a supervisor that has no bus

    @property
    def inherited_fds(self) -> tuple[int, ...]:
        """Return the descriptors that the child must inherit."""
        channels = [fd for pair in self.channel_fds for fd in pair]
        listeners = [fd for fd, _ in self.listeners if fd >= 0]
        further = [fd for fd in (self.stack_fd, self.log_fd, self.shared_fd) if fd >= 0]
        bus = self.bus.inherited_fds if self.bus is not None else ()
        return (self.link_fd, self.scoreboard_fd, *further, *channels, *self.move_fds, *listeners, *bus)


def write(boot: Boot) -> int:
    """Return a descriptor of a memory file that holds *boot*. Owns: the caller passes it to the child and closes it."""
    fields: dict[str, Any] = {field.name: getattr(boot, field.name) for field in dataclasses.fields(boot)}
    fields["settings"] = boot.settings.to_json()
    return memfile.create("limpet-boot", json.dumps(fields).encode())


def read(fd: int) -> Boot:
    """Return what the supervisor wrote into *fd*, and close *fd*. Runs in a child, before all else.

    The inherited descriptors become close-on-exec, so that no program that the child starts gets any of them.
    """
    fields = json.loads(memfile.read(fd))
    fields["settings"] = Settings.from_json(fields["settings"])
    fields["channel_fds"] = tuple(tuple(pair) for pair in fields["channel_fds"])
    fields["move_fds"] = tuple(fields["move_fds"])
    fields["bus"] = BusPlace(*fields["bus"]) if fields.get("bus") else None
    fields["listeners"] = tuple(tuple(pair) for pair in fields["listeners"])
    place = Boot(**fields)
    descriptors.keep_from_programs(place.inherited_fds)
    return place
