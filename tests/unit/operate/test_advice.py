"""Warnings that help: what is seen in the figures, and what is not worth a word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from limpet.operate.advice import Facts, Seen, signs

QUIET = Facts(chain=("cookie:sid", "ip"))
EVEN = Seen(
    requests=(500, 520),
    received=(500, 520),
    handed=1020,
    same_address=10,
    open={0: 10, 1: 12},
    routed=1020,
    found=frozenset({"cookie:sid", "ip"}),
)


def events(facts: Facts, seen: Seen) -> list[str]:
    """Return what is warned of."""
    return [sign.event for sign in signs(facts, seen)]


def test_nothing_is_said_of_a_server_that_does_well() -> None:
    """A warning that is always there is not read."""
    assert events(QUIET, EVEN) == []
    assert events(replace(QUIET, chain=("ip",)), EVEN) == []


def test_nothing_is_said_of_a_handful_of_clients() -> None:
    """Ten requests of one developer are no load."""
    few = Seen(requests=(10, 0), received=(10, 0), handed=10, same_address=9, keyless=10, routed=10, any_keyless=True)
    for chain in (("ip",), ("cookie:sid",), ("header:x", "ip")):
        assert events(replace(QUIET, chain=chain, moves=False), few) == []


@pytest.mark.parametrize(("same", "warned"), [(960, True), (930, False)])
def test_one_address_that_carries_nearly_everything(same: int, warned: bool) -> None:
    """Behind a proxy all clients would have one home."""
    by_ip = replace(QUIET, chain=("ip",))
    found = list(signs(by_ip, replace(EVEN, handed=1000, same_address=same, requests=(1000, 0))))
    assert ([sign.event for sign in found] == ["one_address"]) is warned
    if warned:
        assert found[0].text.startswith(
            "98% of the last 1000 connections came from 1 address: behind a proxy `--by ip` "
        )
        assert "--by forwarded --trust" in found[0].hint
    assert "one_address" not in events(QUIET, replace(EVEN, handed=1000, same_address=1000))


def test_one_address_is_seen_on_the_kernel_backend_by_its_slot() -> None:
    """Nobody there sees addresses."""
    by_ip = replace(QUIET, chain=("ip",), has_dispatcher=False)
    assert events(by_ip, replace(EVEN, received=(0, 1200), requests=(0, 1200), handed=0)) == ["one_address"]
    assert events(by_ip, replace(EVEN, received=(1200,), requests=(1200,), handed=0)) == []


def test_clients_without_a_key() -> None:
    """They lose their sessions, and the log is the only one to tell."""
    seen = replace(EVEN, keyless=600, any_keyless=True)
    assert events(QUIET, seen) == ["no_key"]
    assert events(replace(QUIET, chain=("affinity",)), replace(seen, found=frozenset({"affinity"}))) == []


@pytest.mark.parametrize(
    ("requests", "warned"), [((900, 100), True), ((700, 300), False), ((100, 800, 100, 100), True), ((1000,), False)]
)
def test_slot_far_over_the_mean(requests: tuple[int, ...], warned: bool) -> None:
    """One key of many clients makes N workers one."""
    assert events(QUIET, replace(EVEN, requests=requests)) == (["busy_slot"] if warned else [])


def test_element_that_never_finds_a_key() -> None:
    """A name with a slip of the pen looks like clients without a session."""
    assert events(QUIET, replace(EVEN, found=frozenset({"ip"}))) == ["idle_element"]


def test_element_that_was_never_asked_is_not_idle() -> None:
    """The last resort of a chain is there for those who need it."""
    assert events(QUIET, replace(EVEN, found=frozenset({"cookie:sid"}))) == []


def test_server_that_cannot_move_connections() -> None:
    """Each request costs a connection, and nobody sees why."""
    hypercorn = replace(QUIET, server="hypercorn", moves=False)
    assert events(hypercorn, EVEN) == ["cannot_move"]
    assert events(hypercorn, replace(EVEN, received=(100, 100))) == []
    assert events(replace(hypercorn, chain=("ip",)), EVEN) == []


def test_limits_of_the_system() -> None:
    """They are met under load, when there is no time to look for them."""
    assert events(replace(QUIET, descriptors=1024), replace(EVEN, open={0: 5, 1: 900})) == ["few_descriptors"]
    assert events(replace(QUIET, clock="hpet"), EVEN) == ["slow_clock"]
    assert events(replace(QUIET, clock="tsc"), EVEN) == []


def test_every_sign_has_a_hint_to_paste() -> None:
    """A warning without one is a riddle."""
    facts = Facts(chain=("header:x", "cookie:y"), server="hypercorn", moves=False, descriptors=10, clock="hpet")
    seen = replace(EVEN, requests=(2000, 1), received=(2000, 1), keyless=900, any_keyless=True, found=frozenset())
    found = list(signs(facts, seen))
    assert len({sign.event + sign.about for sign in found}) == len(found) == 7
    assert all(sign.hint.count("`") >= 2 and not sign.text.endswith(".") for sign in found)
