"""The channels of the bus: one for each participant, and how every other participant gets to know it.

This file owns both sides of that: `Roster` in the supervisor, and `Peers` in a participant, which is a worker or a
bridge. It does not know messages or topics. fleet/resources.py admits and dismisses participants, bus.py sends.

How it works: a channel is a pair of datagram sockets. The participant alone has the receiving end, so what waits in it
ends with the participant, and no successor ever reads it. The supervisor keeps the sending end and gives copies of it
to all. A new participant inherits the ends of those that live. These get the new one's end on a line of their own,
before its process is started. So an end is in the line before anybody can have seen the interest of its owner, and a
publisher that meets an unknown one reads its line and goes on. It never waits.

1. The supervisor reads nothing from any of these sockets.
2. An end that does not fit into a line waits in the supervisor, at most as long as its owner lives.
3. A participant reads its line whenever the supervisor tells it something (ipc/control_link.py), also if its
   application does not use the bus. Descriptors in flight are limited for each user, and connections need them, too.
4. Datagrams, not a stream: if a participant shuts the channel of another down, that one reads no end and hears nothing
   more. The next process in the slot has a new channel.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from limpet.coordination.interest import FORM, Memory
from limpet.ipc.boot import BusPlace
from limpet.ipc.channel import make_roomy
from limpet.ipc.scoreboard import MAX_WORKERS

_MESSAGE: Final = struct.Struct("=QH")  # serial number and row of the participant whose end comes with it
_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_DESCRIPTOR_BYTES: Final = array.array("i").itemsize
_TAKE: Final = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC


@dataclass(slots=True, eq=False)
class _Participant:
    """What the supervisor keeps of one participant."""

    serial: int
    sending: socket.socket
    line: socket.socket
    unsent: deque[int] = field(default_factory=deque)  # rows whose ends found no room in the line


class Roster:
    """All participants, for the supervisor."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._participants: dict[int, _Participant] = {}

    @contextlib.contextmanager
    def admit(self, row: int, serial: int) -> Iterator[BusPlace]:
        """Make the participant *serial* in *row*, and yield what its process must inherit.

        If the body raises, which starts the process, the participant is gone again. Raises OSError.
        """
        ours, line = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (ours, sending):
            make_roomy(end)
        with line, receiving:
            peers = tuple((at, each.serial, each.sending.fileno()) for at, each in self._participants.items())
            self._participants[row] = _Participant(serial, sending, ours)
            self.memory.begin(row, serial)
            for at, each in self._participants.items():
                if at != row:
                    each.unsent.append(row)
            self.flush()
            try:
                yield BusPlace(self.memory.fds, row, serial, receiving.fileno(), line.fileno(), peers)
            except BaseException:
                self.dismiss(row)
                raise

    def dismiss(self, row: int) -> None:
        """Forget the participant of *row*, which has ended, if there is one."""
        gone = self._participants.pop(row, None)
        if gone is not None:
            self.memory.end(row)
            gone.sending.close()
            gone.line.close()
            for each in self._participants.values():
                each.unsent = deque(at for at in each.unsent if at != row)

    def queued_bytes(self, row: int) -> int:
        """Return how much memory of the kernel the messages take that wait for the participant of *row*."""
        found = self._participants.get(row)
        unread = array.array("i", [0])
        if found is not None:
            fcntl.ioctl(found.sending, termios.TIOCOUTQ, unread)
        return unread[0]

    def flush(self) -> None:
        """Send the ends that found no room, as far as there is room now. Blocks never."""
        for each in self._participants.values():
            while each.unsent and self._tell(each, each.unsent[0]):
                each.unsent.popleft()

    def _tell(self, to: _Participant, row: int) -> bool:
        about = self._participants[row]
        message = _MESSAGE.pack(about.serial, row)
        fds = array.array("i", [about.sending.fileno()])
        try:
            to.line.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)], _FLAGS)
        except OSError as error:
            return error.errno not in _FULL  # it has ended, and will be dismissed
        return True

    # An upgrade in place: supervisor/snapshot.py.

    def pack(self) -> dict[str, Any]:
        """Return everything that the next supervisor in this process must know."""
        kept = [
            [row, each.serial, each.sending.fileno(), each.line.fileno(), list(each.unsent)]
            for row, each in self._participants.items()
        ]
        return {"form": FORM, "memory": self.memory.fds, "participants": kept}

    @classmethod
    def adopt(cls, kept: dict[str, Any] | None) -> Roster:
        """Return the roster that `pack` was called on; a new one if that version had none, or one of another form.

        Participants of another form go on among themselves until they are renewed.
        """
        if kept is None or kept["form"] != FORM:
            return cls(Memory.create())
        roster = cls(Memory((kept["memory"][0], kept["memory"][1])))
        for row, serial, sending, line, unsent in kept["participants"]:
            ends = socket.socket(fileno=sending), socket.socket(fileno=line)
            if row >= MAX_WORKERS:  # a bridge, which ends with its supervisor
                for end in ends:
                    end.close()
                continue
            roster._participants[row] = _Participant(serial, *ends, deque(unsent))
        return roster


def descriptors(kept: dict[str, Any] | None) -> Iterator[int]:
    """Yield the descriptors in what `Roster.pack` returned."""
    if kept is not None:
        yield from kept["memory"]
        for _, _, sending, line, _ in kept["participants"]:
            yield from (sending, line)


class Peers:
    """The channels of all others, for a participant. Whoever uses a channel holds `lock`, as `read` may close it."""

    def __init__(self, memory: Memory, line: socket.socket, known: Iterable[tuple[int, int, int]]) -> None:
        """*known* are rows, serial numbers and descriptors."""
        self._memory = memory
        self._line = line
        self.lock = threading.RLock()
        self._channels = {row: (serial, _sending(fd)) for row, serial, fd in known}

    def channel(self, row: int, serial: int) -> socket.socket | None:
        """Return the sending end for participant *serial* in *row*, or None if it has not come yet."""
        found = self._channels.get(row)
        return found[1] if found is not None and found[0] == serial else None

    def read(self) -> None:
        """Take the ends that have come, and close those of participants that have ended. Blocks never."""
        with self.lock:
            with contextlib.suppress(OSError):  # nothing has come; or no descriptor is free, and the ends wait
                while True:
                    os.close(os.dup(self._line.fileno()))  # EMFILE is raised here, before an end is lost
                    self._take(*self._line.recvmsg(_MESSAGE.size, socket.CMSG_SPACE(_DESCRIPTOR_BYTES), _TAKE)[:2])
            for row, (serial, channel) in list(self._channels.items()):
                if self._memory.serial(row) != serial:
                    del self._channels[row]
                    channel.close()

    def _take(self, message: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        for _, _, data in ancillary:
            [fd] = array.array("i", data)
            serial, row = _MESSAGE.unpack(message)
            if row in self._channels:
                self._channels[row][1].close()
            self._channels[row] = serial, _sending(fd)


def _sending(fd: int) -> socket.socket:
    end = socket.socket(fileno=fd)
    end.setblocking(False)
    return end
