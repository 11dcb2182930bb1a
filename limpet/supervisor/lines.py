"""The lines to the children: when each is read, how much is read at once, and when it is closed.

Owns no meaning: ipc/news.py defines what a child may say, and supervisor.py decides what follows.

1. The end of a line is not a death. SIGCHLD reports deaths, and everything that a dead child said is read first.
2. A child that sends an invalid message, or too many, is refused. Nothing more of it is read and its process is killed;
   other children are not affected.
3. One turn reads a bounded amount from a line, so a child that sends without a pause delays no other.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable
from typing import Final

from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.ipc.control_link import LinkClosedError
from limpet.ipc.news import LONGEST_LINE, BadNewsError, News, parse

_PER_TURN_BYTES: Final = 1 << 16
_LAST_BYTES: Final = 1 << 20  # from a dead child: a process that it forked may still send
_MOST_PER_S: Final = 1024  # messages: in the worst case a worker asks for 256 missing channels twice a second
_MOST_UNSENT: Final = 4096  # messages that wait for a child that does not read; 256 channels are included


class Lines:
    """The lines of one server."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        take_in: Callable[[Member, Child, News], None],
        refuse: Callable[[Member, Child, str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """*take_in* acts on a message and raises BadNewsError if it is invalid; *refuse* ends a child."""
        self._selector = selector
        self._take_in = take_in
        self._refuse = refuse
        self._now = now
        self._heard: dict[Child, tuple[int, int]] = {}  # by child: a second, and how many messages came in it

    def listen_to(self, member: Member, child: Child) -> None:
        """Read the line to *child* whenever it says something."""
        if not child.link.closed:
            self._selector.register(child.link, selectors.EVENT_READ, lambda _: self.hear(member, child))

    def hear(self, member: Member, child: Child, most_bytes: int = _PER_TURN_BYTES) -> None:
        """Take in what *child* has said, or the first part of it. Never blocks."""
        if child.link.closed:
            return
        try:
            for line in child.link.receive_lines(most_bytes):
                self._count(child)
                self._take_in(member, child, parse(line))
            if len(child.link.unread) > LONGEST_LINE:
                raise BadNewsError(f"a message of more than {LONGEST_LINE} bytes")
            if len(child.link.unsent) > _MOST_UNSENT:
                raise BadNewsError("more than can be answered, because it does not read the answers")
        except LinkClosedError:
            self.hang_up(child)
        except BadNewsError as error:
            self.hang_up(child)
            self._refuse(member, child, f"said {error}")

    def hear_last(self, member: Member, child: Child) -> None:
        """Take in what *child*, which is dead, has said, and close the line to it."""
        self.hear(member, child, _LAST_BYTES)
        self.hang_up(child)

    def hang_up(self, child: Child) -> None:
        """Close the line to *child*, even if a process that the child forked still holds its other end."""
        self._heard.pop(child, None)
        if not child.link.closed:
            self._selector.unregister(child.link)
            child.link.close()

    def _count(self, child: Child) -> None:
        second = int(self._now())
        before, count = self._heard.get(child, (second, 0))
        count = count + 1 if before == second else 1
        self._heard[child] = second, count
        if count > _MOST_PER_S:
            raise BadNewsError(f"more than {_MOST_PER_S} messages in a second")
