"""The kernel's program, run here by an interpreter: it says what the router says, and nobody sees its key."""

from __future__ import annotations

import ipaddress
import random
import struct
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limpet.protocol.request import Peer
from limpet.routing import bpf, buckets
from limpet.routing.bpf import Assembler, Op, Program
from limpet.routing.buckets import BUCKETS, MAX_SLOTS
from limpet.routing.hashing import Hasher
from limpet.routing.key_chain import KeyChain, Trust
from limpet.routing.router import Router

SECRET = bytes(range(32))
NETWORK = 2**32 - 0x100000  # where the kernel sees an IP header, as a word
WORD = 2**32 - 1
Instructions = list[tuple[int, int, int, int]]  # code, jump if true, jump if false, operand


def instructions(program: Program) -> Instructions:
    """Return *program* as the kernel reads it."""
    return list(struct.iter_unpack("=HBBI", program.code))


def run(program: Program, packet: bytes) -> int:  # noqa: C901 - a branch for each instruction
    """Return what *program* answers about *packet*: classic BPF, as specified."""
    code, memory, a, x, at = instructions(program), dict[int, int](), 0, 0, 0
    while True:
        op, if_true, if_false, k = code[at]
        at += 1
        match op:
            case 0x00:  # ld #k
                a = k
            case 0x20:  # ld [k]
                a = int.from_bytes(packet[k - NETWORK : k - NETWORK + 4], "big")
            case 0x30:  # ldb [k]
                a = packet[k - NETWORK]
            case 0x60:  # ld M[k]; a word that was never stored is an error, as for the kernel
                a = memory[k]
            case 0x61:  # ldx M[k]
                x = memory[k]
            case 0x02:  # st M[k]
                memory[k] = a
            case 0x0C:  # add x
                a = a + x & WORD
            case 0x4C:  # or x
                a |= x
            case 0xAC:  # xor x
                a ^= x
            case 0x7C:  # rsh x
                a >>= x
            case 0xA4:  # xor #k
                a ^= k
            case 0x54:  # and #k
                a &= k
            case 0x64:  # lsh #k
                a = a << k & WORD
            case 0x74:  # rsh #k
                a >>= k
            case 0x15:  # jeq #k
                at += if_true if a == k else if_false
            case 0x35:  # jge #k
                at += if_true if a >= k else if_false
            case 0x05:  # ja
                at += k
            case 0x07:  # tax
                x = a
            case 0x06:  # ret #k
                return k
            case 0x16:  # ret a
                return a
            case _:
                raise AssertionError(f"instruction {op:#x}")


def packet_from(address: str) -> bytes:
    """Return the IP header of a packet from *address*; all that must not matter is random."""
    ip = ipaddress.ip_address(address)
    if ip.version == 4:
        return b"\x45" + random.randbytes(11) + ip.packed + random.randbytes(4)
    return b"\x60" + random.randbytes(7) + ip.packed + random.randbytes(16)


def addresses(count: int) -> Iterator[str]:
    """Yield random addresses, half of them IPv6."""
    for _ in range(count // 2):
        yield str(ipaddress.IPv4Address(random.randbytes(4)))
        yield str(ipaddress.IPv6Address(random.randbytes(16)))


def router(chain: str, slots: int, secret: bytes = SECRET) -> Router:
    """Return what routes by *chain*."""
    return Router(KeyChain.parse(chain, Trust.parse("")), Hasher(secret), slots)


def program(router: Router) -> Program:
    """Return the program that is to do the same."""
    assert router.chain.prefixes
    return bpf.placing(router.hasher.address_key, router.chain.prefixes, router.owners)


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 5, 16, 17, 64, MAX_SLOTS])
def test_program_and_router_agree_on_thousands_of_addresses(slots: int) -> None:
    """One contract, two backends: switching moves nobody, and `limpet where` is true for both."""
    python = router("ip", slots)
    kernel = program(python)
    found: Counter[int] = Counter()
    for address in addresses(4000):
        route = python.route(Peer(address=address, port=1, listener="l"), None)
        assert route
        assert run(kernel, packet_from(address)) == route.slot, address
        found[route.slot] += 1
    assert len(found) == slots


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 32), st.integers(1, 128), st.binary(min_size=16, max_size=16), st.ip_addresses())
def test_program_and_router_agree_on_every_prefix(
    ipv4_bits: int, ipv6_bits: int, secret: bytes, address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    """`ip/24/56` counts a network as one client in the kernel as in Python; a prefix may end within a word."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return  # the kernel lets none in: it is a form of sockets, never of packets
    python = router(f"ip/{ipv4_bits}/{ipv6_bits}", 7, secret)
    route = python.route(Peer(address=str(address), port=1, listener="l"), None)
    assert route
    assert run(program(python), packet_from(str(address))) == route.slot


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 32), st.integers(1, 128), st.ip_addresses(v=4))
def test_client_behind_nat64_has_the_home_of_its_ipv4_address_on_both_backends(
    ipv4_bits: int, ipv6_bits: int, address: ipaddress.IPv4Address
) -> None:
    """All clients of a translator share one /64: by that they would all be on one worker."""
    python = router(f"ip/{ipv4_bits}/{ipv6_bits}", 7)
    plain = python.route(Peer(address=str(address), port=1, listener="l"), None)
    translated = f"64:ff9b::{address}"
    assert plain
    assert python.route(Peer(address=translated, port=1, listener="l"), None) == plain
    assert run(program(python), packet_from(translated)) == plain.slot


@pytest.mark.parametrize("address", ["64:ff9b:1::1.2.3.4", "64:ff9b:0:0:1::7", "64:ff9b::1:0:7", "64:ff9a::7"])
def test_only_the_well_known_prefix_has_an_address_in_it(address: str) -> None:
    """RFC 6052 fixes 64:ff9b::/96; what is beside it is anybody's network, with clients that have a /64 each."""
    python = router("ip", 64)
    route = python.route(Peer(address=address, port=1, listener="l"), None)
    assert route
    assert run(program(python), packet_from(address)) == route.slot
    assert python.chain.from_text(f"ip={address}").value == ipaddress.ip_address(address).packed[:8]


@given(st.integers(1, MAX_SLOTS))
def test_any_table_is_compiled_as_it_is(slots: int) -> None:
    """In a failover the program gets tables that no number of slots has."""
    owners = random.choices(range(slots), k=BUCKETS)
    hasher = Hasher(SECRET)
    kernel = bpf.placing(hasher.address_key, (32, 64), owners)
    for packed in (random.randbytes(4) for _ in range(50)):
        bucket = hasher.bucket(hasher.digest(packed, is_address=True))
        assert run(kernel, packet_from(str(ipaddress.IPv4Address(packed)))) == owners[bucket]


def test_every_number_of_slots_fits() -> None:
    """The kernel takes 4096 instructions, and where `optmem_max` is 20 KB half of them: there is room for all slots."""
    key = Hasher(SECRET).address_key
    sizes = {slots: len(bpf.placing(key, (32, 64), buckets.table(slots))) for slots in (1, 2, 4, 64, MAX_SLOTS)}
    assert sizes == {1: 1, 2: 601, 4: 672, 64: 956, MAX_SLOTS: 1099}
    assert len(bpf.placing(key, (31, 127), buckets.table(MAX_SLOTS))) == 1254


def test_one_slot_needs_no_hash() -> None:
    """With one slot there is nothing to find out."""
    assert instructions(bpf.placing((1, 2), (32, 64), bytes(BUCKETS))) == [(0x06, 0, 0, 0)]


@given(st.binary(min_size=16, max_size=16))
def test_listing_is_the_same_for_every_key(secret: bytes) -> None:
    """Who sees the program printed, in a ticket or a log, must not learn to choose a worker."""
    owners = buckets.table(4)
    one, other = (bpf.placing(Hasher(each).address_key, (24, 64), owners) for each in (SECRET, secret))
    assert one.listing == other.listing
    assert (one.code == other.code) == (secret == SECRET)
    assert one.listing.count("<key>") == 4


def test_program_does_not_show_its_key_by_accident() -> None:
    """A traceback or a debug log prints objects."""
    shown = repr(bpf.placing((0x12345678, 0x9ABCDEF0), (32, 64), buckets.table(4)))
    assert shown == "<program of 672 instructions>"


def test_listing_says_why() -> None:
    """An operator reads it without this repository: instructions by name, labels, and the reason of each block."""
    lines = bpf.placing((1, 2), (24, 64), buckets.table(2)).listing.splitlines()
    assert lines[:3] == ["; the state of HalfSipHash, from the key", "    0  ld #<key>", "    1  st M[0]"]
    assert "   10  jeq #6, ipv6" in lines
    assert "   12  and #0xffffff00" in lines
    assert "ipv6:" in lines
    assert lines[-1].split() == [str(len(bpf.placing((1, 2), (24, 64), buckets.table(2))) - 1), "ret", "a"]


def test_near_condition_takes_one_instruction() -> None:
    """255 instructions are as far as a condition can jump."""
    emit = Assembler()
    emit(Op.JGE, 7, to="there")
    for _ in range(255):
        emit(Op.RET, 0)
    emit.label("there")
    emit(Op.RET, 1)
    assert instructions(emit.program())[0] == (0x35, 255, 0, 7)
    assert len(emit.program()) == 257


def test_far_condition_skips_a_jump() -> None:
    """A distance that is cut to 8 bits would lead into the middle of something else."""
    emit = Assembler()
    emit(Op.JEQ, 7, to="there")
    for _ in range(256):
        emit(Op.RET, 0)
    emit.label("there")
    emit(Op.RET, 1)
    assert instructions(emit.program())[:2] == [(0x15, 0, 1, 7), (0x05, 0, 0, 256)]


def test_condition_that_became_long_can_make_another_one_long() -> None:
    """The outer one has 255 instructions to skip, until the inner one takes two."""
    emit = Assembler()
    emit(Op.JEQ, 1, to="outer")
    emit(Op.JEQ, 2, to="inner")
    for _ in range(254):
        emit(Op.RET, 0)
    emit.label("outer")
    for _ in range(2):
        emit(Op.RET, 1)
    emit.label("inner")
    emit(Op.RET, 2)
    code = instructions(emit.program())
    assert (len(code), code[:4]) == (261, [(0x15, 0, 1, 1), (0x05, 0, 0, 256), (0x15, 0, 1, 2), (0x05, 0, 0, 256)])


def test_program_that_the_kernel_would_refuse_is_not_made() -> None:
    """An error here names the reason; the kernel would only say EINVAL."""
    emit = Assembler()
    for _ in range(bpf.MAX_INSTRUCTIONS + 1):
        emit(Op.RET, 0)
    with pytest.raises(ValueError, match="4097 instructions"):
        emit.program()
