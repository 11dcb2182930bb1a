"""A worker that was taken over does what its user may do, and gets nothing of root's: SECURITY.md has the table."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from limpet.errors import ControlError
from tests.harness import Limpet, limpet_command, wait_until
from tests.real.test_kill import NOBODY
from tests.real.test_privileges import AS_NOBODY, for_nobody
from tests.taken_over import ATTEMPTS, SAYINGS
from tests.wire import Wire, request

pytestmark = pytest.mark.skipif(os.getuid() != 0 and not os.environ.get("CI"), reason="only root can become another")
TREASURE = "TREASURE of root\n"
WORKERS = 4
ENDS_THE_WORKER = {f"says_{name}" for name in SAYINGS} | {"descriptors_sent_up_the_line", "line_flooded_by_a_copy"}
HURTS_THE_WORKER = ("stack_", "scoreboard_", "line_ended", "half_", "supervisor_group_joined")
WRITES_WHEN_ASKED = {"stack_of_a_terabyte", "stack_that_is_full"}
HURTS_THE_SLOT = ("channels_ended", "scoreboard_full")  # no later worker in it is reached: each has its own server
REFUSED = (
    "supervisor_",
    "treasure_",
    "root_become",
    "group_of_root_",
    "scoreboard_cut",
    "scoreboard_sealed",
    "bus_memory_cut",
)
REFUSED_TOO = {"stack_that_is_sealed"}
ALLOWED = {"supervisor_group_joined"}  # within one session it is; nobody sends that group a signal


class Siege:
    """A server whose directory its workers can write; the tests reach it by second names of its sockets."""

    def __init__(self, root: Path, workers: int) -> None:
        self.folder, self.treasure = root / "shared", root / "treasure"
        root.chmod(0o711)
        self.folder.mkdir()
        os.chown(self.folder, NOBODY, NOBODY)
        self.treasure.touch(0o600)
        self.treasure.write_text(TREASURE)
        self.door = str(root / "bind")
        self.is_stopped = False  # by the test
        how = for_nobody()
        how["env"] = {**how["env"], "HOSTILE_FOLDER": str(self.folder), "HOSTILE_TREASURE": str(self.treasure)}
        more = ["--workers", str(workers), "--by", "header:x-user", "--log-file", str(self.folder / "log"), *AS_NOBODY]
        self.server = Limpet("tests.taken_over:app", *more, bind=f"unix:{self.folder / 'bind'}", **how)
        self.server.arguments[self.server.arguments.index("--control") + 1] = str(self.folder / "control")
        self.server.control = str(root / "control")

    def wait_serving(self) -> None:
        """Wait until it serves, and give its sockets their second names."""
        logged = self.folder / "log"
        wait_until(lambda: logged.exists() and "serving" in logged.read_text(), "it serves")
        os.link(self.folder / "control", self.server.control)
        os.link(self.folder / "bind", self.door)
        self.descriptors_at_first = self.descriptors()
        keys = [str(number) for number in range(50)]
        self.keys = {found["slot"]: key for key, found in zip(keys, self.server.where(*keys), strict=True)}

    def descriptors(self) -> int:
        """Return how many descriptors the supervisor has."""
        return len(os.listdir(f"/proc/{self.server.pid}/fd"))

    def make(self, attempt: str, slot: int = 0) -> str:
        """Have the worker of *slot* make the attempt; return what it says, unless that ended it."""
        said, may_not_answer = "", (OSError, AssertionError) if attempt in ENDS_THE_WORKER else ()
        with contextlib.suppress(*may_not_answer), Wire(self.door) as wire:
            said = wire.send(request(f"/{attempt}", x_user=self.keys[slot])).reply().body.decode()
        assert (self.folder / "made").read_text() == attempt, "the worker was not reached"
        assert "VainError" not in said, said
        return said

    def operate(self, attempt: str, slot: int) -> str:
        """Do what an operator does in the meantime; return all that he sees."""
        said = []
        for more in ({}, {"read": True}):
            try:
                said.append(str(self.server.ask(command="stack", slot=slot, **more)))
            except ControlError as error:
                said.append(error.message)
        if attempt in WRITES_WHEN_ASKED:
            asked = {"command": "stack", "slot": slot, "read": True}
            wait_until(lambda: self.server.ask(**asked)["stack"], "the worker has written")
            said.append(str(self.server.ask(**asked)))
        self.server.signal(signal.SIGUSR1)
        commands = ("status", "figures", "events", "status")  # the last one is answered in a turn after the signal's
        said += [str(self.server.ask(command=command)) for command in commands]
        return "\n".join(said)

    def recover(self, attempt: str, slot: int, worker: int) -> None:
        """Take away what the attempt has left, with the *worker* that made it."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if attempt.startswith(HURTS_THE_WORKER):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        if attempt in ENDS_THE_WORKER or attempt.startswith(HURTS_THE_WORKER):
            wait_until(lambda: self.server.worker(slot)["pid"] != worker, "the worker has ended")


@contextlib.contextmanager
def besieged(workers: int = 1) -> Iterator[Siege]:
    """Start a server for attempts, and see that it can still be stopped in the end."""
    with tempfile.TemporaryDirectory(prefix="limpet-test-") as name:
        siege = Siege(Path(name), workers)
        with siege.server.launched():
            siege.wait_serving()
            yield siege
            assert siege.is_stopped or siege.server.stop() == 0


@pytest.fixture(scope="module")
def siege() -> Iterator[Siege]:
    """One server, which lives through all attempts: while one worker makes one, those before it are replaced."""
    with besieged(WORKERS) as siege:
        yield siege


def check(siege: Siege, attempt: str) -> None:
    """Have the worker make *attempt*, while an operator does what operators do, and see that nothing came of it."""
    slot = list(ATTEMPTS).index(attempt) % len(siege.keys)
    worker = siege.server.wait_ready(slot)["pid"]
    said = siege.make(attempt, slot)
    seen = said + siege.operate(attempt, slot)
    assert "TREASURE" not in seen
    assert "\x1b" not in seen
    assert len(seen) < 3_000_000  # a bounded part of the file of stacks, each byte of it escaped
    if (attempt.startswith(REFUSED) and attempt not in ALLOWED) or attempt in REFUSED_TOO:
        assert "PermissionError" in said, f"the kernel did not refuse it: {said}"
    found = siege.treasure.stat()
    assert siege.treasure.read_text() == TREASURE
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0, 0o600)
    assert not siege.treasure.with_name("treasure.new").exists()
    if attempt in ("scoreboard_row_full", "scoreboard_full"):
        for command in (["status"], ["top", "--once"]):
            ended = limpet_command(*command, "--control", siege.server.control)
            assert ended.returncode == 0, ended.stderr
    assert siege.server.running
    if attempt in HURTS_THE_SLOT:
        return
    if attempt.startswith("bus_"):  # the others have that to read, and live
        for other in (number for number in siege.keys if number != slot):
            with Wire(siege.door) as wire:
                assert b"VainError" in wire.send(request("/bus_asked", x_user=siege.keys[other])).reply().body
    siege.recover(attempt, slot, worker)
    assert siege.server.running
    few = siege.descriptors_at_first
    wait_until(lambda: siege.descriptors() <= few, "the supervisor has no more descriptors than before", 5)


@pytest.mark.parametrize("attempt", [each for each in ATTEMPTS if each not in HURTS_THE_SLOT])
def test_worker_gets_nothing_of_roots_and_the_supervisor_lives(siege: Siege, attempt: str) -> None:
    """With `--user`, an application that is taken over must not be the whole machine."""
    check(siege, attempt)


@pytest.mark.parametrize("attempt", HURTS_THE_SLOT)
def test_worker_that_ruins_its_slot_ruins_no_more(attempt: str) -> None:
    """Workers share memory and sockets with others of their user; the supervisor still answers, and stops in order."""
    with besieged() as siege:
        check(siege, attempt)


def test_worker_that_finds_its_channels_ended_says_so_and_waits() -> None:
    """What wakes an event loop for ever fills a disk with tracebacks, and takes a processor from others."""
    with besieged() as siege:
        worker = siege.server.worker(0)["pid"]
        siege.make("channels_ended")
        os.kill(worker, signal.SIGKILL)
        siege.server.wait_ready(0, worker)
        logged, said = siege.folder / "log", "cannot take connections: the channel was ended by a worker"
        wait_until(lambda: said in logged.read_text(), "the log says so")
        assert siege.server.log == ""  # which is stderr
        assert len(logged.read_text().splitlines()) < 100
        stat_of = Path(f"/proc/{siege.server.worker(0)['pid']}/stat")
        states = (stat_of.read_text().rpartition(") ")[2][0] for _ in iter(int, 1))
        wait_until(lambda: all(next(states) == "S" for _ in range(20)), "the worker sleeps")


def test_stop_leaves_what_has_taken_the_place_of_its_sockets() -> None:
    """What is there by then is somebody else's."""
    with besieged() as siege:
        for attempt in ("control_by_file", "bind_by_symlink"):
            siege.make(attempt)
        siege.is_stopped = True
        assert siege.server.stop() == 0
        assert (siege.folder / "control").read_text() == "mine"
        assert (siege.folder / "bind").is_symlink()
        siege.server.start()
        assert siege.server.wait_ended() == 3
        assert siege.treasure.read_text() == TREASURE


def test_there_are_many_attempts() -> None:
    """The list must not become short by accident."""
    assert len(ATTEMPTS) >= 55
