"""limpet as the first process of a container: it reaps who has lost his parent, and signals work."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import Limpet, wait_until

ROOT = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
UNSHARE = ["unshare", *ROOT, "--pid", "--fork", "--kill-child", "--mount-proc"]
ADOPTS = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def starter(folder: Path, *command: str) -> str:
    """Return a program that stands in for Python, started by *command*."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o700)
    return str(path)


def children(pid: int) -> dict[int, str]:
    """Return the names of the children of a process, zombies included, by their pids."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child): Path(f"/proc/{child}/comm").read_text().strip() for child in pids}


def lose_a_parent(server: Limpet, supervisor: int) -> int:
    """Have the application leave a process behind; return its pid when it is the supervisor's."""
    assert server.request().status == 200

    def adopted() -> int | None:
        return next((pid for pid, name in children(supervisor).items() if name == "sleep"), None)

    pid: int = wait_until(adopted, "the supervisor has got it")
    return pid


def test_orphans_are_reaped_and_workers_still_found_dead(tmp_path: Path) -> None:
    """A table of processes full of zombies ends every container; one that reaps too much misses its own workers."""
    python = starter(tmp_path, sys.executable, "-c", ADOPTS)  # as good as the first process, without a privilege
    with Limpet("tests.apps:orphaning", "--workers", "1", python=python) as server:
        orphan = lose_a_parent(server, server.pid)
        worker = server.worker(0)["pid"]
        server.signal(signal.SIGSTOP)
        for pid in (orphan, worker):
            os.kill(pid, signal.SIGKILL)
        server.signal(signal.SIGCONT)

        wait_until(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan is reaped")
        server.wait_ready(0, other_than=worker)
        assert f"worker 0 (pid {worker}) was killed by SIGKILL; it is replaced" in server.log


@pytest.mark.skipif(
    subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0, reason="no PID namespace here"
)
def test_first_process_obeys_signals(tmp_path: Path) -> None:
    """The kernel spares the first process of a namespace every signal that it has no handler for."""
    python = starter(tmp_path, *UNSHARE, sys.executable)
    with Limpet("tests.apps:orphaning", "--workers", "1", python=python) as server:
        [first] = children(server.pid)
        assert server.status()["pid"] == 1
        orphan = lose_a_parent(server, first)
        os.kill(orphan, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan is reaped")
        os.kill(first, signal.SIGUSR2)
        wait_until(lambda: server.status()["upgrades"]["done"] == 1, "it is upgraded")
        os.kill(first, signal.SIGTERM)
        assert server.wait_ended() == 0
        assert "stopped" in server.log


@pytest.mark.skipif(
    subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0, reason="no PID namespace here"
)
def test_first_process_keeps_a_stop_that_comes_before_it_is_ready(tmp_path: Path) -> None:
    """The kernel drops it while there is no handler: a container that is stopped at once would wait to be killed."""
    python = starter(tmp_path, *UNSHARE, sys.executable)
    with Limpet("tests.apps:echo", "--workers", "1", python=python).launched() as server:
        [first] = wait_until(lambda: children(server.pid), "there is a first process")
        # `unshare` blocks signals itself for a moment, before it executes Python.
        wait_until(lambda: "python" in os.readlink(f"/proc/{first}/exe"), "it is Python's")
        wait_until(lambda: has_signal(first, "SigBlk", signal.SIGTERM), "it keeps signals")
        assert not has_signal(first, "SigCgt", signal.SIGTERM)
        os.kill(first, signal.SIGTERM)
        assert server.wait_ended() == 0
        assert "stopped" in server.log
        assert "serving" not in server.log


def has_signal(pid: int, mask: str, number: int) -> bool:
    """Return whether a *mask* of process *pid* has the signal *number*."""
    found = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(mask)]
    return bool(int(found[0].split()[1], 16) & 1 << number - 1)
