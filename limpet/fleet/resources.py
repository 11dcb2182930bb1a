"""What outlives the children: the channels of every slot, the scoreboard, and the numbers that are given only once.

Owns both ends of each slot's channel and move channel, the shared memory and its free rows, and the secret; puts
together from them what a new process is told and inherits. Knows nothing of states: the supervisor says whom to start.

1. Both ends of every channel stay open here, so that what is in one survives the death of either side.
2. A row is free again when its process was reaped and its figures were added to the slot's.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import time
from collections.abc import Iterable

from limpet import logs
from limpet.config.settings import Settings
from limpet.errors import ControlError, SettingsError
from limpet.fleet.member import Member
from limpet.fleet.past import Past
from limpet.fleet.process import Child
from limpet.ipc import boot
from limpet.ipc.channel import Channel
from limpet.ipc.control_link import Link
from limpet.ipc.scoreboard import DISPATCHER_ROWS, MAX_WORKERS, TERMINATOR_ROWS, Scoreboard
from limpet.net import backend, tls
from limpet.system import descriptors

log = logging.getLogger("limpet")


class Resources:
    """What the supervisor keeps for the slots and dispatchers of one server."""

    def __init__(
        self, settings: Settings, secret: bytes, chosen: backend.Backend, board: Scoreboard, started_in: str
    ) -> None:
        """*started_in* is the directory in which children start, by the name that it was entered by."""
        self.settings = settings  # what the next child is told
        self.board = board
        self.started_in = started_in
        self.channels: list[Channel] = []
        self.moves: list[Channel] = []  # between workers: moving/mover.py
        # of each bind where TLS ends in terminators, by which these pass connections on to dispatchers
        self.inner = [Channel.create() for _ in settings.bind if chosen.terminators]
        self.past = Past()
        self.newest_serial = 0
        self.descriptors = descriptors.take_all()  # what workers may have
        self.secret = secret
        self.pem = tls.read(settings)  # what the next process is told in which TLS ends
        self._backend = chosen
        rows = {"worker": MAX_WORKERS, "dispatcher": DISPATCHER_ROWS, "terminator": TERMINATOR_ROWS}
        self.free_rows = {role: list(range(count - 1, -1, -1)) for role, count in rows.items()}

    def renew(self, terminators: Iterable[Member]) -> None:
        """Read certificate and key anew, for the next workers, and for *terminators* at once.

        Raises ControlError, and leaves all as it was.
        """
        try:
            self.pem = tls.read(self.settings)
        except SettingsError as error:
            log.error("not reloaded: %s", error.message)
            raise ControlError(error.message, hint=error.hint) from None
        for member in terminators:
            for child in member.children:
                child.link.send({"do": "certificate", "pem": self.pem})

    def grow(self, slots: int) -> None:
        """Make what *slots* slots need. Raises OSError."""
        while len(self.channels) < slots:
            channel = Channel.create()
            self.moves.append(Channel.create())
            self.channels.append(channel)
        self.past.grow(slots)

    def waits(self, slot: int) -> bool:
        """Return whether something waits in a channel of *slot*."""
        return self.channels[slot].queued() > 0 or self.moves[slot].has_bytes()

    def spawn(self, member: Member) -> Child:
        """Start a process for *member*. Raises OSError when the system has no room for it."""
        free = self.free_rows[member.role]
        if not free:
            raise OSError(errno.EAGAIN, "all rows of the scoreboard are in use")
        ours, theirs = Link.pair()
        row = free.pop()
        try:
            with theirs:
                place = self._place(member, theirs.fileno(), row)
                return Child.start(member.role, place, ours, time.monotonic(), self.started_in)
        except OSError:
            ours.close()
            free.append(row)
            raise

    def bury(self, member: Member, child: Child) -> None:
        """Keep the figures of *child*, which was reaped, and free its row."""
        if member.role == "worker":
            self.past.add_worker(member.number, self.board.worker(child.row))
        elif member.role == "terminator":
            self.past.add_terminator(self.board.terminator(child.row))
        else:
            self.past.add_dispatcher(self.board, child.row)
        self.free_rows[member.role].append(child.row)

    def _place(self, member: Member, link_fd: int, row: int) -> boot.Boot:
        settings = self.settings
        if member.number >= settings.workers and member.role == "worker":  # left out of the table, it serves the rest
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
            descriptors=self.descriptors,
            move_fds=(*(channel.fds[0] for channel in self.moves), self.moves[member.number].fds[1]),
        )
