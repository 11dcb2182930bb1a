"""Requests of many users, mixed as a reverse proxy mixes them on one connection, and what must come back.

An `Exchange` is one request as it goes over the wire and the check of its response. A batch is what a client sends
before it reads; its requests are answered in their order. Which kinds there are is said once, in `KINDS`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests import moving_app
from tests.harness import Limpet, Reply
from tests.wire import Wire, chunked, portions, request

USERS: Final = [f"user-{number}" for number in range(50)]
LARGE: Final = random.Random(5).randbytes(5_000_000)
HEADER: Final = "x_user"


@dataclass(frozen=True)
class Exchange:
    """One request, and what its response must be."""

    user: str
    path: str
    data: bytes
    method: str = "GET"
    status: int = 200
    body: bytes | None = b""  # what the application must have got; None when it does not say
    answer: bytes | None = None  # what it must answer; None when it tells what it got
    waits: int = 0  # bytes of `data` after which the client waits to be told to go on

    def check(self, reply: Reply, homes: Mapping[str, int]) -> None:
        """Fail unless *reply* answers this request and comes from the user's home."""
        where = f"{self.method} {self.path} of {self.user}"
        assert reply.status == self.status, f"{where}: {reply}"
        assert reply.headers["x-path"] == self.path, f"{where}: the answer is to {reply.headers['x-path']}"
        assert int(reply.headers["x-limpet-slot"]) == homes[self.user], f"{where}: not at home"
        if self.answer is not None:
            assert reply.body == self.answer, f"{where}: {len(reply.body)} bytes"
        elif self.body is not None:
            got = reply.json()
            assert got["sha256"] == hashlib.sha256(self.body).hexdigest(), f"{where}: {got['size']} bytes arrived"


def get(user: str, path: str) -> Exchange:
    return Exchange(user, path, request(path, **{HEADER: user}))


def head(user: str, path: str) -> Exchange:
    return Exchange(user, path, request(path, "HEAD", **{HEADER: user}), "HEAD", answer=b"")


def nothing(user: str, path: str) -> Exchange:
    return Exchange(user, f"/nothing{path}", request(f"/nothing{path}", **{HEADER: user}), status=204, answer=b"")


def post(user: str, path: str, body: bytes = b"form=1\r\n\r\n&x=2") -> Exchange:
    return Exchange(user, path, request(path, "POST", body, **{HEADER: user}), "POST", body=body)


def coded(user: str, path: str, *parts: bytes) -> Exchange:
    parts = parts or (b"a", b"\r\n\r\n", b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n")
    start = request(path, "POST", transfer_encoding="chunked", **{HEADER: user})
    return Exchange(user, path, start + chunked(parts), "POST", body=b"".join(parts))


def trailed(user: str, path: str) -> Exchange:
    """A body in chunks with an extension, a blank line that ends nothing, and trailers."""
    start = request(path, "POST", transfer_encoding="chunked", **{HEADER: user})
    chunks = b"7;x=y\r\n\r\n\r\nabc\r\n00\r\nX-Trailer: 1\r\nX-Sum: 2\r\n\r\n"
    return Exchange(user, path, start + chunks, "POST", body=b"\r\n\r\nabc")


def ignored_upgrade(user: str, path: str) -> Exchange:
    """What curl sends when it would rather speak HTTP/2."""
    fields = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAMAAABkAAQAAP__"}
    return Exchange(user, path, request(path, "POST", b"body", **fields, **{HEADER: user}), "POST", body=b"body")


def post_large(user: str, path: str) -> Exchange:
    return post(user, path, LARGE)


def coded_large(user: str, path: str) -> Exchange:
    return coded(user, path, *portions(LARGE, *range(70_001, len(LARGE), 70_001)))


def expects(user: str, path: str) -> Exchange:
    start = request(path, "POST", content_length="4", expect="100-continue", **{HEADER: user})
    return Exchange(user, path, start + b"body", "POST", body=b"body", waits=len(start))


def large(user: str, path: str) -> Exchange:
    return Exchange(user, f"/large{path}", request(f"/large{path}", **{HEADER: user}), answer=moving_app.LARGE)


def huge(user: str, path: str) -> Exchange:
    """More than all buffers of the kernel hold: the worker has the rest until the client reads."""
    path = f"/large{path}"
    return Exchange(user, path, request(f"{path}?6", **{HEADER: user}), answer=6 * moving_app.LARGE)


def events(user: str, path: str) -> Exchange:
    return Exchange(user, f"/events{path}", request(f"/events{path}", **{HEADER: user}), answer=moving_app.EVENTS)


Kind = Callable[[str, str], Exchange]
SMALL: Final[Sequence[Kind]] = (get, get, get, get, post, coded, trailed, ignored_upgrade, head, nothing, events)
ALONE: Final[Sequence[Kind]] = (post_large, coded_large, expects)  # others cannot be sent with it before it is answered
KINDS: Final[Sequence[Kind]] = (*SMALL, *ALONE, large)


def batches(number: int, seed: int, *, heavy_every: int = 20) -> Iterator[list[Exchange]]:
    """Yield *number* requests of random users and kinds, in batches; about one in *heavy_every* is megabytes long."""
    chance = random.Random(seed)
    done = 0

    def one(kind: Kind) -> Exchange:
        nonlocal done
        done += 1
        return kind(chance.choice(USERS), f"/{done}")

    while done < number:
        if chance.random() * heavy_every < 1:
            yield [one(chance.choice((post_large, coded_large)))]
        elif chance.random() * heavy_every < 1:
            yield [one(large), *(one(chance.choice(SMALL)) for _ in range(chance.randrange(3)))]
        elif chance.random() < 0.05:
            yield [one(expects)]
        else:
            size = 1 if chance.random() < 0.7 else chance.randrange(2, 12)
            yield [one(chance.choice(SMALL)) for _ in range(min(size, number - done))]


def perform(wire: Wire, batch: Sequence[Exchange], homes: Mapping[str, int], *, piece: int = 0) -> None:
    """Send *batch*, in pieces of *piece* bytes if that is not 0, then read and check the answers."""
    for exchange in batch:
        if exchange.waits:
            wire.send(*_pieces(exchange.data[: exchange.waits], piece))
            assert wire.reply().status == 100
    data = b"".join(exchange.data[exchange.waits :] for exchange in batch)
    wire.send(*_pieces(data, piece))
    for exchange in batch:
        exchange.check(wire.reply(to=exchange.method), homes)


def serve(*flags: str, gates: Path | None = None, workers: int = 4) -> Limpet:
    """Return a server, not started, whose connections move between *workers*; *gates* is a directory."""
    arguments = ["--workers", str(workers), "--by", "header:x-user", "--debug-header", *flags]
    return Limpet("tests.moving_app:app", *arguments, env={"TEST_GATES": str(gates)})


def homes(server: Limpet, users: Sequence[str] = USERS, element: str = "header:x-user") -> dict[str, int]:
    """Return the slot of each user."""
    answer = server.where(*(f"{element}={user}" for user in users))
    return {user: entry["slot"] for user, entry in zip(users, answer, strict=True)}


def inhabitants(homes: Mapping[str, int]) -> dict[int, str]:
    """Return one user of each slot."""
    return {slot: user for user, slot in homes.items()}


def visit_all(wire: Wire, homes: Mapping[str, int], *, last: int) -> None:
    """Have a request served by each worker, the one in slot *last* coming last: all others keep a copy."""
    users = inhabitants(homes)
    for slot in [*(users.keys() - {last}), last]:
        perform(wire, [get(users[slot], f"/visit/{slot}")], homes)


@contextlib.contextmanager
def stopped(server: Limpet, slots: Iterable[int]) -> Iterator[None]:
    """Stop the workers in *slots* for a while: they run no instruction, and keep what they have open."""
    pids = [entry["pid"] for entry in server.status()["slots"] if entry["slot"] in set(slots)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _pieces(data: bytes, size: int) -> list[bytes]:
    return portions(data, *range(size, len(data), size)) if size else [data]
