"""The adapter for uvicorn: its protocols serve connections from the slot's channel or from its listeners.

Owns the event loop of a worker that runs uvicorn: its start, its orders, its clock and its end. An application sees
what it would see had uvicorn accepted the connection itself.

1. A connection is in `_adopting` or in uvicorn's set of connections. It counts as the worker's from the moment at which
   it is taken from the channel until its protocol loses it: placement adds the count to what is still in the channel.
2. READY is said last, when signal handlers are in place; the channels are read after the order to accept.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from types import FrameType
from typing import Any, Final

import uvicorn

from limpet import current
from limpet.ipc import news, orders
from limpet.ipc.baton import Baton
from limpet.ipc.control_link import LinkClosedError
from limpet.ipc.orders import Accept, Drain, Slot, Workers
from limpet.ipc.scoreboard import position
from limpet.moving.messages import Arrived
from limpet.moving.mover import TAKES_PER_TURN
from limpet.servers import application
from limpet.servers.asgi import Proxied
from limpet.servers.lifespan import Lifespan
from limpet.servers.uvicorn import construction
from limpet.servers.uvicorn.corking import Turn
from limpet.servers.uvicorn.draining import let_go
from limpet.servers.uvicorn.listening import Listening
from limpet.servers.uvicorn.moving import MovingH11, MovingHttpTools
from limpet.servers.uvicorn.protocols import CONNECTIONS, Seated, SeatedH11, SeatedHttpTools
from limpet.servers.uvicorn.streams import Streams
from limpet.servers.uvicorn.websockets import SeatedWebSocket, tell_moved, websocket_protocol
from limpet.worker import shortage, user_code
from limpet.worker.access_log import AccessLog, Held
from limpet.worker.seat import Seat

_RECEIVED: Final = position("received")
_TICK_S: Final = 1.0  # date header, head deadlines
_READ_BYTES: Final = 262_144  # what an event loop reads at once; Seated counts the bytes of a head after that
_IDLE_S: Final = 1.0  # how long a draining worker leaves idle connections open: longer than a round trip
_LOOKS_PER_TURN: Final = 256  # connections whose deadlines are looked at: less than half a millisecond
_CHECK_S: Final = 0.05  # how often a draining worker looks whether connections have ended
_SETTLE_S: Final = 0.5  # how long a worker that is replaced waits for those to whom it has sent: they read at once
log = logging.getLogger("limpet.worker")


def serve(app: user_code.Application | application.PerBind, seat: Seat) -> None:
    """Serve *app* until the order to drain has been carried out. Raises AppError when its start-up fails."""
    each = app if isinstance(app, application.PerBind) else (app,) * len(seat.settings.bind)
    SeatedServer(each, seat).run()


def _config(app: user_code.Application, protocol: type[asyncio.Protocol], seat: Seat) -> uvicorn.Config:
    settings = seat.settings
    debug_headers = [("X-Limpet-Slot", str(seat.info.slot)), ("X-Limpet-Pid", str(seat.info.pid))]
    if settings.trust:
        app = Proxied(app, settings.trusted)
    return uvicorn.Config(
        app,
        interface="asgi3",
        loop=settings.loop,
        http=protocol,
        ws=settings.ws,
        lifespan="off",  # see Lifespan
        workers=1,  # WEB_CONCURRENCY has had its say in the supervisor
        log_config=None,
        log_level=None,
        access_log=False,  # see access.py
        proxy_headers=False,  # see servers/asgi.py; none given: nobody is believed, where uvicorn believes this machine
        root_path=settings.root_path,
        timeout_graceful_shutdown=settings.graceful_timeout_s,  # type: ignore[arg-type]  # passed on to wait_for
        timeout_keep_alive=settings.keep_alive_timeout_s,  # type: ignore[arg-type]  # passed on to call_later
        headers=debug_headers if settings.debug_header else None,
        h11_max_incomplete_event_size=settings.max_head_bytes + _READ_BYTES,  # its 16 KiB are less than a head may have
    )


def _protocol(seat: Seat, *, moves: bool) -> type[asyncio.Protocol]:
    """Return the protocol class of connections that move or do not; its attributes are those of all of them."""
    base: type[asyncio.Protocol] = {
        ("httptools", False): SeatedHttpTools,
        ("httptools", True): MovingHttpTools,
        ("h11", False): SeatedH11,
        ("h11", True): MovingH11,
    }[seat.settings.http, moves]
    return type(f"{base.__name__}InSlot", (base,), {"seat": seat})


def _with_access_log(protocols: dict[bool, type[asyncio.Protocol]], seat: Seat) -> dict[bool, type[asyncio.Protocol]]:
    """Return *protocols* with an access log, if that is wanted."""
    if not seat.settings.access_log:
        return protocols
    from limpet.servers.uvicorn import access

    def later(delay_s: float, call: Callable[[], None]) -> object:
        return asyncio.get_running_loop().call_later(delay_s, call)

    held = Held(AccessLog(seat.info.slot, seat.settings, seat.home.router), later)
    return {moves: access.noted(plain, seat, held, moves=moves) for moves, plain in protocols.items()}


class SeatedServer(uvicorn.Server):
    """uvicorn's server with the slot's channel in place of a listening socket."""

    def __init__(self, each: Sequence[user_code.Application], seat: Seat) -> None:
        """*each* is the application of each bind."""
        served, chains = seat.settings.served, [seat.home.router.chain.at(bind) for bind in range(len(each))]
        self._streams = {bind: Streams(each[bind], seat) for bind, at in enumerate(served) if at.server == "stream"}
        spoken = [bind for bind in range(len(each)) if bind not in self._streams]  # those of HTTP
        self._protocols = _with_access_log(
            {moves: _protocol(seat, moves=moves) for moves in {chain.needs_head for chain in chains}}, seat
        )
        named = {served[bind].app: each[bind] for bind in spoken}  # one each, on however many binds it is
        self._lives = Lifespan(*((app, name) for name, app in named.items()))
        states = dict(zip(named, self._lives.states, strict=True))
        self._binds = {  # what is served where a connection came in
            bind: (_config(each[bind], self._protocols[chains[bind].needs_head], seat), states[served[bind].app])
            for bind in spoken
        }
        super().__init__(self._binds[spoken[0]][0])
        self._seat = seat
        self._cells = seat.row.cells
        self._tls: dict[str, Any] = {}
        if seat.tls is not None:
            self._tls = {"ssl": seat.tls, "ssl_handshake_timeout": seat.settings.head_timeout_s}
        self._wake = asyncio.Event()
        self._adopting = 0
        self.servers = []
        self._is_told = False  # by the supervisor to drain, not by a signal
        self._is_last = False  # nobody comes after this worker
        self._is_succeeded = False  # another worker is in charge of the slot
        self._listening = [
            Listening(
                (listener,),
                seat.settings.backlog,
                self.server_state.connections,
                functools.partial(self._accepted, bind),
                functools.partial(self._adopt_accepted, bind),
                by_loop=seat.tls is None,
            )
            for bind, listener in enumerate(seat.listeners)
        ]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then say READY; take connections when told to."""
        await self._lives.startup()
        self._loop = asyncio.get_running_loop()
        self._turn = Turn(self._loop)
        for config, _ in self._binds.values():
            if not config.loaded:
                config.load()
            config.ws_protocol_class = websocket_protocol(self._seat, config.ws_protocol_class)
        for protocol in self._protocols.values():
            protocol.turn = self._turn  # type: ignore[attr-defined]
        self._makers = {
            bind: construction.maker(
                config.http_protocol_class,
                config=config,
                server_state=self.server_state,
                app_state=state,
                _loop=self._loop,
            )
            for bind, (config, state) in self._binds.items()
        }
        self._makers |= {bind: streams.new_protocol for bind, streams in self._streams.items()}
        for listening in self._listening:
            await listening.prepare()
        self._loop.add_reader(self._seat.link.fileno(), self._obey)
        self.started = True
        self._seat.ready()

    async def main_loop(self) -> None:
        """Keep time until the order to drain comes."""
        while not self.should_exit:
            await self._keep_date()
            now = self._loop.time()
            await self._look_at_connections(now)
            self._seat.mover.sweep(now)
            for slot in self._seat.mover.missing():
                self._seat.link.send(news.message(news.Missing(slot)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _TICK_S)

    async def _keep_date(self) -> None:
        """Let the header fields of all responses tell the time."""
        await self.on_tick(0)
        lines = (b"%b: %b\r\n" % (name.lower(), value) for name, value in self.server_state.default_headers)
        self._turn.fields = b"".join(lines)

    async def _look_at_connections(self, now: float) -> None:
        """End those whose time is over, some in each turn of the loop: requests must not wait for thousands of others.

        Let those go home, too, whose home is elsewhere now; websockets are closed for that.
        """
        connections, home, moved = self.server_state.connections, self._seat.home, []
        closes = home.has_scaled and self._seat.settings.on_scale == "close"
        for number, connection in enumerate(list(connections), 1):
            if number % _LOOKS_PER_TURN == 0:
                await asyncio.sleep(0)
            if isinstance(connection, Seated) and connection in connections:  # it may have ended since, or moved
                connection.expire(now)
                if home.has_changed:
                    connection.go_home()
            elif (
                closes and isinstance(connection, SeatedWebSocket) and not connection.is_told and connection.has_moved()
            ):
                moved.append(connection)
        if moved:
            log.info(
                "worker %d closes %d websockets, whose clients have moved to other slots",
                home.slot,
                len(moved),
                extra={"event": "websockets_moved", "slot": home.slot, "pid": self._seat.info.pid},
            )
            tell_moved(moved, self._seat.settings.websocket_spread_s)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the requests finish and the connections go, then end the application.

        Who waits in the channel or behind the listeners is left to the slot's next worker if that is there already,
        else taken. The move channel is left to that worker in any case. If there will be none, it is read to the end:
        others learn a moment later not to move any more.
        """
        current.leave()
        if not self._is_told:
            self._seat.link.send(news.message(news.Leaving()))
        self._tell_protocols()
        until = self._drain_by()
        for listening in self._listening:
            await listening.leave(take_rest=not self._is_succeeded)
        while not self._is_succeeded and self._take():
            pass
        self._loop.remove_reader(self._seat.receiver.fileno())
        if not self._is_last:
            await self._settle()
        while self._adopting:
            await asyncio.sleep(_CHECK_S)
        self._seat.mover.close_copies()
        if not self._is_last:
            spread_s = min(self._seat.settings.websocket_spread_s, (until - self._loop.time()) / 2)
            await let_go(self.server_state.connections, until, spread_s, lambda: self._is_last)
        if self._is_last:
            self._tell_protocols()
            until = self._drain_by()
            await self._let_idle_speak()
        if self.config.timeout_graceful_shutdown is None:
            await self._let_connections_last()
        else:
            self.config.timeout_graceful_shutdown = max(0.0, until - self._loop.time())  # type: ignore[assignment]
        await asyncio.gather(super().shutdown(), *(streams.end(until) for streams in self._streams.values()))
        await self._lives.shutdown()

    def _tell_protocols(self) -> None:
        """Let all connections know that this worker drains, and whether others will be there."""
        for protocol in self._protocols.values():
            protocol.draining, protocol.alone = True, self._is_last  # type: ignore[attr-defined]

    async def _settle(self) -> None:
        """Leave the move channel to the next worker, when nothing can come back that only this one could repeat."""
        until = self._loop.time() + _SETTLE_S
        while not self._seat.mover.settle() and self._loop.time() < until:
            self._seat.mover.sweep(self._loop.time())
            await asyncio.sleep(_CHECK_S / 10)
        self._loop.remove_reader(self._seat.mover.fileno())
        self._seat.mover.leave()
        self._seat.link.send(news.message(news.Left()))

    def _drain_by(self) -> float:
        """Return the loop time at which the time to drain is over."""
        timeout_s = self.config.timeout_graceful_shutdown
        return self._loop.time() + (float("inf") if timeout_s is None else timeout_s)

    async def _let_idle_speak(self) -> None:
        """Wait a moment for requests that are under way, on idle connections or to other workers."""
        timeout_s = self.config.timeout_graceful_shutdown
        until = self._loop.time() + (_IDLE_S if timeout_s is None else min(timeout_s, _IDLE_S))
        while (self._http_connections() or self._seat.mover.is_needed) and self._loop.time() < until:
            await asyncio.sleep(_CHECK_S)

    async def _let_connections_last(self) -> None:
        """Wait until clients have ended all connections but the idle ones."""
        while self.server_state.connections:
            for connection in self._http_connections():
                connection.shutdown()
            await asyncio.sleep(_CHECK_S)

    def _http_connections(self) -> list[Seated]:
        return [connection for connection in self.server_state.connections if isinstance(connection, Seated)]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on a signal that somebody sent to this very process. Runs in the signal handler."""
        super().handle_exit(sig, frame)
        self._loop.call_soon_threadsafe(self._wake.set)

    def _accepted(self, bind: int) -> asyncio.Protocol:
        """Return the protocol of a connection that the event loop has accepted from a listener."""
        self._cells[_RECEIVED] += 1
        self._cells[CONNECTIONS] += 1
        protocol: asyncio.Protocol = self._makers[bind]()
        return protocol

    def _adopt_accepted(self, bind: int, connection: socket.socket) -> None:
        self._cells[_RECEIVED] += 1
        self._adopt(connection, self._makers[bind]())

    def _take(self) -> bool:
        """Adopt connections from the channel; return whether there may be more."""
        waiting = self._seat.receiver.queued()
        try:
            if not waiting:  # another worker was faster; but a channel that has ended wakes the loop for ever
                self._seat.receiver.refuse_end()
            self._take_some(min(waiting, TAKES_PER_TURN))
        except BlockingIOError:
            return False
        except OSError as error:
            self._pause_reading_of(self._seat.receiver.fileno(), self._take, error)
            return False
        return waiting > 0

    def _take_some(self, number: int) -> None:
        for _ in range(number):
            connection, handoff = self._seat.receiver.receive()
            self._cells[_RECEIVED] += 1
            protocol = self._makers[handoff.listener]()
            if handoff.listener not in self._streams:
                protocol.accepted(handoff)
            self._adopt(connection, protocol)

    def _take_moved(self) -> None:
        """Adopt connections that other workers send."""
        try:
            self._seat.mover.take(self._adopt_moved)
        except OSError as error:
            self._pause_reading_of(self._seat.mover.fileno(), self._take_moved, error)

    def _adopt_moved(self, arrived: Arrived) -> None:
        protocol = self._makers[arrived.listener]()
        if arrived.listener not in self._streams:
            protocol.arrived(arrived)
        self._adopt(arrived.connection, protocol, arrived.baton)

    def _pause_reading_of(self, fd: int, take: Callable[[], Any], error: OSError) -> None:
        """Leave what is in a channel there for a while: this process has no free descriptor number, or it was ended.

        Unless copies have some to spare: those are closed first, and the channel is read again in the next turn.
        """
        if self._seat.mover.spare_numbers():
            return
        self._seat.row.add("take_errors")
        shortage.pause(self._loop, fd, error, lambda: self.should_exit or self._loop.add_reader(fd, take))

    def _adopt(self, connection: socket.socket, protocol: Any, baton: Baton | None = None) -> None:
        """Give *connection* to *protocol*, a new one, which will close it."""
        self._cells[CONNECTIONS] += 1
        self._adopting += 1
        if isinstance(protocol, Seated):
            protocol.fd = connection.fileno()
        self._open(self._loop.connect_accepted_socket(lambda: protocol, connection, **self._tls), connection, baton)

    def _open(
        self,
        opening: Coroutine[Any, Any, object],
        connection: socket.socket,
        baton: Baton | None,
        _: object = None,
    ) -> None:
        """Go on with *opening*, which waits once: a task for it would cost more than what is awaited."""
        try:
            waiter = opening.send(None)
        except StopIteration:
            self._adopting -= 1
        except OSError as error:  # the client is gone already, or speaks no TLS, and no protocol was told of it
            self._adopting -= 1
            if self._tls:
                self._seat.row.add("tls_failures")
                log.debug("a TLS handshake failed: %s", error, extra={"event": "tls_handshake_failed"})
            if baton is not None:
                self._seat.mover.ended(connection.fileno(), baton)
            connection.close()
            self._seat.row.add("connections", -1)
        except BaseException:
            self._adopting -= 1
            raise
        else:
            waiter.add_done_callback(functools.partial(self._open, opening, connection, baton))

    def _begin_to_take(self) -> None:
        """Take what comes to the slot: nobody else does, but for a predecessor that is being told not to."""
        if not self.should_exit:
            self._loop.add_reader(self._seat.receiver.fileno(), self._take)
            self._loop.add_reader(self._seat.mover.fileno(), self._take_moved)
            for listening in self._listening:
                listening.open()

    def _obey(self) -> None:
        try:
            arrived = orders.receive(self._seat.link)
        except LinkClosedError:  # the supervisor is gone: finish what is here, then end
            self._loop.remove_reader(self._seat.link.fileno())
            arrived = [Drain(self._seat.settings.graceful_timeout_s, last=True)]
            for listening in self._listening:
                listening.close_door()
        for order in arrived:
            match order:
                case Drain(timeout, last, succeeded):
                    self.config.timeout_graceful_shutdown = timeout  # type: ignore[assignment]  # a float will do
                    self._is_told, self._is_last, self._is_succeeded = True, last, succeeded
                    self.should_exit = True
                    self._wake.set()
                case Accept():
                    self._begin_to_take()
                case Slot(slot, fds):
                    self._seat.mover.reach(slot, fds)
                case Workers():
                    self._seat.home.follow(order)
                    self._seat.mover.alive(order.alive, order.newest, self._loop.time())
