"""The secret: kept over restarts, agreed between starts, read by nobody else."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.config import secret
from limpet.errors import SettingsError


def given_file(path: Path, content: bytes, mode: int = 0o600) -> str:
    """Make a secret file as a user would."""
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def pasted(error: SettingsError) -> None:
    """Do what the hint of *error* says."""
    assert error.hint is not None
    command = re.match("`(.*?)`", error.hint)
    assert command is not None
    subprocess.run(["/bin/sh", "-c", command[1]], check=True)


def test_secret_outlives_the_server(tmp_path: Path) -> None:
    """Otherwise each deployment would send every client to another worker."""
    first = secret.load("chat-app", None, str(tmp_path))
    assert first == secret.load("chat-app", None, str(tmp_path))
    assert first.origin == f"kept in {tmp_path}/chat-app.secret"
    assert first.warning is None


def test_kept_secret_is_random_and_named(tmp_path: Path) -> None:
    """Two servers on one machine must not share a secret by accident."""
    values = {secret.load(name, None, str(tmp_path)).value for name in ("one", "two", "three")}
    assert len(values) == 3
    assert all(len(bytes.fromhex(value.decode())) == 32 for value in values)


def test_kept_secret_is_for_the_owner_alone(tmp_path: Path) -> None:
    """Who reads the secret can overload one worker; and after a start no draft of it may lie around."""
    secret.load("chat-app", None, str(tmp_path / "new" / "limpet"))
    directory = tmp_path / "new" / "limpet"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in directory.iterdir()] == ["chat-app.secret"]
    assert (directory / "chat-app.secret").stat().st_mode & 0o777 == 0o600


def test_servers_that_start_at_once_agree(tmp_path: Path) -> None:
    """Two servers of one name with two secrets would disagree on every client until the next restart."""
    for attempt in range(20):
        found: list[bytes] = []
        barrier = threading.Barrier(8)

        def start(name: str = str(attempt), found: list[bytes] = found, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            found.append(secret.load(name, None, str(tmp_path)).value)

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len(set(found)) == 1


def test_slower_server_takes_the_secret_of_the_faster(tmp_path: Path) -> None:
    """The moment between `is there one?` and `make one` belongs to somebody else, once in a while."""
    path = tmp_path / "chat-app.secret"
    given_file(path, b"made by the faster server")
    secret._make(path)
    assert path.read_bytes() == b"made by the faster server"
    assert os.listdir(tmp_path) == ["chat-app.secret"]


def test_secret_file_holds_the_secret_without_white_space(tmp_path: Path) -> None:
    """Editors and `echo` add a line break, which should not change anybody's home."""
    path = given_file(tmp_path / "given", b"  sixteen bytes!!!\n")
    assert secret.load("chat-app", path, None) == secret.Secret(b"sixteen bytes!!!", f"read from {path}")


def test_copy_of_a_kept_secret_is_the_same_secret(tmp_path: Path) -> None:
    """So a second machine can be given the secret of the first."""
    kept = secret.load("chat-app", None, str(tmp_path))
    copy = given_file(tmp_path / "copy", (tmp_path / "chat-app.secret").read_bytes())
    assert secret.load("chat-app", copy, None).value == kept.value


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
@pytest.mark.parametrize("kept", [False, True])
def test_file_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int, kept: bool) -> None:
    """A secret that others know or set is none; the hint repairs it."""
    path = given_file(tmp_path / "chat app.secret".replace(" ", "-" if kept else " "), b"sixteen bytes!!!", mode)
    arguments = (None, str(tmp_path)) if kept else (path, None)
    with pytest.raises(SettingsError, match=f"`{path}` has mode `{mode:04o}`") as caught:
        secret.load("chat-app", *arguments)
    pasted(caught.value)
    assert secret.load("chat-app", *arguments).value == b"sixteen bytes!!!"


@pytest.mark.parametrize("content", [None, b"", b"  fifteen bytes!! \n"])
def test_hint_makes_a_file_that_is_missing_or_too_short(tmp_path: Path, content: bytes | None) -> None:
    """A short secret can be found by trying; nobody should have to look up how to make a good one."""
    path = tmp_path / "of my own"
    if content is not None:
        given_file(path, content)
    with pytest.raises(SettingsError, match=re.escape(f"`{path}`")) as caught:
        secret.load("chat-app", str(path), None)
    pasted(caught.value)
    assert len(secret.load("chat-app", str(path), None).value) > 32


def test_unreadable_secret_file_is_an_error_and_no_reason_for_another_secret(tmp_path: Path) -> None:
    """Whoever names a file wants that one: silently using another would move all clients."""
    with pytest.raises(SettingsError, match=f"cannot read the secret file `{tmp_path}`: is a directory") as caught:
        secret.load("chat-app", str(tmp_path), None)
    assert caught.value.hint == f"`ls -ld {shlex.quote(str(tmp_path))}` shows what it is and who may read it"


def test_server_starts_without_a_place_to_keep_its_secret_and_warns(tmp_path: Path) -> None:
    """A read-only container should serve, and its operator know why clients move at the next start."""
    blocked = tmp_path / "file"
    blocked.touch()
    first, second = (secret.load("chat-app", None, str(blocked)) for _ in range(2))
    assert first.value != second.value
    assert first.origin == "made for this run"
    assert first.warning is not None
    assert f"`{blocked}/chat-app.secret`: not a directory" in first.warning[0]
    assert "--state-dir" in first.warning[1]


def test_state_directory_follows_the_xdg_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backups and containers expect state where the standard puts it; a relative path is to be ignored."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert secret.load("a", None, None).origin == f"kept in {tmp_path}/state/limpet/a.secret"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert secret.load("a", None, None).origin == f"kept in {tmp_path}/home/.local/state/limpet/a.secret"


def test_server_without_a_home_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Container images with odd users are no reason to fail, nor to write wherever the server was started."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "relative")
    warning = secret.load("a", None, None).warning
    assert warning is not None
    assert "(no home directory)" in warning[0]


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "-a", "a\n", "a b", "ä", "a" * 101, "a\0"])
def test_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    """A name comes from a command line or a file and must not lead out of the directory."""
    with pytest.raises(SettingsError, match="letters, digits"):
        secret.load(name, None, str(tmp_path / "state"))
    assert not os.listdir(tmp_path)


def test_name_of_the_app_can_be_recognised() -> None:
    """An operator who sees the file should know whose it is."""
    assert secret.name_from_app("pkg.chat:app") == "pkg.chat-app"


@given(st.text())
def test_name_of_any_app_is_a_name(app: str) -> None:
    """The default must never be what the check refuses."""
    assert secret._NAME.fullmatch(secret.name_from_app(app))


def test_secret_is_not_shown(tmp_path: Path) -> None:
    """A secret in a log or traceback is one no longer."""
    kept = secret.load("chat-app", None, str(tmp_path))
    assert kept.value.decode() not in repr(kept)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file of another user's")
def test_secret_file_that_another_user_has_planted_is_refused(tmp_path: Path) -> None:
    """Who plants a secret knows it; who plants a link has root read another file."""
    path, link = tmp_path / "planted", tmp_path / "link"
    path.touch(0o600)
    path.write_text("s" * 32)
    link.symlink_to(path)
    os.chown(link, 65534, 65534, follow_symlinks=False)
    with pytest.raises(SettingsError, match="belongs to user 65534"):
        secret.load("app", str(link), None)
    os.chown(path, 65534, 65534)
    with pytest.raises(SettingsError, match="belongs to user 65534"):
        secret.load("app", str(path), None)
