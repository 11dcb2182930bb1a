"""What fuzzing has found interesting is tried each time, and so are changes of it; `make fuzz` looks for more."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.__main__ import CORPUS
from tests.fuzz.targets import TARGETS

CHANGES = {"channels": 200}  # each makes sockets
TOKENS = [b"\r\n", b"\n", b"\r", b"\0", b":", b" ", b"\t", b",", b";", b"=", b'"', b"%", b"\xff", b"0", b"chunked"]


def corpus(name: str) -> list[Path]:
    return sorted((CORPUS / name).iterdir())


@pytest.mark.parametrize("path", [path for name in TARGETS for path in corpus(name)], ids=lambda path: path.name)
def test_input_that_was_found_is_harmless(path: Path) -> None:
    """A finding that comes back is a hole that was known."""
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_changes_of_what_was_found_are_harmless(name: str) -> None:
    """A short look at the neighbourhood, the same each time: a failure here is one that everybody can repeat."""
    dice = random.Random(f"limpet {name}")
    seeds = [path.read_bytes() for path in corpus(name)]
    for _ in range(CHANGES.get(name, 2000)):
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.randint(1, 4)):
            at, size = dice.randint(0, len(data)), dice.randint(0, 3)
            other = dice.choice(seeds)
            piece = dice.choice([dice.randbytes(1), dice.choice(TOKENS), other[dice.randint(0, len(other)) :][:40]])
            data[at : at + size] = piece
        try:
            TARGETS[name](bytes(data))
        except Exception as error:
            raise AssertionError(f"{bytes(data)!r}") from error
