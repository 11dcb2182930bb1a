"""What slow and heavy inputs cost limpet and uvicorn alone: `make nasty`.

Method: limpet on both backends and uvicorn run side by side, each with the application of all benchmarks, uvloop,
httptools and two workers. `SHAPES` are the inputs. In each round a shape is sent to each system, one after the other,
and the order changes from round to round. The cost is the CPU time of all processes of a system, from before the first
byte to after the last answer. All systems get the same bytes, so a ratio holds for a byte as well as for a request.
The ratio of a shape is the median over the rounds of limpet's cost divided by uvicorn's in the same round.

1. The answers are checked: a shape says what each system answers, and any other answer ends the run.
2. A system that refuses an input costs what it needs until the client has read the refusal and has closed.
3. Inputs that come in pieces are sent piece by piece with a pause between them (`drip`), so that no system gets two
   pieces at once by being slow.

Sends to 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import select
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from measure import machine
from systems import System

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results" / "nasty.json"
PAGE: Final = ROOT / "docs" / "hostile-inputs.md"
BLOCK: Final = re.compile(r"(?<=<!-- costs -->\n).*?(?=<!-- end of costs -->)", re.DOTALL)
UVICORN: Final = "uvicorn"
LIMPETS: Final = ("limpet dispatcher", "limpet kernel")
TARGET: Final = 2.0
PATIENCE_S: Final = 60.0
AT_ONCE: Final = 16  # new connections
PAUSE_S: Final = 0.0001  # between two pieces; the kernel makes 0.15 ms of it, and no system needs as long
SETTLED_S: Final = 0.05  # what a system does when a client has closed, it has done by then
REPLY: Final = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n((?:[^\r]+\r\n)*)\r\n")
LENGTH: Final = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
WHO: Final = b"host: h\r\nx-user: u\r\n"
CHUNKED: Final = b"POST /size HTTP/1.1\r\n" + WHO + b"transfer-encoding: chunked\r\n\r\n"
GET: Final = b"GET /size HTTP/1.1\r\n" + WHO
LAST: Final = b"0\r\n\r\n"
Answers = Counter[str]


class Client:
    """One connection, which reads whatever comes while it sends."""

    def __init__(self, port: int) -> None:
        """Connect."""
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.setblocking(False)
        self.seen = bytearray()
        self.ended = False
        self.answers: Answers = Counter()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sock.close()

    def send(self, data: bytes) -> Client:
        """Send all of *data*, unless the server ends the connection."""
        left = memoryview(data)
        while left and not self.ended:
            readable, writable, _ = select.select([self._sock], [self._sock], [], PATIENCE_S)
            if readable:
                self._read()
            if writable:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    left = left[self._sock.send(left) :]
        return self

    def drip(self, pieces: Iterable[bytes]) -> Client:
        """Send each of *pieces* by itself."""
        for piece in pieces:
            self.send(piece)
            time.sleep(PAUSE_S)
        return self

    def replies(self, count: int) -> Client:
        """Read *count* more responses, or up to the end of the connection; note each as its status and its body."""
        while count and not (self.ended and not self._complete()):
            if self._complete():
                count -= 1
            else:
                self.wait()
        return self

    def wait(self) -> None:
        """Read once."""
        if not select.select([self._sock], [], [], PATIENCE_S)[0]:
            raise TimeoutError(f"nothing came after {bytes(self.seen[-200:])!r}")
        self._read()

    def _read(self) -> None:
        try:
            data = self._sock.recv(1 << 20)
        except ConnectionError:
            data = b""
        self.seen += data
        self.ended = not data

    def _complete(self) -> bool:
        """Take the next response, if it is whole."""
        head = REPLY.match(self.seen)
        if head is None:
            return False
        length = LENGTH.search(head[2])
        size = int(length[1]) if length else len(self.seen) - head.end() if self.ended and head[1] != b"100" else 0
        end = head.end() + size
        if len(self.seen) < end or not (length or self.ended or head[1] == b"100"):
            return False
        body = self.seen[head.end() : end].decode() if head[1] == b"200" else ""
        self.answers[f"{head[1].decode()} {body}".strip()] += 1
        del self.seen[:end]
        return True


class Shape(NamedTuple):
    """One nasty input."""

    unit: str  # of which there are `amount`: byte, request ...
    amount: int
    play: Callable[[int], Answers]  # sends it to a port
    answers: Mapping[str, int]  # of uvicorn
    limpets: Mapping[str, int] | None = None  # of limpet, where they differ


def on_one(payload: bytes, replies: int) -> Callable[[int], Answers]:
    """Return what sends *payload* at once on a connection and reads all *replies*."""

    def play(port: int) -> Answers:
        with Client(port) as client:
            return client.send(payload).replies(replies).answers

    return play


def one_each(payload: bytes, times: int) -> Callable[[int], Answers]:
    """Return what sends *payload* on each of so many new connections, some at a time."""

    def play(port: int) -> Answers:
        answers: Answers = Counter()
        for first in range(0, times, AT_ONCE):
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(Client(port)) for _ in range(first, min(first + AT_ONCE, times))]
                for client in clients:
                    client.send(payload)
                for client in clients:
                    answers += client.replies(1).answers
        return answers

    return play


def turns(parts: Iterable[bytes], times: int) -> Callable[[int], Answers]:
    """Return what sends *parts*, each when the one before it is answered, so many times on a connection."""
    kept = list(parts)

    def play(port: int) -> Answers:
        with Client(port) as client:
            for _ in range(times):
                for part in kept:
                    client.send(part).replies(1)
            return client.answers

    return play


def dripped(pieces: Iterable[bytes], size: int = 0) -> Callable[[int], Answers]:
    """Return what sends *pieces*, each cut into pieces of *size* bytes, and reads the answer behind each of them."""
    messages = [[each[at : at + size] for at in range(0, len(each), size)] for each in pieces]

    def play(port: int) -> Answers:
        with Client(port) as client:
            for message in messages:
                client.drip(message).replies(1)
            return client.answers

    return play


def unread(body: bytes, times: int) -> Callable[[int], Answers]:
    """Return what is answered 401 before it has sent *body*, so many times on a connection."""
    head = b"POST /refused HTTP/1.1\r\n" + WHO + b"content-length: %d\r\n\r\n" % len(body)

    def play(port: int) -> Answers:
        with Client(port) as client:
            for _ in range(times):
                client.send(head).replies(1).send(body)
            return client.answers

    return play


def frames(payload: bytes, times: int) -> Callable[[int], Answers]:
    """Return what opens a websocket, sends *payload* in so many frames at once, and reads its echoes."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xff" + size.to_bytes(8, "big")
    sent = (b"\x82" + length + b"\1\2\3\4" + masked(payload)) * times
    echo = b"\x82" + bytes([length[0] & 0x7F]) + length[1:] + payload
    opening = b"GET /ws HTTP/1.1\r\n" + WHO + b"connection: upgrade\r\nupgrade: websocket\r\n"
    opening += b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

    def play(port: int) -> Answers:
        with Client(port) as client:
            client.send(opening)
            while not (head := REPLY.match(client.seen)):
                client.wait()
            status = head[1].decode()
            del client.seen[: head.end()]
            client.send(sent)
            while len(client.seen) < times * len(echo) and not client.ended:
                client.wait()
            is_echo = client.seen == echo * times
            return Counter({status: 1, f"echo of {size}": times if is_echo else 0})

    return play


def masked(payload: bytes) -> bytes:
    """Return *payload* as a client sends it by the mask 1, 2, 3, 4."""
    mask = b"\1\2\3\4" * (len(payload) // 4 + 1)
    number = int.from_bytes(payload, "big") ^ int.from_bytes(mask[: len(payload)], "big")
    return number.to_bytes(len(payload), "big")


def chunked(content: bytes, size: int, extension: bytes = b"") -> bytes:
    """Return a request with *content* in chunks of *size* bytes, with *extension* on each of their lines."""
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    return CHUNKED + b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in pieces) + LAST


def sized(content: bytes) -> bytes:
    """Return a request with *content* and its length."""
    return b"POST /size HTTP/1.1\r\n" + WHO + b"content-length: %d\r\n\r\n" % len(content) + content


def of_body(request: bytes, size: int, times: int = 1) -> Shape:
    """Return the shape of *request*, sent so many times, whose body without its framing has *size* bytes."""
    return Shape("byte", len(request) * times, turns([request], times), {f"200 {size}": times})


def of_heads(head: bytes, times: int) -> Shape:
    """Return the shape of *head* on each of so many new connections."""
    return Shape("request", times, one_each(head, times), {"200 0": times})


def refused(head: bytes, times: int) -> Shape:
    """Return the shape of *head*, which all refuse, on each of so many new connections."""
    return Shape("request", times, one_each(head, times), {"400": times})


def shapes() -> dict[str, Shape]:
    """Return all inputs by name."""
    mega = 1 << 20
    blank, lines = b"\r\n\r\n" * (2 * mega), b"a:\r\n" * (2 * mega)
    boundary = b"\r\n--boundary\r\nContent-Disposition: form-data; name=x\r\n\r\n--boundary--\r\n"
    parts = boundary * (8 * mega // len(boundary))
    zeros = chunked(b"a" * (mega // 4), 1).replace(b"\r\n1\r\n", b"\r\n001\r\n")
    small, posts, empty, expecting = 10_000, 10_000, 4000, 3000
    expects = b"POST /size HTTP/1.1\r\n" + WHO + b"content-length: 1000\r\nexpect: 100-continue\r\n\r\n"
    many = GET + b"".join(b"x-%03d: %b\r\n" % (number, b"v" * 200) for number in range(250)) + b"\r\n"
    trailers = (
        CHUNKED + b"1\r\na\r\n0\r\n" + b"".join(b"t-%03d: %b\r\n" % (n, b"v" * 240) for n in range(250)) + b"\r\n"
    )
    extended = chunked(b"a", 1, b";" + b"e" * 60_000)
    cookies = GET + b"cookie: " + b"; ".join(b"name%d=%b" % (n, b"v" * 40) for n in range(200)) + b"\r\n\r\n"
    target = b"GET /size?%b HTTP/1.1\r\n" + WHO + b"\r\n"
    long_head = GET + b"x-long: " + b"v" * 60_000 + b"\r\n\r\n"
    return {
        "a chunked body of blank lines": of_body(chunked(blank, 65536), len(blank), 20),
        "blank lines in chunks of 4 bytes": of_body(chunked(blank[: 2 * mega], 4), 2 * mega),
        "chunks of 1 byte": of_body(chunked(b"a" * (mega // 2), 1), mega // 2),
        "chunks of 16 bytes with extensions of 200": of_body(
            chunked(b"a" * (mega // 4), 16, b";e=" + b"x" * 197), mega // 4, 10
        ),
        "chunks of 1 byte with zeros before their size": of_body(zeros, mega // 4),
        "chunks of 400 bytes": of_body(chunked(lines, 400), len(lines), 4),
        "a chunked body of `a:` lines": of_body(chunked(lines, 65536), len(lines), 20),
        "a body of parts of a form": of_body(sized(parts), len(parts), 20),
        "a body in pieces of 1 byte": Shape("byte", 1500, dripped([sized(b"a" * 1500)], 1), {"200 1500": 1}),
        "a body in chunks of 1 byte, in pieces of 1 byte": Shape(
            "byte", 1500, dripped([chunked(b"a" * 250, 1)], 1), {"200 250": 1}
        ),
        "two heads of 60 kB in pieces of 50 bytes": Shape(
            "byte", 2 * len(long_head), dripped([long_head] * 2, 50), {"200 0": 2}
        ),
        "trailers of 60 kB in pieces of 50 bytes": Shape("byte", len(trailers), dripped([trailers], 50), {"200 1": 1}),
        "trailers of 60 kB": Shape("request", 300, on_one(trailers * 300, 300), {"200 1": 300}),
        "an extension of 60 kB in pieces of 50 bytes": Shape(
            "byte", len(extended), dripped([extended], 50), {"200 1": 1}
        ),
        "250 headers": of_heads(many, 300),
        "a header of 60 kB": of_heads(long_head, 600),
        "a target of 60 kB": of_heads(target.replace(b"?%b", b"/" + b"a/" * 30_000), 300),
        "a query of 60 kB, each byte encoded": of_heads(target.replace(b"%b", b"%61" * 20_000), 300),
        "200 cookies": of_heads(cookies, 600),
        "pipelined requests": Shape("request", small, on_one((GET + b"\r\n") * small, small), {"200 0": small}),
        "pipelined bodies": Shape("request", posts, on_one(sized(b"a" * 100) * posts, posts), {"200 100": posts}),
        "2 kB of empty lines before each request": Shape(
            "request", empty, on_one((b"\r\n" * 1000 + GET + b"\r\n") * empty, empty), {"200 0": empty}
        ),
        "lines that end in LF": refused((GET + b"\r\n").replace(b"\r\n", b"\n"), 600),
        "a folded header": refused(GET + b"x-a: b\r\n c\r\n\r\n", 600),
        "`Expect: 100-continue`": Shape(
            "request", expecting, turns([expects, b"a" * 1000], expecting), {"100": expecting, "200 1000": expecting}
        ),
        "401 before a body of 100 kB": Shape("request", 4000, unread(b"a" * 100_000, 4000), {"401": 4000}),
        "websocket frames of 1 byte": Shape("frame", 10_000, frames(b"a", 10_000), {"101": 1, "echo of 1": 10_000}),
        "a websocket frame of 8 MB": Shape(
            "byte", 8 * mega, frames(b"a" * 8 * mega, 1), {"101": 1, f"echo of {8 * mega}": 1}
        ),
    }


def cost_s(system: System, shape: Shape) -> float:
    """Send *shape* to *system*; return the CPU seconds that this took it. Raises RuntimeError on a wrong answer."""
    before = system.cpu_s()
    answers = shape.play(system.port)
    time.sleep(SETTLED_S)
    used = system.cpu_s() - before
    expected = shape.limpets if shape.limpets is not None and system.name != UVICORN else shape.answers
    if answers != Counter(expected):
        raise RuntimeError(f"{system.name} answered {dict(answers)} where {dict(expected)} is right")
    return used


def compared(systems: list[System], shape: Shape, rounds: int) -> dict[str, Any]:
    """Return what *shape* costs each of *systems*, and limpet's ratios to uvicorn."""
    measured: list[dict[str, float]] = []
    for number in range(rounds):
        shift = number % len(systems)
        measured.append({each.name: cost_s(each, shape) for each in [*systems[shift:], *systems[:shift]]})
    us = {name: [each[name] / shape.amount * 1e6 for each in measured] for name in measured[0]}
    return {
        "unit": shape.unit,
        "amount": shape.amount,
        "answers": {"uvicorn": dict(shape.answers), "limpet": dict(shape.limpets or shape.answers)},
        "us": {name: round(statistics.median(costs), 5) for name, costs in us.items()},
        "ratio": {name: round(statistics.median(a / b for a, b in zip(us[name], us[UVICORN], strict=True)), 2)
                  for name in LIMPETS},
        "rounds_cpu_s": [{name: round(cpu, 4) for name, cpu in each.items()} for each in measured],
    }  # fmt: skip


def block(found: Mapping[str, Any]) -> str:
    """Return what docs/hostile-inputs.md says of the results *found*."""
    each = found["shapes"]
    above = [name for name, one in each.items() if max(one["ratio"].values()) > TARGET]
    rows = [["Input", "uvicorn alone", "limpet", "limpet, kernel backend"], ["---", "---:", "---:", "---:"]]
    for name, one in each.items():
        told = f"{written(one['us'][UVICORN])} for a {one['unit']}"
        rows.append([name, told, *(f"{one['ratio'][limpet]:.2f}" for limpet in LIMPETS)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    middle = {limpet: statistics.median(one["ratio"][limpet] for one in each.values()) for limpet in LIMPETS}
    where = f"above it: {', '.join(above)}" if above else "none is above it"
    return (
        f"\n{len(each)} inputs, {found['rounds']} rounds, uvicorn {found['uvicorn']}; the middle ratio is "
        f"{middle[LIMPETS[0]]:.2f}, on the kernel backend {middle[LIMPETS[1]]:.2f}. The bound is {TARGET:.0f} times; "
        f"{where}.\n\n{table}\n\n"
    )


def written(us: float) -> str:
    """Return *us* microseconds as one reads them."""
    return f"{us:.0f} us" if us >= 10 else f"{us:.1f} us" if us >= 1 else f"{us * 1000:.1f} ns"


def renewed(page: str, found: Mapping[str, Any]) -> str:
    """Return *page* with the results *found* between its markers."""
    return BLOCK.sub(lambda _: block(found), page)


def main() -> None:
    """Measure, and write down what came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", help="those whose names contain one of these; nothing is written then")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    chosen = {
        name: shape
        for name, shape in shapes().items()
        if not options.shapes or any(part in name for part in options.shapes)
    }
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        systems: list[System] = []
        for name in (UVICORN, *LIMPETS):
            where = Path(folder, name.replace(" ", "-"))
            where.mkdir()
            systems.append(System(name, options.workers, where))
            stack.callback(systems[-1].stop)
        for name, shape in chosen.items():
            began = time.monotonic()
            found[name] = compared(systems, shape, options.rounds)
            costs = ", ".join(f"{system} {us:.3f} us" for system, us in found[name]["us"].items())
            ratios = " ".join(f"{ratio:.2f}" for ratio in found[name]["ratio"].values())
            print(f"{name}: {ratios} ({costs}; {time.monotonic() - began:.1f} s)", flush=True)
    if not options.shapes:
        told = {"uvicorn": version("uvicorn"), "workers": options.workers, "rounds": options.rounds}
        results = {"machine": machine(), **told, "shapes": found}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(renewed(PAGE.read_text(), results))


if __name__ == "__main__":
    main()
