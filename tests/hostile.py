"""What servers answer to bytes that are meant to be understood differently by two readers: `python -m tests.hostile`.

Runs limpet and uvicorn, sends both the same, and writes benchmarks/results/hostile.json and docs/hostile-inputs.md.
tests/real/test_hostile_inputs.py holds limpet against that.

An answer reads `200 /path:5` for a response of the application to a request of 5 bytes, `400` for one of the server's
own, `waits` where nothing came within a second; `end` says that the connection was closed.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tests.harness import Limpet, free_port, wait_until
from tests.wire import Wire

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "hostile.json"
PAGE = ROOT / "docs" / "hostile-inputs.md"
COSTS: Final = "\n## What heavy inputs cost\n"  # the part of the page that benchmarks/nasty.py writes
SILENCE_S = 1.0
OTHER: Final = b"GET /other HTTP/1.1\r\nhost: h\r\n\r\n"
FIRST: Final = b"GET /first HTTP/1.1\r\nhost: h\r\nx-user: u\r\n\r\n"
RESPONSE: Final = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n(?:[^\r]+\r\n)*\r\n(?:<(\S+) (\d+)>)?")
LIMPET: Final = {  # columns of each backend
    "dispatcher": ("limpet", "a later request"),
    "kernel": ("limpet, kernel backend", "a later request there"),
}
UVICORN: Final = "uvicorn alone"


def _post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"POST /a HTTP/1.1\r\nhost: h\r\nx-user: u\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def _get(*lines: bytes, first: bytes = b"GET /a HTTP/1.1") -> bytes:
    return first + b"\r\n" + b"".join(line + b"\r\n" for line in (b"host: h", b"x-user: u", *lines)) + b"\r\n"


INPUTS: Final[Mapping[str, bytes]] = {
    "CL.TE: length, then chunked": _post(
        b"content-length: %d" % (5 + len(OTHER)), b"transfer-encoding: chunked", body=b"0\r\n\r\n" + OTHER
    ),
    "TE.CL: chunked, then length": _post(
        b"transfer-encoding: chunked", b"content-length: 4", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(OTHER), OTHER)
    ),
    "two lengths that differ": _post(b"content-length: 0", b"content-length: %d" % len(OTHER), body=OTHER),
    "two lengths that are equal": _post(b"content-length: 2", b"content-length: 2", body=b"ab"),
    "a list of lengths": _post(b"content-length: 2, 2", body=b"ab"),
    "a length with a sign": _post(b"content-length: +2", body=b"ab"),
    "a negative length": _post(b"content-length: -2", body=b"ab"),
    "a hexadecimal length": _post(b"content-length: 0x2", body=b"ab"),
    "an empty length": _post(b"content-length:", body=OTHER),
    "a length beyond 64 bits": _post(b"content-length: 18446744073709551618", body=b"ab"),
    "chunked behind a word": _post(b"transfer-encoding: xchunked", body=b"0\r\n\r\n" + OTHER),
    "chunked, then identity": _post(b"transfer-encoding: chunked, identity", body=b"0\r\n\r\n" + OTHER),
    "gzip, then chunked": _post(b"transfer-encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "chunked on two lines": _post(
        b"transfer-encoding: chunked", b"transfer-encoding: chunked", body=b"0\r\n\r\n" + OTHER
    ),
    "chunked behind a vertical tab": _post(b"transfer-encoding: \x0bchunked", body=b"0\r\n\r\n" + OTHER),
    "chunked in HTTP/1.0": _post(b"transfer-encoding: chunked", body=b"0\r\n\r\n" + OTHER).replace(b"/1.1", b"/1.0", 1),
    "a chunk beyond 64 bits": _post(b"transfer-encoding: chunked", body=b"fffffffffffffffff\r\nab\r\n0\r\n\r\n"),
    "a chunk of nearly 64 bits": _post(b"transfer-encoding: chunked", body=b"ffffffffffffffff\r\nab"),
    "a chunk size with 0x": _post(b"transfer-encoding: chunked", body=b"0x2\r\nab\r\n0\r\n\r\n"),
    "a negative chunk size": _post(b"transfer-encoding: chunked", body=b"-2\r\nab\r\n0\r\n\r\n"),
    "a chunk size that ends in LF": _post(b"transfer-encoding: chunked", body=b"2\nab\r\n0\r\n\r\n"),
    "a chunk that ends in LF": _post(b"transfer-encoding: chunked", body=b"2\r\nab\n0\r\n\r\n" + OTHER),
    "a chunk extension with a bare LF": _post(b"transfer-encoding: chunked", body=b"2;x\ny\r\nab\r\n0\r\n\r\n"),
    "space before the colon": _get(b"x-a : b"),
    "a length with space before the colon": _post(b"content-length : %d" % len(OTHER), body=OTHER),
    "a folded line": _get(b"x-a: b", b" c"),
    "a folded length": _post(b"x-a: b", b" content-length: %d" % len(OTHER), body=OTHER),
    "a first header that begins with a blank": _get().replace(b"host", b" host", 1),
    "a header without a colon": _get(b"x-a"),
    "a header without a name": _get(b": b"),
    "a space in a name": _get(b"x a: b"),
    "NUL in a value": _get(b"x-a: b\0c"),
    "NUL in a name": _get(b"x-\0a: b"),
    "NUL in the target": _get(first=b"GET /a\0b HTTP/1.1"),
    "a bare CR in a value": _get(b"x-a: b\rx-user: other"),
    "a bare CR before the colon": _get(b"x-a\r: b"),
    "a bare LF in a value": _get(b"x-a: b\nx-user: other"),
    "lines that end in LF": _get().replace(b"\r\n", b"\n"),
    "a blank line that is LF alone": _get()[:-2] + b"\n",
    "LF before the request line": b"\n" + _get(),
    "an empty line before the request line": b"\r\n" + _get(),
    "bytes beyond ASCII in a value": _get(b"x-a: \xff\xe9"),
    "absolute-form, and another Host": _get(first=b"GET http://other/b HTTP/1.1"),
    "authority-form without CONNECT": _get(first=b"GET h:80 HTTP/1.1"),
    "CONNECT": _get(first=b"CONNECT h:80 HTTP/1.1"),
    "no Host": _get().replace(b"host: h\r\n", b""),
    "two Hosts": _get(b"host: other"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "an upgrade to h2c": _get(b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAMAAABk"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    "HTTP/0.9": b"GET /a\r\n\r\n",
    "HTTP/2.0 in the request line": _get(first=b"GET /a HTTP/2.0"),
    "HTTP/1.9": _get(first=b"GET /a HTTP/1.9"),
    "a method in lower case": _get(first=b"get /a HTTP/1.1"),
    "a method that does not exist": _get(first=b"LIMPET /a HTTP/1.1"),
    "two blanks before the target": _get(first=b"GET  /a HTTP/1.1"),
    "a tab before the target": _get(first=b"GET\t/a HTTP/1.1"),
    "a blank in the target": _get(first=b"GET /a b HTTP/1.1"),
    "a fragment in the target": _get(first=b"GET /a#/b HTTP/1.1"),
    "bytes beyond ASCII in the target": _get(first=b"GET /\xc3\xa9 HTTP/1.1"),
    "300 headers": _get(*(b"x-%d: y" % number for number in range(300))),
    "a head of 70 KB": _get(b"x-a: %b" % (b"b" * 70_000)),
    "a body that looks like a request": _post(b"content-length: %d" % len(OTHER), body=OTHER),
    "a request behind the end of a connection": _get(b"connection: close") + OTHER,
}


def answers(port: int, inputs: Mapping[str, bytes], *, later: bool) -> dict[str, str]:
    """Return what the server at *port* answers to each input on a connection of its own, *later* as second request."""
    with contextlib.ExitStack() as stack:
        wires = {name: stack.enter_context(Wire(("127.0.0.1", port))) for name in inputs}
        if later:
            for wire in wires.values():
                assert wire.send(FIRST).reply().status == 200
        for name, wire in wires.items():
            with contextlib.suppress(OSError):  # it may have answered the beginning
                wire.send(inputs[name])
        seen, ended = _read(wires)
    return {name: _written(seen[name], name in ended) for name in inputs}


def _read(wires: Mapping[str, Wire]) -> tuple[dict[str, bytes], set[str]]:
    """Return what comes until all are silent, and which connections ended."""
    seen, ended = dict.fromkeys(wires, b""), set()
    names = {wire.sock: name for name, wire in wires.items()}
    until = time.monotonic() + SILENCE_S
    while names and (left := until - time.monotonic()) > 0:
        for sock in select.select(list(names), [], [], left)[0]:
            until = time.monotonic() + SILENCE_S
            try:
                data = sock.recv(65536)
            except OSError:
                data = b""
            seen[names[sock]] += data
            if not data:
                ended.add(names.pop(sock))
    return seen, ended


def _written(seen: bytes, ended: bool) -> str:
    responses = [
        f"{status.decode()} {path.decode()}:{size.decode()}" if path else status.decode()
        for status, path, size in RESPONSE.findall(seen)
    ]
    return ", ".join(responses or ([] if ended else ["waits"])) + (" end" if ended else "")


@contextlib.contextmanager
def uvicorn_alone() -> Iterator[int]:
    """Run uvicorn as it is; yield its port."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "tests.hostile_app:app", "--port", str(port), "--log-level", "critical"]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            wait_until(lambda: _listens(port), "uvicorn serves")
            yield port
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    try:
        Wire(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def limpet(backend: str) -> Limpet:
    """Return limpet on *backend*, to be started."""
    way = ["--backend", "kernel", "--by", "ip"] if backend == "kernel" else ["--by", "header:x-user"]
    return Limpet("tests.hostile_app:app", "--workers", "1", *way)


def of_limpet(backend: str) -> dict[str, dict[str, str]]:
    """Return what limpet answers on *backend*, by column and input."""
    first, later = LIMPET[backend]
    with limpet(backend) as server:
        return {first: answers(server.port, INPUTS, later=False), later: answers(server.port, INPUTS, later=True)}


def measure() -> dict[str, dict[str, str]]:
    """Return the answers of all columns."""
    found = of_limpet("dispatcher") | of_limpet("kernel")
    with uvicorn_alone() as port:
        return found | {UVICORN: answers(port, INPUTS, later=False)}


def page(results: Mapping[str, Mapping[str, str]], uvicorn: str) -> str:
    """Return docs/hostile-inputs.md up to `COSTS`; *uvicorn* is its version."""
    rows = [["Input", *results], ["---"] * (len(results) + 1)]
    rows += [[name, *(f"`{column[name].strip()}`" for column in results.values())] for name in INPUTS]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return PREFACE.format(uvicorn=uvicorn) + table + "\n"


PREFACE: Final = """\
# Hostile inputs

This page is a reference. It shows what limpet answers to bytes that two readers could understand differently, and what
uvicorn {uvicorn} alone answers (with httptools and uvloop). `make hostile` sends each input to both servers and writes
the table. A test compares limpet with it.

There are four columns for limpet because different processes read a head. With a dispatcher, the dispatcher reads the
first head of a connection, to find the key. A worker reads the later heads. On the kernel backend a worker reads all.

- `200 /a:2` is a response of the application to a request for `/a` with a body of 2 bytes.
- A number without a path is a response of the server itself.
- `end` means that the server closed the connection.
- `waits` means that no answer came within a second, because the server waits for the rest of a head or a body. If the
  rest of a head does not come within `--head-timeout`, limpet answers 408.
- `/other` would mean that a server took bytes behind the first request for another request.

Trailers, which are header lines after a chunked body, are not in the table. uvicorn alone appends them to the headers
of the request (with httptools). Limpet drops them, whichever server calls the application. tornado and sanic answer 400
([servers](servers.md)).

"""


def main() -> None:
    """Measure, and write down what came."""
    results: dict[str, Any] = {"uvicorn": version("uvicorn"), "answers": measure()}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    _, costs, rest = PAGE.read_text().partition(COSTS)
    PAGE.write_text(page(results["answers"], results["uvicorn"]) + costs + rest)


if __name__ == "__main__":
    main()
