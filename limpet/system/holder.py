"""Which process listens on a TCP port, for the message that the port is in use.

This file owns the answer that `ss -ltnp` would give, as far as this user may see it: the sockets of other users show no
process, so for those there is no answer. net/listener.py calls it when an address is in use. A call blocks while it
looks at all processes, which takes tens of ms.
"""

from __future__ import annotations

import contextlib
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENS: Final = "0A"
_SHOWN: Final = 60  # characters of a command line in the message


def who_has(port: int) -> str | None:
    """Return text that names the other process on TCP *port* and its start time; None if none is found.

    If several processes listen, such as those of one server, it is the one that started first.
    """
    wanted = {f"socket:[{inode}]" for inode in _listening(port)}
    found = [(_started_at(pid), pid) for pid in _pids() if pid != os.getpid() and wanted & _open_in(pid)]
    if not found:
        return None
    started_at, pid = min(found)
    since = datetime.fromtimestamp(started_at, UTC).astimezone().isoformat(" ", timespec="seconds")
    return f"process {pid} (`{_command(pid)}`), running since {since}"


def _listening(port: int) -> set[str]:
    inodes = set()
    for table in _TABLES:
        with contextlib.suppress(OSError):  # a kernel without IPv6
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(fields[9])
    return inodes


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _open_in(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):  # the process is another user's, or has ended
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def _started_at(pid: int) -> float:
    """Return when process *pid* started, in seconds since the epoch; the current time if it has ended."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return time.time()
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
    except OSError:
        words = ""
    shown = "".join(letter if letter.isprintable() and letter != "`" else "?" for letter in words)
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."
