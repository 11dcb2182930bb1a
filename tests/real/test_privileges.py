"""What root starts does not run as root, and what is secret is seen by nobody: in `ps`, logs, status, environments."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import HERE, SECRET, Limpet, limpet_command, wait_until
from tests.real.test_kill import NOBODY, nobody
from tests.secure import ask, flags, make_pair, secured
from tests.wire import Wire, request

pytestmark = pytest.mark.skipif(os.getuid() != 0 and not os.environ.get("CI"), reason="only root can become another")
AS_NOBODY = ["--user", str(NOBODY), "--group", str(NOBODY)]


def for_nobody() -> dict[str, Any]:
    """Return how to start a server, as root, with a Python that nobody may run."""
    how = nobody()
    return {"python": how["python"], "env": how["env"]}


def low_port() -> int:
    """Return a free port that only root may use."""
    for port in range(600, 1024):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("all low ports are in use")


def identity(pid: int) -> tuple[set[int], set[int], list[str]]:
    """Return all user ids, group ids and further groups of a process."""
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    uids, gids = ({int(word) for word in lines[name].split()} for name in ("Uid", "Gid"))
    return uids, gids, lines["Groups"].split()


def children(server: Limpet) -> list[int]:
    status = server.status()
    return [entry["pid"] for entry in status["dispatchers"] + status["slots"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limpet]:
    """A server that root has started on a port of root's, with a key that only root can read, and a log file."""
    folder = tmp_path_factory.mktemp("of-root")
    make_pair(folder, "first.example")
    (folder / "key.pem").chmod(0o600)
    bind = f"127.0.0.1:{low_port()}"
    more = ["--by", "sni,ip", "--workers", "2", *AS_NOBODY, *flags(folder)]
    with Limpet("tests.apps:echo", *more, bind=bind, **for_nobody()) as server:
        yield server


def test_children_have_no_right_of_root(server: Limpet) -> None:
    """A hole in an application, or in what reads a client's bytes, must not be one of the whole machine."""
    assert len(children(server)) == 3
    for pid in children(server):
        assert identity(pid) == ({NOBODY}, {NOBODY}, [])
    assert identity(server.pid)[0] == {0}
    assert Path(f"/proc/{children(server)[0]}/environ").read_bytes().count(b"HOME=/root\0") == 0


def test_children_of_a_reload_a_death_and_an_upgrade_have_none_either(server: Limpet) -> None:
    """Each way by which a process comes is a way to forget it; the key, which is root's, is still there."""
    first = server.worker(0)["pid"]
    os.kill(first, signal.SIGKILL)
    server.wait_ready(0, first)
    server.command("reload")
    server.process.send_signal(signal.SIGUSR2)  # type: ignore[union-attr]
    wait_until(lambda: server.status()["upgrades"]["done"] == 1, f"it is upgraded:\n{server.log}")
    server.command("reload")
    assert {frozenset(identity(pid)[0]) for pid in children(server)} == {frozenset({NOBODY})}
    with secured(server, "tenant-1.example") as connection:
        assert ask(connection).json()["slot"] == server.where("tenant-1.example")[0]["slot"]


def test_control_socket_asks_the_kernel_who_calls(server: Limpet) -> None:
    """Rights of a file are changed by accident; who may stop the server must not depend on them alone."""
    found = os.stat(server.control)
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, NOBODY)
    server.state.chmod(0o711)
    os.chmod(server.control, 0o666)
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
    code += "s.sendall(b'{}\\n'); print(s.recv(9))"
    how: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "timeout": 30, "extra_groups": ()}
    for uid, is_answered in ((NOBODY, True), (NOBODY - 1, False)):
        command = ["/usr/bin/python3", "-c", code, server.control]
        ended = subprocess.run(command, user=uid, group=uid, **how)
        assert ("error" in ended.stdout) == is_answered, ended
    wait_until(lambda: f"user {NOBODY - 1} (pid " in server.log, "the log says who called")


def test_socket_file_has_the_rights_and_the_owner_that_were_asked_for() -> None:
    """nginx in the group may connect, and nobody else; the log file is one that workers can write."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="limpet-test-")))
        folder.chmod(0o711)
        path, logged = folder / "sock", folder / "log"
        more = ["--workers", "1", "--umask", "007", "--log-file", str(logged), *AS_NOBODY]
        server = Limpet("tests.apps:echo", *more, "--access-log", bind=f"unix:{path}", **for_nobody())
        stack.enter_context(server.launched())
        wait_until(lambda: logged.exists() and "serving" in logged.read_text(), "it serves")
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o770, NOBODY, NOBODY)
        with Wire(str(path)) as wire:
            assert wire.send(request("/seen")).reply().status == 200
        wait_until(lambda: "/seen" in logged.read_text(), "a worker writes the log file")
        assert server.stop() == 0


def test_secret_of_the_environment_is_in_nobodys_sight(tmp_path: Path) -> None:
    """Containers have secrets in variables. From there it goes to children by memory, and to nothing that is shown."""
    secret = "0123456789abcdef" * 2
    server = Limpet("tests.apps:echo", "--by", "header:x-user", "--workers", "2", env={"LIMPET_SECRET": secret})
    at = server.arguments.index("--secret-file")
    del server.arguments[at : at + 2]
    with server:
        homes = [entry["digest"] for entry in server.where("ada", "grace")]
        shown = [json.dumps(server.status()), server.log, json.dumps(homes)]
        for pid in children(server):
            shown += [Path(f"/proc/{pid}/{name}").read_bytes().decode() for name in ("cmdline", "environ")]
        assert not [text for text in shown if secret in text or SECRET in text]
        assert "secret from LIMPET_SECRET" in server.log
    (tmp_path / "secret").touch(0o600)
    (tmp_path / "secret").write_text(secret)
    with Limpet("tests.apps:echo", "--by", "header:x-user", "--workers", "2", state=tmp_path) as server:
        assert [entry["digest"] for entry in server.where("ada", "grace")] == homes


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--user", "nobody-of-that-name"], "there is no user `nobody-of-that-name`"),
        (["--user", "4000000000"], "user 4000000000 has no entry in the user database"),
        (["--group", "no-such-group"], "there is no group `no-such-group`"),
        (["--umask", "8"], "invalid umask `8`"),
    ],
)
def test_who_or_what_is_not_known_is_refused(more: list[str], says: str) -> None:
    """A typing error must not leave a server running as root."""
    ended = limpet_command("check", "tests.apps:echo", *more)
    assert ended.returncode == 2
    assert says in ended.stderr


def test_python_that_the_user_may_not_run_is_named(tmp_path: Path) -> None:
    """As in a virtual environment in root's home: the error is the system's, the way out is not to be guessed."""
    how = for_nobody()
    hidden = tmp_path / "python"
    hidden.symlink_to(how["python"])
    tmp_path.chmod(0o700)
    env = {**how["env"], "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    with Limpet("tests.apps:echo", *AS_NOBODY, python=str(hidden), env=env).launched() as server:
        assert server.wait_ended() == 1
    assert "error: cannot start worker 0: permission denied" in server.log
    assert f"must be allowed to run {hidden}" in server.log


def test_user_without_rights_cannot_become_another() -> None:
    """The error says so at once, not each child in its turn."""
    how = nobody()
    command = [how["python"], "-m", "limpet", "check", "tests.apps:echo", "--user", "root"]
    ended = subprocess.run(
        command, env=how["env"], user=NOBODY, group=NOBODY, extra_groups=(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert f"this is user {NOBODY}" in ended.stderr
