"""SIGUSR2: another version replaces the supervisor in the same process.

Owns the conditions of an upgrade, and what happens before and after the exec. supervisor/snapshot.py owns the state
that is passed on. The supervisor calls `begin` for the signal and `go_on` in each turn.

How it works:

    SIGUSR2 -> trial: the new version, started as a child with this command line, builds a supervisor from the state
               without running it; then entry/preflight.py, a separate program, imports the application
            -> when no change is running: exec of this command line; the new version takes the state over

The workers keep serving. The supervisor is replaced, then the dispatchers and terminators (supervisor/rolling.py).
`limpet reload` renews the workers.

1. A trial that fails or takes too long changes nothing.
2. From `hold` until the new version's first turn, signals wait in the kernel. A child that dies then is found after it.
3. All listeners, channels and lines stay open throughout: clients notice nothing, and none is refused.
4. A trial has copies of the listeners. It must end without closing their doors.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Final, NoReturn

from limpet import logs
from limpet.config import privileges
from limpet.config.settings import Settings
from limpet.errors import reason
from limpet.fleet.fleet import Fleet
from limpet.supervisor import snapshot
from limpet.system import memfile, signals

_VARIABLE: Final = "LIMPET_UPGRADE"  # `trial:FD` or `take-over:FD`
PASSED: Final = "\nlimpet can take over\n"
"""The last line of a successful trial; everything that the application prints comes before it."""

log = logging.getLogger("limpet")


class Upgrade:
    """The upgrades of one supervisor."""

    def __init__(
        self,
        fleet: Fleet,
        held: Iterable[int],
        *,
        pack: Callable[[], snapshot.Packed],
        refusal: str | None,
    ) -> None:
        """*held* are the signals that must wait during the exec; *pack* returns the state that is passed on.

        *refusal* says why this server is never upgraded; None if it can be.
        """
        self._fleet = fleet
        self._held = tuple(held)
        self._pack = pack
        self._refusal = refusal
        self._trial: _Trial | None = None

    @property
    def pids(self) -> set[int]:
        """The processes that this waits for."""
        return {self._trial.process.pid} if self._trial is not None else set()

    @property
    def is_under_way(self) -> bool:
        """Whether an upgrade has begun and is not over."""
        return self._trial is not None or self._fleet.is_upgrade_due

    def begin(self) -> None:
        """Start the trial of the new version. If it succeeds, the new version takes over soon after."""
        if why := self._why_not():
            self._refuse(why)
            return
        try:
            self._trial = _Trial(self._pack(), self._fleet.settings.start_timeout_s)
        except OSError as error:
            self._refuse(reason(error))
            return
        log.info("upgrade: trying the new version (pid %d)", self._trial.process.pid, extra={"event": "upgrade_tried"})

    def go_on(self, recorded: list[int]) -> None:
        """Look at the trial, and do what is due. *recorded* are the signals that were not handled yet."""
        if self._trial is not None and self._trial.ended():
            fault, self._trial = self._trial.fault(), None
            if fault is None:
                self._fleet.is_upgrade_due = True
            else:
                self._refuse(fault)
        if self._fleet.is_upgrade_due and self._fleet.is_stopping:
            self._fleet.is_upgrade_due = False
            self._refuse("the server is stopping")
        if self._fleet.is_upgrade_due and not recorded and not self._fleet.is_changing:
            self._replace(recorded)

    def _why_not(self) -> str | None:
        if self.is_under_way:
            return "another upgrade is running"
        if self._refusal is not None:
            return self._refusal
        if self._fleet.is_stopping or not self._fleet.is_serving:
            return f"the server is {'stopping' if self._fleet.is_stopping else 'starting'}"
        return None

    def _refuse(self, why: str) -> None:
        self._fleet.upgrade_refusal = why.partition("\n")[0]
        log.error("not upgraded, and nothing has changed: %s", why, extra={"event": "upgrade_failed"})

    def _replace(self, recorded: list[int]) -> None:
        """Become the new version. Return only if that is not possible, or not yet."""
        signals.hold(self._held)
        if recorded:
            signals.release(self._held)
            return
        self._fleet.is_upgrade_due = False
        logs.give_up()
        state = self._pack()
        fd = snapshot.write(state)
        kept = [fd, *snapshot.descriptors(state)]
        try:
            for number in kept:
                os.set_inheritable(number, True)
            os.chdir(state["started_in"])
            os.execve(sys.executable, _command(), {**os.environ, _VARIABLE: f"take-over:{fd}"})
        except OSError as error:
            for number in kept:
                os.set_inheritable(number, False)
            os.close(fd)
            signals.release(self._held)
            self._refuse(f"cannot execute `{sys.executable}`: {reason(error)}")


class _Trial:
    """The new version, which is asked whether it could take over."""

    def __init__(self, state: snapshot.Packed, timeout_s: float) -> None:
        """Start it in the directory where a worker would start now. Raises OSError."""
        self._said_fd = memfile.create("limpet-trial")  # not a pipe, which could fill up
        fd = snapshot.write(state)
        try:
            self.process = subprocess.Popen(
                _command(),
                stdin=subprocess.DEVNULL,
                cwd=state["started_in"],
                stdout=self._said_fd,
                stderr=self._said_fd,
                pass_fds=(fd, *snapshot.descriptors(state)),
                env={**os.environ, _VARIABLE: f"trial:{fd}"},
                process_group=0,
            )
        except OSError:
            os.close(self._said_fd)
            raise
        finally:
            os.close(fd)
        self._timeout_s = timeout_s
        self._kill_at = time.monotonic() + timeout_s

    def ended(self) -> bool:
        """Return whether the trial has ended. Kill it if its time is over. Never blocks."""
        if self.process.poll() is None and time.monotonic() > self._kill_at:
            self.process.kill()
        return self.process.poll() is not None

    def fault(self) -> str | None:
        """Return why the new version cannot take over, or None if it can. The trial must have ended."""
        said = memfile.read(self._said_fd).decode(errors="replace")
        if self.process.returncode == 0 and said.endswith(PASSED):
            return None
        if self.process.returncode == -signal.SIGKILL:
            return f"the trial of the new version did not end within {self._timeout_s:g} s"
        errors = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
        cause = errors[-1] if errors else f"its trial exited with code {self.process.returncode}"
        return f"the new version cannot take over: {cause}\n{said.rstrip()}"


def _command() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]


def inherited() -> tuple[snapshot.Packed | None, bool]:
    """Return the state of the previous supervisor, or None, and whether this is only a trial. Raises LimpetError."""
    told, _, fd = os.environ.pop(_VARIABLE, "").partition(":")
    return (snapshot.read(int(fd)), told == "trial") if told else (None, False)


def pass_on_trial(settings: Settings) -> NoReturn:
    """Continue a trial in which the supervisor could be built: check whether the application can be imported, too."""
    identity = privileges.wanted(settings)
    if identity is not None:
        identity.become()  # what follows runs user code
    fd = memfile.create("limpet-preflight", settings.to_json().encode())
    os.set_inheritable(fd, True)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "limpet.entry.preflight", str(fd)])
