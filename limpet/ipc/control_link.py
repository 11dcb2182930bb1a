"""The line between the supervisor and one child: commands down, news up, and the child's lifeline.

Owns the framing, one JSON object a line on a stream socketpair, and nothing of what is said. When the supervisor dies
in whatever way, the kernel closes its end and the child reads the end of the line; the channels cannot tell that,
since the supervisor keeps both of their ends.

A side that does not read, since it is stopped or busy, loses no message: what finds no room waits here. That is
bounded: of the news of the workers only the latest waits, and everything else is said a few times in a life.

Down: {"do": "accept" | "workers" | "slot" | "certificate" | "drain" | "stop", ...}. Up: ipc/news.py.
"""

from __future__ import annotations

import array
import errno
import json
import socket
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from limpet.system import descriptors

Message = dict[str, Any]
_READ_BYTES: Final = 65536
_ALL: Final = 1 << 62
_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(4 * array.array("i").itemsize)


class LinkClosedError(Exception):
    """The other side has ended or been killed."""


class Unsent(NamedTuple):
    """A message that waits for room, or the rest of one."""

    line: bytes
    fds: tuple[int, ...] = ()  # the caller's, who keeps them open
    is_latest: bool = False  # news that later news of its kind replaces


class Link:
    """One end of the line. Owns its socket."""

    def __init__(
        self, end: socket.socket, unread: bytes = b"", unsent: Iterable[Unsent] = (), *, takes_fds: bool = True
    ) -> None:
        self._end = end
        # The supervisor takes none: a child could fill its table of descriptors. Without room the kernel drops them.
        self._ancillary_bytes = _ANCILLARY_BYTES if takes_fds else 0
        self._end.setblocking(False)
        self._fds: deque[list[int]] = deque()  # that came with messages, for each a list
        self.unread = unread  # the beginning of a message, whose end has not come yet
        self.unsent = deque(unsent)
        self._lock = threading.Lock()  # applications may ask for a stop in any thread

    @classmethod
    def pair(cls) -> tuple[Link, socket.socket]:
        """Return the supervisor's end and the child's, which the caller passes on and then closes."""
        ends = (descriptors.above_standard_streams(end.detach()) for end in socket.socketpair())
        ours, theirs = (socket.socket(fileno=fd) for fd in ends)
        return cls(ours, takes_fds=False), theirs

    def fileno(self) -> int:
        """Return the descriptor to watch for readability."""
        return self._end.fileno()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send *message*, and with it copies of *fds*, which its field `fds` has there; without room, by `flush`.

        Blocks never. A side that has ended is not this side's concern: it is seen in `receive` or by the supervisor's
        wait.
        """
        line = json.dumps(message | ({"fds": len(fds)} if fds else {})).encode() + b"\n"
        is_latest = message.get("do") == "workers"
        with self._lock:
            if is_latest and self.unsent:
                self.unsent = deque(each for each in self.unsent if not each.is_latest)
            self.unsent.append(Unsent(line, tuple(fds), is_latest))
            self._flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room. Blocks never."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        try:
            while self.unsent:
                line, fds, _ = self.unsent[0]
                if fds:
                    sent = socket.send_fds(self._end, [line], list(fds), socket.MSG_NOSIGNAL)
                else:
                    sent = self._end.send(line, socket.MSG_NOSIGNAL)
                self.unsent.popleft()
                if sent < len(line):
                    self.unsent.appendleft(Unsent(line[sent:]))
        except OSError as error:
            if error.errno not in _FULL:  # the other side has ended
                self.unsent.clear()

    def receive_lines(self, most_bytes: int) -> list[bytes]:
        """Return the messages that have arrived, unread, of *most_bytes* or a little more.

        What is left makes the line readable again. Raises LinkClosedError at the end of the line. Blocks never.
        """
        ended, read = False, 0
        while not ended and read < most_bytes:
            try:
                data = self._read()
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.unread += data
            read += len(data)
            ended = not data
        *lines, self.unread = self.unread.split(b"\n")
        if ended and not lines:  # else it is told by the next call
            raise LinkClosedError
        return lines

    def receive(self) -> list[Message]:
        """Return all messages that have arrived from a side that is trusted: that is the supervisor, or its program.

        Raises LinkClosedError at the end of the line. Blocks never.
        """
        messages: list[Message] = [json.loads(line) for line in self.receive_lines(_ALL)]
        for message in messages:
            if "fds" in message:
                message["fds"] = self._fds.popleft() if self._fds else []
        return messages

    def _read(self) -> bytes:
        """Return what has arrived, and keep the descriptors that came with it, which may be fewer than were sent."""
        data, ancillary, flags, _ = self._end.recvmsg(_READ_BYTES, self._ancillary_bytes, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for _, _, rights in ancillary:
            fds.frombytes(rights[: len(rights) // fds.itemsize * fds.itemsize])
        if self._ancillary_bytes and (fds or flags & socket.MSG_CTRUNC):
            self._fds.append(list(fds))
        return data

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._end.fileno() < 0

    def close(self) -> None:
        """Close this end: the other side reads the end of the line."""
        self._end.close()
