"""Random pipelines of requests, and what the response to each must be.

`session` makes one client connection of a seed: requests of several users with all framings, trailers that lie, bodies
full of what looks like HTTP, answers that do not wait for the body, empty lines, upgrades, clients that leave, and an
end that may be malformed; in portions of any size, in a pipeline or one after the other. `play` sends it to a real
limpet, whose application is tests/pipeline_app.py, and returns what was wrong with the responses.

The oracle is in `_Asked`: it knows method, target, headers, body and slot of each request by the way it was made.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.harness import PATIENCE_S
from tests.wire import TEXT, frame

USERS: Final = [f"user-{number}" for number in range(12)]
_KINDS: Final = ("echo", "echo", "late", "early", "stream", "poll")
_BLANKS: Final = b"\r\n\r\n"
_LIES: Final = [
    b"x-user: user-0", b"x-user: user-1", b"x-verified: evil", b"x-length: 5", b"upgrade: websocket",
    b"host: elsewhere", b"x-forwarded-for: 6.6.6.6",
]  # fmt: skip
_CONTENTS: Final = [
    b"", b"x", _BLANKS * 60, b"0\r\n\r\n" * 40, b"GET /evil HTTP/1.1\r\nx-user: user-3\r\nhost: a\r\n\r\n" * 3, b"\r",
    b"\n\r\n", b"a" * 5000, bytes(range(256)) * 3, b"1\r\nx\r\n0\r\n\r\n", b"z" * 70_000,
]  # fmt: skip
_ENDS: Final = (
    *("probe",) * 6, "close", "old", "half", "websocket", "leave", "cut", "bad chunk", "bad head", "two lengths",
    "large head", "many trailers", "long trailer",
)  # fmt: skip
_REFUSED: Final = {
    "bad chunk": 400, "bad head": 400, "two lengths": 400, "large head": 431, "many trailers": 431, "long trailer": 431,
}  # fmt: skip


@dataclass
class _Asked:
    """One request that gets a response, and what that must say."""

    status: int
    method: str
    target: str
    user: str
    headers: list[list[str]]
    body: bytes

    def wrong(self, status: int, said: bytes, slots: Mapping[str, int]) -> str | None:
        """Return what is wrong with the response, None for nothing."""
        if status != self.status:
            return f"{self.target}: {status} in place of {self.status}"
        if self.method == "HEAD":
            return f"{self.target}: a body" if said else None
        try:
            seen = json.loads(said)
        except ValueError:
            return f"{self.target}: {said[:200]!r}"
        body = b"" if self.status == 413 else self.body
        due: dict[str, Any] = {
            "method": self.method,
            "target": self.target,
            "headers": self.headers,
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        if slots:
            due["slot"] = slots[self.user]
        return next(
            (f"{self.target}: {name} {seen[name]!r}, not {due[name]!r}" for name in due if seen[name] != due[name]),
            None,
        )


@dataclass
class Session:
    """What one client sends, and what it must get."""

    seed: int
    portions: list[bytes] = field(default_factory=list)
    asked: list[_Asked] = field(default_factory=list)
    end: str = "probe"
    is_pipeline: bool = True
    marks: list[int] = field(default_factory=list)  # how many responses have to be there before a portion is sent
    number: str = ""
    frames: list[bytes] = field(default_factory=list)


def session(seed: int, *, strict: bool = True) -> Session:
    """Return the session of *seed*; not *strict*: for h11 alone, which takes two lengths, and no empty lines."""
    rng = random.Random(seed)
    ends = _ENDS if strict else [end for end in _ENDS if end != "two lengths"]
    made = Session(seed, end=rng.choice(ends), is_pipeline=rng.random() < 0.6)
    users = [rng.choice(USERS)]
    users += rng.choices(USERS, k=rng.randrange(4))  # the moves, where they live in different slots
    count = max(len(users), rng.randrange(1, 7))
    pieces: list[bytes] = []
    for number in range(count):
        user = users[min(number * len(users) // count, len(users) - 1)]
        pieces.append(_request(rng, made, f"{seed}-{number}", user))
        if strict and rng.random() < 0.3:
            pieces[-1] += b"\r\n" * rng.choice((1, 1, 2, 5))
    last = _last(rng, made, f"{seed}-last", rng.choice(users))
    if made.is_pipeline:
        pieces = [b"".join(pieces) + last]
    else:
        pieces.append(last)
    for number, piece in enumerate(pieces):
        cut = _cut(rng, piece)
        made.portions += cut
        made.marks += [0 if made.is_pipeline else number] * len(cut)
    return made


def _request(rng: random.Random, made: Session, name: str, user: str) -> bytes:
    """Return one request with its body, whose response is noted in *made*."""
    kind = rng.choice(_KINDS[:-1] if made.end == "half" else _KINDS)  # who asks is told that the client has left
    framing = rng.choice(("none", "length", "chunked", "chunked"))
    method = rng.choice(("GET", "HEAD", "OPTIONS")) if framing == "none" else rng.choice(("POST", "PUT", "PATCH"))
    headers = [["host", "limpet.test"], ["x-user", user]]
    if rng.random() < 0.3:
        headers.insert(rng.randrange(3), ["x-more", "y" * rng.randrange(200)])
    if rng.random() < 0.1:
        headers += [["connection", "Upgrade"], ["upgrade", "h2c"]]
    content = b"" if framing == "none" else b"".join(rng.choices(_CONTENTS, k=rng.randrange(4)))
    return _put(rng, made, (kind, name, method, user), headers, framing, content)


def _put(
    rng: random.Random,
    made: Session,
    what: tuple[str, str, str, str],
    headers: list[list[str]],
    framing: str,
    content: bytes,
) -> bytes:
    kind, name, method, user = what
    body = content
    if framing == "length":
        headers.append(["content-length", str(len(content))])
    elif framing == "chunked":
        headers.append(["transfer-encoding", "chunked"])
        trailers = rng.sample(_LIES, rng.randrange(4)) if rng.random() < 0.5 else []
        body = _chunks(rng, content) + b"".join(line + b"\r\n" for line in trailers) + b"\r\n"
    target = f"/{kind}/{name}" + rng.choice(("", "?q=1", "?x-user=user-2"))
    made.asked.append(_Asked(413 if kind == "early" else 200, method, target, user, headers, content))
    return _head(method, target, headers) + body


def _head(method: str, target: str, headers: list[list[str]], version: str = "1.1") -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"{method} {target} HTTP/{version}\r\n{lines}\r\n".encode()


def _chunks(rng: random.Random, content: bytes) -> bytes:
    """Return *content* in chunks, and the line of the last one."""
    out, at = [], 0
    most = rng.choice((3, 20, 3000, 100_000)) if len(content) < 3000 else rng.choice((700, 9000, 100_000))
    while at < len(content):
        size = min(rng.randrange(1, most), len(content) - at)
        line = rng.choice(("%x", "%X", "0%x", "%x;ext", "%x;name=value")) % size
        out.append(line.encode() + b"\r\n" + content[at : at + size] + b"\r\n")
        at += size
    return b"".join(out) + rng.choice((b"0\r\n", b"0\r\n", b"000\r\n", b"0;last\r\n"))


def _last(rng: random.Random, made: Session, name: str, user: str) -> bytes:
    """Return what the client sends at the end."""
    headers = [["host", "limpet.test"], ["x-user", user]]
    chunked = [*headers, ["transfer-encoding", "chunked"]]
    made.number = name
    match made.end:
        case "probe" | "half":
            return _put(rng, made, ("echo", name, "GET", user), headers, "none", b"")
        case "close":
            return _put(rng, made, ("echo", name, "POST", user), [*headers, ["connection", "close"]], "length", b"bye")
        case "old":
            target = f"/echo/{name}"
            made.asked.append(_Asked(200, "GET", target, user, headers, b""))
            return _head("GET", target, headers, "1.0")
        case "websocket":
            made.frames = [b"one", b"t" * rng.choice((1, 200, 30_000)), b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"]
            key = ["sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="]
            asks = [["connection", "Upgrade"], ["upgrade", "websocket"], ["sec-websocket-version", "13"], key]
            head = _head("GET", f"/ws/{name}", [*headers, *asks])
            return head + b"".join(_frame(rng, each) for each in made.frames)
        case "leave":
            return (
                _head("POST", f"/leave/{name}", [*headers, ["content-length", "3"]])
                + b"abc"
                + b"\r\n" * rng.randrange(2)
            )
        case "cut":
            return _head("POST", f"/echo/{name}", [*headers, ["content-length", "30"]]) + b"abc"
        case "bad chunk":
            return _head("POST", f"/echo/{name}", chunked) + b"3\r\nabc\r\nxyz\r\nabc\r\n0\r\n\r\n"
        case "bad head":
            return b"GET /echo HTTP/1.1\r\nhost limpet.test\r\n\r\n"
        case "two lengths":
            return _head("POST", f"/echo/{name}", [*chunked, ["content-length", "3"]]) + b"0\r\n\r\n"
        case "large head":
            return _head("GET", f"/echo/{name}", [*headers, ["x-large", "l" * 70_000]])
        case "many trailers":
            return _head("POST", f"/echo/{name}", chunked) + b"1\r\na\r\n0\r\n" + b"a: b\r\n" * 300 + b"\r\n"
    return _head("POST", f"/echo/{name}", chunked) + b"1\r\na\r\n0\r\na: " + b"b" * 90_000 + b"\r\n\r\n"


def _frame(rng: random.Random, payload: bytes) -> bytes:
    return frame(payload, TEXT)


def _cut(rng: random.Random, data: bytes) -> list[bytes]:
    """Divide *data* at random: not at all, at a few places, or all along in small portions."""
    how = rng.random()
    if how < 0.4 or len(data) < 2:
        return [data]
    many = rng.randrange(1, 6) if how < 0.8 else min(len(data) // 2, 40)
    cuts = sorted(rng.sample(range(1, len(data)), min(many, len(data) - 1)))
    return [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]


class _Bad(Exception):
    """A response is not what it must be."""


async def play(port: int, made: Session, slots: Mapping[str, int], patience_s: float = PATIENCE_S) -> str | None:
    """Return what went wrong when *made* was sent, None for nothing; *slots* by user, none where addresses decide."""
    try:
        async with asyncio.timeout(patience_s):
            await _play(port, made, slots)
    except (_Bad, OSError, EOFError, TimeoutError, ValueError) as error:
        return f"seed {made.seed}, {made.end}: {type(error).__name__} {error}"
    return None


async def _play(port: int, made: Session, slots: Mapping[str, int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    count = [0]
    more = asyncio.Event()
    sending = asyncio.ensure_future(_send(writer, made, count, more))
    try:
        for asked in made.asked:
            status, said = await _response(reader, asked.method)
            if wrong := asked.wrong(status, said, slots):
                raise _Bad(wrong)
            count[0] += 1
            more.set()
        await _see_end(reader, writer, made, sending, port)
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await sending
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, made: Session, count: list[int], more: asyncio.Event) -> None:
    for portion, mark in zip(made.portions, made.marks, strict=True):
        while count[0] < mark:
            more.clear()
            await more.wait()
        writer.write(portion)
        await writer.drain()
        await asyncio.sleep(0.0005 if made.seed % 3 == 0 else 0)
    if made.end == "half":
        writer.write_eof()


async def _see_end(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, made: Session, sending: asyncio.Future[None], port: int
) -> None:
    """Check what comes behind the responses."""
    if made.end in _REFUSED:
        status, _ = await _response(reader, "POST")
        if status != _REFUSED[made.end]:
            raise _Bad(f"{status} in place of {_REFUSED[made.end]}")
        await _see_nothing(reader)
    elif made.end in ("close", "old", "half"):
        await _see_nothing(reader)
    elif made.end == "websocket":
        await _see_frames(reader, made)
    else:
        await sending
        if made.end == "leave":
            await _see_left(writer, made, port)
    writer.transport.abort()


async def _see_nothing(reader: asyncio.StreamReader) -> None:
    try:
        rest = await reader.read()
    except ConnectionResetError:  # nothing is lost: all responses are here
        return
    if rest:
        raise _Bad(f"more than the responses: {rest[:200]!r}")


async def _see_frames(reader: asyncio.StreamReader, made: Session) -> None:
    head = await reader.readuntil(_BLANKS)
    if not head.startswith(b"HTTP/1.1 101 "):
        raise _Bad(f"no websocket: {head[:100]!r}")
    await _read_frame(reader)  # the facts
    for sent in made.frames:
        if (said := await _read_frame(reader)) != sent:
            raise _Bad(f"a frame {said[:100]!r} in place of {sent[:100]!r}")


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    _, size = await reader.readexactly(2)
    if size >= 126:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
    return await reader.readexactly(size)


async def _see_left(writer: asyncio.StreamWriter, made: Session, port: int) -> None:
    """Leave, and see that the application hears of it."""
    user = made.portions and b"".join(made.portions).rpartition(b"x-user: ")[2].split(b"\r\n")[0].decode()
    writer.close()
    headers = [["host", "limpet.test"], ["x-user", str(user)], ["connection", "close"]]
    for _ in range(400):
        reader, asking = await asyncio.open_connection("127.0.0.1", port)
        asking.write(_head("GET", f"/echo/{made.number}", headers))
        _, said = await _response(reader, "GET")
        asking.transport.abort()
        if json.loads(said)["left"]:
            return
        await asyncio.sleep(0.01)
    raise _Bad("the application never heard that its client has left")


async def _response(reader: asyncio.StreamReader, method: str) -> tuple[int, bytes]:
    """Return status and body of the next response, read whole and not a byte further."""
    head = await reader.readuntil(_BLANKS)
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    if not first.startswith("HTTP/1.1 "):
        raise _Bad(f"not a response: {head[:200]!r}")
    status = int(first.split()[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if len(headers) != len(lines):
        raise _Bad(f"a header is there twice: {lines}")
    if method == "HEAD":
        return status, b""
    if headers.get("transfer-encoding") != "chunked" and "content-length" not in headers:
        return status, await reader.read()
    if headers.get("transfer-encoding") != "chunked":
        return status, await reader.readexactly(int(headers["content-length"]))
    body = b""
    while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return status, body


async def play_all(
    port: int,
    seeds: range,
    slots: Mapping[str, int],
    *,
    strict: bool = True,
    at_once: int = 24,
    enough: int = 5,
    patience_s: float = PATIENCE_S,
) -> list[str]:
    """Play the sessions of *seeds*, *at_once* of them at a time; return what was wrong, *enough* of it at most."""
    wrong: list[str] = []
    queue = iter(seeds)

    async def client() -> None:
        for seed in queue:
            if len(wrong) >= enough:
                return
            if found := await play(port, session(seed, strict=strict), slots, patience_s):
                wrong.append(found)

    await asyncio.gather(*(client() for _ in range(at_once)))
    return wrong
