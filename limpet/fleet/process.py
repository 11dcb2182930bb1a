"""One child process as the supervisor sees it: how it is started, what it is told, and how it ended.

Owns how a child is started: as a fresh interpreter, in its own process group, with exactly the descriptors that it
needs. Owns how the end of a child reads in words. supervisor/processes.py decides what to do about it.

1. A child is a fresh interpreter, never a fork. A replacement imports the application again, and nothing of the
   supervisor's memory leaks into it.
2. A child has its own process group. Ctrl-C in the terminal and systemd's group signals reach only the supervisor.
3. Children do not get `WEB_CONCURRENCY`: the settings have already used it, and an application that also reads it must
   not multiply workers. They do not get the service manager's variables either (operate/service_manager.py).
4. The first process of a container inherits processes whose parents have ended. The supervisor reaps them, and never
   reaps its own children that way.
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
from limpet.ipc import boot, orders
from limpet.ipc.control_link import Link
from limpet.ipc.news import Failed
from limpet.system import activation, stack

_NOT_FOR_CHILDREN: Final = frozenset({"WEB_CONCURRENCY", *activation.NOT_FOR_CHILDREN})


@dataclass(eq=False, kw_only=True)
class Child:
    """A running dispatcher, terminator or worker.

    A supervisor that replaces this one receives all fields except those in `ANEW`.
    """

    pid: int
    role: str
    row: int
    serial: int
    generation: int
    started_at: float  # monotonic
    link: Link  # the supervisor's end of the line to it
    process: subprocess.Popen[bytes] | _Adopted
    kill_at: float = float("inf")  # monotonic: the end of its time to drain
    leaves_by: float = 0.0  # monotonic: it may read the slot's channels until then; its successor waits
    stack_fd: int = -1  # of this process: the file that the worker writes its stacks into, see system/stack.py
    shows_stack: bool = False  # the worker has said READY, so it can be asked for its stacks
    release: str = ""  # the directory that it was started in, with symbolic links resolved
    is_open: bool = False  # it was told to take connections
    is_ready: bool = False  # it has said READY
    failure: Failed | None = None  # its own report of a failure, or the reason why it is killed

    ANEW: ClassVar[frozenset[str]] = frozenset({"link", "process"})

    @classmethod
    def start(cls, role: str, place: boot.Boot, link: Link, now: float, directory: str) -> Child:
        """Start a process in *directory*, whose symbolic links are resolved now. *now* is monotonic.

        Raises OSError if the system has no room for the process, or if the directory is gone.
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
                # -P: a `select.py` of the user must not replace the standard library's. The child itself adds the
                # user's directory later.
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
        """Return the child that the previous program in this process had started.

        *kept* holds the fields that it left.
        """
        return cls(**kept, link=link, process=_Adopted(kept["pid"]))

    def tell(self, order: orders.Order) -> None:
        """Send *order* to the process. It cannot fail: the end of a process is seen elsewhere. Blocks never."""
        orders.send(self.link, order)

    def ended(self) -> bool:
        """Reap the process if it has ended, and return whether it has. Never blocks."""
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
        """Kill the process at once."""
        self.process.kill()


class _Adopted:
    """Stands in for `subprocess.Popen` for a child that another program in this process has started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Reap the process if it has ended. Return its exit code, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        """Kill the process at once, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def reap_orphans(own: Collection[int]) -> None:
    """Reap processes that have ended and are not in *own*, the processes that limpet itself waits for. Never blocks."""
    # An own child that has just ended may hide orphans behind it. Its SIGCHLD is still to come, and then we look again.
    with contextlib.suppress(ChildProcessError):  # there are no children
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in own:
                return
            os.waitpid(found.si_pid, os.WNOHANG)
