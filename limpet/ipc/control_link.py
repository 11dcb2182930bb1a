"""The line between the supervisor and one child: it carries commands down and news up, and is the child's lifeline.

This file owns the framing: one JSON object a line, on a stream socketpair. It does not know what the messages mean.
If the supervisor dies, in whatever way, the kernel closes its end, and the child reads the end of the line. A channel
cannot show that death, since the supervisor has both ends of each channel.

1. No message is lost while the other side does not read, because it is stopped or busy. What finds no room waits here.
2. That queue is bounded: of the messages that replace each other only the latest waits, and each other message is
   sent only a few times in the life of a child.
3. ipc/orders.py defines what the supervisor says, ipc/news.py what a child says.
"""

from __future__ import annotations

import array
import errno
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from limpet.system import descriptors

Message = dict[str, Any]
_READ_BYTES: Final = 65536
_ALL: Final = 1 << 62
_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(4 * array.array("i").itemsize)


class LinkClosedError(Exception):
    """The process on the other side has ended or was killed."""


class Unsent(NamedTuple):
    """A message, or the rest of one, that waits for room in the line."""

    line: bytes
    fds: tuple[int, ...] = ()  # owned by the caller of `send`, which keeps them open
    is_latest: bool = False  # a later message of this sort replaces it


class Link:
    """One end of the line. Owns its socket."""

    def __init__(
        self, end: socket.socket, unread: bytes = b"", unsent: Iterable[Unsent] = (), *, takes_fds: bool = True
    ) -> None:
        self._end = end
        # The supervisor takes no descriptors: a child could fill its table. The kernel drops those without room.
        self._ancillary_bytes = _ANCILLARY_BYTES if takes_fds else 0
        self._end.setblocking(False)
        self._fds: deque[list[int]] = deque()  # those that came with messages: one list for each message
        self.unread = unread  # the beginning of a message whose end has not come yet
        self.unsent = deque(unsent)
        self.on_read: Callable[[], None] | None = None  # called whenever messages have come
        self._lock = threading.Lock()  # an application may ask for a stop from any thread

    @classmethod
    def pair(cls) -> tuple[Link, socket.socket]:
        """Return the supervisor's end and the child's. Owns: the caller passes on the child's end, then closes it."""
        ends = (descriptors.above_standard_streams(end.detach()) for end in socket.socketpair())
        ours, theirs = (socket.socket(fileno=fd) for fd in ends)
        return cls(ours, takes_fds=False), theirs

    def fileno(self) -> int:
        """Return the descriptor to watch for readability."""
        return self._end.fileno()

    def send(self, message: Message, fds: Sequence[int] = (), *, is_latest: bool = False) -> None:
        """Send *message* with copies of *fds*, which the receiver finds in its field `fds`. Blocks never.

        If *is_latest*, it takes the place of an earlier one that still waits here.

        What finds no room is sent by a later `flush`. Raises nothing if the other side has ended: `receive`, or the
        supervisor's wait for its children, shows that.
        """
        line = json.dumps(message | ({"fds": len(fds)} if fds else {})).encode() + b"\n"
        with self._lock:
            if is_latest and self.unsent:
                self.unsent = deque(each for each in self.unsent if not each.is_latest)
            self.unsent.append(Unsent(line, tuple(fds), is_latest))
            self._flush()

    def flush(self) -> None:
        """Send the messages that wait, as far as there is room. Blocks never."""
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
        """Return the messages that have arrived, as lines, up to *most_bytes* or a little more.

        What is left keeps the line readable. Raises LinkClosedError at the end of the line. Blocks never.
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
        if ended and not lines:  # with lines, the next call raises
            raise LinkClosedError
        return lines

    def receive(self) -> list[Message]:
        """Return all messages that have arrived. The other side must be trusted: the supervisor, or the program of one.

        Raises LinkClosedError at the end of the line. Blocks never.
        """
        if self.on_read is not None:
            self.on_read()
        messages: list[Message] = [json.loads(line) for line in self.receive_lines(_ALL)]
        for message in messages:
            if "fds" in message:
                message["fds"] = self._fds.popleft() if self._fds else []
        return messages

    def _read(self) -> bytes:
        """Return the bytes that have arrived, and keep their descriptors, of which the kernel may have dropped some."""
        data, ancillary, flags, _ = self._end.recvmsg(_READ_BYTES, self._ancillary_bytes, socket.MSG_CMSG_CLOEXEC)
        fds = descriptors.received(ancillary)
        if self._ancillary_bytes and (fds or flags & socket.MSG_CTRUNC):
            self._fds.append(list(fds))
        return data

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._end.fileno() < 0

    def close(self) -> None:
        """Close this end, so that the other side reads the end of the line."""
        self._end.close()
