"""Whether processes still work, and whether a worker must be recycled.

Owns these decisions, and the observations behind them: the scoreboard, and what the kernel reports about a process. The
supervisor calls it at each tick, and kills the processes that it names. The watchdog itself logs warnings and requests
renewals.

1. A worker's heartbeat runs on its event loop and is missing while the loop is blocked. That is a warning, because all
   clients of the slot wait. It is not a reason to kill the worker: code in C may be busy for seconds.
2. A worker hangs if it has no heartbeat and uses no CPU time for `--hang-timeout`; a stopped worker is one case.
   Dispatchers and terminators have no heartbeat, because they sleep while nothing arrives. For them the kernel is asked
   whether they are stopped. A terminator also hangs if one turn of its loop takes that long.
3. Time in which the supervisor itself could not run does not count against any process. After such a pause (a paused
   container, a machine that slept) every deadline moves by the length of the pause.
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

_LATE_S: Final = 4 * BEAT_S  # after that the kernel is asked for CPU time, which costs 20 us
_PAUSE_S: Final = 2.0  # between two looks: a longer gap means that this process was stopped or the machine slept
_MIB: Final = 1 << 20
_GROWN: Final = 1.5  # times its first memory: then a successor will be smaller


@dataclass(slots=True)
class _Signs:
    """What was last observed of a worker."""

    moved_at: float  # monotonic: the last heartbeat, or use of CPU time
    cpu: int = -1
    is_warned: bool = False


class Health:
    """What is known about the workers of one server."""

    def __init__(self, settings: Settings, board: Scoreboard) -> None:
        self._settings = settings
        self._board = board
        self._signs: dict[int, _Signs] = {}  # by serial number
        # By pid, for processes without a heartbeat: whether the process is stopped, its turn, and since when both are
        # the same.
        self._still: dict[int, tuple[tuple[bool, int], float]] = {}
        self._looked_at = float("inf")
        self._first_memory: dict[int, int] = {}  # by serial number: bytes, at the first look
        self._said_large: set[int] = set()
        self._resumed_at = 0.0  # monotonic: the end of the last pause of this process

    def begin_look(self, now: float, serials: set[int]) -> float:
        """Start to look at all processes. *serials* are the serial numbers of the workers that live.

        Return for how many seconds this process, and most likely every other one, could not run: normally 0.
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
        """Return what is wrong with the process in charge of *member*, or None if nothing is. *now* is monotonic."""
        if member.child is None:
            return None
        if member.role != "worker" and (why := self._look_whether_still(member.role, member.child, now)):
            return why
        if member.role == "terminator":  # it runs no user code
            return None
        limit_s = self._settings.key_timeout_s
        is_worker = member.role == "worker"
        row = self._board.worker(member.child.row) if is_worker else self._board.dispatcher(member.child.row)
        since_ns = row["asking_since_ns" if is_worker else "busy_since_ns"]
        if since_ns and now - max(since_ns / 1e9, self._resumed_at) > limit_s:
            return f"has made no progress for {limit_s:g} s (does a key function hang?)"
        if is_worker and member.life.state.serves and row["beat_ns"]:
            return self._look_at_worker(member.child, row["beat_ns"] / 1e9, now)
        return None

    def _look_whether_still(self, role: str, child: Child, now: float) -> str | None:
        """Return what is wrong if *child* was stopped, or stayed in one turn of its loop as a terminator, too long."""
        turn_ns = self._board.terminator(child.row)["busy_since_ns"] if role == "terminator" else 0
        sign = (is_stopped(child.pid), turn_ns)
        seen, since = self._still.get(child.pid, (None, now))
        if sign != seen:
            self._still[child.pid] = sign, now
        elif any(sign) and now - since > self._settings.hang_timeout_s:
            return f"{'was stopped' if sign[0] else 'has made no progress'} for {self._settings.hang_timeout_s:g} s"
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
        """Return for how many seconds *member*'s worker has blocked its event loop, if a warning is due now.

        Else return 0.
        """
        if member.child is None or member.child.serial not in self._signs:
            return 0.0
        signs = self._signs[member.child.serial]
        blocked_s = now - self._board.worker(member.child.row)["beat_ns"] / 1e9
        if signs.is_warned or blocked_s < self._settings.block_warning_s:
            return 0.0
        signs.is_warned = True
        return blocked_s

    def recycle(self, child: Child, row: Row) -> str | None:
        """Return why *child*, which serves, must get a successor, or None if it need not."""
        most = self._settings.max_requests
        # Each worker gets up to a tenth less, by its serial number. Otherwise all that started together would end
        # together.
        if most and row["requests"] >= most - child.serial * 2_654_435_761 % (1 << 32) * (most // 10) // (1 << 32):
            return f"it has served {row['requests']} requests"
        most = self._settings.max_memory_mib * _MIB
        if not most:
            return None
        used = memory(child.pid)
        first = self._first_memory.setdefault(child.serial, used)
        # A worker that was too large from the start would get a successor of the same size, so only its growth counts.
        if used > max(most, _GROWN * first if first > most else 0):
            return f"it uses {used // _MIB} MiB of memory"
        return None

    def is_too_large_at_once(self, child: Child) -> int:
        """Return the MiB that *child* used at its start, if that exceeded the limit. Return it only once, then 0."""
        first = self._first_memory.get(child.serial, 0)
        if child.serial in self._said_large or not 0 < self._settings.max_memory_mib * _MIB < first:
            return 0
        self._said_large.add(child.serial)
        return first // _MIB


_RECYCLE_PAUSE_S: Final = 30.0  # before the next try, after a worker could not be renewed
log = logging.getLogger("limpet")


class Watchdog:
    """The watch over the processes of one server."""

    def __init__(self, fleet: Fleet, rolling: Rolling) -> None:
        self._fleet = fleet
        self._board = fleet.resources.board
        self._health = Health(fleet.settings, self._board)
        self._rolling = rolling
        self._memory_kills = memory_kills()

    def begin(self, now: float) -> float:
        """Start to look at all members. Return for how many seconds no process could run: normally 0."""
        serials = {child.serial for slot in self._fleet.slots for child in slot.children}
        paused_s = self._health.begin_look(now, serials)
        if paused_s:
            log.warning(
                "this process could not run for %.1f s: all deadlines move by that time",
                paused_s,
                extra={"event": "paused"},
            )
        return paused_s

    def look_after(self, member: Member, now: float) -> str | None:
        """Return why the process in charge must be killed, or None. Warn if it is blocked; renew it if that is due."""
        fault = self._health.fault(member, now)
        if member.child is None or member.role != "worker":
            return fault
        if fault:
            self._board.supervisor().add("hung", member.child.failure is None)
        elif blocked_s := self._health.blocked_s(member, now):
            self._board.supervisor().add("loops_blocked")
            hint = f"`limpet stack {member.number}` shows where its code is"
            log.warning(
                "%s has blocked its event loop for %.1f s (hint: %s)",
                member,
                blocked_s,
                hint,
                extra={"event": "event_loop_blocked", **member.about()},
            )
        elif member.life.state is State.READY and member.child.is_open and now >= member.recycle_at:
            self._recycle(member, member.child, now)
        return fault

    def _recycle(self, member: Member, child: Child, now: float) -> None:
        why = self._health.recycle(child, self._board.worker(child.row))
        if used := self._health.is_too_large_at_once(child):
            log.warning(
                "%s used %d MiB when it began to serve, more than `--max-memory %d`: a successor would be as large, so "
                "it is renewed only after it has grown by half (hint: set a larger `--max-memory`)",
                *(member, used, self._fleet.settings.max_memory_mib),
                extra={"event": "large_at_start", **member.about()},
            )
        if why and not self._fleet.changes.involves(member.number):
            member.recycle_at = now + _RECYCLE_PAUSE_S  # if the renewal fails, the old worker stays for a while
            self._board.supervisor().add("recycled")
            log.info("%s is recycled: %s", member, why, extra={"event": "recycled", **member.about()})
            self._rolling.request(f"recycling of worker {member.number}", [member.number], 1)

    def crashed(self, member: Member, child: Child, now: float) -> None:
        """Log how *child*, which served, has ended, and whether such ends are a crash loop."""
        member.last_end = child.how_it_ended()
        hint = ""
        if member.last_end.endswith("SIGKILL") and child.failure is None:
            before, self._memory_kills = self._memory_kills, memory_kills()
            if before != self._memory_kills:
                member.last_end += ", most likely by the kernel, which is out of memory"
                hint = " (hint: `--max-memory` renews a worker in time; `dmesg` shows what the kernel has killed)"
        log.error(
            "%s %s; it is replaced%s",
            member.name(child),
            member.last_end,
            hint,
            extra={"event": "crashed", **member.about(child)},
        )
        if member.life.crashed(now):
            log.error(
                "%s keeps crashing: %d times within %d s (hint: `limpet status --json` shows `last_end`)",
                *(f"{member.role} {member.number}", CRASHES, CRASH_WINDOW_S),
                extra={"event": "crash_loop", **member.about()},
            )
