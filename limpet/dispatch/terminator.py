"""The terminator process: it ends TLS in front of the dispatchers, where keys are in requests.

This file owns the event loop, the handshakes, and how decrypted connections reach a dispatcher. dispatch/relay.py owns
what passes between the two sides of one connection. The supervisor owns the certificate, the listeners and the
channels.

How it works: each client connection gets an inner connection, which is a pair of unix sockets. One end stays here. The
other end goes through the inner channel of the bind to a dispatcher, with a PROXY header before the client's first
byte. For dispatchers and workers it is a client connection like any other: the dispatcher peeks at it and hands it
over, and it moves between workers. No other process can connect there, because these sockets have no name.

1. The terminator never waits. A client that is slow in its handshake, or does not read, costs a descriptor and has a
   deadline.
2. Each connection needs two descriptors. The terminator accepts only as many as it has descriptors for; others wait in
   the backlog.
3. A new certificate is used for new handshakes. A connection stays with the process in which it began, until it ends.
4. To stop, the terminator accepts no more, finishes its handshakes, passes these connections on, and sends the news
   `left`. The relays that remain live until dispatchers and workers have ended them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import resource
import select
import socket
import ssl
import time
from typing import Final

from limpet import logs
from limpet.config.settings import Settings
from limpet.dispatch.accepting import Acceptor, let_in
from limpet.dispatch.address_limit import PerAddress
from limpet.dispatch.peek import Arrival, ClientGoneError
from limpet.dispatch.refusals import answer, turn_away
from limpet.dispatch.relay import Relay
from limpet.ipc import news, orders
from limpet.ipc.channel import Handoff, Outbox
from limpet.ipc.control_link import Link, LinkClosedError
from limpet.ipc.orders import Accept, Certificate, Drain
from limpet.ipc.scoreboard import Row
from limpet.net import tls
from limpet.protocol import proxy_protocol
from limpet.protocol.proxy_protocol import BadHeaderError, Origin
from limpet.protocol.request import Peer

_TICK_S: Final = 0.05  # between two looks at deadlines and full channels
_SWEEP_S: Final = 1.0  # between two searches for connections that cannot end by themselves
_ACCEPTS_PER_TURN: Final = 32  # from one listener: a handshake takes as long as a dozen requests
_EVENTS_PER_TURN: Final = 64
_SPARE: Final = 64  # descriptor numbers that are not for connections
_HASTE_S: Final = 0.75  # for handshakes under way when the server stops
_PATIENCE_S: Final = 60.0  # for a client that reads nothing, when the other end of its inner connection is closed
log = logging.getLogger("limpet")


class Handshake:
    """An accepted connection whose handshake is not over. Owns: its user closes `client`."""

    __slots__ = ("arrival", "client", "deadline", "has_entered", "peer")

    def __init__(self, client: socket.SocketType, peer: Peer, deadline: float, arrival: Arrival | None) -> None:
        """*arrival* reads the PROXY header; None if no such header is expected."""
        self.client = client
        self.peer = peer
        self.deadline = deadline
        self.arrival = arrival
        self.has_entered = False  # whether it is counted for its address


class Terminator:
    """One terminator's connections and its loop."""

    def __init__(
        self,
        settings: Settings,
        pem: str,
        listeners: list[tuple[socket.socket, str]],
        outboxes: list[Outbox],
        link: Link,
        row: Row,
    ) -> None:
        """*listeners* and *outboxes* have one item for each bind."""
        self._settings = settings
        self._context = tls.context(pem)
        self._outboxes = outboxes
        self._link = link
        self._row = row
        self._trust = settings.trusted
        self._is_proxied = [each.proxy_protocol == "required" for each in settings.served]
        self._handshakes: dict[int, Handshake] = {}  # by descriptor, in the order of their deadlines
        self._relays: dict[int, Relay] = {}  # each under both of its descriptors
        self._per_address = PerAddress(settings.max_connections_per_address)  # counts those in `_handshakes`
        self._most = max(1, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE) // 2)
        row.set("room", self._most)
        self._stop_at: float | None = None
        self._has_left = False
        self._epoll = select.epoll()
        self._acceptor = Acceptor(listeners, self._epoll, row, counted="tls_accepted")
        self._epoll.register(link.fileno(), select.EPOLLIN)

    def run(self) -> None:
        """Serve until the supervisor says stop, or is gone, and all connections here have ended or run out of time."""
        next_tick = next_sweep = 0.0
        while self._stop_at is None or (self._in_hand() and time.monotonic() < self._stop_at):
            self._row.set("busy_since_ns", 0)
            events = self._epoll.poll(self._wait_s(), _EVENTS_PER_TURN)
            now = time.monotonic()
            self._row.set("busy_since_ns", int(now * 1e9))
            for fd, mask in events:
                if fd in self._relays:
                    self._go_on(self._relays[fd], fd, mask)
                elif fd in self._handshakes:
                    self._shake(self._handshakes[fd], now)
                elif fd == self._link.fileno():
                    self._obey(now)
            for fd, _ in events:  # last: a new connection may get the number of one that this turn closed
                if self._acceptor.accepts(fd):
                    self._accept(fd, now)
            if now >= next_tick:
                next_tick = now + _TICK_S
                self._tick(now)
            if now >= next_sweep:
                next_sweep = now + _SWEEP_S
                self._sweep(now)

    def _sweep(self, now: float) -> None:
        for relay in self._all():
            relay.expire(now, _PATIENCE_S)
            self._end_if_over(relay)

    def _wait_s(self) -> float | None:
        if self._handshakes or self._acceptor.again_at or any(self._outboxes) or self._stop_at is not None:
            return _TICK_S
        return _SWEEP_S if self._relays else None

    def _in_hand(self) -> bool:
        return bool(self._count() or self._acceptor.again_at)

    def _count(self) -> int:
        return len(self._handshakes) + len(self._relays) // 2

    def _accept(self, fd: int, now: float, most: int = _ACCEPTS_PER_TURN) -> None:
        """Accept at most *most* connections from listener *fd*, and no more than there are descriptors for."""
        room, taken = self._most - self._count(), 0
        for connection, peer in self._acceptor.take(fd, min(most, room), now):
            taken += 1
            connection.setblocking(False)
            self._begin(connection, peer, now)
        if taken == room:
            self._acceptor.put_off(fd, f"{self._most} connections use two descriptors each, which is the limit", now)

    def _begin(self, connection: socket.SocketType, peer: Peer, now: float) -> None:
        """Begin with *connection*: with its PROXY header if the bind requires one, otherwise with the handshake."""
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        is_proxied = self._is_proxied[peer.bind]
        if is_proxied and peer.address not in self._trust:
            turn_away(connection, peer, self._row, "proxy_untrusted", "the peer is not in `--trust`")
            return
        if len(self._handshakes) >= self._settings.max_pending:
            self._drop(next(iter(self._handshakes.values())), "crowded_out")
        deadline = now + self._settings.head_timeout_s
        arrival = Arrival(connection, peer, deadline, None, awaits_header=True) if is_proxied else None
        handshake = Handshake(connection, peer, deadline, arrival)
        self._handshakes[connection.fileno()] = handshake
        self._row.set("handshakes", len(self._handshakes))
        self._epoll.register(connection.fileno(), select.EPOLLIN | select.EPOLLET)  # a PROXY header stays in the kernel
        self._shake(handshake, now)

    def _shake(self, handshake: Handshake, now: float) -> None:
        """Continue with the PROXY header and the handshake; when the handshake is over, begin to relay."""
        try:
            if not (self._has_header(handshake) and self._may_begin(handshake)):
                return
            assert isinstance(handshake.client, ssl.SSLSocket)
            handshake.client.do_handshake()
        except ssl.SSLWantReadError:
            self._epoll.modify(handshake.client.fileno(), select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._epoll.modify(handshake.client.fileno(), select.EPOLLOUT)
        except (OSError, ValueError, ClientGoneError) as error:  # the client is gone, or does not speak TLS
            log.debug("a TLS handshake failed: %s", error, extra={"event": "tls_handshake_failed"})
            self._drop(handshake, "tls_failures")
        else:
            self._forget(handshake)
            self._relay(handshake.client, handshake.peer, now)

    def _has_header(self, handshake: Handshake) -> bool:
        """Take the PROXY header, if there is one; return whether only TLS remains. Raises ClientGoneError, OSError."""
        if handshake.arrival is None:
            return True
        try:
            if not handshake.arrival.look():
                return False
        except BadHeaderError as bad:
            self._forget(handshake)
            turn_away(handshake.client, handshake.peer, self._row, "proxy_headers_bad", str(bad))
            return False
        handshake.client.recv(handshake.arrival.header)
        handshake.peer, handshake.arrival = handshake.arrival.peer, None
        return True

    def _may_begin(self, handshake: Handshake) -> bool:
        """Begin the handshake unless it has begun; return whether that was allowed. Raises OSError."""
        if isinstance(handshake.client, ssl.SSLSocket):
            return True
        handshake.has_entered = self._per_address.enter(handshake.peer.address)
        if not handshake.has_entered:
            self._drop(handshake, "address_refused")
            return False
        handshake.client = self._context.wrap_socket(
            handshake.client,  # type: ignore[arg-type]  # `ssl` uses only what a SocketType has
            server_side=True,
            do_handshake_on_connect=False,
        )
        return True

    def _relay(self, client: ssl.SSLSocket, peer: Peer, now: float) -> None:
        """Make an inner connection for *client*, whose handshake is over, and send its other end to a dispatcher."""
        name = tls.asked_for(client) or peer.server_name
        try:
            header = proxy_protocol.write(Origin(peer.address, peer.port, is_tls=True, server_name=name))
            inner, theirs = socket.socketpair()
        except OSError:
            self._row.add("accept_errors")
            client.close()
            return
        inner.setblocking(False)
        inner.send(header)
        outbox = self._outboxes[peer.bind]
        passed = Handoff(peer.bind, 0, 0, int(now * 1e9))
        if outbox.put(theirs, passed, now + self._settings.wait_timeout_s, self._settings.queue):
            self._row.set("waiting", sum(map(len, self._outboxes)))
        else:
            self._refuse(theirs)
        relay = Relay(client, inner, self._epoll)
        self._relays.update(dict.fromkeys(relay.fds, relay))
        self._row.set("relayed", len(self._relays) // 2)
        self._go_on(relay, client.fileno(), select.EPOLLIN)  # the first request may have come already

    def _refuse(self, theirs: socket.SocketType) -> None:
        """Answer 503 on *theirs*, the other end of an inner connection that no dispatcher takes. Owns: *theirs*."""
        self._row.add("refused_503")
        with contextlib.suppress(OSError):  # the client is gone
            theirs.send(answer(503), socket.MSG_NOSIGNAL)
        theirs.close()

    def _go_on(self, relay: Relay, fd: int, mask: int) -> None:
        relay.go_on(fd, mask)
        self._end_if_over(relay)

    def _end_if_over(self, relay: Relay) -> None:
        if relay.is_over and self._relays.get(relay.fds[0]) is relay:
            for fd in relay.fds:
                del self._relays[fd]
            self._row.set("relayed", len(self._relays) // 2)

    def _forget(self, handshake: Handshake) -> None:
        """Stop keeping *handshake*. Owns: the caller has its connection from now on."""
        fd = handshake.client.fileno()
        del self._handshakes[fd]
        self._epoll.unregister(fd)
        self._row.set("handshakes", len(self._handshakes))
        if handshake.has_entered:
            self._per_address.leave(handshake.peer.address)

    def _drop(self, handshake: Handshake, cell: str) -> None:
        """Close the connection of *handshake*, and count it in *cell*."""
        self._forget(handshake)
        self._row.add(cell)
        handshake.client.close()

    def _tick(self, now: float) -> None:
        """Do what the clock triggers: deadlines, full channels, accepting again, and the news `left`."""
        logs.catch_up()
        for handshake in list(itertools.takewhile(lambda each: each.deadline <= now, self._handshakes.values())):
            self._drop(handshake, "tls_failures")
        for outbox in self._outboxes:
            for theirs in outbox.flush(now) if outbox else ():
                self._refuse(theirs)
        self._row.set("waiting", sum(map(len, self._outboxes)))
        if 0 < self._acceptor.again_at <= now:
            if self._stop_at is None:
                self._acceptor.start()
            else:
                self._acceptor.take_rest(self._accept, self._settings.backlog, now)
        is_through = not (self._handshakes or self._acceptor.again_at or any(self._outboxes))
        if self._stop_at is not None and is_through and not self._has_left:
            self._has_left = True
            self._link.send(news.message(news.Left()))

    def _obey(self, now: float) -> None:
        try:
            arrived = orders.receive(self._link)
        except LinkClosedError:  # the supervisor is gone: stop, with the same timeout as the workers
            self._epoll.unregister(self._link.fileno())
            arrived = [Drain(self._settings.graceful_timeout_s, last=True)]
        for order in arrived:
            match order:
                case Accept():
                    self._acceptor.start()
                case Certificate(pem):
                    self._renew(pem)
                case Drain(timeout, last):
                    self._stop(now, timeout, last=last)

    def _renew(self, pem: str) -> None:
        """Use *pem*, which the supervisor has checked, for new handshakes."""
        try:
            self._context = tls.context(pem)
        except OSError as error:  # no descriptor is free for it
            log.error(
                "the terminator keeps its old certificate: %s",
                error,
                extra={"event": "certificate_not_reloaded"},
            )

    def _stop(self, now: float, timeout: float | None, *, last: bool) -> None:
        """Stop accepting, and end when the connections here have ended.

        If this is the *last* terminator, it also takes what waits in the backlog.
        """
        self._stop_at = float("inf") if timeout is None else now + timeout
        self._acceptor.end(self._accept, self._settings.backlog, now, is_last=last)
        if last:
            for connection in (
                *(each.client for each in self._handshakes.values()),
                *(each.client for each in self._all()),
            ):
                let_in(connection)
            for handshake in self._handshakes.values():
                handshake.deadline = min(handshake.deadline, now + _HASTE_S)

    def _all(self) -> list[Relay]:
        return [relay for fd, relay in self._relays.items() if fd == relay.fds[0]]
