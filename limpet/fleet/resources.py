"""What outlives the children: the channels of all slots, the scoreboard, and numbers that are used only once.

Owns both ends of each slot's channel and move channel, the shared memory with its free rows, and the secret. From these
it builds what a new process is told and inherits. It knows no states: supervisor/processes.py says which member gets a
process.

1. Both ends of every channel stay open here, so that queued connections survive the death of either side.
2. A row is free again once its process was reaped and its figures were added to the totals.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import time
from collections.abc import Iterable

from limpet import logs
from limpet.config.settings import Settings
from limpet.coordination.interest import Memory
from limpet.coordination.place import Kept
from limpet.coordination.roster import Roster
from limpet.errors import ControlError, SettingsError
from limpet.fleet.member import Member
from limpet.fleet.past import Past
from limpet.fleet.process import Child
from limpet.ipc import boot
from limpet.ipc.channel import Channel
from limpet.ipc.control_link import Link
from limpet.ipc.orders import Certificate
from limpet.ipc.scoreboard import DISPATCHER_ROWS, MAX_WORKERS, TERMINATOR_ROWS, Scoreboard
from limpet.net import backend, tls
from limpet.system import descriptors

log = logging.getLogger("limpet")


class Resources:
    """What the supervisor keeps for the slots, dispatchers and terminators of one server."""

    def __init__(
        self,
        settings: Settings,
        secret: bytes,
        chosen: backend.Backend,
        board: Scoreboard,
        kept: Kept,
        started_in: str,
        bus: Roster | None = None,
    ) -> None:
        """*started_in* is the directory in which children start, as it was entered, with its symbolic links.

        *bus* is what the previous supervisor in this process left; None makes a new one.
        """
        self.settings = settings  # for the next child
        self.board = board
        self.kept = kept  # what applications share
        self.started_in = started_in
        self.channels: list[Channel] = []
        self.moves: list[Channel] = []  # between workers, see moving/mover.py
        # One for each bind if terminators end TLS: through it the terminators pass connections to the dispatchers.
        self.inner = [Channel.create() for _ in settings.bind if chosen.terminators]
        self.bus = Roster(Memory.create()) if bus is None else bus
        self.past = Past()
        self.newest_serial = 0
        self.descriptors = descriptors.take_all()  # how many descriptors a worker may have
        self.secret = secret
        self.pem = tls.read(settings)  # for the next process that ends TLS
        self._backend = chosen
        rows = {"worker": MAX_WORKERS, "dispatcher": DISPATCHER_ROWS, "terminator": TERMINATOR_ROWS}
        self.free_rows = {role: list(range(count - 1, -1, -1)) for role, count in rows.items()}

    def renew(self, terminators: Iterable[Member]) -> None:
        """Read the certificate and key again: for workers that start from now on, and for *terminators* at once.

        Raises ControlError if they cannot be read; everything then stays as it was.
        """
        try:
            self.pem = tls.read(self.settings)
        except SettingsError as error:
            log.error("not reloaded: %s", error.message, extra={"event": "not_reloaded"})
            raise ControlError(error.message, hint=error.hint) from None
        for member in terminators:
            for child in member.children:
                child.tell(Certificate(self.pem))

    def grow(self, slots: int) -> None:
        """Make the channels and counters that *slots* slots need. Raises OSError."""
        while len(self.channels) < slots:
            channel = Channel.create()
            self.moves.append(Channel.create())
            self.channels.append(channel)
        self.past.grow(slots)

    def waits(self, slot: int) -> bool:
        """Return whether a connection or a move waits in a channel of *slot*."""
        return self.channels[slot].queued() > 0 or self.moves[slot].has_bytes()

    def spawn(self, member: Member) -> Child:
        """Start a process for *member*. Raises OSError if the system has no room for it."""
        free = self.free_rows[member.role]
        if not free:
            raise OSError(errno.EAGAIN, "all rows of the scoreboard are in use")
        ours, theirs = Link.pair()
        row = free.pop()
        try:
            with theirs:
                place = self._place(member, theirs.fileno(), row)
                if member.role != "worker":
                    return Child.start(member.role, place, ours, time.monotonic(), self.started_in)
                with self.bus.admit(row, place.serial) as bus:
                    place = dataclasses.replace(place, bus=bus)
                    return Child.start(member.role, place, ours, time.monotonic(), self.started_in)
        except OSError:
            ours.close()
            free.append(row)
            raise

    def bury(self, member: Member, child: Child) -> None:
        """Keep the figures of *child*, which was reaped, and free its row."""
        if member.role == "worker":
            self.past.add_worker(member.number, self.board.worker(child.row))
            self.bus.dismiss(child.row)
        elif member.role == "terminator":
            self.past.add_terminator(self.board.terminator(child.row))
        else:
            self.past.add_dispatcher(self.board, child.row)
        self.free_rows[member.role].append(child.row)

    def _place(self, member: Member, link_fd: int, row: int) -> boot.Boot:
        settings = self.settings
        if member.number >= settings.workers and member.role == "worker":  # a removed slot: clients still wait in it
            settings = dataclasses.replace(settings, workers=member.number + 1)
        common = boot.Boot(
            settings=settings,
            secret=self.secret.hex(),
            pem="",
            link_fd=link_fd,
            scoreboard_fd=self.board.fd,
            channel_fds=tuple(channel.fds for channel in self.channels),
            listeners=self._backend.inherited(member.number if member.role == "worker" else None),
            index=member.number,
            generation=member.life.generation,
            row=row,
            log_fd=logs.own_fd(),
        )
        if member.role == "terminator":
            return dataclasses.replace(
                common, secret="", pem=self.pem, channel_fds=tuple(channel.fds for channel in self.inner)
            )
        if member.role == "dispatcher" and self.inner:
            texts = (text for _, text in common.listeners)
            ends = tuple((channel.fds[1], text) for channel, text in zip(self.inner, texts, strict=True))
            return dataclasses.replace(common, listeners=ends, is_inner=True)
        if member.role == "dispatcher":
            return common
        self.newest_serial += 1
        return dataclasses.replace(
            common,
            pem="" if self.inner else self.pem,
            channel_fds=(self.channels[member.number].fds,),
            serial=self.newest_serial,
            shared_fd=self.kept.fd,
            shared_directory=self.kept.directory,
            shared_stash=self.kept.stash,
            descriptors=self.descriptors,
            move_fds=(*(channel.fds[0] for channel in self.moves), self.moves[member.number].fds[1]),
        )
