"""`--server stream`: any protocol over TCP, by the client's address or by what a function makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import PATIENCE_S, Limpet, limpet_command, wait_until

CHAT = ("examples.line_chat:handle", "--server", "stream", "--by", "python:examples.line_chat:network")
STORE = ("examples.keyvalue:Connection", "--server", "stream")
SOURCES = [f"127.0.{number}.9" for number in range(1, 9)]


async def gated(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line with the slot; the word `wait` ends with the file `TEST_GATE`; the word `raise` raises."""
    async for line in reader:
        if line == b"raise\n":
            raise RuntimeError("as asked")
        writer.write(f"{os.environ['LIMPET_SLOT']} {os.getpid()}\n".encode())
        while line == b"wait\n" and not Path(os.environ["TEST_GATE"]).exists():
            await asyncio.sleep(0.01)
    writer.write(b"bye\n")


class Client:
    """A client that sends and reads lines."""

    def __init__(self, limpet: Limpet, source: str = "127.0.0.1") -> None:
        self.sock = socket.create_connection(("127.0.0.1", limpet.port), PATIENCE_S, (source, 0))
        self._file = self.sock.makefile("rb")

    def send(self, *lines: str) -> None:
        """Send lines."""
        self.sock.sendall("".join(f"{line}\n" for line in lines).encode())

    def line(self) -> str:
        """Return the next line; nothing at the end."""
        return self._file.readline().decode().rstrip()

    def ask(self, *words: str) -> bytes:
        """Send a command as Redis's clients do; return the first line of the answer, and the second of a text."""
        text = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        self.sock.sendall(f"*{len(words)}\r\n{text}".encode())
        line = self._file.readline()
        return self._file.readline().rstrip() if line.startswith(b"$") and line != b"$-1\r\n" else line.rstrip()

    def close(self) -> None:
        """End the connection."""
        self._file.close()
        self.sock.close()


@contextlib.contextmanager
def clients(limpet: Limpet, *sources: str) -> Iterator[list[Client]]:
    """Return a client from each of *sources*."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Client(limpet, source))) for source in sources]


def test_chat_room_of_a_network_lives_in_one_worker() -> None:
    """Whoever a function of the peer puts together meets, though nothing of the protocol is read."""
    with Limpet(*CHAT, "--workers", "4") as limpet:
        slots = set()
        for room in range(1, 7):
            with clients(limpet, f"127.0.{room}.1", f"127.0.{room}.2") as (ann, ben):
                ann.send("ann")
                joined = ann.line()
                assert joined.startswith("your name: * ann joins worker")
                slots.add(joined.split()[6])
                ben.send("ben", "hello")
                assert ben.line().startswith("your name: * ben joins")
                assert ann.line().startswith("* ben joins")
                assert ann.line() == "ben: hello"
        assert len(slots) > 1


@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_store_of_an_address_is_found_again(backend: str, loop: str) -> None:
    """Each address has a database of its own, on every connection, on both backends and loops."""
    with Limpet(*STORE, "--workers", "4", "--backend", backend, "--loop", loop) as limpet:
        for source in SOURCES:
            with clients(limpet, source) as (client,):
                assert client.ask("SET", "mine", source) == b"+OK"
        for source in SOURCES:
            with clients(limpet, source) as (client,):
                assert (client.ask("GET", "mine"), client.ask("INCR", "n")) == (source.encode(), b":1")
                assert client.ask("NO") == b"-ERR unknown command or wrong number of arguments"
        wait_until(lambda: all(slot["connections"] == 0 for slot in limpet.status()["slots"]), "all ends are counted")
        assert limpet.totals()["received"] == 2 * len(SOURCES)
        assert len({entry["slot"] for entry in limpet.where(*SOURCES)}) > 1


@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_stop_waits_for_handlers_and_takes_who_waits(backend: str, tmp_path: Path) -> None:
    """A handler that has begun goes on until its client leaves; nobody new is let in."""
    gate = tmp_path / "gate"
    arguments = ("tests.real.test_stream:gated", "--server", "stream", "--workers", "1", "--backend", backend)
    with Limpet(*arguments, env={"TEST_GATE": str(gate)}) as limpet, clients(limpet, "127.0.0.1") as (client,):
        client.send("wait")
        assert client.line().startswith("0 ")
        limpet.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in limpet.log, "the stop begins")
        gate.touch()
        client.sock.shutdown(socket.SHUT_WR)
        assert client.line() == "bye"
        assert limpet.wait_ended() == 0
        assert "Traceback" not in limpet.log


def test_handler_that_does_not_end_is_cancelled() -> None:
    """A stop has an end, whatever clients do."""
    arguments = ("tests.real.test_stream:gated", "--server", "stream", "--workers", "1", "--graceful-timeout", "0.5")
    with Limpet(*arguments) as limpet, clients(limpet, "127.0.0.1") as (client,):
        client.send("")
        assert client.line()
        assert limpet.stop() == 0
        assert client.line() == ""


def test_failing_handler_ends_its_connection_alone() -> None:
    """The others, and the worker, go on."""
    with (
        Limpet("tests.real.test_stream:gated", "--server", "stream", "--workers", "1") as limpet,
        clients(limpet, "127.0.0.1", "127.0.0.1") as (one, other),
    ):
        one.send("raise")
        assert one.line() == ""
        other.send("")
        assert other.line().startswith("0 ")
        assert "RuntimeError: as asked" in limpet.log


def test_killed_worker_is_replaced_and_who_waits_is_served() -> None:
    """As with every server."""
    with Limpet("tests.real.test_stream:gated", "--server", "stream", "--workers", "2") as limpet:

        def asked() -> list[str]:
            with clients(limpet, "127.0.0.7") as (client,):
                client.send("")
                return client.line().split()

        slot, pid = asked()
        limpet.kill_worker(int(slot), wait_for_next=False)
        again, other = asked()
        assert (again, other != pid) == (slot, True)


def refused(*arguments: str) -> Any:
    """Return what `limpet run` says when it ends by itself."""
    found = limpet_command("run", *arguments, "--bind", "127.0.0.1:0", "--workers", "1")
    return found.returncode, found.stderr


def test_key_in_a_request_is_refused() -> None:
    """There are no requests in a protocol that nobody knows."""
    code, said = refused(*STORE, "--by", "header:x-user")
    assert code == 2
    assert "the key chain `header:x-user` looks into requests" in said


@pytest.mark.parametrize("app", ["tests.server_apps:wsgi", "tests.apps:echo", "tests.apps:not_an_application"])
def test_application_of_another_kind_is_refused(app: str) -> None:
    """It would be called with what it does not understand."""
    code, said = refused(app, "--server", "stream")
    assert code == 4
    assert "serves an `async def handle(reader, writer)` or a factory" in said
