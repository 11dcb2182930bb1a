"""How often a warning is repeated, how many lines are written at once, and what a line of JSON names."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from limpet import logs
from limpet.fleet.member import Member
from limpet.logs import Hourly
from tools.docs import events_page


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


def test_line_of_json_names_its_event_and_whom_it_is_about_whatever_its_words() -> None:
    """They were read out of the English: who reworded a message renamed its event, and lost the slot."""
    for words in ("%s drains", "now it is the end of %s"):
        record = logging.getLogger("limpet").makeRecord(
            *("limpet", logging.INFO, "", 0, words, ("worker 3",), None),
            extra={"event": "draining", **Member("worker", 3).about()},
        )
        assert {key: logs.fields(record)[key] for key in ("event", "slot")} == {"event": "draining", "slot": 3}
    other = logging.getLogger("uvicorn.error").makeRecord("uvicorn", logging.INFO, "", 0, "worker 3 left", (), None)
    assert logs.fields(other)["event"] == "other"
    assert "slot" not in logs.fields(other)


def test_every_log_call_names_its_event_and_the_page_lists_it() -> None:
    """An event that the page leaves out cannot be waited for."""
    assert (Path(__file__).parents[2] / "docs" / "events.md").read_text() == events_page.page()
    with pytest.raises(ValueError, match=r"shop\.py:2"):
        list(events_page.events('log.info("one", extra={"event": "one"})\nlog.error("two")\n', "shop.py"))
