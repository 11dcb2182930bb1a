"""How often a warning is repeated, and how many lines are written at once."""

from __future__ import annotations

import logging
import sys

import pytest

from limpet import logs
from limpet.logs import Hourly


def test_lines_for_a_pipe_are_written_in_whole_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe takes 4096 bytes at once: of more, lines of other processes could come into the middle of one."""
    pieces: list[str] = []
    monkeypatch.setattr(sys, "stderr", Noting(pieces))
    monkeypatch.setattr(logging.getLogger("limpet"), "handlers", [logging.StreamHandler()])
    lines = [f"{number} {'x' * (number % 700)}\n" for number in range(2000)]
    lines[1000] = "y" * 5000 + "\n"
    lines[1001] = "z" * 4095 + "\n"
    logs.write("".join(lines))
    assert "".join(pieces) == "".join(lines)
    assert all(piece.endswith("\n") and (len(piece) <= 4096 or piece == lines[1000]) for piece in pieces)
    assert len(pieces) < len(lines) / 5


class Noting:
    """Notes what is written to it."""

    def __init__(self, pieces: list[str]) -> None:
        self.write = pieces.append

    def flush(self) -> None:
        pass


def test_warning_is_repeated_after_an_hour_for_each_cause() -> None:
    """What goes on for long must not fill the log, and must not hide what else happens."""
    hourly = Hourly()
    assert hourly.allows("backlog", now=100.0)
    assert not hourly.allows("backlog", now=3699.9)
    assert hourly.allows("addresses", now=101.0)
    assert hourly.allows("backlog", now=3700.0)
    assert not hourly.allows("backlog", now=3701.0)
