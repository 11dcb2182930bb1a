"""Nothing that a child or a caller of the control socket says ends the supervisor, nor anybody but who said it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limpet.errors import ControlError
from limpet.operate import control_socket
from tests.harness import HERE, PATIENCE_S, Limpet, wait_until
from tests.public import reload


@pytest.fixture(scope="module")
def server() -> Iterator[Limpet]:
    """Return a server of two workers that say what a request asks for."""
    with Limpet("tests.saying_app:app", "--workers", "2", "--by", "header:x-user") as limpet:
        yield limpet


@pytest.mark.parametrize(
    "said",
    [
        b"garbage \x1b[2J\n",
        b"{}\n",
        b"[1]\n",
        b'{"news": "ready"}\n',
        b'{"news": "failed"}\n',
        b'{"news": "missing", "slot": 99}\n',
        b'{"news": "missing", "slot": -1}\n',
        b"x" * (3 << 20),
    ],
    ids=lambda said: repr(said[:32]),
)
def test_odd_message_ends_only_the_worker_that_said_it(server: Limpet, said: bytes) -> None:
    """A worker runs code of users: one that forks at its import, or is taken over, must not stop the others."""
    home = server.where("alice")[0]["slot"]
    worker, other = server.worker(home)["pid"], server.worker(1 - home)["pid"]
    with contextlib.suppress(OSError, EOFError):  # the worker may be killed before it has answered
        server.request(method="POST", body=said, x_user="alice")
    server.wait_ready(home, other_than=worker)
    assert server.running
    assert server.worker(1 - home)["pid"] == other
    assert any(f"(pid {worker}) said" in line or f"(pid {worker}) asked" in line for line in server.lines)
    assert "\x1b" not in "".join(server.lines)


@pytest.mark.parametrize(
    "nonsense",
    [{}, {"command": None}, {"command": ["status"]}, {"command": "where"}]
    + [{"command": "where", "keys": keys} for keys in (None, "alice", [1], [None], ["\ud800"], [""], {"alice": 1})],
)
def test_nonsense_in_a_question_is_refused(server: Limpet, nonsense: dict[str, Any]) -> None:
    """A script with a mistake gets an error; the server that it asks about goes on."""
    with pytest.raises(ControlError):
        server.ask(**nonsense)
    assert server.status()["pid"] == server.pid


@pytest.mark.parametrize(
    "command",
    [
        {"command": "scale", "slots": True},
        {"command": "scale", "slots": 2.0},
        {"command": "scale"},
        {"command": "drain", "slot": False},
        {"command": "reload", "slot": "0"},
        {"command": "stop", "wait_for_connections": "yes"},
        {"command": "change", "number": [1]},
        {"command": "where", "keys": [{"element": "ip", "value": "7f", "is_address": True}]},
        {"command": "where", "keys": [{"element": "affinity", "value": "ff" * 99, "is_address": False}]},
    ],
    ids=str,
)
def test_command_with_a_wrong_value_is_an_error_and_no_more(server: Limpet, command: dict[str, Any]) -> None:
    """A script with a mistake must neither end the server nor do something that was not asked for."""
    with pytest.raises(ControlError, match="`"):
        server.ask(**command)
    assert server.running
    assert len(server.where("alice")) == 1


def test_command_whose_caller_has_gone_is_not_carried_out(server: Limpet) -> None:
    """A caller that gave up was told that it failed: what it asked for must not happen minutes later."""
    server.signal(signal.SIGSTOP)
    try:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(server.control)
            caller.sendall(json.dumps({"command": "scale", "slots": 3}).encode() + b"\n")
    finally:
        server.signal(signal.SIGCONT)
    assert wait_until(server.status, "the server answers")["slots"][-1]["slot"] == 1
    assert not any("scaling" in line for line in server.lines)


def test_server_whose_directory_is_gone_still_answers(tmp_path: Path) -> None:
    """Release directories are removed; a command that gets no answer at all explains nothing."""
    gone = tmp_path / "release"
    gone.mkdir()
    (gone / "own_app.py").write_text("from tests.apps import echo\n")
    with Limpet("own_app:echo", "--workers", "1", cwd=gone, env={"PYTHONPATH": str(HERE.parent)}) as limpet:
        shutil.rmtree(gone)
        assert limpet.ask(command="routing")["app_dir"] == [str(gone)]


def test_application_that_forks_at_import_has_one_worker_in_each_slot(tmp_path: Path) -> None:
    """The copy that came back from the fork said a second time that the worker is ready, which ended the server."""
    shop = tmp_path / "shop.py"
    shop.write_text("from tests.apps import echo\n")
    with Limpet("shop:echo", "--workers", "2", cwd=tmp_path, env={"PYTHONPATH": str(HERE.parent)}) as limpet:
        shop.write_text("import os\nfrom tests.apps import echo\nos.fork()\n")
        before = {slot["pid"] for slot in limpet.status()["slots"]}
        assert reload(limpet)["state"] == "done"
        after = {slot["pid"] for slot in limpet.status()["slots"]}
        assert len(after) == 2
        assert not before & after
        # A reload is done when the old workers are told to drain, which may still take one connection before they do.
        wait_until(lambda: limpet.request().json()["pid"] in after, "the new workers serve")
        assert "returned from the import: it ends" in limpet.log


def test_workers_follow_a_link_to_the_release_of_now(tmp_path: Path) -> None:
    """`current/` is a link in most deployments: a reload that says `done` and serves the old release is a trap."""
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "shop.py").write_text(
            f"from tests.apps import echo\nasync def app(scope, receive, send):\n"
            f"    scope['path'] = '/{release}'\n    await echo(scope, receive, send)\n"
        )
    link = tmp_path / "current"
    link.symlink_to("one")
    env = {"PYTHONPATH": str(HERE.parent), "PWD": str(link)}
    with Limpet("shop:app", "--workers", "1", cwd=link, env=env) as limpet:
        assert limpet.request().json()["path"] == "/one"
        link.unlink()
        link.symlink_to("two")
        assert reload(limpet)["state"] == "done"
        # The old worker was told to drain, and may still take one connection before it does.
        wait_until(lambda: limpet.request().json()["path"] == "/two", "the new release serves")
        wait_until(lambda: f", from {tmp_path / 'two'}" in limpet.log, "the log says which release serves")
        shutil.rmtree(tmp_path / "one")
        worker = limpet.worker(0)["pid"]
        os.kill(worker, signal.SIGKILL)
        limpet.wait_ready(0, other_than=worker)
        assert limpet.request().json()["path"] == "/two"


def test_caller_of_a_server_that_does_not_accept_gives_up(tmp_path: Path) -> None:
    """A backlog that is full made `limpet status` wait for ever."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(str(path))
        full.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(str(path))
        began = time.monotonic()
        with pytest.raises(ControlError, match="does not accept"):
            control_socket.ask(str(path), {"command": "status"}, timeout_s=0.5)
        assert time.monotonic() - began < PATIENCE_S
        for each in waiting:
            each.close()
