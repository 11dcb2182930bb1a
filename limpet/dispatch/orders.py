"""What the supervisor tells a dispatcher, and what follows: to accept, where clients go now, to end.

Owns the dispatcher's side of its line (ipc/control_link.py). How a connection finds its slot is
dispatch/dispatcher.py's.

1. To stop: who has connected before the end is taken and served, if this is the last dispatcher; else another goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from limpet.dispatch.accepting import let_in
from limpet.ipc.control_link import Link, LinkClosedError
from limpet.protocol.request import Peer

if TYPE_CHECKING:
    from limpet.dispatch.dispatcher import Dispatcher

_ASK_AGAIN_S: Final = 0.5  # for what there was no room for
_SILENT_S: Final = 0.5  # for clients that have connected before the end, but whose first byte is still under way
_LAST_WORD_S: Final = 0.25  # before the end, for 408 to those whose head has not come


class Orders:
    """The orders to one dispatcher."""

    def __init__(self, dispatcher: Dispatcher, link: Link, reach: Callable[[int, list[int]], bool]) -> None:
        self._dispatcher = dispatcher
        self._link = link
        self._reach = reach
        self._refused_slots: list[int] = []
        self._missing: set[int] = set()  # slots whose channel could not be taken in: there were no free descriptors
        self._ask_at = 0.0

    def __bool__(self) -> bool:
        """Whether something is to be done by the clock, whoever waits for it."""
        return bool(self._missing) and self._dispatcher.stop_at is None

    def fileno(self) -> int:
        """Return the descriptor to watch for readability."""
        return self._link.fileno()

    def refuses(self, slot: int) -> bool:
        """Return whether the clients of *slot* are not to wait for its next worker."""
        return slot in self._refused_slots

    def obey(self, now: float) -> None:
        """Do what the supervisor says; if it is gone, stop."""
        try:
            commands = self._link.receive()
        except LinkClosedError:
            commands = [{"do": "stop", "timeout": 0.0}]
        dispatcher = self._dispatcher
        for command in commands:
            if command["do"] == "accept":
                dispatcher.listening.start()
            elif command["do"] == "workers":
                if command["slots"] != dispatcher.router.slots:
                    dispatcher.router.resize(command["slots"])
                dispatcher.placement.follow(command["rows"], command["held"])
                dispatcher.router.follow(command["up"])
                self._refused_slots = command["refused"]
                if any(command["up"]):
                    for slot in [slot for slot, is_up in enumerate(command["up"]) if not is_up]:
                        self._fail_over(slot, now)
            elif command["do"] == "slot":
                self._missing -= {command["slot"]}
                if not self._reach(command["slot"], command["fds"]):
                    self._missing |= {command["slot"]}
                    self._ask_at = now + _ASK_AGAIN_S
            elif command["do"] in ("stop", "drain"):
                self._stop(now, command["timeout"], last=command["do"] == "stop")

    def _fail_over(self, slot: int, now: float) -> None:
        """Pass those who wait for *slot*, which is without a worker for too long, on to where its clients go now."""
        dispatcher = self._dispatcher
        for connection, handoff in dispatcher.outboxes[slot].take_back():
            dispatcher.row.add("failed_over")
            try:
                peer = Peer.of(connection.getpeername(), "", handoff.listener)
            except OSError:  # the client is gone
                connection.close()
                continue
            instead = dispatcher.router.serves(handoff.digest) if handoff.digest else dispatcher.placement.place(peer)
            if instead is None:
                dispatcher.refusals.answer(connection, 503, now, "all workers have as many connections as they may")
            else:
                dispatcher.hand(connection, handoff._replace(slot=instead), now)

    def ask_again(self, now: float) -> None:
        """Ask for the channels that are missing; whoever goes there waits in the outbox meanwhile."""
        if self._missing and now >= self._ask_at:
            self._ask_at = now + _ASK_AGAIN_S
            for slot in self._missing:
                self._link.send({"news": "missing", "slot": slot})

    def accept_again(self, now: float) -> None:
        """Accept again after a pause."""
        if self._dispatcher.stop_at is None:
            self._dispatcher.listening.start()
        else:
            self._dispatcher.listening.take_rest(self._dispatcher.accept, self._dispatcher.settings.backlog, now)
            self._hurry(now, _SILENT_S)

    def _stop(self, now: float, timeout: float | None, *, last: bool) -> None:
        """Finish what is in hand, and take nothing more: another dispatcher goes on.

        If this is the *last* one, take what the kernel has accepted already; silent clients get little time.
        """
        dispatcher = self._dispatcher
        dispatcher.stop_at = float("inf") if timeout is None else now + timeout
        dispatcher.listening.end(dispatcher.accept, dispatcher.settings.backlog, now, is_last=last)
        self._hurry(now, silent_s=_SILENT_S if last else float("inf"))

    def _hurry(self, now: float, silent_s: float) -> None:
        """Let nobody take longer for a head than there is time, and those who say nothing no longer than *silent_s*."""
        assert self._dispatcher.stop_at is not None
        for arrival in self._dispatcher.arrivals:
            let_in(arrival.connection)
        self._dispatcher.arrivals.hurry(self._dispatcher.stop_at - _LAST_WORD_S, now + silent_s)
