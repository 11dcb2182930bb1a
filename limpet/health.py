"""Whether a process still does what it should, as the scoreboard shows it.

Owns the decision. Asked by the supervisor at each tick, which kills whoever has a fault.
"""

from __future__ import annotations

from limpet.scoreboard import Scoreboard
from limpet.settings import Settings
from limpet.slot import Member


def fault(member: Member, board: Scoreboard, settings: Settings, now: float) -> str | None:
    """Return what is wrong with the process in charge of *member*, None if nothing is. *now* is monotonic."""
    if member.child is None:
        return None
    if member.role == "dispatcher":
        since_ns = board.dispatcher(member.number)["busy_since_ns"]
    else:
        since_ns = board.worker(member.child.row)["asking_since_ns"]
    if 0 < since_ns < (now - settings.key_timeout_s) * 1e9:
        return f"has not moved for {settings.key_timeout_s:g} s (a key function that hangs?)"
    return None
