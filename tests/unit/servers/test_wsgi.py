"""WSGI applications in threads: what PEP 3333 asks for, and what becomes of threads whose clients are slow or gone."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from limpet.servers.wsgi import ClientGoneError, ClientTooSlowError, Threaded, environ

App = Callable[[dict[str, Any], Any], Iterable[bytes]]
PATIENCE_S = 10
BODY = b"one\ntwo and a longer line\n\nthe last has no end"
OK = ("200 OK", [("Content-Type", "text/plain")])


class Client:
    """The server's side of one request: a body that comes in pieces, and a client that reads, leaves or stops."""

    def __init__(self, *pieces: bytes, method: str = "GET", path: str = "/", leaves: bool = False) -> None:
        self.pieces = list(pieces)
        self.leaves = leaves  # when it has sent all pieces
        self.reads = asyncio.Event()
        self.reads.set()
        self.messages: list[dict[str, Any]] = []
        self.end = asyncio.Event()
        self.scope = scope(method, path, [(b"transfer-encoding", b"chunked")] if pieces or leaves else [])

    async def receive(self) -> dict[str, Any]:
        """Give the next piece, in a turn of the loop of its own."""
        await asyncio.sleep(0.001)
        if self.pieces:
            more = len(self.pieces) > 1 or self.leaves
            return {"type": "http.request", "body": self.pieces.pop(0), "more_body": more}
        if not self.leaves:
            await self.end.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """Take a part of the response, once the client reads."""
        await self.reads.wait()
        self.messages.append(message)

    @property
    def status(self) -> int:
        """The status of the response."""
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The headers of the response."""
        return dict(self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        """The body of the response."""
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def is_answered(self) -> bool:
        """Whether the response has come to its end."""
        return len(self.messages) > 1 and not self.messages[-1]["more_body"]


def scope(method: str, path: str, headers: list[tuple[bytes, bytes]], **others: Any) -> dict[str, Any]:
    """Return an ASGI scope."""
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        **others,
    }


async def served(app: App, client: Client, threaded: Threaded | None = None) -> Client:
    """Let *app* answer *client*."""
    call = (threaded or Threaded(app, 4))(client.scope, client.receive, client.send)
    await asyncio.wait_for(call, PATIENCE_S)
    return client


def ask(app: App, *pieces: bytes, method: str = "GET", leaves: bool = False) -> Client:
    """Return a client that *app* has answered."""

    async def main() -> Client:
        return await served(app, Client(*pieces, method=method, leaves=leaves))

    return asyncio.run(main())


@pytest.mark.parametrize(
    "read",
    [
        lambda body: [body.read()],
        lambda body: [body.read(7), body.read(7), body.read(1000), body.read(7)],
        lambda body: [body.readline(), body.readline(3), body.readline(0), body.readline(100), body.readline()],
        lambda body: body.readlines(),
        lambda body: body.readlines(5),
        lambda body: list(body),
        lambda body: [next(body), body.read(2), *body],
        lambda body: [body.readline(2) for _ in range(40)],
    ],
    ids=["read", "read(n)", "readline", "readlines", "readlines(hint)", "iteration", "mixed", "readline(2)"],
)
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_input_reads_as_a_file_with_the_body(read: Callable[[Any], list[bytes]], size: int) -> None:
    """A piece that has not come yet is no end of the body: parsers would take a part of an upload for all of it."""
    found = []

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        found.extend(read(environ["wsgi.input"]))
        start(*OK)
        return []

    ask(app, *(BODY[at : at + size] for at in range(0, len(BODY), size)))
    assert found == read(io.BytesIO(BODY))


def test_input_of_a_request_without_a_body_is_at_its_end() -> None:
    """An application that reads in any case must not wait for ever."""

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        start(*OK)
        return [environ["wsgi.input"].read() + environ["wsgi.input"].readline(), b"end"]

    assert ask(app).body == b"end"


def test_half_a_body_is_an_error() -> None:
    """An upload that broke off must not be stored as if it were whole."""
    raised = []

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)
            raise
        return []

    assert ask(app, b"half", leaves=True).messages == []
    assert isinstance(raised[0], ClientGoneError)


def test_start_response_twice_is_an_error() -> None:
    """PEP 3333 calls it fatal: nobody knows which head was meant."""

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        start(*OK)
        start(*OK)
        return []

    with pytest.raises(AssertionError, match="second time"):
        ask(app)


def failing() -> Any:
    """Return an exc_info."""
    import sys

    try:
        raise KeyError("failed")
    except KeyError:
        return sys.exc_info()


def test_start_response_with_exc_info_replaces_a_head_that_has_not_left() -> None:
    """An application that fails late still answers with its own page of errors."""

    def app(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
        start("200 OK", [("X-Old", "1"), ("Content-Length", "1000")])
        yield b""
        start("500 Oops", [("X-New", "1")], failing())
        yield b"sorry"

    client = ask(app)
    assert (client.status, client.headers, client.body) == (500, {b"x-new": b"1"}, b"sorry")


def test_start_response_with_exc_info_raises_when_the_head_has_left() -> None:
    """Else the client would take what follows for a part of what it has got already."""

    def app(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
        start(*OK)
        yield b"begun"
        start("500 Oops", [], failing())

    with pytest.raises(KeyError, match="failed"):
        ask(app)


def test_write_and_what_is_returned_leave_in_order() -> None:
    """Old applications call what start_response returns."""

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        write = start(*OK)
        write(b"one ")
        write(b"")
        write(b"two ")
        return [b"three ", b"four"]

    client = ask(app)
    assert client.body == b"one two three four"
    assert b"content-length" not in client.headers


class Closing:
    """An iterable that counts how often it is closed."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.closed = 0

    def __iter__(self) -> Closing:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        """Count."""
        self.closed += 1


def endless(fails_after: int | None = None) -> Iterator[bytes]:
    """Yield for ever, or raise."""
    number = 0
    while number != fails_after:
        number += 1
        yield b"x" * 100_000
    raise KeyError("failed")


ENDINGS: dict[str, tuple[Callable[[], Iterable[bytes]], Any, str]] = {
    "whole": (lambda: [b"a", b"b"], OK, "GET"),
    "empty": (list, OK, "GET"),
    "raises at once": (lambda: endless(0), OK, "GET"),
    "raises later": (lambda: endless(2), OK, "GET"),
    "HEAD of an endless one": (endless, OK, "HEAD"),
    "longer than declared": (lambda: [b"abc", b"def"], ("200 OK", [("Content-Length", "4")]), "GET"),
    "no bytes": (lambda: [b"a", "b"], OK, "GET"),  # type: ignore[list-item]
    "no start_response": (lambda: [b"a"], None, "GET"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_iterable_is_closed_once(name: str) -> None:
    """Frameworks give back connections to databases in it."""
    chunks, head, method = ENDINGS[name]
    iterable = Closing(chunks())

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if head:
            start(*head)
        return iterable

    with suppress(KeyError, ValueError, TypeError, AssertionError):
        ask(app, method=method)
    assert iterable.closed == 1


@pytest.mark.parametrize("is_slow", [False, True])
def test_iterable_is_closed_once_when_the_client_leaves_or_does_not_read(is_slow: bool) -> None:
    """An endless stream to nobody would keep its thread for ever."""
    iterable = Closing(endless())

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        start(*OK)
        return iterable

    async def main() -> None:
        client = Client()
        if is_slow:
            client.reads.clear()
        else:
            asyncio.get_running_loop().call_later(0.1, client.end.set)
        call = served(app, client, Threaded(app, 2, stall_s=0.1))
        if is_slow:
            threads = asyncio.create_task(call)
            while not iterable.closed:
                await asyncio.sleep(0.01)
            client.reads.set()
            with pytest.raises(ClientTooSlowError):
                await threads
        else:
            await call

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert iterable.closed == 1


def test_error_of_close_is_the_servers_to_log() -> None:
    """A response may be whole, and yet something has gone wrong."""

    class Failing(Closing):
        def close(self) -> None:
            raise KeyError("closing")

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        start(*OK)
        return Failing([b"a"])

    with pytest.raises(KeyError, match="closing"):
        ask(app)


def test_end_of_the_response_does_not_wait_for_close() -> None:
    """What an application does after its response is not the client's to wait for; the request ends after it."""
    may_close = threading.Event()

    class Slow(Closing):
        def close(self) -> None:
            assert may_close.wait(PATIENCE_S)
            super().close()

    iterable = Slow([b"a"])

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        start(*OK)
        return iterable

    async def main() -> None:
        client = Client()
        call = asyncio.create_task(served(app, client))
        while not client.is_answered:
            await asyncio.sleep(0.001)
        assert not call.done()
        may_close.set()
        await call

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert iterable.closed == 1


def test_body_longer_than_declared_is_cut_and_said() -> None:
    """The rest would be taken for the next response."""
    client = Client.__new__(Client)

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        start("200 OK", [("Content-Length", "4")])
        return iter([b"abc", b"def"])

    async def main() -> None:
        nonlocal client
        client = Client()
        await served(app, client)

    with pytest.raises(ValueError, match="more than the Content-Length"):
        asyncio.run(main())
    assert (client.body, client.is_answered) == (b"abcd", True)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200", [("X\r\nSet-Cookie", "a")]),
        ("200 OK", [("X", "a\r\nSet-Cookie: b")]),
        ("200 OK", [("", "a")]),
        ("OK", []),
        ("100 Continue", []),
    ],
)
def test_head_that_would_break_the_response_is_an_error(status: str, headers: list[tuple[str, str]]) -> None:
    """A value with a line break would let a user write headers."""

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        start(status, headers)
        return []

    with pytest.raises(ValueError, match=r"the (header|status)"):
        ask(app)


def test_connection_is_the_servers() -> None:
    """An application that frames its body itself would frame it twice."""

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        start("200 OK", [("Transfer-Encoding", "chunked"), ("Keep-Alive", "9"), ("Connection", "close"), ("X", "é")])
        return [b"a"]

    assert ask(app).headers == {b"connection": b"close", b"x": b"\xe9", b"content-length": b"1"}


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_response_without_a_body_has_none(status: str) -> None:
    """What came behind it would be taken for the next response."""

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        start(status, [("Content-Length", "5")])
        return [b"hello"]

    client = ask(app)
    assert (client.headers, client.body) == ({}, b"")


def test_environ_is_that_of_the_bytes_on_the_wire() -> None:
    """Bytes that are no UTF-8, several cookies, and names that would be mistaken for others."""
    headers = [
        (b"host", b"limpet.test"),
        (b"cookie", b"a=1"),
        (b"cookie", b"b=2"),
        (b"x-user", b"proxy"),
        (b"x_user", b"client"),
        (b"accept", b"a"),
        (b"accept", b"b"),
        (b"content-type", b"text/x"),
    ]
    path = {"raw_path": b"/app/%FF%2Fa", "query_string": b"q=%20", "root_path": "/app"}
    found = environ({}, scope("GET", "/app/a", headers, server=("10.0.0.1", 81), client=("10.0.0.2", 5), **path))
    assert found == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "/app",
        "PATH_INFO": "/\xff/a",
        "QUERY_STRING": "q=%20",
        "RAW_URI": "/app/%FF%2Fa?q=%20",
        "REQUEST_URI": "/app/%FF%2Fa?q=%20",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "10.0.0.1",
        "SERVER_PORT": "81",
        "REMOTE_ADDR": "10.0.0.2",
        "REMOTE_PORT": "5",
        "wsgi.url_scheme": "http",
        "HTTP_HOST": "limpet.test",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_X_USER": "proxy",
        "HTTP_ACCEPT": "a,b",
        "CONTENT_TYPE": "text/x",
    }


def test_places_of_slow_clients_are_lent_and_never_more_calls_run_than_threads() -> None:
    """Clients that do not read or send must not stop everybody, nor make the application work on more than it may."""
    running, most, lock = 0, 0, threading.Lock()

    def app(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
        nonlocal running, most
        start(*OK)
        for _ in range(30 if environ["PATH_INFO"] == "/large" else 1):
            with lock:
                running += 1
                most = max(most, running)
            threading.Event().wait(0.002)
            with lock:
                running -= 1
            yield b"x" * 100_000

    async def main() -> None:
        threaded = Threaded(app, 3)
        slow = [Client(path="/large") for _ in range(12)]
        for client in slow:
            client.reads.clear()
        calls = [asyncio.create_task(served(app, client, threaded)) for client in slow]
        for _ in range(10):
            assert (await served(app, Client(path="/small"), threaded)).is_answered
        for client in slow:
            client.reads.set()
        await asyncio.gather(*calls)
        assert all(client.is_answered and len(client.body) == 3_000_000 for client in slow)

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert most == 3


def test_single_thread_is_the_only_one() -> None:
    """Who asks for one thread has an application that must not run in two, whatever its clients do."""
    names = set()

    def app(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
        assert environ["wsgi.multithread"] is False
        start(*OK)
        for _ in range(15):
            names.add(threading.get_ident())
            yield b"x" * 100_000

    async def main() -> None:
        threaded = Threaded(app, 1)
        slow = Client()
        slow.reads.clear()
        calls = [asyncio.create_task(served(app, client, threaded)) for client in (slow, Client())]
        await asyncio.wait(calls, timeout=0.3)
        assert not calls[1].done()
        slow.reads.set()
        await asyncio.gather(*calls)

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert len(names) == 1


def test_of_too_many_that_wait_for_clients_the_one_that_waits_longest_is_given_up() -> None:
    """Threads are bounded, and a crowd that does not read must not keep the next client from one."""

    def app(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
        start(*OK)
        try:
            yield from endless(20)
        finally:
            ended.append(environ)

    async def main() -> None:
        threaded = Threaded(app, 2, most_lent=2)
        slow = []
        lent: set[object] = set()
        for number in range(3):
            client = Client()
            client.reads.clear()
            slow.append((client, asyncio.create_task(served(app, client, threaded))))
            while len(lent) == number:  # they wait in this order
                await asyncio.sleep(0.001)
                lent |= set(threaded.threads.lent_by)
        assert threading.active_count() <= before + 4
        while not ended:  # a client that reads in time is not given up
            await asyncio.sleep(0.001)
        for client, _ in slow:
            client.reads.set()
        errors = await asyncio.gather(*(call for _, call in slow), return_exceptions=True)
        assert [type(error) for error in errors] == [ClientTooSlowError, KeyError, KeyError]

    ended: list[object] = []
    before = threading.active_count()
    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_where_the_system_has_no_more_threads_those_that_are_there_serve_all() -> None:
    """A limit of the container must not lose a request; the first one of all is told."""

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        assert may_end.wait(PATIENCE_S)
        start(*OK)
        return [b"served"]

    async def main() -> None:
        threaded = Threaded(app, 4)
        default = threading.stack_size(1 << 46)  # more than there is of addresses, so the kernel refuses it
        try:
            with pytest.raises(RuntimeError, match="start new thread"):
                await served(app, Client(), threaded)
            threading.stack_size(default)
            clients = [Client() for _ in range(6)]
            calls = [asyncio.create_task(threaded(each.scope, each.receive, each.send)) for each in clients[:1]]
            await asyncio.sleep(0)  # in its first turn a request asks for a thread
            threading.stack_size(1 << 46)
            calls += [asyncio.create_task(threaded(each.scope, each.receive, each.send)) for each in clients[1:]]
            await asyncio.sleep(0)
        finally:
            threading.stack_size(default)
        may_end.set()
        await asyncio.gather(*calls)
        assert [client.body for client in clients] == [b"served"] * 6

    may_end = threading.Event()
    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_body_that_stops_coming_is_answered_408() -> None:
    """The application has not answered, and the client must not be told that the server is at fault."""

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        environ["wsgi.input"].read()
        return []

    async def main() -> None:
        client = Client(b"some", b"")
        client.pieces.pop()
        client.scope["headers"] = [(b"content-length", b"9")]

        async def receive() -> dict[str, Any]:
            if client.pieces:
                return {"type": "http.request", "body": client.pieces.pop(), "more_body": True}
            return await client.receive()

        call = Threaded(app, 2, stall_s=0.1)(client.scope, receive, client.send)
        await asyncio.wait_for(call, PATIENCE_S)
        assert (client.status, client.headers[b"connection"]) == (408, b"close")

    asyncio.run(main())
