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
from tests.harness import Limpet, wait_until
from tests.real.test_kill import NOBODY
from tests.real.test_privileges import AS_NOBODY, for_nobody
from tests.taken_over import ATTEMPTS
from tests.wire import Wire, request

pytestmark = pytest.mark.skipif(os.getuid() != 0 and not os.environ.get("CI"), reason="only root can become another")
TREASURE = "TREASURE of root\n"
HURTS_THE_WORKER = ("stack_", "scoreboard_", "line_", "half_", "channels_", "descriptors_", "supervisor_group_joined")


class Siege:
    """A server whose directory its workers can write; the tests reach it by second names of its sockets."""

    def __init__(self, root: Path) -> None:
        self.folder, self.treasure = root / "shared", root / "treasure"
        root.chmod(0o711)
        self.folder.mkdir()
        os.chown(self.folder, NOBODY, NOBODY)
        self.treasure.touch(0o600)
        self.treasure.write_text(TREASURE)
        self.log, self.door = root / "log-of-the-tests", str(root / "bind")
        how = for_nobody()
        how["env"] = {**how["env"], "HOSTILE_FOLDER": str(self.folder), "HOSTILE_TREASURE": str(self.treasure)}
        more = ["--workers", "1", "--log-file", str(self.folder / "log"), *AS_NOBODY]
        self.server = Limpet("tests.taken_over:app", *more, bind=f"unix:{self.folder / 'bind'}", **how)
        self.server.arguments[self.server.arguments.index("--control") + 1] = str(self.folder / "control")
        self.server.control = str(root / "control")

    def wait_serving(self) -> None:
        logged = self.folder / "log"
        wait_until(lambda: logged.exists() and "serving" in logged.read_text(), "it serves")
        os.link(self.folder / "control", self.server.control)
        os.link(self.folder / "bind", self.door)

    def make(self, attempt: str) -> str:
        """Have the worker make the attempt; return what it says."""
        with contextlib.suppress(OSError, AssertionError), Wire(self.door) as wire:
            return wire.send(request(f"/{attempt}")).reply().body.decode()
        return ""

    def operate(self) -> str:
        """Do what an operator does in the meantime; return all that he sees."""
        said = []
        for more in ({}, {"read": True}):
            try:
                said.append(str(self.server.ask(command="stack", slot=0, **more)))
            except ControlError as error:
                said.append(error.message)
        self.server.signal(signal.SIGUSR1)
        said.append(str(self.server.status()))
        return "\n".join(said)

    def recover(self, attempt: str) -> None:
        """Take away what the attempt has left."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if attempt.startswith(HURTS_THE_WORKER):
            worker = self.server.worker(0)
            if worker["pid"] is not None:
                os.kill(worker["pid"], signal.SIGKILL)
            self.server.wait_ready(0, worker["pid"] or 0)


@pytest.fixture(scope="module")
def siege() -> Iterator[Siege]:
    """One server, which lives through all attempts."""
    with tempfile.TemporaryDirectory(prefix="limpet-test-") as name:
        siege = Siege(Path(name))
        with siege.server.launched():
            siege.wait_serving()
            yield siege
            assert siege.server.stop() == 0


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_worker_gets_nothing_of_roots_and_the_supervisor_lives(siege: Siege, attempt: str) -> None:
    """With `--user`, an application that is taken over must not be the whole machine."""
    seen = siege.make(attempt) + siege.operate()
    assert "TREASURE" not in seen
    found = siege.treasure.stat()
    assert siege.treasure.read_text() == TREASURE
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0, 0o600)
    assert not siege.treasure.with_name("treasure.new").exists()
    assert siege.server.running
    siege.recover(attempt)
    assert siege.server.running


def test_there_are_many_attempts() -> None:
    """The list must not become short by accident."""
    assert len(ATTEMPTS) >= 30
