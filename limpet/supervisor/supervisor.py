"""The supervisor process: starts the children, keeps what must outlive them, and obeys the operator.

Owns the loop, the order of starting, and what follows each event of a slot's life. Which state follows which event is
decided by fleet/lifecycle.py, which process has which part in a slot by fleet/member.py, how a child is equipped by
fleet/resources.py, started by fleet/process.py and heard by supervisor/lines.py, how connections get to the workers by
net/backend.py, which slot of a rolling change is next by fleet/changes.py, who needs help by supervisor/care.py, what
commands mean by supervisor/commands.py, who ends first by supervisor/shutdown.py.

1. It never reads a client's byte and never imports the application or a key function.
2. Signal handlers only record and wake; everything happens in the loop of `run`.
3. Nobody can connect before all slots are ready: listeners are bound at the start, but listen only then.
4. A death is handled after all that the dead child said.
5. A slot's new worker is ready before the old one is told to drain, and takes over after that.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import selectors
import signal
import sys
import time
from typing import Final

from limpet import logs
from limpet.config import privileges
from limpet.config.server_kinds import kind
from limpet.config.settings import Settings
from limpet.errors import AppError, ControlError, LimpetError, SettingsError, reason
from limpet.fleet import process
from limpet.fleet.changes import RELOAD, Change
from limpet.fleet.lifecycle import Action, Event, State
from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.fleet.resources import Estate
from limpet.net import backend
from limpet.net.accept_queue import Watch
from limpet.operate import control_socket
from limpet.operate.control_socket import ControlServer
from limpet.routing.learned_ids import Learned
from limpet.routing.router import Router
from limpet.supervisor import commands, signals, snapshot
from limpet.supervisor.beside import Beside
from limpet.supervisor.lines import Lines
from limpet.supervisor.program_link import Program
from limpet.supervisor.rolling import Rolling
from limpet.supervisor.scaling import SCALING, Scaling
from limpet.supervisor.shutdown import HARD_STOP_S, Stopping
from limpet.supervisor.upgrade import Upgrade
from limpet.supervisor.watchdog import Care

_TICK_S: Final = 0.25  # how late a back-off, a deadline or a hung dispatcher may be noticed
_LEAVE_S: Final = 1.0  # that a successor waits for its predecessor to leave the channels; one that hangs never does
_OBEYED: Final = (
    *SCALING,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGCHLD,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
log = logging.getLogger("limpet")


class Supervisor:
    """A running server: `run` is its whole life."""

    def __init__(
        self,
        settings: Settings,
        value: bytes,
        router: Router,
        chosen: backend.Backend,
        program: Program | None = None,
        before: snapshot.Packed | None = None,
    ) -> None:
        """*value* is the secret. *before* is what the supervisor left that this one replaces in its process."""
        self.settings = settings
        self.router = router
        self.backend = chosen
        counts = {"worker": settings.workers, "dispatcher": chosen.dispatchers, "terminator": chosen.terminators}
        if before is None:
            self.estate = Estate(settings, value, chosen)
            self.estate.grow(settings.workers)
            each = [[Member(role, number) for number in range(count)] for role, count in counts.items()]
        else:
            self.estate = snapshot.estate(settings, value, chosen, before)
            each = [snapshot.members(before, role) for role in counts]
        self.slots, self.dispatchers, self.terminators = each
        self.router.learned = Learned(self.estate.board.learned(), settings.learn_idle_s)
        self.rolling = Rolling(self.slots, self.dispatchers, self.terminators, self.happened)
        self.rolling.changes.adopt(snapshot.changes(before) if before else ())
        self._selector = selectors.DefaultSelector()
        self.lines = Lines(self, self._selector)
        self.control = self._open_control(before)
        self.upgrade = Upgrade(self, _OBEYED, before)
        self.program = program
        if program is not None:
            program.watch(self, self._selector)
        self._care = Care(settings, self.estate.board, self.rolling)
        self.scaling = Scaling(self, has_scaled=bool(before and before.get("scaled")))
        self._told_up: list[bool] = []  # what children know of which slots are up
        self._watch: Watch | None = None
        self.beside = Beside(self, self._selector, lambda: self._obey(signal.SIGHUP), before)
        self.serving = before is not None
        self._end = Stopping(self)

    def run(self) -> None:
        """Serve until told to stop. Raises LimpetError when the server never came to serve."""
        with signals.recorded(self._selector, _OBEYED) as recorded, self.beside:
            self._go_on() if self.serving else self._start()
            while not self._end.is_over:
                for key, _ in self._selector.select(_TICK_S):
                    key.data(time.monotonic())
                while recorded:
                    self._obey(recorded.pop(0))
                self._tick(time.monotonic())
                self.upgrade.go_on(recorded)
        self.control.close()
        if self._end.failure is not None:
            raise self._end.failure
        log.info("stopped")

    def _start(self) -> None:
        for member in self.members():
            if not self.stopping:  # since one before it could not be started
                self.happened(member, Event.START)

    def _go_on(self) -> None:
        """Go on where the supervisor before this one stopped; who has died meanwhile is found now."""
        self._watch = Watch(self.backend.doors(), self.settings.backlog, self.estate.board.supervisor())
        for member in self.members():
            member.is_outdated = member.role != "worker"
            for child in member.children:
                self.lines.listen_to(member, child)
                self._reap(member, child)
        self.tell_workers()

    def _open_control(self, before: snapshot.Packed | None) -> ControlServer:
        answer, owner = functools.partial(commands.answer, self), privileges.wanted(self.settings)
        if before is not None:
            return ControlServer.adopt(before["control"], answer, self._selector, time.monotonic(), owner)
        opened = control_socket.listen(self.settings.control, self.settings.cluster, owner)
        return ControlServer(*opened, answer, self._selector, owner)

    @property
    def stopping(self) -> bool:
        """Whether the server is about to end."""
        return self._end.is_under_way

    def stop(self, *, wait_for_connections: bool = False) -> None:
        """Begin to stop; with *wait_for_connections* the open ones may take as long as they like."""
        self._reap_all()  # a dispatcher that has died is replaced, and so keeps its backlog; later it would not be
        if not self.stopping:
            self._end.begin(wait_for_connections=wait_for_connections)

    def members(self) -> list[Member]:
        return [*self.terminators, *self.dispatchers, *self.slots]

    def _obey(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap_all()
            own = {child.pid for member in self.members() for child in member.children}
            process.reap_orphans(own | self.upgrade.pids | self.beside.pids)
        elif number == signal.SIGUSR2:
            self.upgrade.begin()
        elif number == signal.SIGUSR1:
            if logs.reopen():
                log.info("the log file was opened anew")
        elif number in SCALING:
            self.scaling.obey(number)
        elif number == signal.SIGHUP:
            with contextlib.suppress(LimpetError):  # it says so in the log
                self.reload()
        elif self.stopping:
            self._end.kill_at = 0.0
        else:
            self.stop()

    def happened(self, member: Member, event: Event) -> None:
        """Let *event* happen to *member* and do what follows."""
        match member.life.happened(event, time.monotonic()):
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
                self._drain(old, "drain", succeeded=True)
                self._open(member)
                log.info("%s drains", member.name(old))
            case Action.PROMOTE:
                member.promote()
            case Action.KEEP:
                self.rolling.failed(member)
            case Action.RETRY_LATER:
                self._start_failed(member)
            case Action.DRAIN:
                member.dismiss_successor()
                for child in member.children:
                    self._drain(child, "drain" if member.role == "worker" else "stop")
            case Action.KILL if member.child is not None:
                member.child.kill()

    def _spawn(self, member: Member) -> None:
        """Start the process that *member* wants. That the system has no room for one counts as its death."""
        member.is_outdated = False
        try:
            child = self.estate.spawn(member)
        except OSError as error:
            hint = "`ulimit -Hn` and `ulimit -u` show how many descriptors and processes are allowed"
            if isinstance(error, PermissionError):
                hint = f"whom `--user` names must be allowed to run {sys.executable}, and so to enter its directories"
            member.cause = LimpetError(f"cannot start {member.role} {member.number}: {reason(error)}", hint=hint)
            is_successor = member.life.state is State.RENEWING
            self.happened(member, Event.SUCCESSOR_DIED if is_successor else Event.DIED)
            return
        if member.life.state is State.RENEWING:
            member.successor = child
        else:
            member.child = child
        self.lines.listen_to(member, child)

    def _drain(self, child: Child, command: str, *, succeeded: bool = False) -> None:
        """Tell *child* to finish what it has, and whether another has its place; note when its time is over."""
        left_s = self._give_time(child)
        timeout_s = None if left_s == float("inf") else left_s
        child.link.send({"do": command, "timeout": timeout_s, "last": self.stopping, "succeeded": succeeded})

    def _give_time(self, child: Child) -> float:
        """Note when *child* is killed if it has not drained by then; return how long it may take, in seconds."""
        now = time.monotonic()
        left_s = self._end.left_s(now)
        if child.role == "terminator":  # connections cannot leave it
            left_s, child.leaves_by = left_s if self.stopping else float("inf"), now + _LEAVE_S
        child.kill_at = now + left_s + HARD_STOP_S
        if (
            child.is_open and child.role == "worker" and kind(self.settings.server).moves
        ):  # the others never say that they have left
            child.leaves_by = now + _LEAVE_S
        return left_s

    def _reap_all(self) -> None:
        for member in self.members():
            for child in member.children:
                self._reap(member, child)

    def _reap(self, member: Member, child: Child) -> None:
        """Take note of the death of *child*, if it has died, and do what follows."""
        if not child.ended():
            return
        self.lines.hear(member, child)
        self.lines.hang_up(child)
        self.estate.bury(member, child)
        if child is member.child and member.life.state.serves:
            self._care.crashed(member, child, time.monotonic())
        if child.failure and child.failure["detail"] and not self.stopping:  # all slots may have the same one
            log.error("%s failed\n%s", member.name(child), child.failure["detail"].rstrip())
        cause = _cause(member, child)
        event = member.remove(child)
        if event is not None:
            member.cause = cause
            self.happened(member, event)
        else:
            if child.failure is None:
                log.info("%s has drained: it %s", member.name(child), child.how_it_ended())
            self.let_take(member)
        self.tell_workers()
        if self.stopping:
            self._end.ended(member)

    def _open(self, member: Member) -> None:
        """Let *member*, which is ready, take part."""
        assert member.child is not None
        seconds = time.monotonic() - member.child.started_at
        log.log(logging.INFO if member.role == "worker" else logging.DEBUG, "%s ready after %.1f s", member, seconds)
        self.tell_workers()
        self.rolling.succeeded(member)
        if self.serving:
            self.let_take(member)
            if self.stopping:
                self._end.go_on()
        elif all(item.life.state is State.READY for item in self.members()):
            self._begin()

    def let_take(self, member: Member) -> None:
        """Let the process in charge take connections once its predecessors have left the channels to it."""
        if self.serving and member.may_open(time.monotonic()) and member.child is not None:
            member.child.is_open = True
            member.child.link.send({"do": "accept"})

    def _begin(self) -> None:
        """Let clients connect: everybody is ready."""
        try:
            self.backend.listen()
        except LimpetError as error:
            self._end.fail(error)
            return
        self.serving = True
        self._watch = Watch(self.backend.doors(), self.settings.backlog, self.estate.board.supervisor())
        for member in self.members():
            self.let_take(member)
        urls = " and ".join(self.backend.urls)
        count = f"{len(self.slots)} worker{'s' if len(self.slots) > 1 else ''}"
        log.info("serving %s at %s with %s, by %s", self.settings.app, urls, count, self.settings.by)
        if self.program is not None:
            self.program.serving(self.backend.urls, str(self.control.path.absolute()))

    def _start_failed(self, member: Member) -> None:
        """*member* died before it was ready: at the start of the server that ends it, later it is tried again."""
        cause = member.cause or AppError(f"{member} did not start")
        if self.serving:
            wait_s = member.life.retry_at - time.monotonic()
            log.error("%s did not start, next try in %.1f s: %s", member, wait_s, cause.message)
            self.rolling.failed(member)
        elif not self.stopping:
            self._end.fail(cause)

    def reload(self) -> Change:
        """Begin to renew the workers of all slots. Raises ControlError while there is nothing to be renewed."""
        if not self.serving or self.stopping:
            what = "stops" if self.stopping else "is starting"
            log.warning("not reloaded: the server %s", what)
            raise ControlError(f"the server {what}")
        self.estate.renew(self.terminators)
        return self.rolling.request(RELOAD, range(self.router.slots), self.settings.max_surge)

    def tell_workers(self) -> None:
        """Tell everybody which workers live, and which row of the scoreboard belongs to the one in each slot."""
        up = [slot.is_up(self.settings, time.monotonic()) for slot in self.slots]
        if self.router.follow(up[: self.router.slots]) and self.serving and not self.stopping:
            self.backend.follow(self.router.owners)
        self._told_up = up
        message = self.scaling.news(up)
        for member in self.members():
            for child in member.children:
                child.link.send(message)

    def _tick(self, now: float) -> None:
        """Do what is due."""
        self.control.expire(now)
        self._care.begin(now, {child.serial for slot in self.slots for child in slot.children})
        if [slot.is_up(self.settings, now) for slot in self.slots] != self._told_up:
            self.tell_workers()
        self.beside.look(now)
        if self.stopping:
            self._end.go_on()
        else:
            if self._watch is not None:
                self._watch.look(now)
            self.rolling.go_on(may_begin=not self.upgrade.is_due)
            self.scaling.go_on()
        for member in self.members():
            self.let_take(member)
            if member.life.state is State.BACKOFF and member.life.retry_at <= now:
                self.happened(member, Event.RETRY_DUE)
            starting = member.starting()
            if starting is not None and now - starting.started_at > self.settings.start_timeout_s:
                self._kill(member, starting, f"was not ready after {self.settings.start_timeout_s:g} s")
            fault = self._care.look_after(member, now)
            if fault and member.child is not None:
                self._kill(member, member.child, fault)
            for child in member.children:
                child.link.flush()
                if now >= min(child.kill_at, self._end.kill_at):
                    child.kill()

    def _kill(self, member: Member, child: Child, why: str) -> None:
        """End a process that does not do what it should; its death follows."""
        if child.failure is None:
            log.error("%s %s; it is killed", member.name(child), why)
            child.failure = {"message": f"{member.name(child)} {why}", "hint": None, "detail": ""}
            child.kill()


def _cause(member: Member, child: Child) -> LimpetError:
    """Return why *child* has ended, in its own words if it had any."""
    failure = child.failure
    if failure is None:
        return AppError(f"{member.name(child)} {child.how_it_ended()} before it was ready")
    kind = SettingsError if failure.get("code") == SettingsError.exit_code else AppError
    return kind(failure["message"], hint=failure["hint"])
