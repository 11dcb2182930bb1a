"""The loads of the benchmarks: what clients do, each for some seconds, and how many of it was answered.

All are closed loops of `IN_FLIGHT` connections (`storm`: of `STORM`), except `paced`, which sends at fixed moments and
counts the time from the moment at which a request was due (so a server that stalls cannot slow its clients down and
hide it), and `idle`, which holds websockets open. `single` and `mixed` are wrk's, the others are made here, in one
process. What comes back is checked: anything but a whole answer ends the benchmark.

Sends to 127.0.0.1 only, from addresses of 127.0.0.0/8.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import math
import os
import re
import select
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

IN_FLIGHT: Final = 32
STORM: Final = 500  # less than the shortest backlog of a system, Node's 511
PATIENCE_S: Final = 30.0
ADDRESSES: Final = [f"127.{1 + number // 128}.7.{1 + number % 128}" for number in range(512)]
USERS: Final = [f"10.0.0.{number}" for number in range(200)]
IP_BIND_ADDRESS_NO_PORT: Final = 24
_LARGE: Final = 1_000_000
_LUA: Final = """
local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end
function init(args)
  math.randomseed(tonumber(args[1]) * 1000 + number)
  mixed = args[2] == "mixed"
end
function request()
  local user = "10.0.0." .. (mixed and math.random(200) - 1 or number)
  return wrk.format("GET", "/", {["X-User"] = user, ["X-Forwarded-For"] = user})
end
"""


class Talk(NamedTuple):
    """What the connections of a load say: *request* for a user, and whether what came is the whole *answer*."""

    request: Callable[[str], bytes]
    answered: Callable[[bytearray], bool]
    upgrade: bool = False  # to a websocket first
    each_new: bool = False  # a connection for each request
    in_flight: int = IN_FLIGHT


def connect(port: int, address: str) -> socket.socket:
    """Return a connection from *address*, non-blocking, that may still be opening."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)  # else the ports of all addresses are one supply
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.bind((address, 0))
    if (error := sock.connect_ex(("127.0.0.1", port))) not in (0, errno.EINPROGRESS):
        raise OSError(error, os.strerror(error))
    return sock


def _get(path: str, more: str = "") -> Callable[[str], bytes]:
    return lambda user: (
        f"GET {path} HTTP/1.1\r\nHost: bench\r\nX-User: {user}\r\nX-Forwarded-For: {user}\r\n{more}\r\n".encode()
    )


def _post(user: str) -> bytes:
    head = f"POST / HTTP/1.1\r\nHost: bench\r\nX-User: {user}\r\nX-Forwarded-For: {user}\r\nContent-Length: {_LARGE}"
    return head.encode() + b"\r\n\r\n" + bytes(_LARGE)


def _is_small(answer: bytearray) -> bool:
    _check(answer, b"HTTP/1.1 200")
    return answer.endswith(b"}")


def _is_large(answer: bytearray) -> bool:
    _check(answer, b"HTTP/1.1 200")
    return len(answer) > _LARGE and len(answer) == answer.find(b"\r\n\r\n", 0, 1000) + 4 + _LARGE


def _check(answer: bytearray, start: bytes) -> None:
    if not answer.startswith(start[: len(answer)]):
        raise RuntimeError(f"not what the application says: {bytes(answer[:200])!r}")


def _handshake(user: str) -> bytes:
    key = base64.b64encode(user.encode().ljust(16)[:16]).decode()
    more = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    return _get("/", more)(user)


def _is_upgraded(answer: bytearray) -> bool:
    _check(answer, b"HTTP/1.1 101")
    return answer.endswith(b"\r\n\r\n")


def _frame(size: int) -> tuple[bytes, int]:
    """Return a binary message of *size* bytes as a client sends it, and the length of its echo."""
    short = size < 126
    length = bytes([0x80 | size]) if short else b"\xfe" + size.to_bytes(2, "big") if size < 65536 else b""
    length = length or b"\xff" + size.to_bytes(8, "big")
    message = b"\x82" + length + bytes(4) + b"x" * size  # a mask of zeros changes nothing
    return message, len(message) - 4


def _echo(size: int) -> Talk:
    message, length = _frame(size)

    def answered(answer: bytearray) -> bool:
        _check(answer, b"\x82")
        return len(answer) == length

    return Talk(lambda user: message, answered, upgrade=True)


TALKS: Final = {
    "connection": Talk(_get("/", "Connection: close\r\n"), _is_small, each_new=True),
    "storm": Talk(_get("/", "Connection: close\r\n"), _is_small, each_new=True, in_flight=STORM),
    "kept": Talk(_get("/"), _is_small),
    "echo": _echo(64),
    "echo64k": _echo(65536),
    "upload": Talk(_post, _is_small),
    "download": Talk(_get("/big"), _is_large),
}


class _Client:
    """One connection of a closed loop: what is still to be sent, what has come."""

    def __init__(self, port: int, address: str, user: str) -> None:
        self.sock = connect(port, address)
        self.user = user
        self.answer = bytearray()
        self.unsent = memoryview(b"")
        self.is_open = False  # the handshake of a websocket is done

    def send(self, data: bytes) -> None:
        """Send *data*, as much of it as there is room for; the rest when there is."""
        self.answer.clear()
        self.unsent = memoryview(data)
        self.go_on()

    def go_on(self) -> None:
        """Send what is left."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except BlockingIOError:
            pass

    def receive(self) -> bool:
        """Take what has come. False: the connection has ended."""
        data = self.sock.recv(262144)
        self.answer += data
        return bool(data)


class _Loop:
    """A closed loop of connections."""

    def __init__(self, port: int, talk: Talk, seconds: float, addresses: Iterator[str], users: Iterator[str]) -> None:
        self._port, self._talk, self._addresses, self._users = port, talk, addresses, users
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._until = time.monotonic() + seconds
        self.answered = 0

    def run(self) -> int:
        """Return how many requests were answered."""
        for _ in range(self._talk.in_flight):
            self._open()
        while self._clients:
            events = self._epoll.poll(PATIENCE_S)
            if not events:
                raise TimeoutError(f"{len(self._clients)} requests were not answered within {PATIENCE_S:g} s")
            for fd, event in events:
                self._step(self._clients[fd], event)
        self._epoll.close()
        return self.answered

    def _open(self) -> None:
        client = _Client(self._port, next(self._addresses), next(self._users))
        fd = client.sock.fileno()
        self._clients[fd] = client
        self._epoll.register(fd, select.EPOLLIN)
        client.send(_handshake(client.user) if self._talk.upgrade else self._talk.request(client.user))
        self._watch(client)

    def _watch(self, client: _Client) -> None:
        wanted = select.EPOLLIN | (select.EPOLLOUT if client.unsent else 0)
        self._epoll.modify(client.sock.fileno(), wanted)

    def _step(self, client: _Client, event: int) -> None:
        if event & select.EPOLLOUT:
            client.go_on()
            self._watch(client)
        if not event & ~select.EPOLLOUT:
            return
        goes_on = client.receive()
        if self._talk.upgrade and not client.is_open:
            if _is_upgraded(client.answer):
                client.is_open = True
                self._send_again(client)
            return
        whole = self._talk.answered(client.answer)
        if not goes_on and not whole:
            raise RuntimeError(f"the connection ended after {bytes(client.answer[:200])!r}")
        if not whole or (self._talk.each_new and goes_on):
            return
        self.answered += 1
        if not self._talk.each_new and time.monotonic() < self._until:
            self._send_again(client)
            return
        self._clients.pop(client.sock.fileno())
        client.sock.close()
        if self._talk.each_new and time.monotonic() < self._until:
            self._open()

    def _send_again(self, client: _Client) -> None:
        client.send(self._talk.request(client.user))
        if client.unsent:
            self._watch(client)


def closed(port: int, kind: str, seconds: float, seed: int) -> int:
    """Keep requests of *kind* in flight for *seconds*; return how many were answered."""
    if kind in ("single", "mixed"):
        return _wrk(port, kind, seconds, seed)
    chance = Random(seed)
    addresses = cycle(chance.sample(ADDRESSES, len(ADDRESSES)))
    return _Loop(port, TALKS[kind], seconds, addresses, cycle(chance.sample(USERS, len(USERS)))).run()


def _wrk(port: int, kind: str, seconds: float, seed: int) -> int:
    """Run wrk: each request of another user at random (`mixed`), or 8 users with 4 connections each (`single`)."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_LUA)
        script.flush()
        line = [
            "wrk",
            "-t8",
            f"-c{IN_FLIGHT}",
            f"-d{math.ceil(seconds)}s",
            "-s",
            script.name,
            f"http://127.0.0.1:{port}/",
        ]
        shown = subprocess.run([*line, "--", str(seed), kind], capture_output=True, text=True, check=True).stdout
    if "errors:" in shown or "Non-2xx" in shown:
        raise RuntimeError(shown)
    found = re.search(r"(\d+) requests in", shown)
    assert found, shown
    return int(found[1])


def paced(port: int, rate: float, seconds: float, seed: int) -> list[float]:
    """Send *rate* requests a second for *seconds*, on `IN_FLIGHT` connections in turn, on more if none is free.

    Return the seconds from when each was due until it was answered, sorted.
    """
    chance, epoll, took = Random(seed), select.epoll(), []
    users, addresses = cycle(chance.sample(USERS, len(USERS))), cycle(chance.sample(ADDRESSES, len(ADDRESSES)))
    talk = TALKS["kept"]
    busy: dict[int, tuple[_Client, float]] = {}
    clients: list[_Client] = []

    def another() -> _Client:
        clients.append(_Client(port, next(addresses), next(users)))
        epoll.register(clients[-1].sock.fileno(), select.EPOLLIN)
        return clients[-1]

    free = deque(another() for _ in range(IN_FLIGHT))
    started = time.monotonic()
    due = deque(started + number / rate for number in range(int(rate * seconds)))
    while due or busy:
        while due and due[0] <= time.monotonic():
            client = free.popleft() if free else another()
            busy[client.sock.fileno()] = client, due.popleft()
            client.send(talk.request(client.user))
        pause = max(0.0, due[0] - time.monotonic()) if due else PATIENCE_S
        if not select.select([epoll], [], [], pause)[0] and not due:  # epoll itself waits whole milliseconds
            raise TimeoutError(f"{len(busy)} requests were not answered within {PATIENCE_S:g} s")
        for fd, _ in epoll.poll(0):
            if fd not in busy:
                raise RuntimeError("a connection ended while it waited for its next request")
            client, since = busy[fd]
            if not client.receive():
                raise RuntimeError("the connection ended")
            if talk.answered(client.answer):
                took.append(time.monotonic() - since)
                free.append(client)
                del busy[fd]
    for client in clients:
        client.sock.close()
    return sorted(took)


@contextlib.contextmanager
def idle(port: int, count: int) -> Iterator[None]:
    """Hold *count* websockets open, opened by `IN_FLIGHT` at a time. Raises RuntimeError if one of them was ended."""
    with contextlib.ExitStack() as opened:
        watched = select.poll()
        for first in range(0, count, IN_FLIGHT):
            some = [
                _Client(port, ADDRESSES[number % len(ADDRESSES)], USERS[number % len(USERS)])
                for number in range(first, min(first + IN_FLIGHT, count))
            ]
            for client in some:
                opened.enter_context(client.sock)
                client.sock.settimeout(PATIENCE_S)
                client.sock.sendall(_handshake(client.user))
            for client in some:
                while not _is_upgraded(client.answer):
                    if not client.receive():
                        raise RuntimeError("the connection ended")
                watched.register(client.sock, select.POLLIN)
        yield
        if ended := watched.poll(0):
            raise RuntimeError(f"{len(ended)} of {count} websockets have ended, or said something")


def events(port: int, readers: int, seconds: float) -> int:
    """Read `/events` with *readers* connections for *seconds*; return how many events have come."""
    socks = []
    for number in range(readers):
        sock = socket.create_connection(("127.0.0.1", port), source_address=(ADDRESSES[number % len(ADDRESSES)], 0))
        sock.sendall(_get("/events")(USERS[number % len(USERS)]))
        socks.append(sock)
    epoll, until, came = select.epoll(), time.monotonic() + seconds, 0
    for sock in socks:
        sock.setblocking(False)
        epoll.register(sock.fileno(), select.EPOLLIN)
    by_fd = {sock.fileno(): sock for sock in socks}
    while (now := time.monotonic()) < until:
        for fd, _ in epoll.poll(until - now):
            data = by_fd[fd].recv(262144)
            if not data:
                raise RuntimeError("the connection ended")
            came += data.count(b"data: ")
    for sock in socks:
        sock.close()
    return came


def work_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that other users, such as nginx's workers, may enter."""
    folder = tempfile.TemporaryDirectory()
    Path(folder.name).chmod(0o755)
    return folder
