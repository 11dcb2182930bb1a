"""Files that root makes for `--user` in a directory which that user can write: it may put anything in their place."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from limpet import logs
from limpet.config.bind import Bind
from limpet.config.privileges import Identity
from limpet.errors import ListenError
from limpet.net import listener
from limpet.operate import control_socket

pytestmark = pytest.mark.skipif(os.getuid() != 0 and not os.environ.get("CI"), reason="only root can give files away")
NOBODY = Identity(65534, 65534, (), {})
THIRD = 65533
Trap = Callable[[Path, Path], None]


def by_symlink(place: Path, treasure: Path) -> None:
    place.symlink_to(treasure)


def by_hard_link(place: Path, treasure: Path) -> None:
    os.link(treasure, place)


def by_hard_link_to_a_socket(place: Path, treasure: Path) -> None:
    socket_of_root = treasure.with_name("socket")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(socket_of_root))
    os.link(socket_of_root, place)


def by_symlink_to_a_socket(place: Path, treasure: Path) -> None:
    socket_of_root = treasure.with_name("socket")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(socket_of_root))
    place.symlink_to(socket_of_root)


def by_socket_of_a_third_user(place: Path, treasure: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(treasure.with_name("third")))
    os.chown(treasure.with_name("third"), THIRD, THIRD)
    treasure.with_name("third").rename(place)


def by_file(place: Path, treasure: Path) -> None:
    treasure.rename(place)


def by_fifo(place: Path, treasure: Path) -> None:
    os.mkfifo(place, 0o600)


def by_directory(place: Path, treasure: Path) -> None:
    place.mkdir()


TRAPS = [
    by_symlink,
    by_symlink_to_a_socket,
    by_hard_link,
    by_hard_link_to_a_socket,
    by_socket_of_a_third_user,
    by_file,
    by_fifo,
    by_directory,
]


@pytest.fixture
def treasure(tmp_path: Path) -> Path:
    """A file of root alone."""
    path = tmp_path / "treasure"
    path.touch(0o600)
    path.write_text("of root")
    return path


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory of `--user`."""
    path = tmp_path / "shared"
    path.mkdir()
    os.chown(path, NOBODY.uid, NOBODY.gid)
    return path


def owners(folder: Path) -> set[int]:
    """Return who owns the files in and below *folder*, links themselves and not what they lead to."""
    return {path.lstat().st_uid for path in folder.rglob("*")}


def nothing_given(tmp_path: Path, shared: Path) -> bool:
    """Return whether root still owns all that it owned."""
    return owners(tmp_path) - {0, THIRD} == {NOBODY.uid} and owners(shared) <= {0, THIRD}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_has_taken_the_place_of_a_socket_is_not_given_away(
    tmp_path: Path, shared: Path, treasure: Path, trap: Trap
) -> None:
    """Root would make a file of its own the user's."""
    trap(shared / "socket", treasure)
    with pytest.raises(OSError, match=r"another file has replaced the socket|Too many levels"):
        listener.give(str(shared / "socket"), NOBODY)
    assert nothing_given(tmp_path, shared)


def test_socket_that_is_given_away_is_the_users(shared: Path) -> None:
    """Otherwise its user could not connect."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(shared / "socket"))
        listener.give(str(shared / "socket"), NOBODY)
    found = (shared / "socket").lstat()
    assert (found.st_uid, found.st_gid) == (NOBODY.uid, NOBODY.gid)


def opens_bind(path: Path) -> None:
    listener.open(Bind.parse(f"unix:{path}"), 5, owner=NOBODY).close()


def opens_control(path: Path) -> None:
    control_socket.listen(str(path), "name", NOBODY)[1].close()


@pytest.mark.parametrize("opens", [opens_bind, opens_control])
@pytest.mark.parametrize("trap", TRAPS)
def test_trap_between_bind_and_the_change_of_owner_is_seen(
    tmp_path: Path,
    shared: Path,
    treasure: Path,
    opens: Callable[[Path], None],
    trap: Trap,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loop in the user's process hits that moment sooner or later; here the test does at the first attempt."""
    bind, place = socket.socket.bind, shared / "socket"

    class Trapped(socket.socket):
        def bind(self, address: object) -> None:
            bind(self, address)  # type: ignore[arg-type]
            place.unlink()
            trap(place, treasure)

    monkeypatch.setattr(socket, "socket", Trapped)
    with pytest.raises(ListenError):
        opens(place)
    assert nothing_given(tmp_path, shared)


@pytest.mark.parametrize("trap", [by_symlink, by_hard_link, by_file, by_fifo, by_directory])
def test_what_has_taken_the_place_of_the_log_file_is_neither_written_nor_given_away(
    tmp_path: Path, shared: Path, treasure: Path, trap: Trap
) -> None:
    """A log line in the right file of root's is a command to it."""
    trap(shared / "log", treasure)
    before = treasure.read_text() if treasure.exists() else (shared / "log").read_text()
    with pytest.raises(OSError, match=r".+"):
        os.close(logs._opened(str(shared / "log"), NOBODY[:2]))
    assert nothing_given(tmp_path, shared)
    after = treasure if treasure.exists() else shared / "log"
    assert after.read_text() == before


def test_hard_link_of_the_users_own_file_is_no_log_file(shared: Path, tmp_path: Path) -> None:
    """The user can move the other name to wherever root looks next, and root would have written there."""
    other = shared / "other"
    other.touch()
    os.chown(other, NOBODY.uid, NOBODY.gid)
    os.link(other, shared / "log")
    with pytest.raises(PermissionError, match="with one link"):
        logs._opened(str(shared / "log"), NOBODY[:2])


def test_link_to_the_users_own_file_is_no_log_file(shared: Path, tmp_path: Path) -> None:
    """No link is followed, wherever it leads now: the user can change that between a look and the use."""
    other = shared / "other"
    other.touch()
    os.chown(other, NOBODY.uid, NOBODY.gid)
    (shared / "log").symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        logs._opened(str(shared / "log"), NOBODY[:2])


def test_fifo_of_the_user_is_no_log_file(shared: Path) -> None:
    """Its reader could have the supervisor's lines go nowhere, or see those of a later server."""
    os.mkfifo(shared / "log")
    os.chown(shared / "log", NOBODY.uid, NOBODY.gid)
    reader = os.open(shared / "log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(PermissionError, match="not a regular file"):
            logs._opened(str(shared / "log"), NOBODY[:2])
    finally:
        os.close(reader)


def test_log_file_that_root_has_made_is_the_users(shared: Path) -> None:
    """Workers write it, too, and after a restart it is there already."""
    for _ in range(2):
        os.close(logs._opened(str(shared / "log"), NOBODY[:2]))
        found = (shared / "log").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY.uid, NOBODY.gid, 0o640)
