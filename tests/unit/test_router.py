"""Where a key is served: at home, or in a failover at its stand-in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from limpet.buckets import rank
from limpet.hashing import Hasher
from limpet.key import Key, KeyChain, Trust
from limpet.router import Router

SLOTS = 4


def router(*, failover: bool) -> Router:
    """Return a router of four slots."""
    return Router(KeyChain.parse("cookie:user", Trust.parse("")), Hasher(b"secret"), SLOTS, failover=failover)


def keys() -> Iterator[Key]:
    """Yield enough keys for all slots."""
    for number in range(200):
        yield Key(f"user-{number}".encode(), "cookie:user", False)


def test_route_does_not_depend_on_who_is_up() -> None:
    """By default a slot keeps its clients: they wait for the replacement."""
    waiting = router(failover=False)
    before = [waiting.where(key) for key in keys()]
    assert not waiting.follow([True, False, False, True])
    assert [waiting.where(key) for key in keys()] == before


def test_failover_sends_clients_of_a_slot_that_is_down_to_the_next_in_rank_and_back() -> None:
    """Everybody who asks gets the same answer, since all of them follow the same news."""
    moving = router(failover=True)
    before = [moving.where(key) for key in keys()]
    assert moving.follow([True, False, True, True])
    for home, away in zip(before, (moving.where(key) for key in keys()), strict=True):
        assert away.home == home.slot
        assert away.slot == (rank(home.bucket, SLOTS)[1] if home.slot == 1 else home.slot)
    assert not moving.follow([True, False, True, True])
    assert moving.follow([True] * SLOTS)
    assert [moving.where(key) for key in keys()] == before


def test_without_any_worker_clients_wait_at_home() -> None:
    """While a server starts, or all of it restarts, nobody is moved for nothing."""
    moving = router(failover=True)
    assert not moving.follow([False] * SLOTS)


@pytest.mark.parametrize(
    ("chain", "prefixes"),
    [
        ("ip", (32, 64)),
        ("ip/24", (24, 64)),
        ("ip/24/56", (24, 56)),
        ("ip,cookie:user", None),
        ("forwarded", None),
        ("cookie:user", None),
    ],
)
def test_only_a_chain_of_addresses_can_be_given_to_the_kernel(chain: str, prefixes: tuple[int, int] | None) -> None:
    """The kernel sees no byte of a request, and believes no header."""
    assert KeyChain.parse(chain, Trust.parse("")).prefixes == prefixes
