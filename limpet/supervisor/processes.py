"""What follows each event in a member's life: a process is started, told something, let in, killed, or buried.

Owns how a decision of fleet/lifecycle.py becomes a command to a process. It knows no order of slots: rolling.py,
scaling.py and shutdown.py call `apply` to say what happens to which member, and `Followers` are told the result.

1. A death is handled after everything that the dead child said.
2. A slot's new worker is ready before the old one is told to drain, and takes connections after that.
3. If the system has no room for a process, that counts as the death of the process.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from limpet.config.server_kinds import kind
from limpet.errors import AppError, LimpetError, SettingsError, reason
from limpet.fleet.fleet import Fleet
from limpet.fleet.lifecycle import Action, Event, State
from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.ipc.news import Failed
from limpet.ipc.orders import Accept, Drain, Stop
from limpet.supervisor.announcing import Announcer
from limpet.supervisor.lines import Lines

HARD_STOP_S: Final = 2.0  # after the graceful timeout, for cancelled requests and the application's own shutdown
_LEAVE_S: Final = 1.0  # how long a successor waits until its predecessor leaves the channels: a hung one never does
log = logging.getLogger("limpet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Followers:
    """The functions that are told what happened to a member."""

    ready: Callable[[Member], None]
    """The member's new process is ready."""
    start_failed: Callable[[Member], None]
    """The process in charge died before it was ready; `cause` says why. For a successor, `kept` is called instead."""
    kept: Callable[[Member], None]
    """The successor died before it was ready; the process in charge stays."""
    crashed: Callable[[Member, Child, float], None]
    """The process in charge died while it served. The argument is the monotonic time at which this was noticed."""
    ended: Callable[[Member], None]
    """One of the member's processes was reaped, and the event that follows was applied."""


class Processes:
    """The processes of one server."""

    def __init__(
        self,
        fleet: Fleet,
        lines: Lines,
        announcer: Announcer,
        followers: Followers,
        *,
        left_s: Callable[[float], float],
        now: Callable[[], float],
    ) -> None:
        """*left_s* says how long a process that is told to leave may take; *now* is the monotonic clock."""
        self._fleet = fleet
        self._lines = lines
        self._announcer = announcer
        self._followers = followers
        self._left_s = left_s
        self._now = now

    def apply(self, member: Member, event: Event) -> None:
        """Let *event* happen to *member*, and do what follows."""
        match member.life.happened(event, self._now()):
            case Action.SPAWN | Action.SPAWN_SUCCESSOR:
                self._spawn(member)
            case Action.REPLACE | Action.RETIRE as action:
                self._give_time(member.retire())
                if action is Action.REPLACE:
                    self._spawn(member)
            case Action.OPEN:
                self._open(member)
            case Action.SWITCH:
                old = member.retire()
                self._drain(old, Drain, succeeded=True)
                self._open(member)
                log.info("%s drains", member.name(old), extra={"event": "draining", **member.about(old)})
            case Action.PROMOTE:
                member.promote()
            case Action.KEEP:
                self._followers.kept(member)
            case Action.RETRY_LATER:
                self._followers.start_failed(member)
            case Action.DRAIN:
                member.dismiss_successor()
                for child in member.children:
                    self._drain(child, Drain if member.role == "worker" else Stop)
            case Action.KILL if member.child is not None:
                member.child.kill()

    def _spawn(self, member: Member) -> None:
        member.is_outdated = False
        try:
            child = self._fleet.resources.spawn(member)
        except OSError as error:
            hint = "`ulimit -Hn` and `ulimit -u` show how many descriptors and processes are allowed"
            if isinstance(error, FileNotFoundError):
                hint = (
                    f"workers start in `{self._fleet.started_in}`, where the server was started: does it still exist?"
                )
            if isinstance(error, PermissionError):
                hint = f"the user of `--user` must be allowed to run {sys.executable} and to enter its directories"
            member.cause = LimpetError(f"cannot start {member.role} {member.number}: {reason(error)}", hint=hint)
            is_successor = member.life.state is State.RENEWING
            self.apply(member, Event.SUCCESSOR_DIED if is_successor else Event.DIED)
            return
        if member.life.state is State.RENEWING:
            member.successor = child
        else:
            member.child = child
        self._lines.listen_to(member, child)

    def _drain(self, child: Child, order: type[Drain], *, succeeded: bool = False) -> None:
        """Tell *child* to finish, and whether a successor has its place. Record when its time is over."""
        left_s = self._give_time(child)
        timeout_s = None if left_s == float("inf") else left_s
        child.tell(order(timeout_s, self._fleet.is_stopping, succeeded))

    def _give_time(self, child: Child) -> float:
        """Record when *child* is killed if it has not drained by then. Return how many seconds it may take."""
        now = self._now()
        left_s = self._left_s(now)
        if child.role == "terminator":  # its connections cannot move to another process
            left_s, child.leaves_by = left_s if self._fleet.is_stopping else float("inf"), now + _LEAVE_S
        child.kill_at = now + left_s + HARD_STOP_S
        if (
            child.is_open and child.role == "worker" and kind(self._fleet.settings.server).moves
        ):  # other servers never report that they have left
            child.leaves_by = now + _LEAVE_S
        return left_s

    def reap_all(self) -> None:
        """Handle all deaths so far. Never blocks."""
        for member, child in list(self._fleet.processes()):
            self.reap(member, child)

    def reap(self, member: Member, child: Child) -> None:
        """Handle the death of *child*, if it has died. Never blocks."""
        if not child.ended():
            return
        self._lines.hear_last(member, child)
        self._fleet.resources.bury(member, child)
        if child is member.child and member.life.state.serves:
            self._followers.crashed(member, child, self._now())
        if child.failure and child.failure.detail and not self._fleet.is_stopping:  # all slots may fail in the same way
            log.error(
                "%s failed\n%s",
                member.name(child),
                child.failure.detail.rstrip(),
                extra={"event": "failed_with_traceback", **member.about(child)},
            )
        cause = _cause(member, child)
        event = member.remove(child)
        if event is not None:
            member.cause = cause
            self.apply(member, event)
        else:
            if child.failure is None:
                log.info(
                    "%s has drained: it %s",
                    member.name(child),
                    child.how_it_ended(),
                    extra={"event": "drained", **member.about(child)},
                )
            self.let_take(member)
        self._announcer.tell_workers(self._now())
        self._followers.ended(member)

    def _open(self, member: Member) -> None:
        """Let *member*, whose process is ready, take part."""
        assert member.child is not None
        seconds = self._now() - member.child.started_at
        release = member.child.release if member.child.release != self._fleet.started_in else ""
        level = logging.INFO if member.role == "worker" else logging.DEBUG
        log.log(
            level,
            "%s ready after %.1f s%s",
            member,
            seconds,
            f", from {release}" if release else "",
            extra={"event": "ready", **member.about()},
        )
        self._announcer.tell_workers(self._now())
        self._followers.ready(member)

    def let_take(self, member: Member) -> None:
        """Let the process in charge take connections, once its predecessors have left the slot's channels."""
        if self._fleet.is_serving and member.may_open(self._now()) and member.child is not None:
            member.child.is_open = True
            member.child.tell(Accept())

    def put_off(self, paused_s: float) -> None:
        """Move all deadlines by *paused_s* seconds, in which no process could run."""
        for _, child in self._fleet.processes():
            child.started_at += paused_s
            child.kill_at += paused_s
            child.leaves_by += paused_s if child.leaves_by else 0.0
        for member in self._fleet.members():  # one that waits for its next try has no process
            member.life.retry_at += paused_s if member.life.state is State.BACKOFF else 0.0

    def kill(self, member: Member, child: Child, why: str) -> None:
        """Kill a process that does not do what it must. Its death is handled later."""
        if child.failure is None:
            log.error("%s %s; it is killed", member.name(child), why, extra={"event": "killed", **member.about(child)})
            child.failure = Failed(f"{member.name(child)} {why}")
            child.kill()


def _cause(member: Member, child: Child) -> LimpetError:
    """Return why *child* has ended, in its own words if it sent any."""
    failure = child.failure
    if failure is None:
        return AppError(f"{member.name(child)} {child.how_it_ended()} before it was ready")
    kind = SettingsError if failure.code == SettingsError.exit_code else AppError
    return kind(failure.message, hint=failure.hint)
