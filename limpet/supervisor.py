"""The supervisor process: starts the children, keeps what must outlive them, and obeys the operator.

Owns the backend with its listeners, both ends of every slot's channel, the scoreboard and the control socket, for
life. Which state follows which event is decided by lifecycle.py, how a child is started by process.py, how connections
get to the workers by backend.py, what `status` says by report.py.

1. It never reads a client's byte and never imports the application or a key function.
2. Signal handlers only record and wake; everything happens in the loop of `run`.
3. Nobody can connect before all slots are ready: listeners are bound at the start, but listen only then.
4. A death is handled after all that the dead child said.
5. To stop: the dispatchers first, then the workers, so that what was accepted is served.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import signal
import socket
import time
from typing import Final

from limpet import backend, boot, control, logs, notify, process, report, secret, signals
from limpet.backlog import Watch
from limpet.control import ControlServer, Message
from limpet.errors import AppError, LimpetError, SettingsError, reason
from limpet.handoff import Channel
from limpet.hosted import Program
from limpet.learned import Learned
from limpet.lifecycle import Action, Event, Life, State
from limpet.link import Link, LinkClosedError
from limpet.router import Clocks, Router
from limpet.scoreboard import MAX_WORKERS, Scoreboard
from limpet.settings import Settings

_TICK_S: Final = 0.25  # how late a back-off, a deadline or a hung dispatcher may be noticed
_HARD_STOP_S: Final = 2.0  # after the graceful timeout: for cancelled requests and the application's own shutdown
_OBEYED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1)
log = logging.getLogger("limpet")


class Member:
    """One slot or one dispatcher: its life, and the process it has now."""

    def __init__(self, role: str, number: int) -> None:
        self.role = role
        self.number = number
        self.life = Life()
        self.child: process.Child | None = None
        self.started_at = 0.0  # monotonic, of the process
        self.cause: LimpetError | None = None  # why the last process ended

    def __str__(self) -> str:
        return f"{self.role} {self.number}" + (f" (pid {self.child.pid})" if self.child else "")


class Supervisor:
    """A running server: `run` is its whole life."""

    def __init__(
        self,
        settings: Settings,
        kept: secret.Secret,
        router: Router,
        chosen: backend.Backend,
        program: Program | None = None,
    ) -> None:
        self.settings = settings
        self.router = router
        self.backend = chosen
        self.board = Scoreboard.create()
        self.router.learned = Learned(self.board.learned(), settings.learn_idle_s)
        self.channels = [Channel.create() for _ in range(settings.workers)]
        self._moves = [Channel.create() for _ in range(settings.workers)]  # between workers: moving.py
        self._serial = 0
        self.slots = [Member("worker", number) for number in range(settings.workers)]
        self.dispatchers = [Member("dispatcher", number) for number in range(chosen.dispatchers)]
        self.past = report.Past(settings.workers)
        self._secret = kept
        self._selector = selectors.DefaultSelector()
        self._control = ControlServer(
            *control.listen(settings.control, cluster_name(settings)), self._answer, self._selector
        )
        self._program = program
        if program is not None:
            program.watch(self, self._selector)
        self._free_rows = list(range(MAX_WORKERS - 1, -1, -1))
        self._watch: Watch | None = None
        self._manager = notify.Manager()
        self.serving = False
        self.stopping = False
        self._stop_by = float("inf")
        self._owing: set[int] = set()  # slots with clients in the backlog when the stop began
        self._kill_at = float("inf")
        self._failure: LimpetError | None = None

    def run(self) -> None:
        """Serve until told to stop. Raises LimpetError when the server never came to serve."""
        with signals.recorded(self._selector, _OBEYED) as recorded:
            for member in self._members():
                if not self.stopping:  # since one before it could not be started
                    self._happened(member, Event.START)
            while not self._ended():
                for key, _ in self._selector.select(_TICK_S):
                    key.data(time.monotonic())
                while recorded:
                    self._obey(recorded.pop(0))
                self._tick(time.monotonic())
        self._control.close()
        if self._failure is not None:
            raise self._failure
        log.info("stopped")

    def stop(self, *, wait_for_connections: bool = False) -> None:
        """Begin to stop; with *wait_for_connections* the open ones may take as long as they like."""
        if self.stopping:
            return
        self.stopping = True
        if not wait_for_connections:
            self._stop_by = time.monotonic() + self.settings.graceful_timeout_s
            self._kill_at = self._stop_by + _HARD_STOP_S
        log.info("stopping")
        self._owing = {slot.number for slot in self.slots if self.backend.queued(slot.number)}
        self.backend.close()  # first: who gets in after a dispatcher has looked for the last time would be reset
        self._go_on_stopping()

    def _go_on_stopping(self) -> None:
        """Stop the dispatchers, and the workers once no dispatcher is left to send them anything.

        Who is starting while clients may wait for it, in a backlog or a channel, comes up first and takes them.
        """
        for member in self.dispatchers:
            if not (self.serving and member.life.state is State.STARTING):
                self._happened(member, Event.STOP)
        if all(member.life.state is State.STOPPED for member in self.dispatchers):
            for slot in self.slots:
                owing = slot.number in self._owing or self.channels[slot.number].queued()
                self._hear(slot)  # after that look: whoever has emptied the channel has said READY before
                if not (slot.life.state is State.STARTING and owing):
                    self._happened(slot, Event.STOP)

    def _members(self) -> list[Member]:
        return [*self.dispatchers, *self.slots]

    def _ended(self) -> bool:
        return self.stopping and all(member.life.state is State.STOPPED for member in self._members())

    def _obey(self, number: int) -> None:
        if number == signal.SIGCHLD:
            for member in self._members():
                self._reap(member)
            process.reap_orphans({member.child.pid for member in self._members() if member.child is not None})
        elif number == signal.SIGUSR1:
            if logs.reopen():
                log.info("the log file was opened anew")
        elif self.stopping:
            self._kill_at = 0.0
        else:
            self.stop()

    def _happened(self, member: Member, event: Event) -> None:
        """Let *event* happen to *member* and do what follows."""
        match member.life.happened(event, time.monotonic()):
            case Action.SPAWN:
                self._spawn(member)
            case Action.OPEN:
                self._open(member)
            case Action.RETRY_LATER:
                self._start_failed(member)
            case Action.DRAIN:
                command = "drain" if member.role == "worker" else "stop"
                left_s = max(0.0, self._stop_by - time.monotonic())  # the dispatchers may have used up much of it
                timeout_s = None if left_s == float("inf") else left_s
                self._tell(member, {"do": command, "timeout": timeout_s, "last": self.stopping})
            case Action.KILL if member.child is not None:
                member.child.kill()

    def _spawn(self, member: Member) -> None:
        """Start a process for *member*. That the system has no room for one counts as its death."""
        try:
            ours, theirs = Link.pair()
        except OSError as error:
            self._not_spawned(member, error)
            return
        row = self._free_rows.pop() if member.role == "worker" else member.number
        member.started_at = time.monotonic()
        try:
            with theirs:
                member.child = process.Child(member.role, self._place(member, theirs, row), ours)
        except OSError as error:
            ours.close()
            if member.role == "worker":
                self._free_rows.append(row)
            self._not_spawned(member, error)
            return
        self._selector.register(ours, selectors.EVENT_READ, lambda _: self._hear(member))

    def _not_spawned(self, member: Member, error: OSError) -> None:
        hint = "`ulimit -n` and `ulimit -u` show how many descriptors and processes are allowed"
        member.cause = LimpetError(f"cannot start {member}: {reason(error)}", hint=hint)
        self._happened(member, Event.DIED)

    def _place(self, member: Member, theirs: socket.socket, row: int) -> boot.Boot:
        is_worker = member.role == "worker"
        channels = [self.channels[member.number]] if is_worker else self.channels
        move_fds = (
            [channel.fds[0] for channel in self._moves] + [self._moves[member.number].fds[1]] if is_worker else []
        )
        self._serial += is_worker
        return boot.Boot(
            settings=self.settings,
            secret=self._secret.value.hex(),
            link_fd=theirs.fileno(),
            scoreboard_fd=self.board.fd,
            channel_fds=tuple(channel.fds for channel in channels),
            listeners=self.backend.inherited(member.number if is_worker else None),
            index=member.number,
            generation=member.life.generation,
            row=row,
            serial=self._serial if is_worker else 0,
            move_fds=tuple(move_fds),
        )

    def _hear(self, member: Member) -> None:
        """Take in what the member's process says; at the end of the line its death will be seen by SIGCHLD."""
        child = member.child
        if child is None:
            return
        try:
            for message in child.link.receive():
                if message["news"] == "ready":
                    self._happened(member, Event.ANNOUNCED)
                elif message["news"] == "failed":
                    child.failure = message
                elif message["news"] == "stop":
                    log.info("%s asked to stop the server", member)
                    self.stop(wait_for_connections=message["wait_for_connections"])
        except LinkClosedError:
            self._hang_up(child.link)

    def _hang_up(self, link: Link) -> None:
        if not link.closed:
            self._selector.unregister(link)
            link.close()

    def _reap(self, member: Member) -> None:
        """Take note of the member's death, if it has died, and do what follows."""
        child = member.child
        if child is None or not child.ended():
            return
        self._hear(member)
        self._hang_up(child.link)  # whether or not the line has ended: a process that it forked may hold its side
        if member.role == "worker":
            self.past.add_worker(member.number, self.board.worker(child.row))
            self._free_rows.append(child.row)
        else:
            self.past.add_dispatcher(self.board, member.number)
        if member.life.state is State.READY:
            log.error("%s %s; it is replaced", member, child.how_it_ended())
        if child.failure and child.failure["detail"] and not self.stopping:  # all slots may have the same one
            log.error("%s failed\n%s", member, child.failure["detail"].rstrip())
        member.cause = _cause(member, child)
        member.child = None
        self._happened(member, Event.DIED)
        self._tell_workers()
        if self.stopping:
            ended_early = member.role == "worker" and member.life.state is State.STOPPED  # as by a signal of its own
            if ended_early and self.channels[member.number].queued() and time.monotonic() < self._kill_at:
                self._happened(member, Event.START)
            self._go_on_stopping()

    def _open(self, member: Member) -> None:
        """Let *member*, which is ready, take part."""
        seconds = time.monotonic() - member.started_at
        log.log(logging.INFO if member.role == "worker" else logging.DEBUG, "%s ready after %.1f s", member, seconds)
        self._tell_workers()
        if self.serving:
            self._tell(member, {"do": "accept"})
            if self.stopping:
                self._go_on_stopping()
        elif all(item.life.state is State.READY for item in self._members()):
            self._begin()

    def _begin(self) -> None:
        """Let clients connect: everybody is ready."""
        try:
            self.backend.listen()
        except LimpetError as error:
            self._fail(error)
            return
        self.serving = True
        self._watch = Watch(self.backend.doors(), self.settings.backlog, self.board.supervisor())
        for member in self._members():
            self._tell(member, {"do": "accept"})
        urls = " and ".join(self.backend.urls)
        count = f"{len(self.slots)} worker{'s' if len(self.slots) > 1 else ''}"
        log.info("serving %s at %s with %s, by %s", self.settings.app, urls, count, self.settings.by)
        if self._program is not None:
            self._program.serving(self.backend.urls, str(self._control.path.absolute()))

    def _start_failed(self, member: Member) -> None:
        """*member* died before it was ready: at the start of the server that ends it, later it is tried again."""
        cause = member.cause or AppError(f"{member} did not start")
        if self.serving:
            wait_s = member.life.retry_at - time.monotonic()
            log.error("%s did not start, next try in %.1f s: %s", member, wait_s, cause.message)
        elif not self.stopping:
            self._fail(cause)

    def _fail(self, error: LimpetError) -> None:
        """End the server since it cannot come to serve."""
        self._failure = error
        self._kill_at = 0.0
        self.stopping = True
        for member in self._members():
            self._happened(member, Event.STOP)

    def _tell(self, member: Member, message: Message) -> None:
        if member.child is not None:
            member.child.link.send(message)

    def _tell_workers(self) -> None:
        """Tell everybody which workers live, and which row of the scoreboard belongs to the one in each slot."""
        ready = [slot.child if slot.life.state is State.READY else None for slot in self.slots]
        if self.router.follow([child is not None for child in ready]) and self.serving and not self.stopping:
            self.backend.follow(self.router.owners)
        message = {
            "do": "workers",
            "rows": [child and child.row for child in ready],
            "alive": [slot.child.serial for slot in self.slots if slot.child is not None],
            "newest": self._serial,
        }
        for member in self._members():
            self._tell(member, message)

    def _tick(self, now: float) -> None:
        """Do what is due."""
        self._control.expire(now)
        self._manager.look(self, now)
        if self._watch is not None and not self.stopping:
            self._watch.look(now)
        for member in self._members():
            if member.life.state is State.BACKOFF and member.life.retry_at <= now:
                self._happened(member, Event.RETRY_DUE)
            elif member.life.state is State.STARTING and now - member.started_at > self.settings.start_timeout_s:
                self._kill(member, f"was not ready after {self.settings.start_timeout_s:g} s")
            elif self._hangs(member, now):
                self._kill(member, f"has not moved for {self.settings.key_timeout_s:g} s (a key function that hangs?)")
            if now >= self._kill_at and member.child is not None:
                member.child.kill()

    def _hangs(self, member: Member, now: float) -> bool:
        if member.role == "dispatcher":
            since_ns = self.board.dispatcher(member.number)["busy_since_ns"]
        else:
            since_ns = self.board.worker(member.child.row)["asking_since_ns"] if member.child else 0
        return 0 < since_ns < (now - self.settings.key_timeout_s) * 1e9

    def _kill(self, member: Member, why: str) -> None:
        """End a process that does not do what it should; its death follows."""
        if member.child is not None and member.child.failure is None:
            log.error("%s %s; it is killed", member, why)
            member.child.failure = {"message": f"{member} {why}", "hint": None, "detail": ""}
            member.child.kill()

    def _answer(self, request: Message) -> Message:
        """Obey a command from the control socket."""
        match request.get("command"):
            case "status":
                return report.status(self)
            case "where":
                return report.where(self, request)
            case "stop":
                self.stop(wait_for_connections=bool(request.get("wait_for_connections")))
                return {"stopping": True}
        return {"error": f"this server does not know the command `{request.get('command')}`"}


def _cause(member: Member, child: process.Child) -> LimpetError:
    """Return why *child* has ended, in its own words if it had any."""
    failure = child.failure
    if failure is None:
        return AppError(f"{member} {child.how_it_ended()} before it was ready")
    kind = SettingsError if failure.get("code") == SettingsError.exit_code else AppError
    return kind(failure["message"], hint=failure["hint"])


def cluster_name(settings: Settings) -> str:
    """Return the name by which the secret and the control socket of this server are called."""
    return settings.cluster


def run(settings: Settings, program: Program | None = None) -> None:
    """Run a server, for *program* if one started it, until it was told to stop. Raises LimpetError.

    The process's main thread must call it.
    """
    if settings.log_file is not None:
        logs.check(settings.log_file)
    logs.configure(settings.log_level, settings.log_file)
    kept = secret.load(cluster_name(settings), settings.secret_file, settings.state_dir)
    log.info("secret %s", kept.origin)
    if kept.warning is not None:
        log.warning("%s (hint: %s)", *kept.warning)
    router = Router.from_settings(settings, kept.value, clocks=Clocks(time.time, time.monotonic))
    with contextlib.closing(backend.open(settings, router)) as chosen:
        Supervisor(settings, kept, router, chosen, program).run()
