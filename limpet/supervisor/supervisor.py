"""The supervisor process: it starts the children, keeps what must outlive them, and obeys the operator.

Owns the poll loop. It builds the actors of this package and gives each what it needs: the facts in a `Fleet`, and
functions of other actors. fleet/lifecycle.py decides which state follows each event; processes.py does what follows for
the processes; net/backend.py decides how connections get to the workers.

1. It never reads a byte from a client and never imports the application or a key function.
2. Signal handlers only record and wake; everything happens in the loop of `run`.
3. No client can connect before all slots are ready: listeners are bound at the start, but listen only then.
4. A death is handled after everything that the dead child said.
5. A slot's new worker is ready before the old one is told to drain, and takes connections after that.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import selectors
import signal
import time
from collections.abc import Callable
from typing import Final

from limpet import logs
from limpet.config import privileges
from limpet.errors import AppError, ControlError, LimpetError
from limpet.events import Recent
from limpet.fleet import process
from limpet.fleet.changes import RELOAD, Change
from limpet.fleet.fleet import Fleet
from limpet.fleet.lifecycle import Event, State
from limpet.fleet.member import Member
from limpet.fleet.process import Child
from limpet.ipc.news import BadNewsError, Failed, Leaving, Left, Missing, News, Ready, Stop
from limpet.net.accept_queue import Watch
from limpet.operate import control_socket
from limpet.operate.control_socket import ControlServer
from limpet.supervisor import snapshot
from limpet.supervisor.announcing import Announcer
from limpet.supervisor.commands import Commands
from limpet.supervisor.companions import Companions
from limpet.supervisor.lines import Lines
from limpet.supervisor.processes import Followers, Processes
from limpet.supervisor.program_link import Program
from limpet.supervisor.rolling import Rolling
from limpet.supervisor.scaling import SCALING, Scaling
from limpet.supervisor.shutdown import Shutdown
from limpet.supervisor.upgrade import Upgrade
from limpet.supervisor.watchdog import Watchdog
from limpet.system import signals

_TICK_S: Final = 0.25  # how late a back-off, a deadline or a hung process may be noticed
_OBEYED: Final = (
    *SCALING,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGCHLD,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
log = logging.getLogger("limpet")


class Supervisor:
    """A running server. `run` is its whole life."""

    def __init__(self, fleet: Fleet, program: Program | None = None, before: snapshot.Packed | None = None) -> None:
        """*before* is the state of the supervisor that this one replaces in its process. Raises LimpetError."""
        self._fleet = fleet
        self._program = program
        self._selector = selectors.DefaultSelector()
        self._watch: Watch | None = None
        self._lines = Lines(self._selector, self._take_in, lambda *refused: self._processes.kill(*refused))
        self._announcer = Announcer(fleet)
        followers = Followers(
            ready=self._ready,
            start_failed=self._start_failed,
            kept=lambda member: self._rolling.failed(member),
            crashed=lambda member, child, now: self._watchdog.crashed(member, child, now),
            ended=self._ended,
        )
        left_s: Callable[[float], float] = lambda now: self._shutdown.left_s(now)  # noqa: E731 - made below
        self._processes = Processes(fleet, self._lines, self._announcer, followers, left_s=left_s, now=time.monotonic)
        apply = self._processes.apply
        self._rolling = Rolling(fleet, apply)
        self._scaling = Scaling(fleet, self._rolling, self._announcer, apply)
        self._shutdown = Shutdown(fleet, self._rolling, apply, self._lines.hear)
        self._watchdog = Watchdog(fleet, self._rolling)
        events = Recent()
        log.addHandler(events)
        commands = Commands(
            fleet,
            self._rolling,
            self._scaling,
            self._announcer,
            events,
            reload=self.reload,
            stop=lambda wait: self.stop(wait_for_connections=wait),
            admin_url=lambda: self._companions.admin.url,
        )
        self._control = self._open_control(commands, before)
        self._upgrade = Upgrade(
            fleet,
            _OBEYED,
            pack=lambda: snapshot.pack(fleet, self._control, self._companions.admin.listener),
            refusal="the program that started this server has its version" if program is not None else None,
        )
        if program is not None:
            program.watch(self._selector, self.stop)
        try:
            kept = None if before is None else snapshot.admin(before)
            self._companions = Companions(
                fleet, self._selector, self._control.path, lambda: self._obey(signal.SIGHUP), kept
            )
        except LimpetError:
            self._control.close()
            raise
        logs.count_lost(functools.partial(fleet.resources.board.supervisor().add, "log_lines_lost"))
        self._has_terminal = signals.has_terminal()

    def run(self) -> None:
        """Serve until told to stop. Raises LimpetError if the server could not start to serve."""
        with signals.recorded(self._selector, _OBEYED) as recorded, self._companions:
            self._go_on() if self._fleet.is_serving else self._start()
            while not self._shutdown.is_over:
                for key, _ in self._selector.select(_TICK_S):
                    key.data(time.monotonic())
                while recorded:
                    self._obey(recorded.pop(0))
                self._tick(time.monotonic())
                self._upgrade.go_on(recorded)
        self._control.close()
        if self._shutdown.failure is not None:
            raise self._shutdown.failure
        log.info("stopped", extra={"event": "stopped"})

    def _start(self) -> None:
        for member in self._fleet.members():
            if not self._fleet.is_stopping:  # an earlier member may have failed to start
                self._processes.apply(member, Event.START)

    def _go_on(self) -> None:
        """Continue where the previous supervisor stopped. Processes that have died in between are found here."""
        self._watch_backlogs()
        for member in self._fleet.members():
            member.is_outdated = member.role != "worker"
            for child in member.children:
                self._lines.listen_to(member, child)
                self._processes.reap(member, child)
        self._announcer.tell_workers(time.monotonic())

    def _watch_backlogs(self) -> None:
        fleet = self._fleet
        self._watch = Watch(fleet.backend.doors(), fleet.settings.backlog, fleet.resources.board.supervisor())

    def _open_control(self, commands: Commands, before: snapshot.Packed | None) -> ControlServer:
        settings = self._fleet.settings
        answer, owner = commands.answer, privileges.wanted(settings)
        if before is not None:
            return ControlServer.adopt(before["control"], answer, self._selector, time.monotonic(), owner)
        opened = control_socket.listen(settings.control, settings.cluster, owner)
        return ControlServer(*opened, answer, self._selector, owner)

    def stop(self, *, wait_for_connections: bool = False) -> None:
        """Start to stop. With *wait_for_connections*, open connections may last as long as they need."""
        # A dispatcher that has died is replaced here, so the clients in its backlog are served. Later it would not be
        # replaced.
        self._processes.reap_all()
        if not self._fleet.is_stopping:
            self._shutdown.begin(wait_for_connections=wait_for_connections)

    def _obey(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._processes.reap_all()
            own = {child.pid for member in self._fleet.members() for child in member.children}
            process.reap_orphans(own | self._upgrade.pids | self._companions.pids)
        elif number == signal.SIGUSR2:
            self._upgrade.begin()
        elif number == signal.SIGUSR1:
            if logs.reopen():
                log.info("the log file was reopened", extra={"event": "log_reopened"})
        elif number in SCALING:
            self._scaling.obey(number)
        elif number == signal.SIGHUP and not (self._has_terminal and not signals.has_terminal()):
            with contextlib.suppress(LimpetError):  # `reload` logs the reason
                self.reload()
        elif self._fleet.is_stopping:
            self._shutdown.kill_at = 0.0
        else:
            self.stop()

    def _take_in(self, member: Member, child: Child, news: News) -> None:
        """Act on what *child* says. Raises BadNewsError for a message that is not valid now."""
        match news:
            case Ready():
                if child.is_ready:
                    raise BadNewsError("that it is ready, for the second time")
                child.shows_stack = child.stack_fd >= 0
                event = member.announced(child)
                if event is not None:
                    self._processes.apply(member, event)
            case Failed():
                child.failure = news
            case Missing(slot):
                if slot not in range(len(self._fleet.resources.channels)):
                    raise BadNewsError(f"that it has no channel of slot {slot}, and there is no such slot")
                self._announcer.tell_slot(member, child, slot)
            case Left():
                child.leaves_by = 0.0
                self._processes.let_take(member)
            case Leaving() if child is member.child:
                if not child.is_ready:
                    raise BadNewsError("that it drains, before it was ready")
                log.info(
                    "%s drains, because it received a signal; replacing it",
                    member,
                    extra={"event": "draining", **member.about()},
                )
                self._processes.apply(member, Event.LEFT)
            case Stop(wait):
                log.info(
                    "%s asked to stop the server",
                    member.name(child),
                    extra={"event": "stop_asked", **member.about(child)},
                )
                self.stop(wait_for_connections=wait)

    def _begin(self) -> None:
        """Let clients connect, because all members are ready."""
        try:
            self._fleet.backend.listen()
        except LimpetError as error:
            self._shutdown.fail(error)
            return
        self._fleet.is_serving = True
        self._watch_backlogs()
        for member in self._fleet.members():
            self._processes.let_take(member)
        urls = " and ".join(self._fleet.backend.urls)
        count = f"{len(self._fleet.slots)} worker{'s' if len(self._fleet.slots) > 1 else ''}"
        log.info(
            "serving %s at %s with %s, by %s",
            self._fleet.settings.app,
            urls,
            count,
            self._fleet.settings.by,
            extra={"event": "serving"},
        )
        if self._program is not None:
            self._program.serving(self._fleet.backend.urls, str(self._control.path.absolute()))

    def _ready(self, member: Member) -> None:
        """Continue after a new process of *member* is ready."""
        self._rolling.succeeded(member)
        if self._fleet.is_serving:
            self._processes.let_take(member)
            if self._fleet.is_stopping:
                self._shutdown.go_on()
        elif all(item.life.state is State.READY for item in self._fleet.members()):
            self._begin()

    def _start_failed(self, member: Member) -> None:
        """Handle that *member* died before it was ready.

        While the server starts, this ends it; later, the start is retried.
        """
        cause = member.cause or AppError(f"{member} did not start")
        if self._fleet.is_serving:
            wait_s = member.life.retry_at - time.monotonic()
            log.error(
                "%s did not start, next try in %.1f s: %s",
                member,
                wait_s,
                cause.message,
                extra={"event": "start_failed", **member.about()},
            )
            self._rolling.failed(member)
        elif not self._fleet.is_stopping:
            self._shutdown.fail(cause)

    def _ended(self, member: Member) -> None:
        if self._fleet.is_stopping:
            self._shutdown.ended(member)

    def reload(self) -> Change:
        """Start to renew the workers of all slots. Raises ControlError while the server is starting or stopping."""
        if not self._fleet.is_serving or self._fleet.is_stopping:
            what = "is stopping" if self._fleet.is_stopping else "is starting"
            log.warning("not reloaded: the server %s", what, extra={"event": "not_reloaded"})
            raise ControlError(f"the server {what}")
        self._fleet.resources.renew(self._fleet.terminators)
        return self._rolling.request(RELOAD, range(self._fleet.router.slots), self._fleet.settings.max_surge)

    def _tick(self, now: float) -> None:
        """Do what is due."""
        logs.catch_up()
        self._control.expire(now)
        if paused_s := self._watchdog.begin(now):
            self._processes.put_off(paused_s)
            self._shutdown.put_off(paused_s)
        if self._announcer.is_due(now):
            self._announcer.tell_workers(now)
        self._companions.look(now)
        self._fleet.resources.bus.flush()
        if self._fleet.is_stopping:
            self._shutdown.go_on()
        else:
            if self._watch is not None:
                self._watch.look(now)
            self._rolling.go_on(may_begin=not self._fleet.is_upgrade_due)
            self._scaling.go_on()
        for member in self._fleet.members():
            self._processes.let_take(member)
            if member.life.state is State.BACKOFF and member.life.retry_at <= now:
                self._processes.apply(member, Event.RETRY_DUE)
            starting = member.starting()
            if starting is not None and now - starting.started_at > self._fleet.settings.start_timeout_s:
                self._processes.kill(
                    member, starting, f"was not ready after {self._fleet.settings.start_timeout_s:g} s"
                )
            fault = self._watchdog.look_after(member, now)
            if fault and member.child is not None:
                self._processes.kill(member, member.child, fault)
            for child in member.children:
                child.link.flush()
                if now >= min(child.kill_at, self._shutdown.kill_at):
                    child.kill()
