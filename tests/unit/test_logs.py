"""How often a warning is repeated."""

from __future__ import annotations

from limpet.logs import Hourly


def test_warning_is_repeated_after_an_hour_for_each_cause() -> None:
    """What goes on for long must not fill the log, and must not hide what else happens."""
    hourly = Hourly()
    assert hourly.allows("backlog", now=100.0)
    assert not hourly.allows("backlog", now=3699.9)
    assert hourly.allows("addresses", now=101.0)
    assert hourly.allows("backlog", now=3700.0)
    assert not hourly.allows("backlog", now=3701.0)
