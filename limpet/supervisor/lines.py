"""The lines to the children: when each is listened to, and when it is closed.

Owns no meaning: the form of a line is ipc/control_link.py's, and what follows from a message is the supervisor's.

1. The end of a line is no death: that is seen by SIGCHLD, and all that the dead child said is heard before.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable

from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.ipc.control_link import LinkClosedError, Message


class Lines:
    """The lines of one server."""

    def __init__(self, selector: selectors.BaseSelector, take_in: Callable[[Member, Child, Message], None]) -> None:
        """*take_in* does what follows from a message."""
        self._selector = selector
        self._take_in = take_in

    def listen_to(self, member: Member, child: Child) -> None:
        """Hear *child* whenever it says something."""
        if not child.link.closed:
            self._selector.register(child.link, selectors.EVENT_READ, lambda _: self.hear(member, child))

    def hear(self, member: Member, child: Child) -> None:
        """Take in what *child* has said. Blocks never."""
        if child.link.closed:
            return
        try:
            for message in child.link.receive():
                self._take_in(member, child, message)
        except LinkClosedError:
            self.hang_up(child)

    def hang_up(self, child: Child) -> None:
        """Close the line to *child*, whether or not it has ended: a process that it forked may hold its side."""
        if not child.link.closed:
            self._selector.unregister(child.link)
            child.link.close()
