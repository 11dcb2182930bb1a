"""The dispatcher process: it accepts a connection, peeks at the request head, and hands it to the slot of its key.

Read this file first. It owns the event loop and the order of the steps. Each decision is made elsewhere:
dispatch/accepting.py accepts, dispatch/arrivals.py keeps connections that wait for their head, dispatch/peek.py says
whether a head is complete, routing/router.py finds the slot of a key, ipc/channel.py carries a connection to a worker,
and dispatch/refusals.py gives limpet's own responses. The supervisor starts the dispatcher, and its orders come on the
line (`Orders`). The supervisor also has the listeners and both ends of every channel. So a dispatcher may be killed at
any moment: only connections in the middle of their head, or in an outbox, are lost.

1. The dispatcher never forks and never waits for a worker. A slot without a worker has a channel in which connections
   wait.
2. Nothing that a client sends ends the dispatcher. A user's key function may hang it: the supervisor sees that in the
   cell `busy_since_ns`.
3. A connection is in exactly one of `arrivals`, an outbox, or `refusals`. The code that takes it out hands it over or
   closes it.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from limpet import logs
from limpet.config.settings import Settings
from limpet.dispatch.accepting import ACCEPTS_PER_TURN, RESERVE, Acceptor, let_in
from limpet.dispatch.arrivals import HUNG_UP, Arrivals
from limpet.dispatch.peek import Arrival, ClientGoneError
from limpet.dispatch.refusals import Refusals, turn_away
from limpet.ipc import news, orders
from limpet.ipc.channel import Handoff, Outbox
from limpet.ipc.control_link import Link, LinkClosedError
from limpet.ipc.orders import Accept, Drain, Slot, Workers
from limpet.ipc.scoreboard import Row
from limpet.protocol.client_hello import BadHelloError
from limpet.protocol.head import BadHead
from limpet.protocol.proxy_protocol import BadHeaderError
from limpet.protocol.request import Peer, Request
from limpet.routing.forwarded import Trust
from limpet.routing.placement import Placement
from limpet.routing.router import Router

_TICK_S: Final = 0.05  # between two tries of outboxes and slow heads
_PER_TURN: Final = 16  # events, and slow heads, so that no connection waits behind thousands of others
_LATE_PER_TURN: Final = 4  # heads whose deadline has passed: they can be refused a moment later, others are urgent


class Dispatcher:
    """One dispatcher's connections and its loop."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        placement: Placement,
        outboxes: list[Outbox],
        listeners: list[tuple[socket.socket, str]],
        link: Link,
        row: Row,
        reach: Callable[[int, Sequence[int]], bool],
        *,
        is_inner: bool,
    ) -> None:
        """*reach* adds the outbox and channel of a slot, by its number and descriptors; it returns whether both exist.

        *is_inner* says that *listeners* are inner channels, on which terminators send inner connections.
        """
        self.settings = settings
        self.router = router
        self.placement = placement
        self.outboxes = outboxes
        self.row = row
        self.stop_at: float | None = None
        self._epoll = select.epoll()
        self.acceptor = Acceptor(listeners, self._epoll, row, reserve=RESERVE, is_inner=is_inner)
        self.arrivals = Arrivals(settings, router.chain, self._epoll, row, is_inner=is_inner)
        self.refusals = Refusals(self._epoll, row)
        self._orders = Orders(self, link, reach)
        self._epoll.register(link.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        self._trust = Trust(unix=True) if is_inner else settings.trusted
        self._asks_functions = router.chain.asks_functions
        self._latest_address: str | None = ""

    def run(self) -> None:
        """Serve until the supervisor says stop and nothing is in hand, or until the supervisor is gone."""
        next_tick, now, orders = 0.0, 0.0, self._orders.fileno()
        events: list[tuple[int, int]] = []
        while self.stop_at is None or (self._in_hand() and time.monotonic() < self.stop_at):
            self.row.set("busy_since_ns", 0)
            events = self._epoll.poll(self._wait_s(now) if not events or self.arrivals else _TICK_S, _PER_TURN)
            now = time.monotonic()
            self.row.set("busy_since_ns", int(now * 1e9))
            readable = []
            for fd, mask in events:
                if (arrival := self.arrivals.find(fd)) is not None:
                    self._look(arrival, now, hung_up=bool(mask & HUNG_UP))
                elif self.acceptor.accepts(fd):
                    readable.append(fd)
                elif fd == orders:
                    self._orders.obey(now)
                else:
                    self.refusals.read(fd, hung_up=bool(mask & HUNG_UP))
            for fd in readable:  # last: a new connection may get the descriptor number of one that this turn has closed
                if self.acceptor.accepts(fd):
                    self.accept(fd, now)
            if now >= self.arrivals.due_at:
                for arrival in self.arrivals.due(now, _LATE_PER_TURN):
                    self._give_up(arrival, now)
            if now >= next_tick or self.arrivals.is_in_round:
                self._tick(now)
                next_tick = now + _TICK_S

    def accept(self, fd: int, now: float, most: int = ACCEPTS_PER_TURN) -> None:
        """Accept at most *most* connections from listener *fd*, and begin with each. Refuse some in a long shortage."""
        for connection, peer in self.acceptor.take(fd, most, now):
            arrival = self.arrivals.begin(connection, peer, now)
            if arrival is None:
                self._dispatch(connection, peer, None, now)
            elif arrival.awaits_header and peer.address not in self._trust:
                turn_away(connection, peer, self.row, "proxy_untrusted", "the peer is not in `--trust`")
            else:
                self._look(arrival, now)
        for connection in self.acceptor.spare(fd, now):
            self.refusals.answer(connection, 503, now, "the server has as many connections as its limits allow")

    def _look(self, arrival: Arrival, now: float, *, hung_up: bool = False) -> None:
        """Look whether the head of *arrival* is complete; dispatch, refuse or keep the connection accordingly."""
        try:
            is_complete = arrival.look(hung_up=hung_up)
        except ClientGoneError:
            self.row.add("vanished")
            self.arrivals.forget(arrival)
            arrival.connection.close()
        except (BadHelloError, BadHeaderError) as bad:
            self.arrivals.forget(arrival)
            cell = "hellos_bad" if isinstance(bad, BadHelloError) else "proxy_headers_bad"
            turn_away(arrival.connection, arrival.peer, self.row, cell, str(bad))
        except BadHead as bad:
            self.arrivals.forget(arrival)
            self.refusals.answer(arrival.connection, bad.status, now, bad.reason)
        else:
            if is_complete:
                self.arrivals.forget(arrival)
                self._dispatch(arrival.connection, arrival.peer, arrival.request, now, arrival.header)
            else:
                self._await(arrival, now)

    def _await(self, arrival: Arrival, now: float) -> None:
        """Keep *arrival* until more of its head has come. If there are too many, refuse the one that came first."""
        if not self.arrivals.enter(arrival):
            self.arrivals.forget(arrival)
            self.refusals.answer(arrival.connection, 429, now)
        elif (oldest := self.arrivals.keep(arrival)) is not None:
            self.refusals.answer(oldest.connection, 503, now, "too many connections wait for their request head")

    def _dispatch(
        self, connection: socket.SocketType, peer: Peer, request: Request | None, now: float, header: int = 0
    ) -> None:
        """Find the slot of *connection* and hand it over, or refuse it. *header* is the size of its PROXY header."""
        if self._asks_functions:
            self.row.set("busy_since_ns", time.monotonic_ns())  # many short calls must not look like a hang
        if peer.address == self._latest_address:
            self.row.add("same_address")
        self._latest_address = peer.address
        route = self.router.route(peer, request)
        if route is not None:
            slot: int | None = route.slot
        else:
            self.row.add("keyless")
            slot = self.placement.place(peer, request)
        if slot is None:
            self.refusals.answer(connection, 503, now, "all workers have as many connections as their limits allow")
        elif self._orders.refuses(slot):
            self.refusals.answer(connection, 503, now, "the worker of this client is being replaced")
        else:
            digest = 0 if route is None else route.digest
            self.hand(connection, Handoff(peer.bind, slot, digest, int(now * 1e9), header), now)

    def hand(self, connection: socket.SocketType, handoff: Handoff, now: float) -> None:
        """Put *connection* into the outbox of the slot that *handoff* names; refuse it if the outbox is full."""
        outbox, deadline = self.outboxes[handoff.slot], now + self.settings.wait_timeout_s
        if outbox.put(connection, handoff, deadline, self.settings.queue):
            self.row.add("handed")
        else:
            self.refusals.answer(connection, 503, now)

    def _tick(self, now: float) -> None:
        """Do what the clock triggers: look at slow heads, try full channels, end refusals, accept again."""
        for arrival, mask in self.arrivals.slow(_PER_TURN):
            self._look(arrival, now, hung_up=bool(mask & HUNG_UP))
        for outbox in self.outboxes:
            for connection in outbox.flush(now) if outbox else ():
                self.refusals.answer(connection, 503, now)
        self.refusals.expire(now)
        if 0 < self.acceptor.again_at <= now:
            self._orders.accept_again(now)
        self._orders.ask_again(now)
        logs.catch_up()

    def _give_up(self, arrival: Arrival, now: float) -> None:
        """End *arrival*, whose head has not come in time. A silent client gets no response."""
        is_watched = self.arrivals.forget(arrival, keep_watch=True)
        if arrival.awaits_header:
            why = "no PROXY header came in time"
            turn_away(arrival.connection, arrival.peer, self.row, "proxy_headers_bad", why)
        elif arrival.silent and not arrival.has_more():
            # Browsers open connections before they need them. A 408 would be taken for the answer to the next request.
            self.row.add("refused_408")
            arrival.connection.close()
        else:
            self.refusals.answer(arrival.connection, 408, now, is_watched=is_watched)

    def _wait_s(self, now: float) -> float | None:
        """Return how long the loop may sleep, in seconds; None for as long as nothing happens."""
        if self.arrivals.is_in_round:
            return 0.0
        return min(_TICK_S, max(0.0, self.arrivals.due_at - now)) if self._in_hand() else None

    def _in_hand(self) -> bool:
        """Return whether anything has a deadline, so that the loop must not sleep for long."""
        return bool(self.arrivals or self.refusals or self._orders or self.acceptor.again_at or any(self.outboxes))


_ASK_AGAIN_S: Final = 0.5  # until missing channels are asked for again
_SILENT_S: Final = 0.5  # at the end, for clients that have connected but whose first byte is still on its way
_LAST_WORD_S: Final = 0.25  # before the end, for the 408 to clients whose head has not come


class Orders:
    """Receives the supervisor's orders for one dispatcher and carries them out."""

    def __init__(self, dispatcher: Dispatcher, link: Link, reach: Callable[[int, Sequence[int]], bool]) -> None:
        self._dispatcher = dispatcher
        self._link = link
        self._reach = reach
        self._refused_slots: list[int] = []
        self._missing: set[int] = set()  # slots without a channel here, because no descriptors were free for it
        self._ask_at = 0.0

    def __bool__(self) -> bool:
        """Return whether missing channels have to be asked for, so that the loop must not sleep for long."""
        return bool(self._missing) and self._dispatcher.stop_at is None

    def fileno(self) -> int:
        """Return the descriptor to watch for readability."""
        return self._link.fileno()

    def refuses(self, slot: int) -> bool:
        """Return whether clients of *slot* are to be refused, instead of waiting for its next worker."""
        return slot in self._refused_slots

    def obey(self, now: float) -> None:
        """Carry out the orders that have arrived. If the supervisor is gone, stop."""
        try:
            arrived = orders.receive(self._link)
        except LinkClosedError:
            arrived = [Drain(timeout=0.0, last=True)]
        for order in arrived:
            match order:
                case Accept():
                    self._dispatcher.acceptor.start()
                case Workers():
                    self._follow(order, now)
                case Slot(slot, fds):
                    self._missing -= {slot}
                    if not self._reach(slot, fds):
                        self._missing |= {slot}
                        self._ask_at = now + _ASK_AGAIN_S
                case Drain(timeout, last):
                    self._stop(now, timeout, last=last)

    def _follow(self, workers: Workers, now: float) -> None:
        """Route connections as *workers* says from now on."""
        dispatcher = self._dispatcher
        if workers.slots != dispatcher.router.slots:
            dispatcher.router.resize(workers.slots)
        dispatcher.placement.follow(workers.rows, workers.held)
        dispatcher.router.follow(workers.up)
        self._refused_slots = workers.refused
        if any(workers.up):
            for slot in [slot for slot, is_up in enumerate(workers.up) if not is_up]:
                self._fail_over(slot, now)

    def _fail_over(self, slot: int, now: float) -> None:
        """Pass each connection that waits for *slot* to the slot that serves its client now.

        *slot* has been without a worker for too long.
        """
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
                reason = "all workers have as many connections as their limits allow"
                dispatcher.refusals.answer(connection, 503, now, reason)
            else:
                dispatcher.hand(connection, handoff._replace(slot=instead), now)

    def ask_again(self, now: float) -> None:
        """Ask for the missing channels. Until they come, connections for those slots wait in their outboxes."""
        if self._missing and now >= self._ask_at:
            self._ask_at = now + _ASK_AGAIN_S
            for slot in self._missing:
                self._link.send(news.message(news.Missing(slot)))

    def accept_again(self, now: float) -> None:
        """Accept again, because the pause is over."""
        if self._dispatcher.stop_at is None:
            self._dispatcher.acceptor.start()
        else:
            self._dispatcher.acceptor.take_rest(self._dispatcher.accept, self._dispatcher.settings.backlog, now)
            self._hurry(now, _SILENT_S)

    def _stop(self, now: float, timeout: float | None, *, last: bool) -> None:
        """Stop accepting, and finish what is in hand. Another dispatcher goes on.

        If this is the *last* dispatcher, it also takes what waits in the backlog, and gives silent clients little time.
        """
        dispatcher = self._dispatcher
        dispatcher.stop_at = float("inf") if timeout is None else now + timeout
        dispatcher.acceptor.end(dispatcher.accept, dispatcher.settings.backlog, now, is_last=last)
        self._hurry(now, silent_s=_SILENT_S if last else float("inf"))

    def _hurry(self, now: float, silent_s: float) -> None:
        """Shorten the deadlines of all heads to the time that is left, and to *silent_s* for silent clients."""
        assert self._dispatcher.stop_at is not None
        for arrival in self._dispatcher.arrivals:
            let_in(arrival.connection)
        self._dispatcher.arrivals.hurry(self._dispatcher.stop_at - _LAST_WORD_S, now + silent_s)
