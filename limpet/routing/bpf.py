"""The kernel's program: which slot gets a connection, as classic BPF.

Pure. Owns the assembler and the program; net/reuseport_group.py attaches it. The program does for a packet what
routing/router.py does for a key: source address -> network -> keyed hash -> bucket -> slot. It returns the slot, which
is the index of the listener in its group.

1. The program and `hashing`, `buckets`, `elements.Ip` give the same answer for every address. The unit tests run it
   in an interpreter, the real ones in the kernel.
2. Nobody sees the key: a listing masks what was made from it.
3. Jumps only lead forward, as the kernel demands.

How it works
------------

Classic BPF has an accumulator A, an index X and 16 words of memory M; no loop and no table. So the rounds of the hash
are written out, and IPv6, which has more words to hash, hashes the first of them and then joins IPv4's path: 6 rounds
in the program and not 11. The table of 1024 buckets becomes 32 blocks of 32 buckets and, in each, one 32-bit constant
for each bit of a slot's number (a bit plane): bit n of it is that of bucket n. A decision tree over the blocks loads
the constants, and what follows picks bit n of each. A tree down to single buckets needs 1,500
instructions for 4 slots and 2,000 for 256; this needs 220 and 650. That matters where `net.core.optmem_max`, which
limits a program too, is still 20 KB. So all `MAX_SLOTS` slots fit, and since the size depends on the number of slots
alone, a program that replaces another one never fails for its size.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from limpet.routing.hashing import AddressKey, initial_state

MAX_INSTRUCTIONS: Final = 4096  # of the kernel, for one program
_NETWORK: Final = -0x100000  # SKF_NET_OFF: offsets from here on count from the IP header. At 0 there is TCP's payload
_IPV4_SOURCE: Final = 12
_IPV6_SOURCE: Final = 8
_NAT64: Final = 0x0064FF9B  # the first word of 64:ff9b::/96; the next two are 0, the last is an IPv4 address
_NEAR: Final = 255  # how far a condition can jump
_BLOCK: Final = 32  # buckets, the bits of a word

# Words of memory. While the bit planes are used the hash is done with: they may overwrite it.
_V0, _V1, _V2, _V3, _WORD, _LENGTH = range(6)
_BUCKET: Final = 15


class Op(enum.Enum):
    """The instructions that the program uses: their code, and how they are written."""

    LD = 0x00, "ld #{}"
    LD_PACKET = 0x20, "ld [{}]"
    LDB_PACKET = 0x30, "ldb [{}]"
    LD_MEMORY = 0x60, "ld M[{}]"
    LDX_MEMORY = 0x61, "ldx M[{}]"
    ST = 0x02, "st M[{}]"
    ADD_X = 0x0C, "add x"
    OR_X = 0x4C, "or x"
    XOR_X = 0xAC, "xor x"
    RSH_X = 0x7C, "rsh x"
    XOR = 0xA4, "xor #{}"
    AND = 0x54, "and #{}"
    LSH = 0x64, "lsh #{}"
    RSH = 0x74, "rsh #{}"
    JEQ = 0x15, "jeq #{}"
    JGE = 0x35, "jge #{}"
    JA = 0x05, "ja"
    TAX = 0x07, "tax"
    RET = 0x06, "ret #{}"
    RET_A = 0x16, "ret a"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. A condition falls through when it is false."""

    op: Op
    operand: int = 0
    target: str = ""
    """The label that a jump leads to."""
    is_secret: bool = False

    def __str__(self) -> str:
        """The text, without what must not be seen."""
        if self.is_secret:
            shown = "<key>"
        elif self.op in (Op.LD_PACKET, Op.LDB_PACKET):
            shown = f"net+{self.operand - _NETWORK}"
        else:
            shown = hex(self.operand) if self.operand > 0xFFFF else str(self.operand)
        text = self.op.value[1].format(shown)
        return f"{text}, {self.target}".replace("ja,", "ja") if self.target else text


@dataclass(frozen=True, slots=True, repr=False)
class Program:
    """A program for the kernel: `code` is an array of its `struct sock_filter`."""

    code: bytes
    listing: str

    def __len__(self) -> int:
        """How many instructions there are."""
        return len(self.code) // _FILTER.size

    def __repr__(self) -> str:
        return f"<program of {len(self)} instructions>"


_FILTER: Final = struct.Struct("=HBBI")  # code, jump if true, jump if false, operand


class Assembler:
    """A program in the making: instructions by name, labels, and in between why."""

    def __init__(self) -> None:
        self._lines: list[Instruction | str] = []  # a text is a label if it ends with a colon, else a reason

    def __call__(self, op: Op, operand: int = 0, *, to: str = "", is_secret: bool = False) -> None:
        """Append the instruction *op*."""
        self._lines.append(Instruction(op, operand, to, is_secret))

    def label(self, name: str) -> None:
        """Call what follows *name*."""
        self._lines.append(f"{name}:")

    def because(self, reason: str) -> None:
        """Say why the next instructions are there."""
        self._lines.append(f"; {reason}")

    def program(self) -> Program:
        """Return the program. Raises ValueError when it is too long for the kernel."""
        far: set[int] = set()
        while True:
            places, labels = self._layout(far)
            late = {
                number
                for number, line in enumerate(self._lines)
                if isinstance(line, Instruction)
                and line.op in (Op.JEQ, Op.JGE)
                and labels[line.target] - places[number] - 1 > _NEAR
            }
            if late <= far:
                break
            far |= late  # each makes the program longer, so others may be late now
        code = b"".join(self._encoded(far, places, labels))
        if len(code) // _FILTER.size > MAX_INSTRUCTIONS:
            raise ValueError(f"{len(code) // _FILTER.size} instructions: at most {MAX_INSTRUCTIONS} are allowed")
        return Program(code, "\n".join(self._listing(places)))

    def _layout(self, far: set[int]) -> tuple[list[int], dict[str, int]]:
        """Return the index of the instruction on each line, and that behind each label."""
        places, labels, at = [], {}, 0
        for number, line in enumerate(self._lines):
            places.append(at)
            if isinstance(line, Instruction):
                at += 2 if number in far else 1
            elif line.endswith(":"):
                labels[line[:-1]] = at
        return places, labels

    def _encoded(self, far: set[int], places: list[int], labels: dict[str, int]) -> Iterator[bytes]:
        for number, line in enumerate(self._lines):
            if not isinstance(line, Instruction):
                continue
            code, operand = line.op.value[0], line.operand & 0xFFFFFFFF
            distance = labels[line.target] - places[number] - 1 if line.target else 0
            if number in far:  # the condition skips a jump that can go any distance
                yield _FILTER.pack(code, 0, 1, operand)
                yield _FILTER.pack(Op.JA.value[0], 0, 0, distance - 1)
            elif line.op is Op.JA:
                yield _FILTER.pack(code, 0, 0, distance)
            else:
                yield _FILTER.pack(code, distance, 0, operand)

    def _listing(self, places: list[int]) -> Iterator[str]:
        for place, line in zip(places, self._lines, strict=True):
            yield f"{place:5}  {line}" if isinstance(line, Instruction) else line


def placing(key: AddressKey, prefixes: tuple[int, int], owners: Sequence[int]) -> Program:
    """Return the program that sends each address to the slot that owns its bucket.

    *key* is that of the address hash, *prefixes* the lengths of IPv4's and IPv6's networks, *owners* the slot of each
    bucket.
    """
    emit = Assembler()
    if any(owners):
        _hash(emit, key, *prefixes)
        _pick(emit, owners)
    else:
        emit.because("there is one slot")
        emit(Op.RET, 0)
    return emit.program()


def _hash(emit: Assembler, key: AddressKey, ipv4_bits: int, ipv6_bits: int) -> None:
    """Leave the digest of the source address in A."""
    emit.because("the state of HalfSipHash, from the key")
    for place, value in enumerate(initial_state(key)):
        emit(Op.LD, value, is_secret=True)
        emit(Op.ST, place)
    emit.because("the version nibble: a socket for IPv6 gets IPv4 as well")
    emit(Op.LDB_PACKET, _NETWORK)
    emit(Op.RSH, 4)
    emit(Op.JEQ, 6, to="ipv6")
    emit.because("IPv4: the source is one word; hosts of one network count as one")
    _source(emit, _IPV4_SOURCE, ipv4_bits)
    emit(Op.LD, 4 << 24)
    emit(Op.ST, _LENGTH)
    emit(Op.JA, to="last")
    emit.label("ipv6")
    _to_nat64(emit)
    words = (ipv6_bits + 31) // 32
    for number in range(words - 1):
        emit.because(f"IPv6: word {number + 1} of {words} of the source")
        _source(emit, _IPV6_SOURCE + 4 * number, 32)
        _absorb(emit)
    emit.because("IPv6: the last word of the source; hosts of one network count as one")
    _source(emit, _IPV6_SOURCE + 4 * (words - 1), ipv6_bits - 32 * (words - 1))
    emit(Op.LD, 4 * words << 24)
    emit(Op.ST, _LENGTH)
    emit(Op.JA, to="last")
    emit.label("nat64")
    _source(emit, _IPV6_SOURCE + 12, ipv4_bits)
    emit(Op.LD, 4 << 24)
    emit(Op.ST, _LENGTH)
    emit.label("last")
    emit.because("the last word of either")
    _absorb(emit)
    emit.because("the length of the message, in the top byte of a word of its own")
    emit(Op.LD_MEMORY, _LENGTH)
    emit(Op.ST, _WORD)
    _absorb(emit)
    emit.because("the end of the hash: 3 rounds")
    emit(Op.LD_MEMORY, _V2)
    emit(Op.XOR, 0xFF)
    emit(Op.ST, _V2)
    for _ in range(3):
        _round(emit)
    emit(Op.LDX_MEMORY, _V3)
    emit(Op.LD_MEMORY, _V1)
    emit(Op.XOR_X)


def _to_nat64(emit: Assembler) -> None:
    """Jump to `nat64` if the IPv6 source is in 64:ff9b::/96."""
    emit.because("64:ff9b::/96: a translator has put an IPv4 address into the last word, and that is the client")
    emit(Op.LD_PACKET, _NETWORK + _IPV6_SOURCE)
    emit(Op.XOR, _NAT64)
    for number in (1, 2):
        emit(Op.TAX)
        emit(Op.LD_PACKET, _NETWORK + _IPV6_SOURCE + 4 * number)
        emit(Op.OR_X)
    emit(Op.JEQ, 0, to="nat64")


def _source(emit: Assembler, offset: int, bits: int) -> None:
    """Put the first *bits* of a word of the IP header into memory."""
    emit(Op.LD_PACKET, _NETWORK + offset)
    if bits < 32:
        emit(Op.AND, 0xFFFFFFFF << (32 - bits) & 0xFFFFFFFF)
    emit(Op.ST, _WORD)


def _absorb(emit: Assembler) -> None:
    """Mix the word in memory into the state: 1 round."""
    _combine(emit, Op.XOR_X, _V3, _WORD)
    _round(emit)
    _combine(emit, Op.XOR_X, _V0, _WORD)


def _round(emit: Assembler) -> None:
    """Mix the state; this is `hashing._rounds`, line by line."""
    emit.because("a round: add, rotate, xor")
    _combine(emit, Op.ADD_X, _V0, _V1)
    _rotate(emit, _V1, 5, xor=_V0)
    _rotate(emit, _V0, 16)
    _combine(emit, Op.ADD_X, _V2, _V3)
    _rotate(emit, _V3, 8, xor=_V2)
    _combine(emit, Op.ADD_X, _V0, _V3)
    _rotate(emit, _V3, 7, xor=_V0)
    _combine(emit, Op.ADD_X, _V2, _V1)
    _rotate(emit, _V1, 13, xor=_V2)
    _rotate(emit, _V2, 16)


def _combine(emit: Assembler, op: Op, place: int, other: int) -> None:
    emit(Op.LD_MEMORY, place)
    emit(Op.LDX_MEMORY, other)
    emit(op)
    emit(Op.ST, place)


def _rotate(emit: Assembler, place: int, bits: int, xor: int | None = None) -> None:
    """Rotate a word to the left; there is no instruction for it. Then mix in another one, if there is one."""
    emit(Op.LD_MEMORY, place)
    emit(Op.LSH, bits)
    emit(Op.TAX)
    emit(Op.LD_MEMORY, place)
    emit(Op.RSH, 32 - bits)
    emit(Op.OR_X)
    if xor is not None:
        emit(Op.LDX_MEMORY, xor)
        emit(Op.XOR_X)
    emit(Op.ST, place)


def _pick(emit: Assembler, owners: Sequence[int]) -> None:
    """Return the owner of the bucket whose digest is in A."""
    planes = range(max(owners).bit_length())
    emit.because("the bucket: its low 5 bits are a place in a block, the rest is the number of the block")
    emit(Op.AND, len(owners) - 1)
    emit(Op.ST, _BUCKET)
    emit(Op.AND, _BLOCK - 1)
    emit(Op.TAX)
    emit(Op.LD_MEMORY, _BUCKET)
    _tree(emit, owners, 0, len(owners) // _BLOCK)
    emit.label("pick")
    emit.because("bit X of each constant is a bit of the slot's number")
    for plane in planes:
        emit(Op.LD_MEMORY, plane)
        emit(Op.RSH_X)
        emit(Op.AND, 1)
        if plane:
            emit(Op.LSH, plane)
        emit(Op.ST, plane)
    emit(Op.LD_MEMORY, 0)
    for plane in planes[1:]:
        emit(Op.LDX_MEMORY, plane)
        emit(Op.OR_X)
    emit(Op.RET_A)


def _tree(emit: Assembler, owners: Sequence[int], low: int, high: int) -> None:
    """Load the constants of the block, from *low* up to *high*, that holds the bucket in A."""
    if high - low > 1:
        middle = (low + high) // 2
        emit(Op.JGE, middle * _BLOCK, to=f"block{middle}")
        _tree(emit, owners, low, middle)
        emit.label(f"block{middle}")
        _tree(emit, owners, middle, high)
        return
    block = owners[low * _BLOCK : high * _BLOCK]
    emit.because(f"buckets {low * _BLOCK} to {high * _BLOCK - 1}")
    for plane in range(max(owners).bit_length()):
        emit(Op.LD, sum((owner >> plane & 1) << bit for bit, owner in enumerate(block)))
        emit(Op.ST, plane)
    if high * _BLOCK < len(owners):
        emit(Op.JA, to="pick")
