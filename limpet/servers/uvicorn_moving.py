"""uvicorn's protocols when keys are per request: a request of another slot's client makes the connection move.

Owns the moment of the decision and the bytes: where one message ends and the next begins, what was read and not
served, when reading stops and starts. Whose key lives where is the router's business, how a connection travels
moving.py's.

1. The parser never gets a byte behind the end of a message before its response is complete: what follows may belong
   to somebody else. Heads and chunked bodies can only end at CRLF CRLF, bodies with a length by count; whether a
   message did end there is for the parser to say.
2. The first request of a connection that arrives was decided by whoever sent it, and is served unasked: a key
   function that answers differently each time must not make a request bounce.
3. A connection moves only when all of the earlier response has left this process.
4. A connection with a baton is ended by `Mover.ended` alone: other workers have copies, which would hold back the FIN.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Final

import h11
import httptools

from limpet.baton import Baton
from limpet.handoff import Handoff
from limpet.moving import Arrived, shut_down
from limpet.refusal import answer
from limpet.request import Peer, Request
from limpet.servers.uvicorn_protocols import SeatedH11, SeatedHttpTools, pass_on
from limpet.worker import Seat

_RETRY_S: Final = 0.01  # between tries to send into a full channel
_BLANK_LINE: Final = b"\r\n\r\n"


class _Moving(asyncio.Protocol):
    """What both parsers' protocols have in common; a mixin before SeatedHttpTools or SeatedH11."""

    seat: ClassVar[Seat]
    draining: ClassVar[bool]
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    connections: set[Any]
    flow: Any
    listener: int = 0
    _baton: Baton | None = None
    _fd: int = -1
    _peer: Peer | None = None
    _initial: bytes = b""
    _pinned: bool = True  # the next request is served unasked
    _keyed: bool = True  # whether a request without a key is somebody new
    _wanted: int | None = None  # the slot that the connection is to move to
    _away: bool = False  # this is a paused copy
    _give_up_at: float = 0.0

    def arrived(self, arrived: Arrived) -> None:
        """Take over what came with a connection from another worker. Called before `connection_made`."""
        self.listener = arrived.listener
        self._baton = arrived.baton
        self._initial = arrived.leftover

    def accepted(self, handoff: Handoff) -> None:
        """Take over what came with a connection from the dispatcher. Called before `connection_made`."""
        self.listener = handoff.listener
        self._keyed = handoff.digest != 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._fd = transport.get_extra_info("socket").fileno()
        if self._initial:  # here, before the loop reads the first byte itself: the order is kept
            initial, self._initial = self._initial, b""
            self.data_received(initial)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._away:
            self.seat.row.add("connections")  # uncounted when it went; what follows counts an end
        elif self._baton is not None:
            self.seat.mover.ended(self._fd, self._baton)
        super().connection_lost(exc)

    def resume(self, leftover: bytes) -> None:
        """Read again: the connection has come back with *leftover*, whose first request belongs here."""
        self._away, self._pinned, self._keyed = False, True, True
        self.connections.add(self)
        self.seat.row.add("connections")
        self.flow.resume_reading()
        self.data_received(leftover)

    def drop(self, *, shut: bool) -> None:
        """Close this paused copy; with *shut* end the connection for the client too."""
        if shut:
            shut_down(self._fd)
        self.transport.abort()  # closes the descriptor, and no more than that

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._wanted is not None:
            self.loop.call_soon(self._move)  # asyncio cannot abort a transport from here

    def _belongs_elsewhere(self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
        """Decide on the request whose head is complete; runs once for each."""
        if self._pinned:
            self._pinned = False
            return False
        if self._peer is None:
            self._peer = self.seat.home.peer(self.transport.get_extra_info("peername"), self.listener)
        request = Request(method.decode("ascii"), target.decode("latin-1"), self._peer, headers)
        slot, self._keyed = self.seat.home.slot_of(request, keyed=self._keyed)
        if slot == self.seat.home.slot:
            return False
        self._wanted = slot
        return True

    def _start_to_move(self) -> None:
        """Stop reading, and go as soon as the earlier response has left."""
        self._unset_keepalive_if_required()  # type: ignore[attr-defined]
        self.flow.pause_reading()
        self._give_up_at = self.loop.time() + self.seat.settings.wait_timeout_s
        self._move()

    def _move(self) -> None:
        if self._wanted is None or self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size():
            self.transport.set_write_buffer_limits(high=0)  # `resume_writing` is called when it is empty
            return
        now = self.loop.time()
        if self.draining:
            self._refuse()
            return
        done, self._baton = self.seat.mover.pass_on(
            self, self._fd, self._baton, self._wanted, self.listener, self._leftover(), now
        )
        if done:
            self._go_away()
        elif now < self._give_up_at:
            self.loop.call_later(_RETRY_S, self._move)
        else:
            self._refuse()

    def _go_away(self) -> None:
        """Become a paused copy; without a baton there is none to keep."""
        self._wanted, self._away = None, True
        self.transport.set_write_buffer_limits()
        self.connections.discard(self)
        self.seat.row.add("connections", -1)
        self._start_afresh()
        if self._baton is None:
            self.transport.abort()

    def _refuse(self) -> None:
        """Answer 503: the request's own slot cannot take it, and no other may."""
        self._wanted = None
        self.seat.row.add("returns_refused")
        self.transport.write(answer(503))
        self.transport.close()

    def _upgraded(self) -> None:
        """Tell the websocket protocol that took over what it must know: the connection never moves again."""
        if self._baton is not None:
            self.seat.mover.settled(self._baton)
            self._baton = None
            self.transport.get_protocol().moved = True  # type: ignore[attr-defined]

    def _leftover(self) -> bytes:
        raise NotImplementedError

    def _start_afresh(self) -> None:
        raise NotImplementedError


class MovingHttpTools(_Moving, SeatedHttpTools):
    """The httptools protocol of a worker whose keys are per request."""

    _unread: bytes = b""  # came, but was not given to the parser
    _head: bytes = b""  # of the message being parsed, as it came, until it is known to be served here
    _tail: bytes = b""  # the last bytes given to the parser, in which a blank line may have begun
    _left: int = 0  # bytes of a body with a length that are still to come
    _in_body: bool = False
    _head_complete: bool = False
    _message_complete: bool = False
    _took_over: bool = False

    def feed(self, data: bytes) -> None:
        """Give the parser of *data* what it may have now."""
        self._unread = self._unread + data if self._unread else data
        if self._wanted is None:
            self._pump()
        elif not self.transport.is_closing():
            self.transport.pause_reading()  # uvloop reads on when it was told to pause inside `connection_made`

    def _pump(self) -> None:
        while self._unread and self._wanted is None and not self.transport.is_closing():
            if not self._in_body and not self._head and self.cycle is not None and not self.cycle.response_complete:
                self.flow.pause_reading()  # the next request waits for this response
                return
            piece = self._next_piece()
            if not self._in_body:
                self._head += piece
            self._head_complete = self._message_complete = False
            super().feed(piece)
            if self._wanted is not None:
                self._start_to_move()
            elif self._took_over:
                self._upgraded()
                pass_on(self.transport, self._unread)
                return
            else:
                self._follow(piece)

    def _next_piece(self) -> bytes:
        """Take as much of what is unread as surely belongs to the message being parsed."""
        if self._left:
            end = self._left
        else:
            tail = len(self._tail)
            found = (self._tail + self._unread).find(_BLANK_LINE)
            end = len(self._unread) if found < 0 else found + len(_BLANK_LINE) - tail
        piece, self._unread = self._unread[:end], self._unread[end:]
        self._tail = b"" if self._left else (self._tail + piece)[-3:]
        return piece

    def _follow(self, piece: bytes) -> None:
        """Note where in the message the parser is after *piece*."""
        if self._message_complete:
            self._start_message()
        elif self._head_complete:
            self._in_body, self._head, self._tail = True, b"", b""
            self._left = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        elif self._left:
            self._left -= len(piece)

    def _start_message(self) -> None:
        self._in_body, self._head, self._tail, self._left = False, b"", b"", 0

    def _leftover(self) -> bytes:
        return self._head + self._unread

    def _start_afresh(self) -> None:
        self._unread = b""
        self._start_message()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it

    def on_headers_complete(self) -> None:
        self._head_complete = True
        if not self._belongs_elsewhere(self.parser.get_method(), self.url, self.headers):
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._wanted is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._message_complete = True
        if self._wanted is None:
            super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        if self._wanted is None:
            super().handle_websocket_upgrade()
            self._took_over = True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._unread and not self.transport.is_closing():
            self.data_received(b"")


class _Gate(h11.Connection):
    """An h11 connection that asks before it lets a request through."""

    protocol: MovingH11

    def next_event(self) -> Any:
        """Return the next event; NEED_DATA in place of a request that belongs elsewhere."""
        head = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        event = super().next_event()
        if isinstance(event, h11.Request) and self.protocol.asks_to_move(event, head):
            return h11.NEED_DATA
        return event


class MovingH11(_Moving, SeatedH11):
    """The h11 protocol of a worker whose keys are per request. h11 itself pauses between messages."""

    _raw: bytes = b""  # the request that belongs elsewhere, and what came behind it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start_afresh()

    def feed(self, data: bytes) -> None:
        """Give h11 *data*, unless the connection is about to move."""
        if self._wanted is None:
            super().feed(data)
        else:
            self._raw += data

    def asks_to_move(self, event: h11.Request, head: bytes) -> bool:
        """Return whether *event*, which came as the first bytes of *head*, belongs elsewhere; then see to it."""
        headers = [(bytes(name), bytes(value)) for name, value in event.headers]
        if not self._belongs_elsewhere(event.method, event.target, headers):
            return False
        self._raw = bytes(head)
        self.loop.call_soon(self._start_to_move)  # this may run inside the `send` of the earlier response
        return True

    def handle_websocket_upgrade(self, event: Any) -> None:
        super().handle_websocket_upgrade(event)
        self._upgraded()

    def _leftover(self) -> bytes:
        return self._raw

    def _start_afresh(self) -> None:
        self._raw = b""
        self.conn = _Gate(h11.SERVER, self.config.h11_max_incomplete_event_size or 65536)
        self.conn.protocol = self
