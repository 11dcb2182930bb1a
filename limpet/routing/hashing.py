"""The keyed hash: from a key to its digest and bucket.

Pure. Owns both hash functions and how their keys come from the server's secret; knows nothing of requests,
slots and workers. The router calls it once per key; the kernel backend compiles `half_sip_hash` with
`Hasher.address_key` into its program.

1. The same secret and key give the same digest on every machine, backend and Python version:
   `tests/vectors/` pins it.
2. An address is hashed by what classic BPF can compute, however it became known: so it has one home.
3. Without the secret a digest tells nothing about its key. It may be logged, the key never.

How it works
------------

Ordinary keys: keyed BLAKE2b with 8 bytes of output, read as a big-endian number. The low bits are the
bucket.

Addresses: HalfSipHash-1-3 with a 64-bit key and 32 bits of output. Classic BPF has 32-bit words, additions,
xor and shifts, no loops and at most 4096 instructions. HalfSipHash needs nothing else, and with 1 and 3
rounds instead of 2 and 4 it leaves room for a decision tree over the buckets. Linux uses the same function
as its own hsiphash on 32-bit machines.

The message is the packed address as 32-bit words in network order, as BPF loads them from a packet: 1 word
for IPv4, 2 for IPv6 with the default /64. HalfSipHash as published reads its message as little-endian
words; so our digest of an address is the published one of the same bytes with each group of four reversed.
All else is as published: key words, rounds, and a last word with the length in its top byte.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Final

from limpet.routing.buckets import BUCKETS
from limpet.routing.digests import blake2b

AddressKey = tuple[int, int]  # two 32-bit words

ADDRESSES: Final = 16384  # digests that a process remembers: 4 MB, 30 times faster than the hash
_WORD: Final = 0xFFFFFFFF


class Hasher:
    """Computes digests and buckets under one secret."""

    def __init__(self, secret: bytes) -> None:
        key = derive(secret, b"limpet.key", 32)
        self._keyed = blake2b(key=key, digest_size=8, person=b"limpet.key")
        k0, k1 = struct.unpack(">2I", derive(secret, b"limpet.addr", 8))
        self.address_key: AddressKey = (k0, k1)
        compute = partial(_address_digest, self.address_key)
        self._address_digest: Callable[[bytes], int] = lru_cache(maxsize=ADDRESSES)(compute)

    def digest(self, value: bytes, is_address: bool) -> int:
        """Return the digest of a key, 64 bits; of an address, packed in whole 32-bit words, 32 bits."""
        if is_address:
            return self._address_digest(value)
        state = self._keyed.copy()  # a third faster than setting the key again
        state.update(value)
        return int.from_bytes(state.digest(), "big")

    @staticmethod
    def bucket(digest: int) -> int:
        """Return the bucket of the key with this *digest*."""
        return digest % BUCKETS

    @staticmethod
    def show(digest: int) -> str:
        """Return *digest* for people: 16 hexadecimal digits, 8 for an address."""
        return f"{digest:016x}" if digest > _WORD else f"{digest:08x}"


def half_sip_hash(key: AddressKey, words: Iterable[int], length: int, c: int = 1, d: int = 3) -> int:
    """Return HalfSipHash-*c*-*d*, 32 bits, of a message of *length* bytes given as whole 32-bit words."""
    v0, v1, v2, v3 = initial_state(key)
    for word in (*words, length << 24 & _WORD):
        v0, v1, v2, v3 = _rounds(v0, v1, v2, v3 ^ word, c)
        v0 ^= word
    v0, v1, v2, v3 = _rounds(v0, v1, v2 ^ 0xFF, v3, d)
    return v1 ^ v3


def initial_state(key: AddressKey) -> tuple[int, int, int, int]:
    """Return the state of HalfSipHash before the first word."""
    k0, k1 = key
    return k0, k1, k0 ^ 0x6C796765, k1 ^ 0x74656462


def _rounds(v0: int, v1: int, v2: int, v3: int, count: int) -> tuple[int, int, int, int]:
    """Return the state after *count* rounds of add, rotate, xor; written out, since calls cost too much."""
    for _ in range(count):
        v0 = v0 + v1 & _WORD
        v1 = (v1 << 5 | v1 >> 27) & _WORD ^ v0
        v0 = (v0 << 16 | v0 >> 16) & _WORD
        v2 = v2 + v3 & _WORD
        v3 = (v3 << 8 | v3 >> 24) & _WORD ^ v2
        v0 = v0 + v3 & _WORD
        v3 = (v3 << 7 | v3 >> 25) & _WORD ^ v0
        v2 = v2 + v1 & _WORD
        v1 = (v1 << 13 | v1 >> 19) & _WORD ^ v2
        v2 = (v2 << 16 | v2 >> 16) & _WORD
    return v0, v1, v2, v3


def _address_digest(key: AddressKey, packed: bytes) -> int:
    """Return the digest of a packed address, as the kernel's program computes it."""
    return half_sip_hash(key, struct.unpack(f">{len(packed) // 4}I", packed), len(packed))


def derive(secret: bytes, purpose: bytes, size: int) -> bytes:
    """Return the key for one *purpose*; it tells nothing about the secret, which may have any length."""
    return blake2b(secret, digest_size=size, person=purpose).digest()
