"""The wire form of a move: what one worker writes into another slot's move channel.

This file owns the layout of a message, and what a valid one is. It knows nothing of copies or channels: moving/mover.py
decides what to send and what follows. Pure.

How it works: a message is a head of fixed size, and then the bytes that were read and not yet served. Descriptors
travel beside it. The head says the kind, the number of the bind, the sender's slot and serial number, the baton (place
+ 1, or 0 for none, and epoch), the slots that have had the connection, and the digest of the key.

1. Two versions that share move channels must agree on `FORM` (supervisor/snapshot.py compares it).
2. The kind comes first, so that a receiver can peek at it: only with descriptors it needs free numbers.
3. The digest comes last in the head: all before it stays the same for a connection that moves back and forth.
4. `parse` and `parse_light` raise NotAMoveError for everything that no worker sends, and nothing else.

If you change this, also change: `FORM`, and its unit tests.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from limpet.ipc.baton import Baton

_HEAD: Final = struct.Struct("<HHHIIQQQ")
FORM: Final = _HEAD.format
_FROM_PLACE: Final = struct.Struct("<10xIQQQ")  # the part that a receiver with a copy needs
HEAD_BYTES: Final = _HEAD.size
KIND_BYTES: Final = 2  # of the kind, at the start of a message
_DIGEST_BYTES: Final = 8  # of the digest, at the end of the head
INLINE_BYTES: Final = 60_000  # of leftover in the message itself; more travels in a memory file
MOST_BYTES: Final = HEAD_BYTES + INLINE_BYTES
HAD_BY_SLOTS: Final = 64  # slots with a bit in "slots that had it"; a connection always goes whole to any other slot

# Kinds of messages:
WHOLE: Final = 0  # with the descriptor
IN_FILE: Final = 1  # with the descriptor, and the bytes in a memory file
LIGHT: Final = 2  # without a descriptor: the receiver should have a copy
BACK: Final = 3  # a light message whose receiver had no copy; the serial number is still that of its first sender
KEPT: Final = 32  # a worker that leaves sends its own slot the descriptor of a connection under way
_KIND: Final = 3  # mask for the first four
# Flags with a kind:
_UNDECIDED: Final = 4  # the connection is idle; the receiver has to find out which slot its next request belongs to
_KEYED: Final = 8  # a request on the connection has carried a key
_SILENT: Final = 16  # the connection has carried no request at all
WITH_ORIGIN: Final = 64  # the leftover begins with a PROXY header that says the origin

LIGHT_KIND: Final = LIGHT.to_bytes(KIND_BYTES, "little")
_DESCRIPTORS: Final = {  # for each valid kind with its flags, the number of descriptors beside the message
    **{
        kind | flags: 1 + (kind == IN_FILE)
        for kind in (WHOLE, IN_FILE)
        for flags in (0, *(_UNDECIDED | keyed | silent for keyed in (0, _KEYED) for silent in (0, _SILENT)))
    },
    **{LIGHT: 0, BACK: 0, KEPT: 1},
}


class NotAMoveError(RuntimeError):
    """No worker sends this: a bug, or another version."""


class Light(NamedTuple):
    """A move to a worker that should have a copy."""

    baton: Baton
    had_by: int
    digest: int


class Moved(NamedTuple):
    """Any other message; `kind` is WHOLE, IN_FILE, BACK or KEPT."""

    kind: int
    has_origin: bool
    is_decided: bool  # the next request is known to belong here
    is_keyed: bool
    is_silent: bool
    listener: int
    slot: int
    sender: int
    baton: Baton | None
    had_by: int
    digest: int
    leftover: bytes


def idle(*, keyed: bool, silent: bool) -> int:
    """Return the flags of a connection that is given away while it is idle."""
    return _UNDECIDED | _KEYED * keyed | _SILENT * silent


def head(kind: int, listener: int, slot: int, serial: int, baton: Baton | None, had_by: int, digest: int) -> bytes:
    """Return the head of a message of *kind* with its flags."""
    place, epoch = baton or (-1, 0)
    return _HEAD.pack(kind, listener, slot, serial, place + 1, epoch, had_by, digest)


def light_start(whole_head: bytes) -> bytes:
    """Return *whole_head* up to the digest, for `light`."""
    return whole_head[:-_DIGEST_BYTES]


def light(start: bytes, digest: int, leftover: bytes) -> bytes:
    """Return a light message: *start* is from `light_start`."""
    return start + digest.to_bytes(_DIGEST_BYTES, "little") + leftover


def brings_descriptors(kind: bytes) -> bool:
    """Return whether a message that begins with *kind* may bring descriptors."""
    return kind != LIGHT_KIND and _DESCRIPTORS.get(int.from_bytes(kind, "little")) != 0


def parse_light(message: bytes, places: int) -> Light:
    """Return what a light *message* says; there are *places* batons. Raises NotAMoveError."""
    place, epoch, had_by, digest = _FROM_PLACE.unpack_from(message)
    if not 0 < place <= places:
        raise NotAMoveError(f"not a move: {len(message)} bytes, light, {place=}")
    return Light((place - 1, epoch), had_by, digest)


def parse(message: bytes, descriptors: int, places: int) -> Moved:
    """Return what *message* says, of any kind but light, that came with so many *descriptors*. Raises NotAMoveError."""
    size = len(message)
    kind, listener, slot, sender, place, epoch, had_by, digest = _HEAD.unpack_from(message.ljust(HEAD_BYTES))
    has_origin, kind = bool(kind & WITH_ORIGIN), kind & ~WITH_ORIGIN
    is_message = size >= HEAD_BYTES and _DESCRIPTORS.get(kind) == descriptors and place <= places
    if not is_message or kind == LIGHT or (place == 0 and kind in (BACK, KEPT)):
        raise NotAMoveError(f"not a move: {size} bytes with {descriptors} descriptors, {kind=}, {place=}")
    is_decided = not kind & _UNDECIDED
    return Moved(
        kind=kind if kind == KEPT else kind & _KIND,
        has_origin=has_origin,
        is_decided=is_decided,
        is_keyed=is_decided or bool(kind & _KEYED),
        is_silent=bool(kind & _SILENT),
        listener=listener,
        slot=slot,
        sender=sender,
        baton=(place - 1, epoch) if place else None,
        had_by=had_by,
        digest=digest,
        leftover=message[HEAD_BYTES:],
    )


def sent_back(message: bytes, slot: int) -> tuple[int, bytes]:
    """Return the slot that sent the light *message*, and what goes back to it from *slot*."""
    _, listener, sender, *others = _HEAD.unpack_from(message)
    return sender, _HEAD.pack(BACK, listener, slot, *others) + message[HEAD_BYTES:]
