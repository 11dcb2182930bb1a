"""uvicorn's protocols when keys are per request: a request of another slot's client makes the connection move.

Owns the moment of the decision and the bytes: where one message ends and the next begins, what was read and not
served, when reading stops and starts. Whose key lives where is the router's business, how a connection travels
moving/mover.py's. The parsers see nothing of it: a request that moves was never given to one.

1. A parser never gets a byte behind the end of a message before its response is complete: what follows may belong to
   somebody else. Heads end at CRLF CRLF, bodies by count: chunks are counted here, too, since a search for their end
   would give the parser a body of blank lines in pieces of four bytes. The last chunk waits for all of its trailers.
2. The first request of a connection that arrives was decided by whoever sent it, and is served unasked: a key
   function that answers differently each time must not make a request bounce. That it would is counted.
3. A connection moves only when all of the earlier response has left this process.
4. A connection with a baton is ended by `Mover.ended` alone: other workers have copies, which would hold back the FIN.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

from limpet.dispatch.refusals import answer
from limpet.ipc.baton import Baton, Verdict
from limpet.ipc.channel import Handoff
from limpet.moving.messages import Arrived, shut_down
from limpet.protocol.head import BadHead, HeadParser
from limpet.protocol.request import Peer, UnparsedRequest
from limpet.servers.uvicorn.protocols import CONNECTIONS, Seated, SeatedH11, SeatedHttpTools, bytes_wait, pass_on
from limpet.worker.ownership import UNTOLD

_RETRY_S: Final = 0.01  # between tries to send into a full channel
_BLANK_LINE: Final = b"\r\n\r\n"
_LONG: Final = 4096  # bytes from which on a search line by line is worth it
_LINES: Final = 16  # that it goes through: with short lines it is the slower one
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)*+")


def _chunks() -> re.Pattern[bytes]:
    """Return what finds whole chunks of up to 255 bytes, and the size (1) in the line behind them if that is whole.

    A loop over small chunks in Python would cost more than their parser. Zeros before a size and extensions behind it
    are in here as well: they cost a client nothing. A line that no parser accepts may be taken for one: it gets the
    connection a 400, so where its chunk ends does not matter.
    """
    small = []
    for high in range(1, 16):
        two_digits = [b"(?i:%x)[^\n]*+\n.{%d}\r\n" % (low, 16 * high + low) for low in range(16)]
        one_digit = b"(?![0-9a-fA-F])[^\n]*+\n.{%d}\r\n" % high
        small.append(b"(?i:%x)(?:%b|%b)" % (high, b"|".join(two_digits), one_digit))
    is_short = b"0*+(?=[0-9a-fA-F]{1,2}+(?![0-9a-fA-F]))"
    return re.compile(b"(?s:%b(?:%b))*+(?:([0-9a-fA-F]++)[^\r\n]*+\r\n)?+" % (is_short, b"|".join(small)))


_CHUNKS: Final = _chunks()
_SAFE: Final = (b"GET ", b"HEAD ", b"OPTIONS ", b"TRACE ")  # repeated by clients after an end without an answer


class _Moving(Seated):
    """What both parsers' protocols have in common; a mixin before SeatedHttpTools or SeatedH11."""

    __slots__ = ()  # see Seated

    def _prepare(self) -> None:
        super()._prepare()
        self._baton: Baton | None = None
        self._peer: Peer | None = None  # not asked for before the second request
        self._initial = b""
        self._pinned = True  # the next request is served unasked
        self._was_sent = False  # by another worker, not by a dispatcher
        self._keyed = True  # whether a request without a key is somebody new
        self._wanted: int | None = None  # the slot that the connection is to move to
        self._away = False  # this is a paused copy
        self._give_up_at = 0.0
        self._at = 0  # in `_unread`: up to here the parser has it; if it has all, both are empty
        self._in_message = False  # the parser has a head whose message has not ended
        self._searched = 0  # bytes from a last chunk on, with the trailers, in which there is no blank line
        self._left = 0  # bytes of a body with a length, or of a chunk, that are still to come
        self._limited = False  # the transport tells when its last byte has left
        self._took_over = False  # a websocket protocol has the connection now
        self.light_head = b""

    def arrived(self, arrived: Arrived) -> None:
        """Take over what came with a connection from another worker. Called before `connection_made`."""
        super().arrived(arrived)
        self._pinned, self._keyed = arrived.decided, arrived.keyed
        self._baton = arrived.baton
        self.had_by, self.digest = arrived.had_by, arrived.digest
        self._initial = arrived.leftover

    def accepted(self, handoff: Handoff) -> None:
        """Take over what came with a connection from the dispatcher. Called before `connection_made`."""
        super().accepted(handoff)
        self._keyed = handoff.digest != 0
        self.digest = handoff.digest

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._initial:  # here, before the loop reads the first byte itself: the order is kept
            initial, self._initial, self._was_sent = self._initial, b"", True
            self.data_received(initial)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._away:
            self.seat.row.cells[CONNECTIONS] += 1  # uncounted when it went; what follows counts an end
            if self._baton is not None:
                self.seat.mover.forget(self, self._baton)
        elif self._baton is not None:
            self.seat.mover.ended(self.fd, self._baton)
        super().connection_lost(exc)

    def resume(self, leftover: bytes) -> None:
        """Read again: the connection has come back with *leftover*, whose first request belongs here."""
        self._away, self._pinned, self._was_sent, self._keyed = False, True, True, True
        self.connections.add(self)
        self.seat.row.cells[CONNECTIONS] += 1
        self.flow.resume_reading()
        self.data_received(leftover)

    def drop(self, verdict: Verdict) -> None:
        """Close this paused copy, and do to the connection what *verdict* says."""
        if verdict is Verdict.REFUSE:
            shut_down(self.fd, answer(503))
        elif verdict is Verdict.END:
            shut_down(self.fd, answer(503) if bytes_wait(self.transport) else b"")
        elif verdict is Verdict.SHUT:
            shut_down(self.fd)
        self.transport.abort()  # closes the descriptor, and no more than that

    def eof_received(self) -> Any:
        """Return whether the connection stays open: requests that came before the FIN are still to be served.

        The FIN stays in the socket: whoever reads next, here or in another worker, finds it again.
        """
        cycle = self.cycle
        if self._wanted is None:
            under_way = cycle is not None and not (cycle.more_body or cycle.response_complete)
            due = self._unread.find(_BLANK_LINE, self._at) >= 0  # what is no whole request will never be one
            if not (under_way and due):
                return super().eof_received()
            cycle.tell_of_end()
        self.flow.pause_reading()
        return True

    def expire(self, now: float) -> None:
        if self._wanted is None:  # else the head is here, and waits for a slot or for the client: see `_move`
            super().expire(now)

    def shutdown(self) -> None:
        if self._wanted is None and not self.is_followed():  # else `_move` answers, or what follows is served first
            super().shutdown()

    def is_followed(self) -> bool:
        return bool(self._unread)

    def key_digest(self) -> int:
        home = self.seat.home
        return self.digest if isinstance(home.latest, int) else home.digest()

    def is_idle(self) -> bool:
        return not (self._pinned or self._away or self._in_message or self._wanted is not None) and super().is_idle()

    def holds_head(self) -> bool:
        return False  # it gets whole ones only

    def _give_away(self, slot: int, *, silent: bool) -> bool:
        now = self.loop.time()
        unread = self._unread[self._at :]
        done = self.seat.mover.give(self, self._baton, slot, unread, now, keyed=self._keyed, silent=silent)
        if done:
            self._baton = None
        return done

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._wanted is not None:
            self.loop.call_soon(self._move)  # asyncio cannot abort a transport from here

    def in_head(self) -> bool:
        within: bool = self._wanted is None and not self._away and super().in_head()
        return within

    def data_received(self, data: bytes) -> None:
        """Give the parser of *data* what it may have now; what `Seated` does, for a parser that gets it in pieces."""
        if self._refused:
            self._answer_late(data)
            return
        self._unread = self._unread + data if self._unread else data
        if self._wanted is not None:
            if not self.transport.is_closing():
                self.transport.pause_reading()  # uvloop reads on when told to pause inside `connection_made`
            return
        before, within = self.cycle, self._in_message
        self._pump()
        if self.cycle is not before:
            self._request_began()
        elif self._wanted is None and (before is None or before.response_complete):
            if self._in_message:
                self._await_head(0)
            elif within:
                self._body_ended(len(self._unread) - self._at)
            elif self._unread:  # else nothing but empty lines has come
                self._await_head(len(data))

    def _pump(self) -> None:
        """Give the parser all that belongs to the message it is in, and the next one when its time has come."""
        while self._at < len(self._unread) and not (self.transport.is_closing() or self._refused):
            within = self._in_message
            piece = self._next_piece() if within else self._next_head()
            if not piece:
                break
            self._give(piece, within=within)
            if self._took_over:
                self._upgraded()
                return
        # Not after each of many pipelined requests: that would copy those that follow as often.
        if self._wanted is not None or 2 * self._at >= len(self._unread):
            self._unread, self._at = self._unread[self._at :], 0
        if self._wanted is not None:
            self._move()

    def _give(self, piece: bytes | memoryview, *, within: bool) -> None:
        """Give the parser *piece*, a head or, *within* a message, what comes next of it."""
        self._in_message = True
        super().feed(piece)
        if not self._in_body:
            self._in_message, self._left = False, 0
        elif not within:
            self._left = _length(bytes(piece))

    def _next_head(self) -> bytes:
        """Take the next request head, if it is whole, is due, and belongs here."""
        if self._unread.startswith(b"\r\n", self._at):  # some clients send one behind the body of a POST
            self._at = _EMPTY_LINES.match(self._unread, self._at).end()  # type: ignore[union-attr]  # it may be empty
            if self._at == len(self._unread):
                return b""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.is_followed = True
            self.flow.pause_reading()  # the next request waits for this response
            return b""
        found = first_blank_line(self._unread, self._at)
        if found < 0:
            return b""
        end = found + len(_BLANK_LINE)
        head = self._unread[self._at : end]
        if len(head) > self.seat.settings.max_head_bytes:
            self.refuse_head()
            return b""
        if self._belongs_elsewhere(head):
            return b""
        self._at = end
        return head

    def _next_piece(self) -> memoryview:
        """Take as much of what is unread as surely belongs to the message being parsed."""
        start = self._at
        if self._left:
            self._at = min(start + self._left, len(self._unread))
            self._left -= self._at - start
        else:
            self._at = self._end_of_chunks()
        return memoryview(self._unread)[start : self._at]  # not copied: it may be large

    def _end_of_chunks(self) -> int:
        """Return where what may be given of the chunks from here on ends, and note what the last of them still lacks.

        The line before a chunk is given when it is whole, the last one together with the trailers.
        """
        unread, end = self._unread, self._at
        while unread.find(b"\n", end) >= 0:
            line: Any = _CHUNKS.match(unread, end)  # it may be empty
            if line.end() == end:
                self.send_400_response("Invalid HTTP request received.")
                return self._at
            if line[1] is None:
                end = line.end()
                continue
            size = int(line[1], 16)
            if not size:
                found = unread.find(_BLANK_LINE, max(line.end() - 2, self._at + self._searched))
                if found >= 0:
                    self._searched = 0
                    return found + len(_BLANK_LINE)
                end = line.start(1)
                self._searched = max(0, len(unread) - end - 3)
                return self._held_from(end)
            end = line.end() + size + 2
        if end < len(unread):
            return self._held_from(end)
        self._left = end - len(unread)
        return len(unread)

    def _held_from(self, end: int) -> int:
        """Return *end*: what is behind it waits for more of the same, and may be as large as a head."""
        if len(self._unread) - end > self.seat.settings.max_head_bytes:
            self.refuse_head()
        return end

    def _belongs_elsewhere(self, head: bytes) -> bool:
        """Decide, once, on the request with this *head*, unless who sent it did so; note where it wants to go."""
        home = self.seat.home
        if self._pinned:
            self._pinned = False
            home.latest = self.digest if self._was_sent else UNTOLD
            if self._was_sent and home.router.may_differ and home.disagrees(UnparsedRequest(head, self.peer())):
                self.seat.row.add("misrouted")  # this worker would send it on
            return False
        self._peer = self._peer or self.peer()
        slot, self._keyed = home.slot_of(UnparsedRequest(head, self._peer), keyed=self._keyed)
        if slot == home.slot:
            return False
        self._wanted, self.digest = slot, home.digest()
        return True

    def _move(self) -> None:
        """Stop reading, and go as soon as the earlier response has left and there is room."""
        wanted, transport = self._wanted, self.transport
        if wanted is None or transport.is_closing():
            return
        self.flow.pause_reading()
        if transport.get_write_buffer_size():
            transport.set_write_buffer_limits(high=0)  # `resume_writing` is called when it is empty
            self._limited = True
            return
        if self.alone:
            self._end_unanswered() if self._unread.startswith(_SAFE) else self._refuse()
            return
        now = self.loop.time()
        done, self._baton = self.seat.mover.pass_on(self, self._baton, wanted, self._unread, now)
        if not done:
            self._give_up_at = self._give_up_at or now + self.seat.settings.wait_timeout_s
            if now < self._give_up_at:
                self.loop.call_later(_RETRY_S, self._move)
            else:
                self._refuse()
            return
        # from here on a paused copy; without a baton there is none to keep
        self._wanted, self._away, self._unread, self._give_up_at = None, True, b"", 0.0
        if self._limited:
            transport.set_write_buffer_limits()
            self._limited = False
        self.connections.discard(self)
        self.seat.row.cells[CONNECTIONS] -= 1
        if self._baton is None:
            transport.abort()

    def _refuse(self) -> None:
        """Answer 503: the request's own slot cannot take it, and no other may."""
        self._wanted, self._unread, self._at = None, b"", 0
        self.seat.row.add("returns_refused")
        self.flow.resume_reading()  # the rest of the request is thrown away: unread it would reset the connection
        self.refuse(503)

    def _end_unanswered(self) -> None:
        """Close the connection: nobody here will serve the request, and who sent it may repeat it (RFC 9110, 9.2.2).

        A front does, on another machine; a 503 it would pass on.
        """
        self._wanted, self._unread, self._at = None, b"", 0
        self.seat.row.add("returns_refused")
        self.transport.close()

    def _upgraded(self) -> None:
        """Leave the connection to the websocket protocol that took over: it never moves again."""
        protocol: Any = self.transport.get_protocol()
        if self._baton is not None:
            self.seat.mover.settled(self._baton)
            self._baton, protocol.moved = None, True
        pass_on(self.transport, self._unread[self._at :])


class MovingHttpTools(_Moving, SeatedHttpTools):
    """The httptools protocol of a worker whose keys are per request."""

    def data_received(self, data: bytes) -> None:
        """As for all, but without a buffer and a loop in the usual case: one whole head comes, and nothing else."""
        cycle = self.cycle
        if (
            not (cycle is None or cycle.response_complete)
            or self._unread
            or self._in_message
            or self._refused
            or self._wanted is not None
            or len(data) > self.seat.settings.max_head_bytes  # there may be a megabyte to search
            or not 0 < first_blank_line(data) == len(data) - len(_BLANK_LINE)
            or self.transport.is_closing()
        ):
            super().data_received(data)
        elif self._belongs_elsewhere(data):
            self._unread = data
            self._move()
        else:
            self._begin(data)

    def _begin(self, head: bytes) -> None:
        """Let the parser have *head*, a whole one that is alone."""
        before = self.cycle
        self.feed(head)
        if self._in_body:
            self._in_message, self._left = True, _length(head)
        if self._took_over:
            self._upgraded()
        elif self.cycle is not before:
            self._request_began()

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        self._took_over = True


class MovingH11(_Moving, SeatedH11):
    """The h11 protocol of a worker whose keys are per request.

    h11 accepts heads that the dispatcher refuses, and might read another key in them, or another end of the message.
    """

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()  # uvicorn would, but it may get nothing yet
        super().data_received(data)

    def _next_head(self) -> bytes:
        head = super()._next_head()
        try:
            if head:
                HeadParser(len(head) + 1, self.seat.settings.max_headers).feed(head)
        except BadHead as bad:
            if bad.status == 431:
                self.refuse_head()
            else:
                self.send_400_response("Invalid HTTP request received.")
            return b""
        return head

    def handle_websocket_upgrade(self, event: Any) -> None:
        super().handle_websocket_upgrade(event)
        self._took_over = True


def first_blank_line(data: bytes, start: int = 0) -> int:
    """Return what `data.find(b"\\r\\n\\r\\n", start)` does, faster where long lines come first.

    CPython looks at each fifth byte for four of them, but finds one by memchr, ten times as fast.
    """
    if len(data) - start <= _LONG:
        return data.find(_BLANK_LINE, start)
    at = start
    for _ in range(_LINES):
        at = data.find(b"\n", at) + 1
        if not at:
            return -1
        if at > start + 1 and data.startswith(_BLANK_LINE, at - 2):
            return at - 2
    return data.find(_BLANK_LINE, at - 1)


def _length(head: bytes) -> int:
    """Return the length of the body behind *head* as that says, 0 when the parser has to find the end."""
    value = UnparsedRequest(head, _NOBODY).header_bytes(b"content-length")
    return int(value) if value is not None and value.isdigit() else 0


_NOBODY: Final = Peer(None, None, "")
