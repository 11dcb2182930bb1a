"""The dispatcher process: accept a connection, peek at its head, hand it to the slot of its key.

Read this file first. It owns the event loop and the order of the steps; what a head is (peek.py), whose key lives
where (router.py), how a connection passes to a worker (handoff.py) and what limpet itself answers (refusal.py) are
decided elsewhere. Started by the supervisor, which holds the listeners and both ends of every channel, so this
process can be killed at any moment: only connections in the middle of their head, or in an outbox, are lost.

1. It never forks and never waits for a worker: a slot without a worker has a channel in which connections wait.
2. Nothing that a client sends ends it. A user's key function may hang it: the supervisor sees `busy_since_ns`.
3. A connection is in exactly one of `_arrivals`, an outbox, `_refused`; who takes it out hands over or closes it.
4. `_arrivals` and `_refused` are in the order of their deadlines, since all of one kind get the same time.
"""

from __future__ import annotations

import itertools
import logging
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from limpet.client_hello import BadHelloError
from limpet.forwarded import Trust
from limpet.handoff import Handoff, Outbox
from limpet.head import BadHead, HeadParser
from limpet.kernel import open_door
from limpet.link import Link, LinkClosedError
from limpet.logs import Hourly
from limpet.peek import Arrival, ClientGoneError
from limpet.per_address import PerAddress
from limpet.placement import Placement
from limpet.proxy_protocol import BadHeaderError
from limpet.refusal import Refused
from limpet.request import Peer, Request
from limpet.reserve import Reserve
from limpet.router import Router
from limpet.scoreboard import Row
from limpet.settings import Settings

_TICK_S: Final = 0.05  # how late a deadline may be noticed, and how often outboxes and slow heads are tried
_ACCEPTS_PER_TURN: Final = 64  # of one listener, so that heads that have arrived do not wait behind a storm
_EVENTS_PER_TURN: Final = 64  # and of those that dribble, so that others need not wait for thousands of them,
_DUE_PER_TURN: Final = 64  # nor for their answers
_ACCEPT_PAUSE_S: Final = 0.25  # after accepting failed, as without free descriptors: else the loop would spin
_RESERVE: Final = 32  # descriptors with which clients are refused when there are no others
_SILENT_S: Final = 0.5  # for clients that have connected before the end, but whose first byte is still under way
_LAST_WORD_S: Final = 0.25  # before the end, for 408 to those whose head has not come
_HUNG_UP: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_NEWS: Final = select.EPOLLIN | select.EPOLLRDHUP
log = logging.getLogger("limpet")


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
        reach: Callable[[int, list[int]], None],
    ) -> None:
        """*reach* adds the outbox of a new slot, of which it gets the number and the channel's descriptors."""
        self._reach = reach
        self._settings = settings
        self._router = router
        self._placement = placement
        self._outboxes = outboxes
        self._listeners = {sock.fileno(): (sock, index, name) for index, (sock, name) in enumerate(listeners)}
        self._link = link
        self._row = row
        self._trust = Trust.parse(",".join(settings.trust))
        self._is_proxied = [each.proxy_protocol == "required" for each in settings.served]  # of each bind
        self._speaks_tls = settings.tls_cert is not None
        self._hourly = Hourly()
        self._arrivals: dict[int, Arrival] = {}
        self._refused: dict[int, Refused] = {}
        self._latest_address: str | None = ""
        self._refused_slots: list[int] = []  # whose clients are not to wait
        self._per_address = PerAddress(settings.max_connections_per_address)  # of those in `_arrivals`
        self._reserve = Reserve(_RESERVE)
        self._accepting = False
        self._accept_again_at = 0.0
        self._stop_at: float | None = None
        self._epoll = select.epoll()
        self._epoll.register(link.fileno(), _NEWS)

    def run(self) -> None:
        """Serve until the supervisor says stop, and what is in hand has ended, or the supervisor is gone."""
        next_tick, is_behind = 0.0, False
        while self._stop_at is None or (self._in_hand() and time.monotonic() < self._stop_at):
            self._row.set("busy_since_ns", 0)
            wait_s = 0.0 if is_behind else _TICK_S if self._in_hand() else None
            events = self._epoll.poll(wait_s, _EVENTS_PER_TURN)
            now = time.monotonic()
            self._row.set("busy_since_ns", int(now * 1e9))
            for fd, mask in events:
                if fd == self._link.fileno():
                    self._obey(now)
                elif fd in self._arrivals:
                    self._look(self._arrivals[fd], now, hung_up=bool(mask & _HUNG_UP))
                elif fd in self._refused and self._refused[fd].drained():
                    self._refused.pop(fd).close()
            for fd, _ in events:  # last, so that no number of a descriptor closed above means a new one in this turn
                if fd in self._listeners and self._accepting:
                    self._accept(*self._listeners[fd], now)
            if is_behind or now >= next_tick:
                is_behind = self._tick(now)
                next_tick = now + _TICK_S

    def _accept(self, listener: socket.socket, index: int, name: str, now: float) -> bool:
        """Take what waits in the backlog of *listener*; return whether there may be more."""
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                connection, address = listener.accept()
            except BlockingIOError:
                return False
            except ConnectionError:  # reset while it waited in the backlog
                continue
            except OSError:
                self._row.add("accept_errors")
                self._spend_reserve(listener, now)
                return False
            self._row.add("accepted")
            if self._stop_at is not None:
                _let_in(connection)
            peer = Peer.of(address, name, index)
            is_proxied, chain = self._is_proxied[index], self._router.chain.at(index)
            needs_hello, needs_head = self._speaks_tls and chain.needs_server_name, chain.needs_head
            if is_proxied and peer.address not in self._trust:
                self._turn_away(connection, peer, "proxy_untrusted", "it is not in `--trust`")
            elif is_proxied or needs_head or needs_hello:
                deadline = now + self._settings.head_timeout_s
                parser = HeadParser(self._settings.max_head_bytes, self._settings.max_headers) if needs_head else None
                arrival = Arrival(connection, peer, deadline, parser, awaits_header=is_proxied, needs_hello=needs_hello)
                self._look(arrival, now)
            else:
                self._dispatch(connection, peer, None, now)
        return True

    def _spend_reserve(self, listener: socket.socket, now: float) -> None:
        """Refuse as many clients as there are descriptors for that, and leave the others in the backlog for a while."""
        self._stop_accepting(until=now + _ACCEPT_PAUSE_S)
        for _ in range(self._reserve.release()):
            try:
                connection, _ = listener.accept()
            except OSError:  # nobody waits any more, or somebody else has taken the number
                return
            self._row.add("accepted")
            self._row.add("no_descriptor")
            self._refuse(connection, 503, "the server has as many connections as it may", now)

    def _look(self, arrival: Arrival, now: float, *, hung_up: bool = False) -> None:
        """See whether the head is there now, and let the connection go its way."""
        try:
            is_complete = arrival.look(hung_up=hung_up)
        except ClientGoneError:
            self._row.add("vanished")
            self._forget(arrival)
            arrival.connection.close()
        except BadHelloError as bad:
            self._forget(arrival)
            self._turn_away(arrival.connection, arrival.peer, "hellos_bad", str(bad))
        except BadHeaderError as bad:
            self._forget(arrival)
            self._turn_away(arrival.connection, arrival.peer, "proxy_headers_bad", str(bad))
        except BadHead as bad:
            self._forget(arrival)
            self._refuse(arrival.connection, bad.status, bad.reason, now)
        else:
            if is_complete:
                self._forget(arrival)
                self._dispatch(arrival.connection, arrival.peer, arrival.request, now, arrival.header)
            else:
                self._await(arrival, now)

    def _dispatch(
        self, connection: socket.socket, peer: Peer, request: Request | None, now: float, header: int = 0
    ) -> None:
        """Find the slot and hand the connection over, which begins with *header* bytes of a PROXY header."""
        self._row.set("busy_since_ns", time.monotonic_ns())  # many key functions in one turn are no one that hangs
        if peer.address == self._latest_address:
            self._row.add("same_address")
        self._latest_address = peer.address
        route = self._router.route(peer, request)
        if route is None:
            self._row.add("keyless")
            placed = self._placement.place(peer)
            if placed is None:
                self._refuse(connection, 503, "all workers have as many connections as they may", now)
                return
            slot, digest = placed, 0
        else:
            slot, digest = route.slot, route.digest
        if slot in self._refused_slots:
            self._refuse(connection, 503, "the worker of this client is being replaced", now)
            return
        self._hand(connection, Handoff(peer.bind, slot, digest, int(now * 1e9), header), now)

    def _hand(self, connection: socket.socket, handoff: Handoff, now: float) -> None:
        outbox, deadline = self._outboxes[handoff.slot], now + self._settings.wait_timeout_s
        if outbox.put(connection, handoff, deadline, self._settings.queue):
            self._row.add("handed")
        else:
            self._refuse(connection, 503, "", now)

    def _await(self, arrival: Arrival, now: float) -> None:
        """Keep *arrival* until more of its head has come. Too many: the one that has waited longest has to go."""
        fd = arrival.connection.fileno()
        if not (arrival.awaits_header or self._enter(arrival)):
            self._forget(arrival)
            self._refuse(arrival.connection, 429, "", now)
            return
        if fd in self._arrivals:
            if arrival.slow:  # from now on `_tick` looks, and bytes do not wake the loop
                self._epoll.modify(fd, select.EPOLLRDHUP | select.EPOLLET)
            return
        if len(self._arrivals) >= self._settings.max_pending:
            oldest = next(iter(self._arrivals.values()))
            self._forget(oldest)
            self._row.add("crowded_out")
            self._refuse(oldest.connection, 503, "too many connections wait for their request head", now)
        self._arrivals[fd] = arrival
        self._row.set("pending", len(self._arrivals))
        self._epoll.register(fd, _NEWS)

    def _forget(self, arrival: Arrival) -> None:
        if self._arrivals.pop(arrival.connection.fileno(), None) is not None:
            self._epoll.unregister(arrival.connection)
            self._row.set("pending", len(self._arrivals))
        if arrival.entered_from is not None:
            self._per_address.leave(arrival.entered_from)
            arrival.entered_from = None

    def _enter(self, arrival: Arrival) -> bool:
        """Count *arrival*, whose client is known, with the others of its address; return whether it may wait."""
        if arrival.entered_from is None:
            if not self._per_address.enter(arrival.peer.address):
                return False
            arrival.entered_from = arrival.peer.address
        return True

    def _turn_away(self, connection: socket.socket, peer: Peer, cell: str, why: str) -> None:
        """Close *connection*, on which nothing came that is believed: whoever is there speaks no HTTP yet."""
        self._row.add(cell)
        if self._hourly.allows(f"{cell} {peer.listener}", time.monotonic()):
            log.warning("%s: a connection from %s was closed: %s", peer.listener, peer.address or "unix", why)
        connection.close()

    def _refuse(self, connection: socket.socket, status: int, reason: str, now: float) -> None:
        self._row.add(f"refused_{status}")
        self._refused[connection.fileno()] = Refused(connection, status, reason, now)
        self._epoll.register(connection, _NEWS)

    def _tick(self, now: float) -> bool:
        """Do what is due: deadlines, slow heads, full channels, accepting again; return whether more may be due."""
        due = list(itertools.takewhile(lambda each: each.deadline <= now, self._arrivals.values()))
        for arrival in due[:_DUE_PER_TURN]:
            self._forget(arrival)
            if arrival.awaits_header:
                self._turn_away(arrival.connection, arrival.peer, "proxy_headers_bad", "no PROXY header came in time")
            elif (
                arrival.silent and not arrival.has_more()
            ):  # a browser opens some to have them; it would take an answer
                self._row.add("refused_408")  # for that of the request which it is just about to send
                arrival.connection.close()
            else:
                self._refuse(arrival.connection, 408, "", now)
        for arrival in [arrival for arrival in self._arrivals.values() if arrival.slow and arrival.has_more()]:
            self._look(arrival, now)
        for outbox in self._outboxes:
            for connection in outbox.flush(now) if outbox else ():
                self._refuse(connection, 503, "", now)
        for fd, refused in list(self._refused.items()):
            if refused.deadline > now:
                break
            self._refused.pop(fd).close()
        if 0 < self._accept_again_at <= now and self._stop_at is None:
            self._reserve.fill()
            self._start_accepting()
        elif 0 < self._accept_again_at <= now:
            self._take_rest(now)
            self._hurry(now, _SILENT_S)
        return len(due) > _DUE_PER_TURN

    def _in_hand(self) -> bool:
        """Whether anything has a deadline, so that the loop must not sleep for long."""
        return bool(self._arrivals or self._refused or self._accept_again_at or any(self._outboxes))

    def _obey(self, now: float) -> None:
        try:
            commands = self._link.receive()
        except LinkClosedError:
            commands = [{"do": "stop", "timeout": 0.0}]
        for command in commands:
            if command["do"] == "accept":
                self._start_accepting()
            elif command["do"] == "workers":
                if command["slots"] != self._router.slots:
                    self._router.resize(command["slots"])
                self._placement.follow(command["rows"], command["held"])
                self._router.follow(command["up"])
                self._refused_slots = command["refused"]
                if any(command["up"]):
                    for slot in [slot for slot, is_up in enumerate(command["up"]) if not is_up]:
                        self._fail_over(slot, now)
            elif command["do"] == "slot":
                self._reach(command["slot"], command["fds"])
            elif command["do"] in ("stop", "drain"):
                self._stop(now, command["timeout"], last=command["do"] == "stop")

    def _fail_over(self, slot: int, now: float) -> None:
        """Pass those who wait for *slot*, which is without a worker for too long, on to where its clients go now."""
        for connection, handoff in self._outboxes[slot].take_back():
            self._row.add("failed_over")
            try:
                peer = Peer.of(connection.getpeername(), "", handoff.listener)
            except OSError:  # the client is gone
                connection.close()
                continue
            instead = self._router.serves(handoff.digest) if handoff.digest else self._placement.place(peer)
            if instead is None:
                self._refuse(connection, 503, "all workers have as many connections as they may", now)
            else:
                self._hand(connection, handoff._replace(slot=instead), now)

    def _start_accepting(self) -> None:
        self._accepting, self._accept_again_at = True, 0.0
        for fd in self._listeners:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def _stop_accepting(self, until: float = 0.0) -> None:
        for fd in self._listeners if self._accepting else ():
            self._epoll.unregister(fd)
        self._accepting, self._accept_again_at = False, until

    def _stop(self, now: float, timeout: float | None, *, last: bool) -> None:
        """Finish what is in hand, and take nothing more: another dispatcher goes on.

        If this is the *last* one, take what the kernel has accepted already; silent clients get little time.
        """
        self._stop_at = float("inf") if timeout is None else now + timeout
        may_accept = self._accepting or self._accept_again_at > 0
        self._stop_accepting()
        if last and may_accept:
            self._take_rest(now)
        else:
            self._close_listeners()
        self._hurry(now, silent_s=_SILENT_S if last else float("inf"))

    def _take_rest(self, now: float) -> None:
        """Take who has connected before the end; what there are no descriptors for is tried again in a moment."""
        self._accept_again_at = 0.0
        for listener in self._listeners.values():
            for _ in range(self._settings.backlog // _ACCEPTS_PER_TURN + 1):  # others may still come where it stays
                if not self._accept(*listener, now):
                    break
        if not self._accept_again_at:
            self._close_listeners()

    def _close_listeners(self) -> None:
        for sock, _, _ in self._listeners.values():
            sock.close()  # if this is the end the supervisor has closed its own: from here on clients are refused
        self._listeners.clear()

    def _hurry(self, now: float, silent_s: float) -> None:
        """Let nobody take longer for a head than there is time, and those who say nothing no longer than *silent_s*."""
        assert self._stop_at is not None
        for arrival in self._arrivals.values():
            _let_in(arrival.connection)
            latest = min(now + silent_s if arrival.silent else float("inf"), self._stop_at - _LAST_WORD_S)
            arrival.deadline = min(arrival.deadline, latest)
        self._arrivals = dict(sorted(self._arrivals.items(), key=lambda item: item[1].deadline))


def _let_in(connection: socket.socket) -> None:
    """Let packets reach *connection*, which may have come through a door that was closed behind it."""
    if connection.family != socket.AF_UNIX:
        open_door(connection)
