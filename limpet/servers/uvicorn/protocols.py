"""uvicorn's protocols as a worker uses them: one object for each client connection.

Owns what uvicorn's own protocols leave out: a deadline and a limit for request heads, frames that follow a websocket
upgrade at once, answers for clients that have closed their sending side, and an end that drops no request that has
already arrived. Parsing, the ASGI scope and the response are uvicorn's own code on the client's own socket. Made and
counted by servers/uvicorn/server.py.

1. A deadline needs no timer of its own: `expire` looks once a second. Setting and cancelling a timer for each request
   was 4 % of a worker's instructions.
2. While draining, each response says that the connection ends, and an idle connection is closed only when no byte
   of a next request is waiting in the kernel.
3. FIN from a client whose request is complete says no more than that it will not send any more. It may have left
   altogether, which is the same on the wire: an application that asks is told so, and then the connection ends.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

import h11
import httptools
from uvicorn.protocols.http import h11_impl, httptools_impl
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from limpet.config.settings import Settings
from limpet.dispatch.refusals import LINGER_S, answer
from limpet.ipc.channel import Handoff
from limpet.ipc.scoreboard import position
from limpet.moving.messages import Arrived
from limpet.net.tls import asked_for
from limpet.protocol.proxy_protocol import Origin
from limpet.protocol.request import Peer
from limpet.servers.uvicorn.corking import SENT, Corked, Turn
from limpet.servers.uvicorn.trailers import OBEYED
from limpet.worker.seat import Seat

CONNECTIONS: Final = position("connections")
_REQUESTS: Final = position("requests")
_FRAMING: Final = (b"content-length", b"transfer-encoding")  # the headers that say where a body ends


class _Cycle:
    """What either of uvicorn's classes for one request, the next in the order of resolution, gains: see rule 3."""

    disconnected: bool
    keep_alive: bool
    message_event: asyncio.Event
    transport: asyncio.Transport
    is_followed: bool = (
        False  # more requests are here already, so nothing more is read before this one has its response
    )
    _body_taken: bool = False
    _half_closed: bool = False

    def half_close(self) -> None:
        """Note that the client, whose request is complete, has closed its sending side."""
        self.keep_alive = False
        self.tell_of_end()

    def tell_of_end(self) -> None:
        """Let the application that asks know of the same, and end the connection then."""
        self._half_closed = True
        self.message_event.set()

    def end(self) -> None:
        """End what cannot go on: the application is told that its client has left."""
        self.disconnected = True
        self.message_event.set()

    async def receive(self) -> Any:
        if not self._body_taken:
            message = await super().receive()  # type: ignore[misc]
            self._body_taken = not message.get("more_body", False)
            return message
        if not self._half_closed:
            if self.is_followed:  # uvicorn would read on, for as long as the application asks
                await self.message_event.wait()
            else:
                await super().receive()  # type: ignore[misc]
        if self._half_closed:
            self.disconnected = True
            self.transport.close()
        return {"type": "http.disconnect"}


class _HttpToolsCycle(_Cycle, httptools_impl.RequestResponseCycle):
    pass


class _H11Cycle(_Cycle, h11_impl.RequestResponseCycle):
    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start" and not self.keep_alive:  # uvicorn closes without a word
            headers = [header for header in message.get("headers", ()) if header[0].lower() != b"connection"]
            message = {**message, "headers": [*headers, (b"connection", b"close")]}
        await super().send(message)


# uvicorn's protocols look the class up by this name and offer no other way to put in one's own.
httptools_impl.RequestResponseCycle = _HttpToolsCycle  # type: ignore[misc]
h11_impl.RequestResponseCycle = _H11Cycle  # type: ignore[misc]
_UPGRADE: Final = 101


class Seated(asyncio.Protocol):
    """What either of uvicorn's HTTP protocols, the next class in the order of resolution, gains in a worker."""

    # CPython finds attributes at once in objects with 30 of them at most, and uvicorn has 28. Slots do not count. They
    # all stand here: classes that have some of their own cannot be combined.
    __slots__ = (
        "_at", "_away", "_baton", "_came_idle", "_corked", "_cut_short", "_give_up_at", "_has_body", "_has_entered",
        "_head_bytes",
        "_head_since", "_idle_since", "_in_body", "_in_message", "_initial", "_is_long", "_keyed", "_late", "_left",
        "_limited", "_peer", "_pinned", "_refused", "_repeating", "_searched", "_served", "_silent_bytes", "_took_over",
        "_unread",
        "_wanted", "_was_sent", "digest", "fd", "had_by", "light_head", "listener", "origin",
    )  # fmt: skip

    seat: ClassVar[Seat]
    turn: ClassVar[Turn]
    draining: ClassVar[bool] = False
    alone: ClassVar[bool] = False  # all workers drain: none will take what belongs elsewhere
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    connections: set[Any]
    flow: Any
    client: Any
    scheme: Any
    cycle: Any  # the request being served, or the last one
    _in_body: bool  # the parser has a head whose body has not ended
    _unset_keepalive_if_required: Callable[[], None]
    handle_websocket_upgrade: Callable[..., None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare()

    def _prepare(self) -> None:
        """Set what this class adds; all that its constructor does beside uvicorn's."""
        self._corked: Corked
        # loop time since which the next request head is awaited, None while there is none
        self._head_since: float | None = None
        self._head_bytes = 0  # of that head, as far as it has come
        self._is_long = False  # more has come at once than a head may have
        self._has_entered = False  # counted with the others of its address
        self._refused = False
        self._late = 0  # the status of what waits for the response under way: a refusal, or an upgrade
        # loop time at which the last response ended; None before that, and in a request
        self._idle_since: float | None = None
        self._unread = b""  # came, but waits for the response that is under way
        self._came_idle = False  # from another worker, between two requests
        self.listener = 0
        self.had_by = self.digest = 0
        self.fd = -1
        self.origin: Origin | None = None  # whose the connection is, where a PROXY header has said so

    def arrived(self, arrived: Arrived) -> None:
        """Take over what came with a connection from another worker. Called before `connection_made`."""
        self.listener, self.origin = arrived.listener, arrived.origin
        self._came_idle = not (arrived.decided or arrived.silent)

    def accepted(self, handoff: Handoff) -> None:
        """Take over what came with a connection from the dispatcher. Called before `connection_made`."""
        self.listener, self.origin = handoff.listener, handoff.origin

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.origin is not None:
            self.client = self.origin.client
            self.scheme = "https" if self.origin.is_tls else self.scheme
        self._corked = Corked(transport, self.turn)
        if self._came_idle:
            self._idle_since = self.loop.time()
        else:
            self._head_since = self.loop.time()
        if self.seat.per_address.most:
            self._enter()

    def _enter(self) -> None:
        """Count the connection with the others of its address, which may have as many as it may."""
        self._has_entered = self.seat.per_address.enter(self.client and self.client[0])
        if not self._has_entered:
            self.seat.row.add("address_refused")
            self.refuse(429)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.seat.row.cells[CONNECTIONS] -= 1
        if self._has_entered:
            self.seat.per_address.leave(self.client and self.client[0])

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._answer_late(data)
            return
        before, in_head = self.cycle, not self._in_body
        if self._head_bytes + len(data) > self.seat.settings.max_head_bytes:
            self._is_long = True
        self.feed(data)
        if self.cycle is not before:
            self._request_began()
        elif before is None or before.response_complete:
            if self._in_body:
                self._await_head(0)
            elif not in_head:
                self._body_ended(int(self.holds_head()))
            elif self.holds_head():  # else nothing but empty lines has come
                self._await_head(len(data))
        elif in_head:
            self._came_amid(len(data))

    @property
    def is_tls(self) -> bool:
        """Whether TLS ends here: its state is in this process, so no other can have the connection."""
        return self.seat.tls is not None

    def eof_received(self) -> Any:  # uvicorn's says None
        """Return whether the connection stays open, since the client has asked for something in full: see rule 3."""
        if self.is_tls:  # whose end is that of both directions
            return None
        waits = self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete)
        if waits:
            self.cycle.half_close()
        return waits

    def in_head(self) -> bool:
        """Return whether the bytes that come next are those of a request head."""
        return not self._in_body

    def _await_head(self, size: int) -> None:
        """Note that *size* bytes of an unfinished head came; 0 when it was the rest of a body that nobody wants."""
        if self._refused or self.transport.get_protocol() is not self:  # just now, by what this very head asked for
            return
        if self._head_since is None or not size:
            self._head_since = self.loop.time()
        self._head_bytes += size
        if self._head_bytes > self.seat.settings.max_head_bytes and self.in_head() and not self.transport.is_closing():
            self.refuse_head()

    def _came_amid(self, size: int) -> None:
        """Note that *size* bytes behind the request under way came: h11 does not look at them, and nothing is read."""

    def _body_ended(self, size: int) -> None:
        """Note that a body has ended that nobody wanted, and that *size* bytes of the next head came with its end."""
        self._head_since, self._head_bytes, self._idle_since = None, 0, self.loop.time()
        if size:
            self._await_head(size)

    def refuse_head(self) -> None:
        """Answer 431."""
        self.seat.row.add("heads_too_large")
        self.refuse(431)

    def feed(self, data: bytes | memoryview) -> None:
        """Give *data* to the parser."""
        super().data_received(data)  # type: ignore[arg-type]  # parsers take any buffer

    def on_response_complete(self) -> None:
        self.seat.row.cells[_REQUESTS] += 1
        if self._corked.held:  # a head without a body; nothing may be held when the connection moves
            self._corked.flush()
        before = self.cycle
        if before.response_complete:  # of pipelined requests it is the last one
            before.transport = SENT
        self._go_on()
        if self.cycle is not before:  # h11 goes on to the next of pipelined requests
            self._request_began()
        elif (self._unread or self._refused) and not self.transport.is_closing():
            self.data_received(b"")

    def _go_on(self) -> None:
        """Be ready for the next request, as uvicorn is after each response."""
        super().on_response_complete()  # type: ignore[misc]

    def _request_began(self) -> None:
        self._head_since, self._head_bytes, self._idle_since = None, 0, None
        self.cycle.transport = self._corked
        self._corked.awaits_head = True
        if self.draining and not self.is_followed():
            self.cycle.keep_alive = False

    def is_followed(self) -> bool:
        """Return whether more of what the client has sent is here than the request being served."""
        return False  # uvicorn keeps pipelined requests itself, and `cycle` is the last of them

    def expire(self, now: float) -> None:
        """Close the connection if its client is too slow with a request head, or has been idle for too long.

        One on which nothing has come gets no 408: browsers open some to have them, and would take it for the answer to
        the request that they are just about to send.
        """
        if self.transport.is_closing():
            return
        if self._head_since is None:
            if self._idle_since is not None and self._idle_since + self.seat.settings.keep_alive_timeout_s <= now:
                self.transport.close()
        elif self._head_since + self.seat.settings.head_timeout_s < now:
            self.seat.row.add("head_timeouts")
            if self.in_head() and (self.cycle is not None or self._head_bytes):
                self.refuse(408)
            else:  # or the client has its answer, but has stopped in the middle of a body that nobody wants
                self.transport.close()

    def refuse(self, status: int) -> None:
        """Answer, then close, but not before the client has had time to read: a reset would destroy the answer."""
        self._refused, self._head_since = True, None
        if self._is_under_way() and self._waits_with(status):
            return
        self.transport.write(answer(status))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)

    def _is_under_way(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _waits_with(self, status: int) -> bool:
        """Return whether a refusal with *status* cannot be sent yet, or never, since a response is under way."""
        cycle = self.cycle
        if not cycle.more_body:  # what is refused is the next request
            self._late = status
            self.flow.pause_reading()
            return True
        if self._drops_queued():
            self._late = status
            self.flow.pause_reading()
            return True
        cycle.end()
        if cycle.response_started:
            cycle.transport.close()
            return True
        return False

    def _drops_queued(self) -> bool:
        """Return whether the latest request waited for the response to an earlier one, and does so no more."""
        return False

    def _answer_late(self, data: bytes) -> None:
        """Answer what had to wait for the response under way, if that is complete; keep *data* for a websocket."""
        if self._late == _UPGRADE:
            self._unread += data
        if self._late and not self._is_under_way():
            status, self._late = self._late, 0
            if status == _UPGRADE:
                self._refused, unread, self._unread = False, self._unread, b""
                self.handle_websocket_upgrade()
                pass_on(self.transport, unread)
            else:
                self.refuse(status)

    def send_400_response(self, msg: str) -> None:
        """Answer 400, but not in the midst of a response, nor with a reset that could destroy the answer."""
        self.refuse(400)

    def hand_on(self) -> None:
        """Give the connection to the slot's next worker if it is idle: that loses nothing, as closing it would.

        Unless the slot is no more, or the client's home is another by now.
        """
        if self.is_tls:
            return
        if not self.transport.is_closing() and not self.transport.get_write_buffer_size() and self.is_idle():
            silent = self.cycle is None and not self._came_idle
            if self.fd < 0:
                self.fd = self.transport.get_extra_info("socket").fileno()
            if self._give_away(self.seat.home.heir(self.peer()), silent=silent):
                self.transport.abort()  # closes the descriptor, and no more than that

    def go_home(self) -> None:
        """Give the connection to its home if that is elsewhere since the table has changed, and it is idle."""
        if self.seat.home.heir(self.peer()) != self.seat.home.slot:
            self.end_if_idle() if self.is_tls else self.hand_on()

    def end_if_idle(self) -> None:
        """Close the connection if no request is being served or read and none has come: its client comes again."""
        if self.cycle is not None and self.is_idle() and not bytes_wait(self.transport):
            self.transport.close()

    def key_digest(self) -> int:
        """Return the digest of the key of the request that has just come, 0 without a key."""
        route = self.seat.home.router.route(self.peer(), None)
        return 0 if route is None else route.digest

    def peer(self) -> Peer:
        """Return the far end of the connection, as the key chain sees it."""
        address = self.transport.get_extra_info("peername") if self.origin is None else self.origin.client
        peer = self.seat.home.peer(address, self.listener)
        if self.is_tls:
            return peer._replace(server_name=asked_for(self.transport.get_extra_info("ssl_object")))
        return peer if self.origin is None else peer._replace(server_name=self.origin.server_name)

    def _give_away(self, slot: int, *, silent: bool) -> bool:
        return self.seat.mover.give(self, None, slot, b"", self.loop.time(), keyed=False, silent=silent)

    def is_idle(self) -> bool:
        """Return whether no request is being served or read, so that another worker could take the connection."""
        between = self.cycle is None or self.cycle.response_complete
        return between and not (self._refused or self.holds_head())

    def holds_head(self) -> bool:
        """Return whether the parser has a part of a request head, which nobody else could get."""
        raise NotImplementedError

    def shutdown(self) -> None:
        """End the connection after the request it has, or has sent already; at once when there is none."""
        idle = self.cycle is None or self.cycle.response_complete
        if not (idle and bytes_wait(self.transport)):
            super().shutdown()  # type: ignore[misc]


class _EnoughError(Exception):
    """Makes the parser stop: the request has its answer."""


class _Trailers(list[tuple[bytes, bytes]]):
    """In place of the headers of a request from its first trailer on: trailers are counted with them, and dropped."""

    def __init__(self, protocol: SeatedHttpTools) -> None:
        super().__init__(protocol.headers)
        self._protocol = protocol
        self._number = len(self)
        self._bytes = len(protocol.url) + sum(len(name) + len(value) + 4 for name, value in self)

    def append(self, trailer: tuple[bytes, bytes]) -> None:
        """Count *trailer*; end the request when there are too many, or when llhttp would obey it.

        It refuses lengths by itself, but behind `connection: close` it would skip the next request in silence.
        """
        if trailer[0] in OBEYED:
            raise _EnoughError
        self._number += 1
        self._bytes += len(trailer[0]) + len(trailer[1]) + 4
        settings = self._protocol.seat.settings
        if self._number > settings.max_headers or self._bytes > settings.max_head_bytes:
            self._protocol.refuse_head()
            raise _EnoughError


class SeatedHttpTools(Seated, HttpToolsProtocol):
    def _prepare(self) -> None:
        super()._prepare()
        self._in_body = False
        self._served: Any = None  # the request being served while others wait in `pipeline`
        self._silent_bytes = 0  # those that the parser got since the head or since it gave a part of the body
        self._has_body = False  # the parser has just given one of these
        self._cut_short = False  # httptools takes what asks for an upgrade to have no body, but this one has
        self._repeating = False  # a parser is given a head that is known

    def feed(self, data: bytes | memoryview) -> None:
        """Feed the parser as uvicorn does, but keep what follows an upgrade: frames, or HTTP still if it is ignored."""
        while data:
            try:
                self.parser.feed_data(data)
                if self._in_body:
                    self._count_silent(len(data))
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            except httptools.HttpParserError:
                if not self._refused:
                    self.send_400_response("Invalid HTTP request received.")
                return
            if self._should_upgrade():
                if self._is_under_way():
                    self._refused, self._late, self._unread = True, _UPGRADE, bytes(data)
                    self.flow.pause_reading()
                    return
                self.handle_websocket_upgrade()
                pass_on(self.transport, bytes(data))
                return
            self._unsupported_upgrade_warning()
            if self._cut_short:
                self._read_body()

    def _read_body(self) -> None:
        """Make the parser read the body of a request whose upgrade is ignored: else that would be the next request."""
        framing = [b"%b: %b\r\n" % header for header in self.headers if header[0] in _FRAMING]
        kept = self.url, self.headers, self.scope, self.expect_100_continue
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
        self._cut_short, self._repeating = False, True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
        self._repeating = False
        self.url, self.headers, self.scope, self.expect_100_continue = kept

    def _request_began(self) -> None:
        if self._refused and self.cycle.response_started:
            return  # it began before: the one behind it was dropped
        awaited = self._corked.awaits_head
        super()._request_began()
        if self.scope is not self.cycle.scope:  # the parser has a part of the next head
            self._is_long = True
        self.cycle.default_headers = []  # see Turn.fields
        self._corked.is_bare = True
        if self.pipeline:  # the next response is an earlier request's, whose head may still be awaited
            self._corked.awaits_head = awaited

    def eof_received(self) -> Any:
        if self.pipeline:
            self._served.tell_of_end()  # the last of them ends the connection
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.pipeline:  # uvicorn tells the last of them
            self._served.end()

    def _came_amid(self, size: int) -> None:
        self._is_long = True
        self._head_bytes += size
        if self._head_bytes > self.seat.settings.max_head_bytes and self.holds_head():
            self.refuse_head()

    def _drops_queued(self) -> bool:
        if not self.pipeline:
            return False
        self.pipeline.popleft()
        self.cycle = self.pipeline[0][0] if self.pipeline else self._served
        return True

    def _go_on(self) -> None:
        if self.pipeline:
            self._served = self.pipeline[-1][0]
            paused, self.flow.read_paused = self.flow.read_paused, len(self.pipeline) == 1 and self.flow.read_paused
            super()._go_on()  # which reads on: not before the last of them is served, else their number would grow
            self.flow.read_paused = paused and bool(self.pipeline)
            self._corked.awaits_head = True
            return
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self._idle_since = self.loop.time()

    def holds_head(self) -> bool:
        return self._in_body or self.scope is not (self.cycle and self.cycle.scope)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep what comes behind the last chunk out of the headers of `scope`: the parser reports it as such."""
        name = name.lower()
        if self._in_body:
            if not isinstance(self.headers, _Trailers):
                self.headers = _Trailers(self)
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, and note that one came.

        This and `on_header` do what uvicorn's do: for one byte of a body a call of those would cost as much again.
        """
        self._has_body, cycle = True, self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def _count_silent(self, size: int) -> None:
        """Refuse a line without an end, before a chunk or behind the last one: the parser would keep all of it."""
        self._silent_bytes = 0 if self._has_body else self._silent_bytes + size
        self._has_body = False
        if self._silent_bytes > self.seat.settings.max_head_bytes and not self._refused:
            self.refuse_head()

    def on_headers_complete(self) -> None:
        if self._repeating:
            return
        may_exceed = self._is_long or len(self.headers) > self.seat.settings.max_headers
        if may_exceed and exceeds(self.seat.settings, self.url, self.headers, is_long=self._is_long):
            self.refuse_head()
            raise _EnoughError
        if self.parser.should_upgrade() and self.parser.get_method() == b"CONNECT":  # else it would not say so
            self.send_400_response("Invalid HTTP request received.")
            raise _EnoughError
        self._in_body = self._has_body = True
        if self._is_under_way():
            self.cycle.is_followed = True
            if not self.pipeline:
                self._served = self.cycle
        if self.parser.should_upgrade() and not self._should_upgrade():
            self._cut_short = any(name in _FRAMING and value.strip(b"0") for name, value in self.headers)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._cut_short:
            return
        self._in_body = False
        super().on_message_complete()


class SeatedH11(Seated, H11Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        LimitedConnection.limit(self.conn, self.seat.settings)
        super().connection_made(transport)

    def send_400_response(self, msg: str) -> None:
        if isinstance(self.conn, LimitedConnection) and self.conn.is_too_large:
            self.refuse_head()
        else:
            super().send_400_response(msg)

    def feed(self, data: bytes | memoryview) -> None:
        super().feed(data)
        behind = self.conn.trailing_data[0]
        if self.flow.read_paused and self._is_under_way() and behind and self.conn.their_state is h11.DONE:
            # An empty line is no request: what comes next is read, lest the end of the client is not seen.
            self.cycle.is_followed = len(behind) > self.seat.settings.max_head_bytes or bool(behind.strip(b"\r\n"))
            if not self.cycle.is_followed:
                self.flow.resume_reading()

    def eof_received(self) -> Any:
        if (
            self._is_under_way()
            and not self.is_tls
            and self.conn.their_state is h11.DONE
            and self.conn.trailing_data[0]
        ):
            self.cycle.tell_of_end()
            self.flow.pause_reading()  # the FIN is found again when the requests that came before it are served
            return True
        return super().eof_received()

    @property
    def _in_body(self) -> bool:  # type: ignore[override]
        return self.conn.their_state is h11.SEND_BODY

    def holds_head(self) -> bool:
        return bool(self.conn.trailing_data[0])

    def handle_websocket_upgrade(self, event: Any) -> None:
        super().handle_websocket_upgrade(event)
        pass_on(self.transport, self.conn.trailing_data[0])


def bytes_wait(transport: asyncio.Transport) -> bool:
    """Return whether the client has sent bytes that the event loop has not read yet."""
    unread = array.array("i", [0])
    fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, unread)
    return unread[0] > 0


def pass_on(transport: asyncio.Transport, data: bytes) -> None:
    """Give *data* to the protocol that has taken the connection over."""
    if data:
        transport.get_protocol().data_received(data)  # type: ignore[attr-defined]


def exceeds(settings: Settings, target: bytes, headers: Sequence[tuple[bytes, bytes]], *, is_long: bool) -> bool:
    """Return whether a head is larger than it may be. *is_long* says that as many bytes have come."""
    if len(headers) > settings.max_headers:
        return True
    return (
        is_long and len(target) + sum(len(name) + len(value) + 4 for name, value in headers) > settings.max_head_bytes
    )


class LimitedConnection(h11.Connection):
    """h11's side of a connection, which refuses CONNECT, and a head that is larger than it may be."""

    settings: Settings
    is_too_large = False
    _head: h11.Request  # of the latest request

    @classmethod
    def limit(cls, connection: h11.Connection, settings: Settings) -> None:
        """Make *connection*, which uvicorn has made, such a one."""
        connection.__class__ = cls
        connection.settings = settings  # type: ignore[attr-defined]

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request) and event.method == b"CONNECT":  # refused by the dispatcher, too
            raise h11.RemoteProtocolError("CONNECT is for proxies")
        if isinstance(event, h11.Request) and exceeds(self.settings, event.target, event.headers, is_long=True):
            self.is_too_large = True
            raise h11.RemoteProtocolError("the request head is too large")
        if isinstance(event, h11.Request):
            self._head = event
        elif isinstance(event, h11.EndOfMessage) and event.headers:
            fields = [*self._head.headers, *event.headers]  # trailers count, too
            if exceeds(self.settings, self._head.target, fields, is_long=True):
                self.is_too_large = True
                raise h11.RemoteProtocolError("the trailers are too large")
        return event
