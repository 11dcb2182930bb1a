"""How many connections an address may have: counted by who pays for it, and given back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.dispatch.address_limit import PerAddress


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("0.0.0.0", "::", False),
        ("64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2", False),
        ("64:ff9b::192.0.2.1", "192.0.2.1", True),
    ],
)
def test_addresses_of_one_owner_count_together(one: str, other: str, same: bool) -> None:
    """Whoever has a /64 has more addresses than there are limits; mapped addresses are many people's."""
    counts = PerAddress(1)
    assert counts.enter(one)
    assert counts.enter(other) != same


def test_without_a_limit_or_an_address_all_may_enter() -> None:
    """The default, and unix sockets."""
    for counts, address in ((PerAddress(0), "192.0.2.1"), (PerAddress(1), None)):
        assert all(counts.enter(address) for _ in range(5))
        counts.leave(address)
        assert counts._counts == {}


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["192.0.2.1", "2001:db8::1", "2001:db8::2"]))))
def test_nothing_is_kept_of_those_who_have_left(steps: list[tuple[bool, str]]) -> None:
    """A table of all who ever came would be the memory that the limit is to save."""
    counts, inside = PerAddress(2), list[str]()
    for enters, address in steps:
        if enters and counts.enter(address):
            inside.append(address)
        elif not enters and address in inside:
            inside.remove(address)
            counts.leave(address)
        assert sum(counts._counts.values()) == len(inside)
        assert all(0 < count <= 2 for count in counts._counts.values())
    for address in inside:
        counts.leave(address)
    assert counts._counts == {}
