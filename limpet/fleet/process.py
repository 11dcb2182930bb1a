"""One child process as the supervisor sees it: started, told what to do, and found dead.

Owns how a child is started, a fresh interpreter in its own process group with exactly the descriptors it needs, and
how its end reads in words. What to do about it is the supervisor's business.

1. A fresh interpreter, never a fork: a replacement loads the application anew, and nothing of the supervisor leaks.
2. An own process group: Ctrl-C in the terminal and systemd's group signals reach the supervisor only.
3. `WEB_CONCURRENCY` has had its say in the settings: an application that reads it too must not multiply workers. What
   the service manager says to the supervisor (operate/service_manager.py) is not for children either.
4. As the first process of a container the supervisor inherits whoever lost his parent: it reaps them, and no other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from limpet.config import privileges
from limpet.ipc import boot
from limpet.ipc.control_link import Link
from limpet.ipc.news import Failed
from limpet.system import activation, stack

_NOT_FOR_CHILDREN: Final = frozenset({"WEB_CONCURRENCY", *activation.NOT_FOR_CHILDREN})


@dataclass(eq=False, kw_only=True)
class Child:
    """A running dispatcher, terminator or worker. A supervisor that replaces this one gets all fields but `ANEW`."""

    pid: int
    role: str
    row: int
    serial: int
    generation: int
    started_at: float  # monotonic
    link: Link  # this side of the line to it
    process: subprocess.Popen[bytes] | _Adopted
    kill_at: float = float("inf")  # monotonic: when its time to drain is over
    leaves_by: float = 0.0  # monotonic: until then it may still read the slot's channels; its successor waits for it
    stack_fd: int = -1  # where its stacks are written, this process's own: see system/stack.py
    shows_stack: bool = False  # it has said READY, and so that it can be asked for them
    release: str = ""  # the directory that it was started in, without links
    is_open: bool = False  # told to take connections
    is_ready: bool = False  # it has said READY
    failure: Failed | None = None  # what it said of its failure, or what it is killed for

    ANEW: ClassVar[frozenset[str]] = frozenset({"link", "process"})

    @classmethod
    def start(cls, role: str, place: boot.Boot, link: Link, now: float, directory: str) -> Child:
        """Start a process in *directory*, whose links are followed now. *now* is monotonic.

        Raises OSError when the system has no room for it, or the directory is gone.
        """
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN}
        if role == "worker":
            environment |= {"LIMPET_SLOT": str(place.index), "LIMPET_GENERATION": str(place.generation)}
        identity = privileges.wanted(place.settings)
        if identity is not None:
            environment |= identity.environment
        stack_fd, boot_fd = stack.create() if role == "worker" else -1, -1
        try:
            place = dataclasses.replace(place, stack_fd=stack_fd)
            boot_fd = boot.write(place)
            started = subprocess.Popen(
                # -P: a `select.py` of the user's must not stand in for Python's own; the child adds the folder itself
                [sys.executable, "-P", "-m", "limpet.entry.child", role, str(boot_fd)],
                stdin=subprocess.DEVNULL,
                cwd=directory,
                pass_fds=(boot_fd, *place.inherited_fds),
                env=environment,
                process_group=0,
                **(identity.as_arguments() if identity is not None else {}),
            )
        except BaseException:
            if stack_fd >= 0:
                os.close(stack_fd)
            raise
        finally:
            if boot_fd >= 0:
                os.close(boot_fd)
        return cls(
            pid=started.pid,
            role=role,
            row=place.row,
            serial=place.serial,
            generation=place.generation,
            started_at=now,
            link=link,
            process=started,
            release=os.path.realpath(directory),
            stack_fd=stack_fd,
        )

    @classmethod
    def adopt(cls, link: Link, kept: Mapping[str, Any]) -> Child:
        """Return the child of this process that another program here has started; *kept* are the fields it left."""
        return cls(**kept, link=link, process=_Adopted(kept["pid"]))

    def ended(self) -> bool:
        """Reap the process if it has ended; return whether it has. Blocks never."""
        if self.process.poll() is None:
            return False
        if self.stack_fd >= 0:
            os.close(self.stack_fd)
            self.stack_fd, self.shows_stack = -1, False
        return True

    def how_it_ended(self) -> str:
        """Return in words how the reaped process ended."""
        code = self.process.returncode
        assert code is not None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()


class _Adopted:
    """What `subprocess.Popen` is to a child that was started by it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Reap it if it has ended; return its exit code, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def reap_orphans(own: Collection[int]) -> None:
    """Reap what has ended and is none of the processes *own*, which somebody here waits for. Blocks never."""
    # One of our own that has just ended may hide others: its signal is still to come, and then we look again.
    with contextlib.suppress(ChildProcessError):  # there are no children
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in own:
                return
            os.waitpid(found.si_pid, os.WNOHANG)
