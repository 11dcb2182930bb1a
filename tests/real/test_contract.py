"""The shapes on which operators' scripts rely: what `limpet status` and `limpet where` print extends, never renames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.harness import Limpet

STATUS: Final = {"pid": int, "backend": str, "binds": list, "by": str, "slots": list, "totals": dict}
SLOT: Final = {
    "slot": int, "pid": int, "generation": int, "state": str, "connections": int, "requests": int, "queued": int,
    "returns": int, "batons": int, "misrouted": int,
}  # fmt: skip
WHERE: Final = {"digest": str, "bucket": int, "slot": int, "pid": int, "state": str}


@pytest.fixture(scope="module", params=["ip", "header:x-user"])
def server(request: pytest.FixtureRequest) -> Iterator[Limpet]:
    """A server of two workers, on either backend."""
    with Limpet("tests.apps:echo", "--workers", "2", "--by", request.param) as server:
        yield server


def check(found: dict[str, Any], shape: dict[str, type]) -> None:
    """Fail unless *found* has all of *shape*; it may have more."""
    assert {name: type(found.get(name)) for name in shape} == shape


def test_status_has_its_shape(server: Limpet) -> None:
    """A monitor reads names, and a name that has gone looks like a zero."""
    assert server.request().status == 200
    status = server.command("status")

    check(status, STATUS)
    assert status["binds"] == [server.url]
    assert [entry["slot"] for entry in status["slots"]] == [0, 1]
    for entry in status["slots"]:
        check(entry, SLOT)
        assert entry["state"] == "ready"
    assert {type(value) for value in status["totals"].values()} == {int}
    assert status["totals"]["requests"] == sum(entry["requests"] for entry in status["slots"])


def test_where_has_its_shape(server: Limpet) -> None:
    """One entry for each key, in the order in which they were asked for."""
    keys = ["127.0.0.1", "127.0.0.2", "127.0.0.1"]
    answer = server.command("where", *keys)

    for entry in answer:
        check(entry, WHERE)
    assert answer[0] == answer[2]
    assert server.request(source=keys[1], x_user=keys[1]).json()["slot"] == answer[1]["slot"]
    assert server.worker(answer[1]["slot"])["pid"] == answer[1]["pid"]
