"""The lines to the children: what each says, and what follows.

Owns when a line is listened to, and when it is closed. Its form is ipc/control_link.py's; what an event does to a slot
is decided by fleet/lifecycle.py, and done by the supervisor.

1. The end of a line is no death: that is seen by SIGCHLD, and all that the dead child said is heard before.
"""

from __future__ import annotations

import logging
import selectors
from typing import TYPE_CHECKING

from limpet.fleet.lifecycle import Event
from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.ipc.control_link import LinkClosedError, Message

if TYPE_CHECKING:
    from limpet.supervisor.supervisor import Supervisor

log = logging.getLogger("limpet")


class Lines:
    """The lines of one server."""

    def __init__(self, server: Supervisor, selector: selectors.BaseSelector) -> None:
        self._server = server
        self._selector = selector

    def listen_to(self, member: Member, child: Child) -> None:
        """Hear *child* whenever it says something."""
        if not child.link.closed:
            self._selector.register(child.link, selectors.EVENT_READ, lambda _: self.hear(member, child))

    def hear(self, member: Member, child: Child) -> None:
        """Take in what *child* has said."""
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

    def _take_in(self, member: Member, child: Child, message: Message) -> None:
        server = self._server
        match message["news"]:
            case "ready":
                child.stack_fd = message.get("stack")
                event = member.announced(child)
                if event is not None:
                    server.happened(member, event)
            case "failed":
                child.failure = message
            case "missing":
                server.scaling.tell_slot(member, child, message["slot"])
            case "left":
                child.leaves_by = 0.0
                server.let_take(member)
            case "leaving" if child is member.child:
                log.info("%s drains: it was told so by a signal; it is replaced", member)
                server.happened(member, Event.LEFT)
            case "stop":
                log.info("%s asked to stop the server", member.name(child))
                server.stop(wait_for_connections=message["wait_for_connections"])
