"""A program and the supervisor that it has started: what they tell each other, and the end of either."""

from __future__ import annotations

import json
import os
import selectors
import signal
from collections.abc import Iterator

import pytest

from limpet.config.settings import Settings
from limpet.errors import AppError
from limpet.ipc.control_link import Link
from limpet.ipc.news import Failed
from limpet.supervisor import program_link
from limpet.supervisor.program_link import NEWS, ORDERS, Program, Serving, Stop
from limpet.system import memfile


class Pair:
    """The supervisor's view of its program, and the program's end of the line."""

    def __init__(self) -> None:
        line, theirs = Link.pair()
        self.program_end = Link(theirs)
        self.program = Program(line)
        self.stopped: list[bool] = []
        self.selector = selectors.DefaultSelector()
        self.program.watch(self.selector, self._stop)

    def _stop(self, *, wait_for_connections: bool) -> None:
        self.stopped.append(wait_for_connections)

    def turn(self) -> None:
        """Do one turn of the supervisor's loop."""
        for key, _ in self.selector.select(0):
            key.data(0.0)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A program and its supervisor."""
    found = Pair()
    yield found
    found.program_end.close()
    found.program._line.close()
    found.selector.close()


def test_program_hears_where_it_is_served(pair: Pair) -> None:
    """`Handle.address` is this."""
    pair.program.serving(["http://127.0.0.1:8000"], "/run/control")
    [said] = pair.program_end.receive()
    assert NEWS.unpack(said) == Serving(["http://127.0.0.1:8000"], "/run/control")


def test_program_hears_why_there_is_no_server(pair: Pair) -> None:
    """It raises the same error that `limpet run` would have shown."""
    pair.program.failed(AppError("no such module", hint="look"))
    [said] = pair.program_end.receive()
    assert NEWS.unpack(said) == Failed("no such module", "look", AppError.exit_code)


@pytest.mark.parametrize("waits", [False, True])
def test_program_can_stop_the_server(pair: Pair, waits: bool) -> None:
    """That is `Handle.close`."""
    pair.program_end.send(ORDERS.pack(Stop(wait_for_connections=waits)))
    pair.turn()
    assert pair.stopped == [waits]


def test_order_to_end_at_once_is_a_second_signal(pair: Pair) -> None:
    """The loop obeys it as it obeys a second Ctrl-C."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        pair.program_end.send(ORDERS.pack(Stop(wait_for_connections=False, at_once=True)))
        pair.turn()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (pair.stopped, heard) == ([False], [signal.SIGTERM])


def test_end_of_the_program_stops_the_server(pair: Pair) -> None:
    """Nobody is left who could stop it."""
    pair.program_end.close()
    pair.turn()
    pair.turn()
    assert pair.stopped == [False]


def test_supervisor_reads_its_settings_from_the_file() -> None:
    """Neither `ps` nor the environment shows them."""
    settings = Settings(app="shop:app", workers=3)
    fd = program_link.write(settings, 17)
    assert fd > 2
    assert not os.get_inheritable(fd)
    told = json.loads(memfile.read(fd))
    assert (Settings.from_json(told["settings"]), told["line"]) == (settings, 17)
