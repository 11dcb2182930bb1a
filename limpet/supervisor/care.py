"""What is done and said about workers that do not do well: hung, blocked, due for recycling, crashed.

Owns the log lines and the figures. supervisor/watchdog.py sees the signs; the supervisor kills whoever has a fault.
"""

from __future__ import annotations

import logging
from typing import Final

from limpet.config.settings import Settings
from limpet.fleet.lifecycle import CRASH_WINDOW_S, CRASHES, State
from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.ipc.scoreboard import Scoreboard
from limpet.supervisor.rolling import Rolling
from limpet.supervisor.watchdog import Health
from limpet.system.proc import memory_kills

_RECYCLE_PAUSE_S: Final = 30.0  # before a worker that could not be renewed is tried again
log = logging.getLogger("limpet")


class Care:
    """The supervisor's care for its processes."""

    def __init__(self, settings: Settings, board: Scoreboard, rolling: Rolling) -> None:
        self._health = Health(settings, board)
        self._board = board
        self._rolling = rolling
        self._memory_kills = memory_kills()

    def begin(self, now: float, serials: set[int]) -> None:
        """Begin to look at all members; *serials* are those of the workers that live."""
        self._health.begin_look(now, serials)

    def look_after(self, member: Member, now: float) -> str | None:
        """Return for what the process in charge is to be killed; warn when it is blocked, renew it when that is due."""
        fault = self._health.fault(member, now)
        if member.child is None or member.role != "worker":
            return fault
        if fault:
            self._board.supervisor().add("hung", member.child.failure is None)
        elif blocked_s := self._health.blocked_s(member, now):
            self._board.supervisor().add("loops_blocked")
            hint = f"`limpet stack {member.number}` shows where it is"
            log.warning("%s has blocked its event loop for %.1f s (hint: %s)", member, blocked_s, hint)
        elif member.life.state is State.READY and member.child.is_open and now >= member.recycle_at:
            self._recycle(member, member.child, now)
        return fault

    def _recycle(self, member: Member, child: Child, now: float) -> None:
        why = self._health.recycle(child, self._board.worker(child.row))
        if why and not self._rolling.changes.involves(member.number):
            member.recycle_at = now + _RECYCLE_PAUSE_S  # when it fails, the old one goes on for a while
            self._board.supervisor().add("recycled")
            log.info("%s is recycled: %s", member, why)
            self._rolling.request(f"recycling of worker {member.number}", [member.number], 1)

    def crashed(self, member: Member, child: Child, now: float) -> None:
        """Say how *child*, which served, has ended, and whether that happens again and again."""
        member.last_end = child.how_it_ended()
        hint = ""
        if member.last_end.endswith("SIGKILL") and child.failure is None:
            before, self._memory_kills = self._memory_kills, memory_kills()
            if before != self._memory_kills:
                member.last_end += ", most likely by the kernel, which is out of memory"
                hint = " (hint: `--max-memory` renews a worker before that; `dmesg` shows what the kernel has killed)"
        log.error("%s %s; it is replaced%s", member.name(child), member.last_end, hint)
        if member.life.crashed(now):
            log.error(
                "%s ends again and again: %d times within %d s (hint: `limpet status --json` shows `last_end`)",
                *(f"{member.role} {member.number}", CRASHES, CRASH_WINDOW_S),
            )
