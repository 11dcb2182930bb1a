"""A WSGI application as an ASGI one: the application runs in threads, the server's event loop reads and writes.

Owns the threads, the environ, the input, and the way of a response from its thread to the event loop. Called by
worker/user_code.py for every server that calls ASGI; knows nothing of slots and keys. gunicorn and waitress call WSGI
themselves.

How it works: one `_Call` is one request. Its thread appends what the application yields to `_chunks`, its coroutine
`serve` passes that on to the server. Where a body is not here when the request begins, the task `_receiving` appends it
to `_body`, from which the thread reads. All that both sides touch is under `_told`.

1. The event loop never waits for a thread: nobody blocks, nor runs code of the application, with `_told` or with the
   lock of `_Threads`.
2. A thread that waits for its client longer than a moment lends its place to another request, so clients that do not
   read or send take no place from others. There are at most `most` places, and as many threads that have lent theirs as
   `most_lent`: then the one that has waited longest is given up. A single place is never lent: who asks for one thread
   has an application that must not run in two.
3. The response's end is sent before the iterable is closed, and the request ends after that: a drain waits for both.
4. After the body, `receive` is asked no more where the server's own record of the request says whether the client has
   left (uvicorn's cycle): it would take a client that has closed its sending side alone for one that has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import queue
import re
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final
from urllib.parse import unquote_to_bytes
from wsgiref.util import is_hop_by_hop

Headers = list[tuple[bytes, bytes]]
_SOON_S: Final = 0.05  # a wait for a client that is shorter does not lend the place
_STALL_S: Final = 120.0  # a client that reads or sends nothing for so long is given up; as in waitress
_MOST_LENT: Final = 256  # threads that wait for clients; each holds at most _OUTPUT_BYTES and a chunk
_OUTPUT_BYTES: Final = 1 << 20  # of a response, that its thread is ahead of its client
_INPUT_BYTES: Final = 1 << 18  # of a request, that the client is ahead of the application
_PIECE_BYTES: Final = 1 << 18  # that the server is given at once: its buffer grows no further
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_NOT_IN_NAME: Final = re.compile(r"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")
_NOT_IN_VALUE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class ClientGoneError(ConnectionError):
    """The client has left: there is nobody to read from, or to write to."""


class ClientTooSlowError(TimeoutError):
    """The client has neither read nor sent anything for too long, or others need the thread that waits for it."""


class Threaded:
    """A WSGI application as an ASGI one, called in at most *threads* threads at once."""

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        threads: int,
        *,
        stall_s: float = _STALL_S,
        most_lent: int = _MOST_LENT,
    ) -> None:
        self.app = app
        self.stall_s = stall_s
        self.threads = _Threads(threads, most_lent)
        self.environ = {
            "SCRIPT_NAME": "",
            "REMOTE_ADDR": "",
            "wsgi.version": (1, 0),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": threads > 1,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,  # else Flask takes a body without a length, one in chunks, for none
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            await _Call(self, scope, receive, send).serve()
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{stage}.complete"})


class _Threads:
    """The threads in which calls run, and the places that those have which run now; see rule 2."""

    def __init__(self, most: int, most_lent: int) -> None:
        self._lock = threading.Lock()
        self._most_lent = most_lent
        self._lends = most > 1
        self._free = most  # places
        self._due: deque[_Call] = deque()  # without a place
        self._back: deque[threading.Lock] = deque()  # of threads that want their places back; they come first
        self._idle: list[queue.SimpleQueue[_Call]] = []  # of threads without a call; the one used last is used next
        self.lent_by: dict[_Call, None] = {}  # those whose threads wait for a client, in order
        self._alive = 0

    def submit(self, call: _Call) -> None:
        """Run *call* in a thread as soon as there is a place for it."""
        with self._lock:
            self._due.append(call)
            self._assign()

    @contextlib.contextmanager
    def lent(self, call: _Call) -> Iterator[None]:
        """Let others have the place of the thread of *call*, which waits for its client.

        Blocks at the end until there is a place again.
        """
        if not self._lends:
            yield
            return
        with self._lock:
            self.lent_by[call] = None
            longest = next(iter(self.lent_by)) if len(self.lent_by) > self._most_lent else None
            if longest is not None:
                del self.lent_by[longest]
            self._free += 1
            self._assign()
        if longest is not None:
            longest.give_up()
        try:
            yield
        finally:
            place = threading.Lock()
            place.acquire()
            with self._lock:
                self.lent_by.pop(call, None)
                self._back.append(place)
                self._assign()
            place.acquire()

    def _assign(self) -> None:
        """Give free places to those who wait for one. Called with the lock. Raises RuntimeError: see `_start`."""
        while self._free and (self._back or self._due):
            if self._back:
                self._back.popleft().release()
            elif self._idle:
                self._idle.pop().put(self._due.popleft())
            elif not self._start():
                return
            self._free -= 1

    def _start(self) -> bool:
        """Start a thread with the next call; return whether the system has one more, else other threads have to do.

        Raises RuntimeError if there is no other. Threads are daemons: one that the application never gives back must
        not hold up the end of the process.
        """
        call = self._due.popleft()
        calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        calls.put(call)
        thread = threading.Thread(target=self._run, args=(calls,), name=f"wsgi-{self._alive + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._alive:
                raise
            self._due.appendleft(call)
            return False
        self._alive += 1
        return True

    def _run(self, calls: queue.SimpleQueue[_Call]) -> None:
        """Be one of the threads, until there are more than places."""
        is_needed = True
        while is_needed:
            calls.get().run()
            with self._lock:
                self._free += 1
                is_needed = len(self._idle) < self._free
                if is_needed:
                    self._idle.append(calls)
                else:
                    self._alive -= 1
                self._assign()


class _Call:
    """One request from both sides: `serve` runs in the event loop, `run` and what the application calls in a thread."""

    def __init__(self, app: Threaded, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        cycle = getattr(receive, "__self__", None)
        self._app, self._scope, self._receive, self._send = app, scope, receive, send
        is_uvicorns = hasattr(cycle, "disconnected") and hasattr(cycle, "more_body")
        self._cycle: Any = cycle if is_uvicorns else None  # see rule 4
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._told = threading.Condition(threading.Lock())
        self._left = False  # the client has
        self._given_up = False
        self._is_told = False  # the event loop is, and has not looked yet
        self._news = asyncio.Event()
        self._done = False  # the thread is
        self._error: BaseException | None = None
        # the request
        self._body = bytearray()  # that the application has not read
        self._body_ended = False
        self._is_full = False
        self._room = asyncio.Event()
        self._receiving_task: asyncio.Task[None] | None = None
        # the response
        self._start: tuple[int, Headers] | None = None  # what the application has said last
        self._head: tuple[int, Headers] | None = None  # what is to be sent
        self._is_begun = False  # the head is no longer the application's to change
        self._chunks: list[bytes] = []
        self._held = 0  # bytes of them, and of what the server is being given
        self._to_come: int | None = None  # bytes of the declared length
        self._ended = False
        self._is_answered = False  # the server has all of it

    # --- in the event loop

    async def serve(self) -> None:
        """Let the application answer. Raises what it raised."""
        self._environ = environ(self._app.environ, self._scope)
        self._environ["wsgi.input"] = await self._input()
        self._app.threads.submit(self)
        is_done = False
        try:
            while not is_done:
                await self._news.wait()
                self._news.clear()
                is_done = await self._pass_on()
        finally:
            self._leave()
            if self._receiving_task is not None:
                self._receiving_task.cancel()
        if self._error is not None:
            raise self._error

    async def _input(self) -> io.BufferedIOBase:
        """Return what the application reads the body from; begin to receive it, unless the client expects 100 first."""
        expects = False
        has_body = not self._scope["http_version"].startswith("1")
        for name, value in self._scope["headers"]:
            has_body = has_body or (name in _FRAMING and value != b"0")
            expects = expects or name == b"expect"
        if not has_body:
            self._body_ended = True
            return io.BytesIO()
        if not expects:
            if self._cycle is not None and not self._cycle.more_body:  # all of it is here
                self._body_ended = True
                return io.BytesIO((await self._receive()).get("body", b""))
            self._begin_to_receive()
        return io.BufferedReader(_Input(self), 65_536)

    def _begin_to_receive(self) -> None:
        if self._receiving_task is None:
            self._receiving_task = self._loop.create_task(self._receiving())

    async def _receiving(self) -> None:
        """Take the body as it comes, and notice that the client leaves; see rule 4."""
        while not (self._left or (self._body_ended and self._cycle is not None)):
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._leave()
                return
            with self._told:
                self._body += message.get("body", b"")
                self._body_ended = not message.get("more_body", False)
                self._is_full = len(self._body) >= _INPUT_BYTES and not self._body_ended
                self._told.notify()
            if self._is_full:
                await self._room.wait()
                self._room.clear()

    async def _pass_on(self) -> bool:
        """Give the server what has come from the thread; return whether that is all."""
        with self._told:
            self._is_told = False
            head, self._head = self._head, None
            chunks, self._chunks = self._chunks, []
            ends, is_done = self._ended, self._done
        if not (self._left or self._is_answered):
            try:
                await self._give(head, chunks, ends=ends)
            except OSError:  # so says a server that the client has left
                self._leave()
        return is_done

    async def _give(self, head: tuple[int, Headers] | None, chunks: list[bytes], *, ends: bool) -> None:
        if head is not None:
            await self._send({"type": "http.response.start", "status": head[0], "headers": head[1]})
        held = None
        for piece in _pieces(chunks):
            if held is not None:
                await self._give_piece(held)
            held = piece
        if ends:
            self._is_answered = True
            await self._send({"type": "http.response.body", "body": held or b"", "more_body": False})
        elif held is not None:
            await self._give_piece(held)
            if self._cycle is None and self._body_ended:
                self._begin_to_receive()

    async def _give_piece(self, piece: bytes) -> None:
        """Give the server *piece*, which is not the last, and note that there is room for as much."""
        if not self._left:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        with self._told:
            self._held -= len(piece)
            self._told.notify()
        if self._cycle is not None and self._cycle.disconnected:
            self._leave()

    def _leave(self) -> None:
        """Let the thread know that there is no client: it ends when it reads or writes next."""
        with self._told:
            self._left = True
            self._chunks = []
            self._told.notify()

    # --- in the thread

    def run(self) -> None:
        """Call the application and pass on all that it answers."""
        error: BaseException | None = None
        try:
            if not (self._left or (self._cycle is not None and self._cycle.disconnected)):
                self._context.run(self._respond)
        except ClientGoneError:
            pass
        except ClientTooSlowError as slow:
            error = self._timed_out(slow)
        except BaseException as raised:  # noqa: BLE001  # the server answers 500 and logs it, SystemExit included
            error = raised
        self._environ = {}  # it leads to the input, and that to here: a cycle for the garbage collector
        with self._told:
            self._error, self._done = error, True
            self._tell()

    def _respond(self) -> None:
        iterable = self._app.app(self._environ, self._start_response)
        try:
            if isinstance(iterable, list | tuple):
                self._put_whole(b"".join(iterable) if len(iterable) != 1 else iterable[0])
            else:
                for chunk in iterable:
                    self._put(chunk)
                    if self._ended and self._to_come is None:  # nobody wants what an endless stream answers to HEAD
                        break
            self._put_end()
        finally:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()

    def _timed_out(self, error: ClientTooSlowError) -> ClientTooSlowError | None:
        """Answer 408 if the application has not answered; return what the server is to log else."""
        if self._is_begun:
            return error
        with self._told:
            self._head = (408, [(b"content-length", b"0"), (b"connection", b"close")])
            self._is_begun = self._ended = True
        return None

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None:
            try:
                if self._is_begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # its traceback has this frame
        elif self._start is not None:
            raise AssertionError("start_response was called a second time without exc_info")
        self._start = _checked(status, headers)
        return self._put

    def _put_whole(self, body: bytes) -> None:
        """Pass on all of a body, whose length is known."""
        if self._start is not None and not (self._is_begun or self._has_no_body(self._start[0])):
            names = {name for name, _ in self._start[1]}
            if b"content-length" not in names and isinstance(body, bytes):
                self._start[1].append((b"content-length", str(len(body)).encode()))
        self._put(body)

    def _put(self, chunk: bytes) -> None:
        """Pass *chunk* on; with the head, if it is the first. Blocks while the client is too far behind."""
        if not isinstance(chunk, bytes):
            raise TypeError(f"a WSGI application answers bytes, not {type(chunk).__name__}")
        if not chunk:
            return
        if self._held >= _OUTPUT_BYTES:
            self.wait(lambda: self._held < _OUTPUT_BYTES or self._left)
        is_too_long = False
        with self._told:
            self._begin()
            if self._left:
                raise ClientGoneError("the client has left")
            if self._to_come is not None:
                is_too_long = len(chunk) > self._to_come
                chunk = chunk[: self._to_come]
                self._to_come -= len(chunk)
            if not self._ended:
                self._chunks.append(chunk)
                self._held += len(chunk)
                self._ended = self._to_come == 0
                self._tell()
        if is_too_long:
            raise ValueError("the application answers more than the Content-Length that it has declared")

    def _put_end(self) -> None:
        with self._told:
            self._begin()
            if not self._ended:
                self._ended = True
                self._tell()

    def _begin(self) -> None:
        """Let the head be sent, if it has not been."""
        if self._is_begun:
            return
        if self._start is None:
            raise AssertionError("the application has not called start_response")
        self._is_begun, self._head = True, self._start
        if self._has_no_body(self._start[0]):
            self._ended = True
            self._tell()
        else:
            self._to_come = next((int(value) for name, value in self._start[1] if name == b"content-length"), None)

    def _has_no_body(self, status: int) -> bool:
        return self._scope["method"] == "HEAD" or status in (204, 304)

    def _tell(self) -> None:
        """Make the event loop look, once. Called with `_told`."""
        if not self._is_told:
            self._is_told = True
            try:
                self._loop.call_soon_threadsafe(self._news.set)
            except RuntimeError:  # the event loop has ended, and nobody reads
                self._left = True

    def wait(self, is_ready: Callable[[], object]) -> None:
        """Block until the client has done what *is_ready* asks for. Raises ClientTooSlowError."""
        with self._told:
            if self._told.wait_for(is_ready, _SOON_S):
                return
        with self._app.threads.lent(self), self._told:
            while not is_ready():
                if self._given_up:
                    raise ClientTooSlowError("the client is slow, and too many threads wait for clients")
                if not self._told.wait(self._app.stall_s):
                    raise ClientTooSlowError(f"the client has read or sent nothing for {self._app.stall_s:g} s")

    def give_up(self) -> None:
        """Wait for the client no longer. Called in another thread."""
        with self._told:
            self._given_up = True
            self._told.notify()

    def readinto(self, buffer: memoryview) -> int:
        """Put what has come of the body into *buffer*; return how much, 0 at its end. Blocks until there is some."""
        if self._receiving_task is None and not self._body_ended:
            self._loop.call_soon_threadsafe(self._begin_to_receive)
        self.wait(lambda: self._body or self._body_ended or self._left)
        with self._told:
            size = min(len(buffer), len(self._body))
            if not size and not self._body_ended:  # else half a body would be taken for a whole one
                raise ClientGoneError("the client left before the end of its request")
            buffer[:size] = self._body[:size]
            del self._body[:size]
            if self._is_full and len(self._body) < _INPUT_BYTES // 2:
                self._is_full = False
                self._loop.call_soon_threadsafe(self._room.set)
            return size


class _Input(io.RawIOBase):
    """The body of a request, for a BufferedReader: `read`, `readline` and iteration block until data or the end."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._call.readinto(buffer)


def environ(base: dict[str, Any], scope: Any) -> dict[str, Any]:
    """Return the environ of *scope* without its input: *base*, and what differs with each request.

    A header whose name has an underscore is left out, as gunicorn and waitress do: it would be taken for one with a
    hyphen, which a proxy may have set or removed.
    """
    found = base.copy()
    root_path = scope.get("root_path", "")
    raw = scope.get("raw_path") or scope["path"].encode()
    query = scope["query_string"].decode("latin-1")
    target = raw.decode("latin-1")
    path = unquote_to_bytes(raw).decode("latin-1") if b"%" in raw else target
    if root_path:
        found["SCRIPT_NAME"] = script_name = root_path.rstrip("/").encode().decode("latin-1")
        if path == script_name or path.startswith(script_name + "/"):
            path = path[len(script_name) :]
    server, port = scope.get("server") or ("localhost", None)
    found["REQUEST_METHOD"] = scope["method"]
    found["PATH_INFO"] = path
    found["QUERY_STRING"] = query
    found["RAW_URI"] = found["REQUEST_URI"] = f"{target}?{query}" if query else target
    found["SERVER_PROTOCOL"] = f"HTTP/{scope['http_version']}"
    found["SERVER_NAME"], found["SERVER_PORT"] = (server, str(port)) if port else ("localhost", "80")
    found["wsgi.url_scheme"] = scope.get("scheme", "http")
    if (client := scope.get("client")) is not None:
        found["REMOTE_ADDR"], found["REMOTE_PORT"] = client[0], str(client[1])
    for name, value in scope["headers"]:
        if b"_" in name:
            continue
        key = _variable(name)
        text = value.decode("latin-1")
        if key in found:
            text = f"{found[key]}; {text}" if name == b"cookie" else f"{found[key]},{text}"
        found[key] = text
    return found


def _variable(name: bytes) -> str:
    """Return the name in the environ of the header *name*, in lower case."""
    if name in (b"content-type", b"content-length"):
        return name.decode().upper().replace("-", "_")
    return "HTTP_" + name.decode("latin-1").upper().replace("-", "_")


def _checked(status: str, headers: list[tuple[str, str]]) -> tuple[int, Headers]:
    """Return status and headers as ASGI has them. Raises ValueError for what would break the response.

    The connection is the server's, so of what applications say of it `Connection: close` alone counts.
    """
    if not (status[:3].isascii() and status[:3].isdigit() and status[3:4] in ("", " ") and status[0] != "1"):
        raise ValueError(f"the status {status!r} is not of the form `200 OK`")
    code, found = int(status[:3]), []
    for name, value in headers:
        if not name or _NOT_IN_NAME.search(name) or _NOT_IN_VALUE.search(value):
            raise ValueError(f"the header {name!r} has a character that no header may have")
        lower = name.lower()
        if is_hop_by_hop(lower) and not (lower == "connection" and value.lower() == "close"):
            continue
        if lower == "content-length" and code in (204, 304):  # there is no body
            continue
        found.append((lower.encode("latin-1"), value.strip().encode("latin-1")))
    return code, found


def _pieces(chunks: list[bytes]) -> Iterator[bytes]:
    """Yield what is in *chunks* in pieces that a server's buffer can bear."""
    if len(chunks) > 1 and sum(map(len, chunks)) <= _PIECE_BYTES:
        chunks = [b"".join(chunks)]
    for chunk in chunks:
        if len(chunk) <= _PIECE_BYTES:
            yield chunk
        else:
            for at in range(0, len(chunk), _PIECE_BYTES):
                yield chunk[at : at + _PIECE_BYTES]
