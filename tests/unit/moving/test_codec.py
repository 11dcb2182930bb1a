"""The wire form of a move: what one worker writes is what the other reads, and anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.moving import codec

PLACES = 8
U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
BATONS = st.tuples(st.integers(0, PLACES - 1), U64)


@given(BATONS, U64, U64, U64, st.binary(max_size=50))
def test_light_message_says_what_was_put_in(
    baton: tuple[int, int], had_by: int, first: int, digest: int, leftover: bytes
) -> None:
    """Its start is kept and used again with other digests, which must not show."""
    start = codec.light_start(codec.head(codec.LIGHT, 1, 2, 3, baton, had_by, first))
    message = codec.light(start, digest, leftover)
    assert message[: codec.KIND_BYTES] == codec.LIGHT_KIND
    assert not codec.brings_descriptors(message[: codec.KIND_BYTES])
    assert codec.parse_light(message, PLACES) == (baton, had_by, digest)
    assert message[codec.HEAD_BYTES :] == leftover


@pytest.mark.parametrize(("keyed", "silent"), [(False, False), (True, False), (False, True), (True, True)])
def test_idle_connection_says_what_it_has_carried(keyed: bool, silent: bool) -> None:
    """The receiver places a connection that has only been keyless, and leaves one that has carried keys to its key."""
    flags = codec.idle(keyed=keyed, silent=silent)
    moved = codec.parse(codec.head(codec.WHOLE | flags, 0, 1, 2, (3, 4), 5, 6), 1, PLACES)
    assert (moved.kind, moved.is_decided, moved.is_keyed, moved.is_silent) == (codec.WHOLE, False, keyed, silent)


@given(
    st.sampled_from([(codec.WHOLE, 1), (codec.IN_FILE, 2), (codec.BACK, 0), (codec.KEPT, 1)]),
    st.booleans(), U16, U32, U32, BATONS, U64, U64, st.binary(max_size=50),
)  # fmt: skip
def test_other_messages_say_what_was_put_in(
    kind: tuple[int, int],
    has_origin: bool,
    listener: int,
    slot: int,
    serial: int,
    baton: tuple[int, int],
    had_by: int,
    digest: int,
    leftover: bytes,
) -> None:
    """Eight numbers in a row are easily put in another order on one side."""
    number, descriptors = kind
    flags = codec.WITH_ORIGIN * has_origin
    slot %= 256
    head = codec.head(number | flags, listener, slot, serial, baton, had_by, digest)
    moved = codec.parse(head + leftover, descriptors, PLACES)
    assert (moved.kind, moved.has_origin, moved.listener, moved.slot) == (number, has_origin, listener, slot)
    assert (moved.sender, moved.baton, moved.had_by, moved.digest) == (serial, baton, had_by, digest)
    assert moved.leftover == leftover
    assert moved.is_decided


def test_message_that_comes_back_names_its_first_sender() -> None:
    """The sender may have died meanwhile, and only its serial number says so."""
    start = codec.light_start(codec.head(codec.LIGHT, 1, 7, 33, (2, 9), 5, 0))
    slot, answer = codec.sent_back(codec.light(start, 77, b"GET"), slot=4)
    assert slot == 7
    moved = codec.parse(answer, 0, PLACES)
    assert (moved.kind, moved.slot, moved.sender, moved.baton, moved.digest) == (codec.BACK, 4, 33, (2, 9), 77)
    assert moved.leftover == b"GET"


@given(st.binary(max_size=80), st.integers(0, 3))
def test_any_bytes_are_a_move_or_refused(message: bytes, descriptors: int) -> None:
    """Another version, or a bug, must not be taken for a connection."""
    try:
        moved = codec.parse(message, descriptors, PLACES)
    except codec.NotAMoveError:
        return
    assert moved.baton is None or moved.baton[0] < PLACES


@pytest.mark.parametrize("place", [-1, PLACES])
def test_light_message_for_no_baton_is_refused(place: int) -> None:
    """It could not be sent back, either."""
    message = codec.head(codec.LIGHT, 0, 0, 0, (place, 1), 0, 0)
    with pytest.raises(codec.NotAMoveError):
        codec.parse_light(message, PLACES)
