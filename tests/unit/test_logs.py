"""How often a warning is repeated, and how many lines are written at once."""

from __future__ import annotations

from limpet import logs
from limpet.logs import Hourly


def test_lines_for_a_pipe_are_written_in_whole_pieces() -> None:
    """A pipe takes 4096 bytes at once: of more, lines of other processes could come into the middle of one."""
    lines = [f"{number} {'x' * (number % 700)}\n".encode() for number in range(2000)]
    lines[1000] = b"y" * 5000 + b"\n"
    lines[1001] = b"z" * 4095 + b"\n"
    cut = list(logs.pieces(b"".join(lines)))
    assert b"".join(cut) == b"".join(lines)
    assert all(piece.endswith(b"\n") and (len(piece) <= 4096 or piece == lines[1000]) for piece in cut)
    assert len(cut) < len(lines) / 5


def test_warning_is_repeated_after_an_hour_for_each_cause() -> None:
    """What goes on for long must not fill the log, and must not hide what else happens."""
    hourly = Hourly()
    assert hourly.allows("backlog", now=100.0)
    assert not hourly.allows("backlog", now=3699.9)
    assert hourly.allows("addresses", now=101.0)
    assert hourly.allows("backlog", now=3700.0)
    assert not hourly.allows("backlog", now=3701.0)
