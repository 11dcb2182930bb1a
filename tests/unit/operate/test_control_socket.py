"""Who is asked, and whose files are removed: a command tells its key to whoever listens on the control socket."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from limpet.errors import ControlError, ListenError
from limpet.operate import control_socket

NOBODY = 65534
only_root = pytest.mark.skipif(os.getuid() != 0 and not os.environ.get("CI"), reason="only root can become another")
STATUS = {"command": "status"}


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which commands look for servers of this user."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "limpet"
    folder.mkdir(mode=0o700)
    return folder


@contextlib.contextmanager
def user(uid: int) -> Iterator[None]:
    """Be the user *uid* for a moment."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def server_of(uid: int, path: Path) -> Iterator[socket.socket]:
    """Listen on *path* as the user *uid*, -1 for this one: the kernel notes who calls listen()."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o666)
        with user(uid) if uid > 0 else contextlib.nullcontext():
            listening.listen()
        listening.settimeout(5)
        yield listening


@contextlib.contextmanager
def answering(path: Path, answer: bytes, uid: int = -1) -> Iterator[list[bytes]]:
    """Answer the first caller at *path* with *answer*; yield what it has said."""
    said: list[bytes] = []
    with server_of(uid, path) as listening:

        def serve() -> None:
            with listening.accept()[0] as caller:
                said.append(caller.recv(65536))
                caller.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield said
        thread.join(10)


def said_to(listening: socket.socket) -> bytes:
    """Return all that the caller who came to *listening* has said."""
    with listening.accept()[0] as caller:
        caller.settimeout(5)
        return caller.recv(65536)


@only_root
def test_directory_that_somebody_else_has_made_first_is_not_looked_into(runtime: Path) -> None:
    """In /tmp anybody can make `limpet-0` before root does, and would then be told the keys that root asks for."""
    with server_of(0, runtime / "shop-1.sock"):
        os.chown(runtime, NOBODY, NOBODY)
        with pytest.raises(ControlError, match="is not a directory that only this user can write to"):
            control_socket.ask(None, {"command": "where", "keys": ["a key"]})
        with pytest.raises(ListenError, match="is not a directory that only this user can write to"):
            control_socket.listen(None, "shop")


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_directory_that_others_can_write_is_not_looked_into(runtime: Path, mode: int) -> None:
    """What is there may be theirs."""
    with answering_never(runtime / "shop-1.sock"):
        runtime.chmod(mode)
        with pytest.raises(ControlError, match="is not a directory that only this user can write to"):
            control_socket.ask(None, STATUS)


def test_link_in_place_of_the_directory_is_not_followed(runtime: Path, tmp_path: Path) -> None:
    """It leads to a directory of this user, of somebody else's choice."""
    runtime.rename(tmp_path / "elsewhere")
    runtime.symlink_to(tmp_path / "elsewhere")
    with (
        answering_never(runtime / "shop-1.sock"),
        pytest.raises(ControlError, match="that only this user can write to"),
    ):
        control_socket.ask(None, STATUS)


@contextlib.contextmanager
def answering_never(path: Path) -> Iterator[None]:
    """Listen on *path*, and see that nobody calls."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)
        yield
        with pytest.raises(BlockingIOError):
            listening.accept()


@only_root
def test_server_of_another_user_in_the_directory_is_told_nothing(runtime: Path) -> None:
    """The kernel says who listens, whoever the file belongs to."""
    with server_of(NOBODY, runtime / "shop-1.sock") as listening:
        with pytest.raises(ControlError, match="no server is running"):
            control_socket.ask(None, STATUS)
        assert said_to(listening) == b""


@only_root
def test_named_server_of_another_user_is_told_nothing() -> None:
    """A path is copied from a note, and somebody else may have been there first."""
    with tempfile.TemporaryDirectory(prefix="limpet-test-") as name:  # pytest's own is to be entered by root alone
        os.chmod(name, 0o711)
        path = Path(name, "control")
        with server_of(NOBODY - 1, path) as listening:
            with user(NOBODY), pytest.raises(ControlError, match=f"belongs to user {NOBODY - 1}"):
                control_socket.ask(str(path), STATUS)
            assert said_to(listening) == b""


@only_root
def test_root_may_name_the_server_of_any_user(tmp_path: Path) -> None:
    """Who operates the machine operates what its users run."""
    with answering(tmp_path / "control", b"{}\n", uid=NOBODY) as said:
        assert control_socket.ask(str(tmp_path / "control"), STATUS) == {}
    assert json.loads(said[0]) == STATUS


def test_answer_cannot_command_a_terminal(tmp_path: Path) -> None:
    """What a server shows may come from workers, and from clients: in names as well as in values."""
    answer = {"a\x1b[2J": ["\x9b31m", {"b": "tab\tline\nend\r\x07\x7f\u202e"}], "number": 1, "nothing": None}
    with answering(tmp_path / "control", json.dumps(answer).encode() + b"\n"):
        found = control_socket.ask(str(tmp_path / "control"), STATUS)
    assert found == {
        "a\\x1b[2J": ["\\x9b31m", {"b": "tab\tline\nend\\r\\x07\\x7f\\u202e"}],
        "number": 1,
        "nothing": None,
    }


def test_error_of_a_server_cannot_command_a_terminal(tmp_path: Path) -> None:
    """It is printed as it is."""
    answer = {"error": "no\x1b]0;title\x07", "hint": "\x1b[1m"}
    with (
        answering(tmp_path / "control", json.dumps(answer).encode() + b"\n"),
        pytest.raises(ControlError) as caught,
    ):
        control_socket.ask(str(tmp_path / "control"), STATUS)
    assert caught.value.message == "no\\x1b]0;title\\x07"
    assert caught.value.hint == "\\x1b[1m"


@pytest.mark.parametrize("answer", [b"[1]\n", b"null\n", b"{\n", b"[" * 100_000 + b"\n", b"\xff\n"], ids=range(5))
def test_answer_that_is_no_object_is_an_error_in_words(tmp_path: Path, answer: bytes) -> None:
    """A traceback is no answer to an operator."""
    with (
        answering(tmp_path / "control", answer),
        pytest.raises(ControlError, match="did not answer with a JSON object"),
    ):
        control_socket.ask(str(tmp_path / "control"), STATUS)


def dead_socket(path: Path) -> None:
    """Leave the file of a socket that nobody has open."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_socket_that_a_killed_server_has_left_is_replaced(tmp_path: Path) -> None:
    """Otherwise no server would start after kill -9."""
    dead_socket(tmp_path / "control")
    control_socket.listen(str(tmp_path / "control"), "shop")[1].close()


@only_root
def test_socket_that_another_user_has_left_is_not_removed(tmp_path: Path) -> None:
    """Root can remove whatever it is told to; that is no reason to."""
    dead_socket(tmp_path / "control")
    os.chown(tmp_path / "control", NOBODY, NOBODY)
    before = (tmp_path / "control").lstat()
    with pytest.raises(ListenError, match="address already in use"):
        control_socket.listen(str(tmp_path / "control"), "shop")
    assert (tmp_path / "control").lstat().st_ino == before.st_ino


def test_link_to_a_dead_socket_is_not_removed(tmp_path: Path) -> None:
    """A link is somebody's choice, and so is what it leads to."""
    dead_socket(tmp_path / "other")
    (tmp_path / "control").symlink_to(tmp_path / "other")
    with pytest.raises(ListenError, match="address already in use"):
        control_socket.listen(str(tmp_path / "control"), "shop")
    assert (tmp_path / "control").is_symlink()
    assert (tmp_path / "other").exists()


def test_file_that_has_taken_the_place_of_the_socket_stays_at_the_end(tmp_path: Path) -> None:
    """It may be the socket of the next server."""
    path = tmp_path / "control"
    selector = selectors.DefaultSelector()
    server = control_socket.ControlServer(*control_socket.listen(str(path), "shop"), lambda asked: {}, selector)
    path.unlink()
    path.write_text("mine")
    server.close()
    selector.close()
    assert path.read_text() == "mine"


def test_own_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    """A directory full of dead sockets hides the one that lives."""
    selector = selectors.DefaultSelector()
    opened = control_socket.listen(str(tmp_path / "control"), "shop")
    control_socket.ControlServer(*opened, lambda asked: {}, selector).close()
    selector.close()
    assert not (tmp_path / "control").exists()
