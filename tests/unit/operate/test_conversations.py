"""Conversations at the control socket: who is answered, who is dropped, and how a command finds its server."""

from __future__ import annotations

import contextlib
import selectors
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from limpet.errors import ControlError, ListenError
from limpet.operate import control_socket
from limpet.operate.control_socket import ControlServer, listen
from tests.harness import PATIENCE_S, wait_until


class Server:
    """A control socket that is served in a thread, as the supervisor serves it."""

    def __init__(self, path: Path | None = None, name: str = "test") -> None:
        self.selector = selectors.DefaultSelector()
        self.control = ControlServer(*listen(str(path) if path else None, name), self.answer, self.selector)
        self.now = 0.0
        self.asked = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say the request back, or refuse it."""
        self.asked += 1
        return {"error": "no", "hint": "ask for something else"} if "refuse" in request else {"asked": request}

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.control.close()
        self.selector.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            for key, _ in self.selector.select(0.01):
                key.data(self.now)
            self.control.expire(self.now)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the control socket is."""
    return tmp_path / "control.sock"


def caller(path: Path) -> socket.socket:
    """Return a connection to the control socket at *path*."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))  # blocking: it waits for room in the backlog
    sock.settimeout(PATIENCE_S)
    return sock


def test_question_is_answered_to_its_owner_only(path: Path) -> None:
    """Whoever can stop the server must be its user; the file is gone with the server."""
    with Server(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert control_socket.ask(str(path), {"command": "status"}) == {"asked": {"command": "status"}}
        with pytest.raises(ControlError, match="no") as refused:
            control_socket.ask(str(path), {"refuse": True})
        assert refused.value.hint == "ask for something else"
    assert not path.exists()


@pytest.mark.parametrize(
    "junk", [b"\n", b"{\n", b"[1]\n", b"\xff\xfe\n", b'"status"\n', b"1e999\n", b"[" * 9000 + b"\n"]
)
def test_junk_is_told_so(path: Path, junk: bytes) -> None:
    """Whatever is written into the socket, the supervisor lives on."""
    with Server(path):
        with caller(path) as sock:
            sock.sendall(junk)
            assert b"not a JSON object" in sock.recv(1000)
        assert control_socket.ask(str(path), {}) == {"asked": {}}


def test_question_in_pieces_is_put_together(path: Path) -> None:
    """`limpet where` may carry more keys than fit into one read."""
    with Server(path), caller(path) as sock:
        for part in (b'{"comm', b'and": "', b'x"}', b"\n"):
            sock.sendall(part)
        assert b'"x"' in sock.recv(1000)
        assert len(control_socket.ask(str(path), {"keys": ["k" * 100] * 5000})["asked"]["keys"]) == 5000


def test_caller_that_says_nothing_or_too_much_is_dropped(path: Path) -> None:
    """Nobody may fill the supervisor's memory or descriptors, by mistake either."""
    with Server(path) as server, caller(path) as silent, caller(path) as half, caller(path) as endless:
        half.sendall(b'{"command": ')
        with pytest.raises(OSError):  # noqa: PT012  # reset or broken pipe, at some point of the way
            for _ in range(50):
                endless.sendall(b"x" * 100_000)
            endless.recv(1)
        wait_until(lambda: control_socket.ask(str(path), {}), "the server has seen all of them")
        server.now = 6.0
        assert (silent.recv(1), half.recv(1)) == (b"", b"")


def test_caller_that_was_answered_stays_until_the_end(path: Path) -> None:
    """`limpet stop` returns when the server has stopped, which may take longer than anybody's patience."""
    with contextlib.ExitStack() as stack:
        with Server(path) as server:
            waiting = stack.enter_context(caller(path))
            waiting.sendall(b"{}\n")
            assert waiting.recv(1000) == b'{"asked": {}}\n'
            server.now = 1000.0
            control_socket.ask(str(path), {})
            waiting.setblocking(False)
            with pytest.raises(BlockingIOError):
                waiting.recv(1)
        waiting.settimeout(PATIENCE_S)
        assert waiting.recv(1) == b""


def test_asking_until_the_end_returns_when_the_server_has_closed(path: Path) -> None:
    """The exit code of `limpet stop` means that the server is gone, not that it has heard."""
    answers: list[dict[str, Any]] = []
    with Server(path) as server:
        asking = threading.Thread(
            target=lambda: answers.append(control_socket.ask(str(path), {"command": "stop"}, until_end=PATIENCE_S))
        )
        asking.start()
        wait_until(lambda: server.asked, "the server was asked")
        assert not answers
    asking.join(PATIENCE_S)
    assert answers == [{"asked": {"command": "stop"}}]


def test_more_callers_than_allowed_push_out_the_oldest(path: Path) -> None:
    """The bound on conversations: an operator's script that forgets to close must not lock the operator out."""
    with Server(path), contextlib.ExitStack() as stack:
        callers = [stack.enter_context(caller(path)) for _ in range(70)]
        assert control_socket.ask(str(path), {}) == {"asked": {}}
        assert [sock.recv(1) for sock in callers[:6]] == [b""] * 6


def test_file_of_a_dead_server_is_replaced_and_a_living_one_is_not(path: Path) -> None:
    """A server that was killed must not keep its successor from starting, nor be robbed of its name while it lives."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Server(path):
        with pytest.raises(ListenError, match="address already in use"):
            Server(path)
        assert control_socket.ask(str(path), {}) == {"asked": {}}


def test_commands_find_the_only_server_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one server there is nothing to choose; with several nobody may stop the wrong one."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(ControlError, match="no server is running"):
        control_socket.ask(None, {})
    with Server(name="one"):
        assert stat.S_IMODE((tmp_path / "limpet").stat().st_mode) == 0o700
        assert control_socket.ask(None, {}) == {"asked": {}}
        with Server(name="two"), pytest.raises(ControlError, match=r"2 servers are running: .*one-.*two-"):
            control_socket.ask(None, {})
        assert control_socket.ask(None, {}) == {"asked": {}}


def test_runtime_directory_that_others_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory of somebody else a command could talk to somebody else's socket."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "limpet").mkdir()
    (tmp_path / "limpet").chmod(0o777)
    with pytest.raises(ListenError, match="not a directory that only this user can write to"):
        Server()


def test_server_that_ends_before_it_answers_is_reported(path: Path) -> None:
    """An operator learns that nothing is known of the outcome, in words."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(ControlError, match=r"(ended before it answered|to the server was lost)"):
            control_socket.ask(str(path), {})
        thread.join()
