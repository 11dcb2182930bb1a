"""Orders of the supervisor: they arrive as they were sent, and two versions of limpet understand each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from limpet.ipc import orders
from limpet.ipc.control_link import Link
from limpet.ipc.orders import Accept, Certificate, Drain, Order, Slot, Stop, Workers
from tests.unit.ipc import test_control_link

WORKERS = Workers(slots=2, rows=[4, None], up=[True, False], held=[0], refused=[1], alive=[7], newest=9, scaled=True)
SENT: list[tuple[Order, dict[str, Any]]] = [
    (Accept(), {"do": "accept"}),
    (
        WORKERS,
        {
            "do": "workers",
            "slots": 2,
            "rows": [4, None],
            "up": [True, False],
            "held": [0],
            "refused": [1],
            "alive": [7],
            "newest": 9,
            "scaled": True,
        },
    ),
    (Slot(3), {"do": "slot", "slot": 3}),
    (Certificate("pem"), {"do": "certificate", "pem": "pem"}),
    (Drain(2.5, last=False, succeeded=True), {"do": "drain", "timeout": 2.5, "last": False, "succeeded": True}),
    (Stop(None, last=True), {"do": "stop", "timeout": None, "last": True, "succeeded": False}),
]
"""Each kind of order, and what an older version sends and expects for it."""


@pytest.fixture
def line() -> Iterator[tuple[Link, Link]]:
    """The supervisor's end of a line and the child's."""
    with test_control_link.line() as ends:
        yield ends


@pytest.mark.parametrize(("order", "said"), SENT, ids=lambda each: type(each).__name__)
def test_order_has_the_form_that_children_of_an_older_version_read(
    line: tuple[Link, Link], order: Order, said: dict[str, Any]
) -> None:
    """After an upgrade the new supervisor still has children of the version before it."""
    orders.send(line[0], order)
    assert line[1].receive() == [said]


@pytest.mark.parametrize(("order", "said"), SENT, ids=lambda each: type(each).__name__)
def test_order_of_an_older_supervisor_is_understood(
    line: tuple[Link, Link], order: Order, said: dict[str, Any]
) -> None:
    """After an update on disk, a supervisor that still runs starts children of the new version."""
    line[0].send(said)
    assert orders.receive(line[1]) == [order]


def test_drain_without_the_field_that_came_later_is_understood(line: tuple[Link, Link]) -> None:
    """An older version sends no `succeeded`."""
    line[0].send({"do": "drain", "timeout": 1.0, "last": True})
    assert orders.receive(line[1]) == [Drain(1.0, last=True)]


def test_what_only_a_newer_version_knows_is_left_out(line: tuple[Link, Link]) -> None:
    """An exception would end a worker that still serves clients."""
    line[0].send({"do": "dance", "with": [1]})
    line[0].send({"do": "certificate", "pem": "x", "chain": "y"})
    assert orders.receive(line[1]) == [Certificate("x")]


def test_descriptors_of_an_unknown_order_are_closed(line: tuple[Link, Link]) -> None:
    """A worker would keep them until it ends, and a client would never read the end of its connection."""
    near, far = socket.socketpair()
    with near:
        with far:
            line[0].send({"do": "keep"}, [far.fileno()])
        assert orders.receive(line[1]) == []
        assert near.recv(1) == b""


def test_channels_of_a_slot_arrive_as_descriptors(line: tuple[Link, Link]) -> None:
    """The numbers in the supervisor mean nothing in a child."""
    near, far = socket.socketpair()
    with near, far:
        orders.send(line[0], Slot(5, [near.fileno(), far.fileno()]))
        [found] = orders.receive(line[1])
        assert isinstance(found, Slot)
        assert found.slot == 5
        assert [os.path.sameopenfile(*pair) for pair in zip(found.fds, (near.fileno(), far.fileno()), strict=True)] == [
            True,
            True,
        ]
        for fd in found.fds:
            os.close(fd)


def test_only_the_latest_order_about_workers_waits(line: tuple[Link, Link]) -> None:
    """A child that is stopped would otherwise make the supervisor keep all that has happened since."""
    while not line[0].unsent:
        orders.send(line[0], Certificate("x" * 50_000))
    for _ in range(1000):
        orders.send(line[0], WORKERS)
    assert len(line[0].unsent) <= 3
