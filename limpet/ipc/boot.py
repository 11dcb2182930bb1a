"""What a child process is told at birth: its place, its settings and the numbers of the descriptors it inherits.

Owns the form in which this travels: a sealed memory file whose descriptor number is the child's only argument. So
neither `ps` nor the environment ever shows the secret. Written by the supervisor, read once by the child.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Any

from limpet.config.settings import Settings
from limpet.system import descriptors


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """A child's place. Descriptor numbers are the same in parent and child."""

    settings: Settings
    secret: str  # hex
    pem: str  # certificate and key of TLS, "" for none
    link_fd: int
    scoreboard_fd: int
    # (sending, receiving): of all slots for a dispatcher, its own for a worker, inner ones of all binds for terminators
    channel_fds: tuple[tuple[int, int], ...]
    listeners: tuple[tuple[int, str], ...]  # (descriptor or -1, text of each bind); a worker's are its slot's own
    index: int  # of the dispatcher or terminator, or the worker's slot
    generation: int = 0  # how many workers the slot has had, this one included
    row: int = 0  # of the scoreboard
    serial: int = 0  # of the worker, in the order in which all workers of the server were started
    descriptors: int = 0  # that a worker may have; 0: as many as the supervisor
    is_inner: bool = False  # for a dispatcher: its listeners are channels, by which terminators pass connections on
    stack_fd: int = -1  # for a worker: where its stacks are written (system/stack.py)
    log_fd: int = -1  # a description of stderr that the supervisor has opened: `--user` may not open it (logs.py)
    move_fds: tuple[int, ...] = ()  # for a worker: the sending ends of all slots' move channels, then its receiving one

    @property
    def inherited_fds(self) -> tuple[int, ...]:
        """Return the descriptors that the child must inherit."""
        channels = [fd for pair in self.channel_fds for fd in pair]
        listeners = [fd for fd, _ in self.listeners if fd >= 0]
        further = [fd for fd in (self.stack_fd, self.log_fd) if fd >= 0]
        return (self.link_fd, self.scoreboard_fd, *further, *channels, *self.move_fds, *listeners)


def write(boot: Boot) -> int:
    """Return a descriptor of a memory file that holds *boot*; the caller passes it on and closes it."""
    fields: dict[str, Any] = {field.name: getattr(boot, field.name) for field in dataclasses.fields(boot)}
    fields["settings"] = boot.settings.to_json()
    fd = os.memfd_create("limpet-boot", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(json.dumps(fields).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def read(fd: int) -> Boot:
    """Return what the supervisor wrote into *fd*, and close it. Runs in a child, first of all.

    From then on no program that the child starts inherits any of its descriptors.
    """
    with open(fd, "rb") as file:
        fields = json.loads(file.read())
    fields["settings"] = Settings.from_json(fields["settings"])
    fields["channel_fds"] = tuple(tuple(pair) for pair in fields["channel_fds"])
    fields["move_fds"] = tuple(fields["move_fds"])
    fields["listeners"] = tuple(tuple(pair) for pair in fields["listeners"])
    place = Boot(**fields)
    descriptors.keep_from_programs(place.inherited_fds)
    return place
