"""The supervisor replaced by another version of itself, in the same process: SIGUSR2.

Owns what must be true before, and both sides of the moment. What passes from one to the other is
supervisor/snapshot.py's.

How it works:

    SIGUSR2 -> trial: the new version, as a child with this command line, makes a supervisor out of the state, one that
               never runs; then entry/preflight.py, a program of its own, imports the application
            -> when no reload is under way: exec of this command line, in which the new version takes the state over

Workers serve on; the supervisor is replaced, and dispatchers after it (supervisor/rolling.py). `limpet reload` renews
the workers.

1. A trial that fails, or takes too long, changes nothing.
2. From `hold` to the new version's first turn signals wait in the kernel. A child that dies meanwhile is found then.
3. All listeners, channels and lines stay open throughout: nobody can tell, and nobody could be refused.
4. A trial has copies of the listeners: it must end without closing their doors.
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
from limpet.system import signals

_VARIABLE: Final = "LIMPET_UPGRADE"  # `trial:FD` or `take-over:FD`
PASSED: Final = "\nlimpet can take over\n"
"""What a trial says last when all is well; whatever the application prints comes before."""

log = logging.getLogger("limpet")


class Upgrade:
    """What there is to do about SIGUSR2 in one supervisor."""

    def __init__(
        self,
        fleet: Fleet,
        held: Iterable[int],
        *,
        pack: Callable[[], snapshot.Packed],
        refusal: str | None,
    ) -> None:
        """*held* are the signals that must wait at the moment of the exec; *pack* returns the state that passes on.

        *refusal* says why this server is never upgraded, None if it may be.
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
        """Whether the supervisor is about to be replaced."""
        return self._trial is not None or self._fleet.is_upgrade_due

    def begin(self) -> None:
        """Try the new version, and if it can take over have it do so soon."""
        if why := self._why_not():
            self._refuse(why)
            return
        try:
            self._trial = _Trial(self._pack(), self._fleet.settings.start_timeout_s)
        except OSError as error:
            self._refuse(reason(error))
            return
        log.info("upgrade: the new version is tried (pid %d)", self._trial.process.pid)

    def go_on(self, recorded: list[int]) -> None:
        """Look at the trial, and do what is due; *recorded* are the signals that wait to be obeyed."""
        if self._trial is not None and self._trial.ended():
            fault, self._trial = self._trial.fault(), None
            if fault is None:
                self._fleet.is_upgrade_due = True
            else:
                self._refuse(fault)
        if self._fleet.is_upgrade_due and self._fleet.is_stopping:
            self._fleet.is_upgrade_due = False
            self._refuse("the server stops")
        if self._fleet.is_upgrade_due and not recorded and not self._fleet.is_changing:
            self._replace(recorded)

    def _why_not(self) -> str | None:
        if self.is_under_way:
            return "another one is under way"
        if self._refusal is not None:
            return self._refusal
        if self._fleet.is_stopping or not self._fleet.is_serving:
            return f"the server {'stops' if self._fleet.is_stopping else 'is starting'}"
        return None

    def _refuse(self, why: str) -> None:
        self._fleet.upgrade_refusal = why.partition("\n")[0]
        log.error("not upgraded, and nothing has changed: %s", why)

    def _replace(self, recorded: list[int]) -> None:
        """Become the new version; return only if that cannot be, or not yet."""
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
    """The new version, asked whether it could take over."""

    def __init__(self, state: snapshot.Packed, timeout_s: float) -> None:
        """Start it, where a worker would start now. Raises OSError."""
        self._said_fd = os.memfd_create("limpet-trial", os.MFD_CLOEXEC)  # no pipe, which could be full
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
        """Return whether it has ended; end it if its time is over. Blocks never."""
        if self.process.poll() is None and time.monotonic() > self._kill_at:
            self.process.kill()
        return self.process.poll() is not None

    def fault(self) -> str | None:
        """Return why the new version cannot take over, None if it can. It has ended."""
        with open(self._said_fd, "rb") as file:
            file.seek(0)
            said = file.read().decode(errors="replace")
        if self.process.returncode == 0 and said.endswith(PASSED):
            return None
        if self.process.returncode == -signal.SIGKILL:
            return f"the trial of the new version was not over after {self._timeout_s:g} s"
        errors = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
        cause = errors[-1] if errors else f"its trial exited with code {self.process.returncode}"
        return f"the new version cannot take over: {cause}\n{said.rstrip()}"


def _command() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]


def inherited() -> tuple[snapshot.Packed | None, bool]:
    """Return what the supervisor before this one has left, None if there was none, and whether this is a trial only.

    Raises LimpetError.
    """
    told, _, fd = os.environ.pop(_VARIABLE, "").partition(":")
    return (snapshot.read(int(fd)), told == "trial") if told else (None, False)


def pass_on_trial(settings: Settings) -> NoReturn:
    """End the trial of a supervisor that could be made: see whether the application can be imported, too."""
    identity = privileges.wanted(settings)
    if identity is not None:
        identity.become()  # this runs code of users
    fd = os.memfd_create("limpet-preflight", 0)  # inherited
    with open(fd, "wb", closefd=False) as file:
        file.write(settings.to_json().encode())
    os.execv(sys.executable, [sys.executable, "-P", "-m", "limpet.entry.preflight", str(fd)])
