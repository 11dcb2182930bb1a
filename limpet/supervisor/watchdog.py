"""Whether processes still do what they should, and whether a worker is due to be recycled.

Owns these decisions and what they are made from: the scoreboard, and what the kernel tells of a process. Asked by the
supervisor at each tick, which kills, renews or warns.

1. A worker's heartbeat comes through its event loop. While the loop is blocked it is missing, and that is warned of:
   every client of the slot waits. It is no reason to kill: code in C may be busy for seconds.
2. A worker that has neither a heartbeat nor used any CPU time for `--hang-timeout` hangs, as one that is stopped does.
   The others have no heartbeat, since they sleep while nothing comes: of them the kernel is asked whether they are
   stopped, and a terminator hangs when it has been in one turn of its loop for as long.
3. Time in which this process itself could not run counts against no process: after a pause (a container that was
   paused, a machine that slept) every deadline is put off by as much.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from limpet.config.settings import Settings
from limpet.fleet.fleet import Fleet
from limpet.fleet.lifecycle import CRASH_WINDOW_S, CRASHES, State
from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.ipc.scoreboard import BEAT_S, Row, Scoreboard
from limpet.supervisor.rolling import Rolling
from limpet.system.proc import cpu_ticks, is_stopped, memory, memory_kills

_LATE_S: Final = 4 * BEAT_S  # from then on the kernel is asked for CPU time, which costs 20 us
_PAUSE_S: Final = 2.0  # between two looks: more means that this process was stopped, or the machine slept
_MIB: Final = 1 << 20
_GROWN: Final = 1.5  # times its first memory: then a successor is smaller


@dataclass(slots=True)
class _Signs:
    """What was last seen of a worker."""

    moved_at: float  # monotonic: its heart has beaten, or it has used CPU time
    cpu: int = -1
    is_warned: bool = False


class Health:
    """What is known of the workers of one server."""

    def __init__(self, settings: Settings, board: Scoreboard) -> None:
        self._settings = settings
        self._board = board
        self._signs: dict[int, _Signs] = {}  # by serial number
        # By pid, of processes without a heartbeat: whether it is stopped, its turn, and since when that is so.
        self._still: dict[int, tuple[tuple[bool, int], float]] = {}
        self._looked_at = float("inf")
        self._first_memory: dict[int, int] = {}  # by serial number: bytes, at the first look
        self._said_large: set[int] = set()
        self._resumed_at = 0.0  # monotonic: when this process went on after its last pause

    def begin_look(self, now: float, serials: set[int]) -> float:
        """Begin to look at all; *serials* are those of the workers that live.

        Return for how long this process could not run, and most likely nobody else: 0 for the usual.
        """
        self._signs = {serial: signs for serial, signs in self._signs.items() if serial in serials}
        self._first_memory = {serial: used for serial, used in self._first_memory.items() if serial in serials}
        self._said_large &= serials
        paused_s = max(0.0, now - self._looked_at)
        if paused_s > _PAUSE_S:
            self._resumed_at = now
            for signs in self._signs.values():
                signs.moved_at = now
            self._still.clear()
        self._looked_at = now
        return paused_s if paused_s > _PAUSE_S else 0.0

    def fault(self, member: Member, now: float) -> str | None:
        """Return what is wrong with the process in charge of *member*, None if nothing is. *now* is monotonic."""
        if member.child is None:
            return None
        if member.role != "worker" and (why := self._look_whether_still(member.role, member.child, now)):
            return why
        if member.role == "terminator":  # where no code of users runs
            return None
        limit_s = self._settings.key_timeout_s
        is_worker = member.role == "worker"
        row = self._board.worker(member.child.row) if is_worker else self._board.dispatcher(member.child.row)
        since_ns = row["asking_since_ns" if is_worker else "busy_since_ns"]
        if since_ns and now - max(since_ns / 1e9, self._resumed_at) > limit_s:
            return f"has not moved for {limit_s:g} s (a key function that hangs?)"
        if is_worker and member.life.state.serves and row["beat_ns"]:
            return self._look_at_worker(member.child, row["beat_ns"] / 1e9, now)
        return None

    def _look_whether_still(self, role: str, child: Child, now: float) -> str | None:
        """Return what is wrong if *child* is stopped for too long, or as a terminator in one turn of its loop."""
        turn_ns = self._board.terminator(child.row)["busy_since_ns"] if role == "terminator" else 0
        sign = (is_stopped(child.pid), turn_ns)
        seen, since = self._still.get(child.pid, (None, now))
        if sign != seen:
            self._still[child.pid] = sign, now
        elif any(sign) and now - since > self._settings.hang_timeout_s:
            return f"{'was stopped' if sign[0] else 'has not moved'} for {self._settings.hang_timeout_s:g} s"
        return None

    def _look_at_worker(self, child: Child, beat: float, now: float) -> str | None:
        signs = self._signs.setdefault(child.serial, _Signs(now))
        if now - beat < self._settings.block_warning_s:
            signs.is_warned = False
        if now - beat < _LATE_S:
            signs.moved_at = now
            return None
        cpu = cpu_ticks(child.pid)
        if cpu != signs.cpu:
            signs.cpu, signs.moved_at = cpu, now
        if now - signs.moved_at > self._settings.hang_timeout_s:
            return f"hangs: no heartbeat and no CPU time used for {self._settings.hang_timeout_s:g} s"
        return None

    def blocked_s(self, member: Member, now: float) -> float:
        """Return for how long the event loop of *member*'s worker has been blocked if that is to be warned of now."""
        if member.child is None or member.child.serial not in self._signs:
            return 0.0
        signs = self._signs[member.child.serial]
        blocked_s = now - self._board.worker(member.child.row)["beat_ns"] / 1e9
        if signs.is_warned or blocked_s < self._settings.block_warning_s:
            return 0.0
        signs.is_warned = True
        return blocked_s

    def recycle(self, child: Child, row: Row) -> str | None:
        """Return why *child*, which serves, is due for a successor, None if it is not."""
        most = self._settings.max_requests
        # Each gets up to a tenth less, by its serial number: else all that started together would end together.
        if most and row["requests"] >= most - child.serial * 2_654_435_761 % (1 << 32) * (most // 10) // (1 << 32):
            return f"it has served {row['requests']} requests"
        most = self._settings.max_memory_mib * _MIB
        if not most:
            return None
        used = memory(child.pid)
        first = self._first_memory.setdefault(child.serial, used)
        # One that was too large at once has a successor as large: only what it has grown by since counts.
        if used > max(most, _GROWN * first if first > most else 0):
            return f"it uses {used // _MIB} MiB of memory"
        return None

    def is_too_large_at_once(self, child: Child) -> int:
        """Return how many MiB *child* used when it began to serve if that was more than it may; said once, then 0."""
        first = self._first_memory.get(child.serial, 0)
        if child.serial in self._said_large or not 0 < self._settings.max_memory_mib * _MIB < first:
            return 0
        self._said_large.add(child.serial)
        return first // _MIB


_RECYCLE_PAUSE_S: Final = 30.0  # before a worker that could not be renewed is tried again
log = logging.getLogger("limpet")


class Watchdog:
    """The supervisor's care for its processes."""

    def __init__(self, fleet: Fleet, rolling: Rolling) -> None:
        self._fleet = fleet
        self._board = fleet.resources.board
        self._health = Health(fleet.settings, self._board)
        self._rolling = rolling
        self._memory_kills = memory_kills()

    def begin(self, now: float) -> float:
        """Begin to look at all members; return for how long nobody could run, in seconds: 0 for the usual."""
        serials = {child.serial for slot in self._fleet.slots for child in slot.children}
        paused_s = self._health.begin_look(now, serials)
        if paused_s:
            log.warning("this process could not run for %.1f s: no deadline counts that time", paused_s)
        return paused_s

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
        if used := self._health.is_too_large_at_once(child):
            log.warning(
                "%s used %d MiB when it began to serve, more than `--max-memory %d`: a successor would be as large, so "
                "it is renewed only when it has grown by half (hint: a larger `--max-memory`)",
                *(member, used, self._fleet.settings.max_memory_mib),
            )
        if why and not self._fleet.changes.involves(member.number):
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
