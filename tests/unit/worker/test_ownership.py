"""Whether a request belongs to this worker: where the others are, and what happens while slots come and go."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from limpet.config.router import build_router
from limpet.config.settings import Settings
from limpet.ipc.orders import Workers
from limpet.ipc.scoreboard import Scoreboard
from limpet.protocol.request import Peer, Request
from limpet.routing import buckets
from limpet.routing.placement import Placement
from limpet.worker.ownership import Home

PEER = Peer("10.0.0.1", 4711, "127.0.0.1:0", 0)


def home(slot: int = 0, slots: int = 4, by: str = "header:x-user") -> Home:
    """Return what the worker of *slot* knows right after its start."""
    router = build_router(Settings(app="app:app", workers=slots, by=by), b"secret")
    placement = Placement("least", router, Scoreboard.create(), lambda slot: 0, random.Random(5))
    found = Home(slot, router, placement, ["127.0.0.1:0"])
    found.follow(told(slots))
    return found


def told(slots: int, up: list[bool] | None = None, *, scaled: bool = False) -> Workers:
    """Return the order about *slots* workers that all live."""
    rows: list[int | None] = list(range(slots))
    return Workers(slots, rows, up or [True] * slots, held=[], refused=[], alive=rows, newest=slots, scaled=scaled)  # type: ignore[arg-type]


def request(user: str | None) -> Request:
    """Return a request of *user*, or one without a key."""
    fields = [(b"x-user", user.encode())] if user is not None else []
    return Request("GET", "/", PEER, fields)


def user_of(here: Home, wanted: Callable[[int], bool]) -> str:
    """Return a user whose slot is *wanted*."""
    names = (f"user-{number}" for number in range(1000))
    return next(name for name in names if wanted(here.router.where(here.router.chain.from_text(name)).slot))


def test_request_of_another_slot_is_said_to_be_its() -> None:
    """Each request of a pooled connection reaches its own client's worker."""
    here = home(slot=2)
    mine, other = user_of(here, lambda slot: slot == 2), user_of(here, lambda slot: slot == 1)
    assert here.slot_of(request(mine), keyed=False) == (2, True)
    assert here.slot_of(request(other), keyed=False) == (1, True)
    assert here.digest() != 0
    assert not here.disagrees(request(mine))
    assert here.disagrees(request(other))


def test_request_without_a_key_stays_on_a_connection_that_never_carried_one() -> None:
    """It was placed when it came; moving it again would lose what its worker knows."""
    here = home(slot=3)
    assert here.slot_of(request(None), keyed=False) == (3, False)
    assert here.digest() == 0
    assert not here.disagrees(request(None))


def test_request_without_a_key_is_placed_where_others_keys_were() -> None:
    """On a proxy's connection it is a new client, and all of those would otherwise go to one worker."""
    here = home(slot=0)
    placed = {here.slot_of(request(None), keyed=True)[0] for _ in range(40)}
    assert placed == {0, 1, 2, 3}
    assert here.slot_of(request(None), keyed=True)[1]


def test_table_of_another_size_is_followed() -> None:
    """After a scaling, a worker with the old table would send requests to slots that have left."""
    here = home(slot=0)
    here.follow(told(2, scaled=True))
    assert here.router.slots == 2
    slots = {here.slot_of(request(f"user-{number}"), keyed=True)[0] for number in range(50)}
    assert slots == {0, 1}


def test_slot_that_was_removed_keeps_its_table_and_its_requests() -> None:
    """Its worker serves whoever comes here by the old table, and ids that it makes still lead to it."""
    here = home(slot=3)
    mine = user_of(here, lambda slot: slot == 3)
    here.follow(told(2, scaled=True))
    assert here.router.slots == 4
    assert here.slot_of(request(mine), keyed=True) == (3, True)


@pytest.mark.parametrize(("by", "changed"), [("ip", True), ("header:x-user", False)])
def test_open_connections_may_belong_elsewhere_only_where_no_request_is_looked_at(by: str, changed: bool) -> None:
    """With keys in requests each request is checked; with addresses only a scaling can move an open connection."""
    here = home(slot=0, by=by)
    assert not here.has_changed
    here.follow(told(3, scaled=True))
    assert here.has_changed is changed


def test_heir_of_an_idle_connection_is_this_slot() -> None:
    """The successor is in the same slot, and it looks up the slot of the next request."""
    assert home(slot=1).heir(PEER) == 1
    here = home(slot=1, by="ip")
    key = here.router.chain.find(PEER, None)
    assert key is not None
    assert here.heir(PEER) == here.router.where(key).slot


def test_heir_of_a_connection_of_a_removed_slot_is_another() -> None:
    """The slot has no successor."""
    here = home(slot=3)
    here.follow(told(2, scaled=True))
    assert {here.heir(PEER) for _ in range(60)} == {0, 1}
    by_address = home(slot=3, by="ip")
    by_address.follow(told(2, scaled=True))
    key = by_address.router.chain.find(PEER, None)
    assert key is not None
    assert by_address.heir(PEER) == buckets.table(2)[by_address.router.where(key).bucket]


def test_client_of_a_slot_that_is_down_is_served_elsewhere() -> None:
    """A failover is a matter for all processes, or two of them would send a request to and fro."""
    router = build_router(Settings(app="app:app", workers=3, by="header:x-user", on_down="failover"), b"secret")
    placement = Placement("least", router, Scoreboard.create(), lambda slot: 0, random.Random(5))
    here = Home(0, router, placement, ["127.0.0.1:0"])
    here.follow(told(3))
    user = user_of(here, lambda slot: slot == 1)
    here.follow(told(3, up=[True, False, True]))
    assert here.slot_of(request(user), keyed=False)[0] != 1
    here.follow(told(3))
    assert here.slot_of(request(user), keyed=False)[0] == 1


def test_peer_has_the_text_of_its_bind() -> None:
    """A key chain may differ by bind."""
    found = home().peer(("10.0.0.9", 1234), 0)
    assert (found.address, found.listener) == ("10.0.0.9", "127.0.0.1:0")
