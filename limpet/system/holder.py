"""Which process has a TCP port, for the message that it is taken.

Owns what `ss -ltnp` would say, as far as this user may know: sockets of others show no process, so there is no answer.
Called by net/listener.py when an address is in use. Blocks for as long as it takes to look at all processes: tens of
ms.
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
_SHOWN: Final = 60  # characters of a command line


def who_has(port: int) -> str | None:
    """Return in words which other process listens on TCP *port* and since when it runs, None if that is not known.

    Of several, such as the processes of one server, it is the one that runs longest.
    """
    wanted = {f"socket:[{inode}]" for inode in _listening(port)}
    found = [(_started_at(pid), pid) for pid in _pids() if pid != os.getpid() and wanted & _open_in(pid)]
    if not found:
        return None
    started_at, pid = min(found)
    since = datetime.fromtimestamp(started_at, UTC).astimezone().isoformat(" ", timespec="seconds")
    return f"process {pid} (`{_command(pid)}`), which runs since {since}"


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
    with contextlib.suppress(OSError):  # another user's, or it has ended
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def _started_at(pid: int) -> float:
    """Return when process *pid* began, as a time of day; now if it has ended."""
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
