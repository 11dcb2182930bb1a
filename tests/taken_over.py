"""An application that was taken over: it does what its user may do against the supervisor, one attempt a request.

Each attempt is a function of ATTEMPTS. `tests/real/test_hostile_worker.py` says what must not come of it. The file
`made` in the shared directory has the name of the latest attempt: so a test can tell an attempt that has failed from
one that was never made.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import gc
import mmap
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from limpet.ipc.control_link import Link
from limpet.worker.seat import Seat

ATTEMPTS: Final[dict[str, Callable[[], object]]] = {}
FOLDER: Final = Path(os.environ.get("HOSTILE_FOLDER", "/nonexistent"))  # of this user, with log, control and bind
TREASURE: Final = os.environ.get("HOSTILE_TREASURE", "/nonexistent")  # of root alone
BOSS: Final = os.getppid()
libc: Final = ctypes.CDLL(None, use_errno=True)


class VainError(Exception):
    """There was nothing to attack, so the attempt shows nothing."""


def attempt(function: Callable[[], object]) -> Callable[[], object]:
    ATTEMPTS[function.__name__] = function
    return function


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Make the attempt that the path names; say what came of it."""
    if scope["type"] != "http":
        return
    name = scope["path"][1:]
    (FOLDER / "made").write_text(name)
    try:
        said = repr(bus_asked() if name == "bus_asked" else ATTEMPTS[name]())
    except Exception as error:  # noqa: BLE001 - the kernel's refusal is a result
        said = repr(error)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": said.encode()})


def own(name: str) -> list[int]:
    """Return the descriptors of this process whose link begins with *name*. Raises VainError if there are none."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith(name):
                found.append(int(number))
    if not found:
        raise VainError(name)
    return found


def replaced(name: str) -> Path:
    """Return the path of *name* in the shared directory, which is free now."""
    path = FOLDER / name
    path.unlink(missing_ok=True)
    return path


def the(kind: type[Any]) -> Any:
    """Return the only object of *kind*. Raises VainError if there is none, or more than one."""
    found = [each for each in gc.get_objects() if isinstance(each, kind)]
    if len(found) != 1:
        raise VainError(f"{len(found)} objects of {kind}")
    return found[0]


def line() -> socket.socket:
    """Return the line to the supervisor, which waits until there is room."""
    end: socket.socket = the(Link)._end.dup()
    end.settimeout(5)
    return end


# --- the bus


def bus_seat() -> Any:
    """Return the place of this worker on the bus."""
    from limpet.coordination.bus import Seat as BusSeat

    found = the(BusSeat)
    found.peers.read()
    return found


def others() -> list[socket.socket]:
    """Return the channels of the other workers. Raises VainError if there are none."""
    found = [channel for _, channel in bus_seat().peers._channels.values()]
    if not found:
        raise VainError("no other worker")
    return found


def bus_asked() -> str:
    """Publish and subscribe as an application does, on a bus that others have ruined."""
    import limpet

    with limpet.subscribe("room") as messages:
        for _ in range(3):
            limpet.publish_sync("room", "still here")
            found = messages.get(5)
            if found is None or found.data != "still here":
                return f"found {found}"
    raise VainError("it works")


@attempt
def bus_garbage() -> None:
    for channel in others():
        for size in (0, 1, 20, 1000, 20_000):
            channel.send(os.urandom(size))


@attempt
def bus_descriptors() -> None:
    pipe = os.pipe()
    for channel in others():
        socket.send_fds(channel, [os.urandom(30)], [*pipe] * 100)


@attempt
def bus_filled() -> None:
    for channel in others():
        with contextlib.suppress(BlockingIOError):
            while True:
                channel.send(b"x" * 1000, socket.MSG_DONTWAIT)


@attempt
def bus_ended() -> None:
    for channel in others():
        channel.shutdown(socket.SHUT_RDWR)


@attempt
def bus_memory_scribbled() -> None:
    cells = bus_seat().memory.cells
    scribble = memoryview(os.urandom(8 << 20)).cast("Q")
    cells[: len(scribble)] = scribble


@attempt
def bus_losses_cut() -> None:
    os.ftruncate(bus_seat().memory.fds[1], 0)


@attempt
def bus_memory_cut() -> None:
    os.ftruncate(bus_seat().memory.fds[0], 0)


@attempt
def bus_upwards() -> None:
    seat = bus_seat()
    for end in (seat.channel, seat.peers._line):
        with contextlib.suppress(BlockingIOError):
            while True:
                end.send(b"x" * 1000, socket.MSG_DONTWAIT)


# --- the stack's file


def _over_stack(fd: int) -> None:
    for number in own("/memfd:limpet-stack"):
        os.dup2(fd, number)


@attempt
def stack_by_path_descriptor() -> None:
    _over_stack(os.open(TREASURE, os.O_PATH))


@attempt
def stack_by_directory() -> None:
    _over_stack(os.open("/root", os.O_PATH))


@attempt
def stack_by_fifo() -> None:
    path = FOLDER / "fifo"
    os.mkfifo(path)
    _over_stack(os.open(path, os.O_RDWR))


def _when_asked_for_the_stack(do: Callable[[int], object]) -> None:
    """Have *do* done with the file's descriptor each time that the supervisor asks for the stacks."""
    [fd] = own("/memfd:limpet-stack")
    signal.signal(signal.SIGRTMIN + 7, lambda number, frame: do(fd))


@attempt
def stack_of_a_terabyte() -> None:
    _when_asked_for_the_stack(lambda fd: os.ftruncate(fd, 1 << 40))


@attempt
def stack_that_is_full() -> None:
    _when_asked_for_the_stack(lambda fd: os.write(fd, b"\xff\x1b[2J" * 500_000))


@attempt
def stack_that_is_sealed() -> None:
    for fd in own("/memfd:limpet-stack"):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


@attempt
def stack_that_is_closed() -> None:
    for fd in own("/memfd:limpet-stack"):
        os.close(fd)


@attempt
def stack_that_is_ignored() -> None:
    signal.signal(signal.SIGRTMIN + 7, signal.SIG_IGN)


# --- shared memory and sockets


@attempt
def scoreboard_cut() -> None:
    for fd in own("/memfd:limpet-scoreboard"):
        os.ftruncate(fd, 0)


@attempt
def scoreboard_sealed() -> None:
    for fd in own("/memfd:limpet-scoreboard"):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x10)  # F_SEAL_FUTURE_WRITE: no later worker could map it


@attempt
def scoreboard_row_full() -> None:
    cells = the(Seat).row.cells
    for position in range(len(cells)):
        cells[position] = (1 << 64) - 1


@attempt
def scoreboard_full() -> None:
    [fd, *_] = own("/memfd:limpet-scoreboard")
    with mmap.mmap(fd, 0) as memory:
        memory[:] = b"\xff" * len(memory)


@attempt
def descriptors_sent_up_the_line() -> None:
    with line() as end:
        rights = array.array("i", [0] * 100)
        for _ in range(50):
            end.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        end.sendall(b'{"news": "nothing"}\n')


@attempt
def half_a_message() -> None:
    with line() as end:
        end.send(b'{"news": "le')


@attempt
def line_ended() -> None:
    with line() as end:
        end.shutdown(socket.SHUT_RDWR)


@attempt
def line_flooded_by_a_copy() -> None:
    if os.fork() == 0:
        with contextlib.suppress(OSError), line() as end:
            while True:
                end.sendall(b'{"news": "left"}\n' * 1000)
        os._exit(0)


SAYINGS: Final = {
    "garbage": b"garbage \x1b[2J\n",
    "no_text": b"\xff\xfe\n",
    "an_empty_object": b"{}\n",
    "a_list": b"[1]\n",
    "thousands_of_brackets": b"[" * 50_000 + b"\n",
    "ready_again": b'{"news": "ready"}\n',
    "failed_without_detail": b'{"news": "failed", "message": "no", "hint": null, "code": 1}\n',
    "missing_slot_99": b'{"news": "missing", "slot": 99}\n',
    "missing_slot_below_0": b'{"news": "missing", "slot": -1}\n',
    "stop_without_its_field": b'{"news": "stop"}\n',
    "much": b'{"news": "left"}\n' * 5000,
    "what_never_ends": b"x" * (3 << 20),
}


def _say(said: bytes) -> None:
    with line() as end:
        end.sendall(said)


for name, said in SAYINGS.items():
    ATTEMPTS[f"says_{name}"] = partial(_say, said)


@attempt
def channels_ended() -> None:
    for number in own("socket:"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as sock:
            if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_SEQPACKET:
                sock.shutdown(socket.SHUT_RDWR)


# --- paths in the shared directory


@attempt
def log_by_symlink() -> None:
    replaced("log").symlink_to(TREASURE)


@attempt
def log_by_symlink_to_nothing() -> None:
    replaced("log").symlink_to(TREASURE + ".new")


@attempt
def log_by_hard_link() -> None:
    os.link(TREASURE, replaced("log"))


@attempt
def log_by_fifo() -> None:
    os.mkfifo(replaced("log"))


@attempt
def log_by_directory() -> None:
    replaced("log").mkdir()


@attempt
def control_by_symlink() -> None:
    replaced("control").symlink_to(TREASURE)


@attempt
def control_by_file() -> None:
    replaced("control").write_text("mine")


@attempt
def bind_by_symlink() -> None:
    replaced("bind").symlink_to(TREASURE)


@attempt
def bind_by_hard_link() -> None:
    os.link(TREASURE, replaced("bind"))


# --- the process of the supervisor, and root's files


@attempt
def supervisor_killed() -> None:
    os.kill(BOSS, signal.SIGKILL)


@attempt
def supervisor_told_to_end() -> None:
    os.kill(BOSS, signal.SIGTERM)


@attempt
def supervisor_stopped() -> None:
    os.kill(BOSS, signal.SIGSTOP)


@attempt
def supervisor_group_killed() -> None:
    os.killpg(os.getpgid(BOSS), signal.SIGKILL)


@attempt
def supervisor_group_joined() -> None:
    os.setpgid(0, os.getpgid(BOSS))


def _refused_or(value: object, result: int) -> object:
    """Return *value* unless *result* says that the C library was refused. Raises OSError then."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return value


@attempt
def supervisor_traced() -> object:
    return _refused_or("TREASURE", libc.ptrace(16, BOSS, 0, 0))  # PTRACE_ATTACH


@attempt
def supervisor_memory_read() -> int:
    with open(f"/proc/{BOSS}/mem", "rb") as file:
        return file.fileno()


@attempt
def supervisor_environment_read() -> bytes:
    return b"TREASURE" + Path(f"/proc/{BOSS}/environ").read_bytes()


@attempt
def supervisor_descriptors_opened() -> list[str]:
    return ["TREASURE", *os.listdir(f"/proc/{BOSS}/fd")]


@attempt
def supervisor_descriptor_taken() -> object:
    return _refused_or("TREASURE", libc.syscall(438, os.pidfd_open(BOSS), 0, 0))  # pidfd_getfd


@attempt
def supervisor_limited() -> None:
    resource.prlimit(BOSS, resource.RLIMIT_NOFILE, (0, 0))


@attempt
def supervisor_slowed() -> None:
    os.setpriority(os.PRIO_PROCESS, BOSS, 19)


@attempt
def supervisor_offered_to_the_oom_killer() -> None:
    Path(f"/proc/{BOSS}/oom_score_adj").write_text("1000")


@attempt
def root_become() -> None:
    os.setuid(0)


@attempt
def group_of_root_become() -> None:
    os.setgroups([0])


@attempt
def treasure_read() -> str:
    return Path(TREASURE).read_text()


@attempt
def treasure_written() -> None:
    Path(TREASURE).write_text("mine")


@attempt
def treasure_chowned() -> None:
    os.chown(TREASURE, os.getuid(), os.getgid())


@attempt
def treasure_replaced() -> None:
    mine = FOLDER / "mine"
    mine.write_text("mine")
    mine.rename(TREASURE)


@attempt
def root_by_set_uid_program() -> str:
    copy = FOLDER / "id"
    copy.write_bytes(Path("/usr/bin/id").read_bytes())
    copy.chmod(0o6755)
    return "TREASURE" if "euid=0" in subprocess.run([copy], capture_output=True, text=True, check=False).stdout else ""
