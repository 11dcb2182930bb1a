"""Which servers share the affinity cookie by accident, and which mean to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from limpet.config.settings import Settings
from limpet.operate.shared_cookies import Note, announce, note_of, strangers, warning
from limpet.routing.affinity_cookie import Attributes, Jar

OWN = Note(11, 5, "main:app", "/srv/shop", "/", "")


@pytest.mark.parametrize(
    ("changes", "is_stranger"),
    [
        ({}, False),
        ({"path": "/shop"}, False),
        ({"directory": "/srv/blog"}, True),
        ({"apps": "blog:app"}, True),
        ({"directory": "/srv/blog", "path": "/blog"}, True),
        ({"directory": "/srv/blog", "domain": "blog.example"}, False),
    ],
)
def test_stranger_serves_something_else_to_the_same_browsers(changes: dict[str, str], is_stranger: bool) -> None:
    """Several servers of one application share the cookie on purpose: a warning there would teach nobody anything."""
    other = dataclasses.replace(OWN, pid=12, **changes)  # type: ignore[arg-type]
    assert list(strangers(OWN, [other])) == [other] * is_stranger


@pytest.mark.parametrize(
    ("path", "other", "meet"),
    [
        ("/shop", "/blog", False),
        ("/shop", "/shopping", False),
        ("/shop", "/shop/", True),
        ("/shop/cart", "/shop", True),
    ],
)
def test_paths_that_lie_apart_share_no_cookie(path: str, other: str, meet: bool) -> None:
    """`--affinity-cookie Path=/shop` is what the docs tell to do."""
    own = dataclasses.replace(OWN, path=path)
    stranger = dataclasses.replace(OWN, directory="/srv/blog", path=other)
    assert bool(list(strangers(own, [stranger]))) is meet


def test_note_says_what_is_served_and_from_where() -> None:
    """`main:app` alone is the name of half of all applications."""
    settings = Settings(app="main:app", bind=("127.0.0.1:1", "127.0.0.1:2=admin:app"), affinity_cookie="Path=/shop")
    note = note_of(settings, "/srv/shop")
    assert (note.apps, note.directory, note.path, note.domain) == ("admin:app,main:app", "/srv/shop", "/shop", "")
    assert note.started > 0
    assert note_of(dataclasses.replace(settings, app_dir=("src",)), "/srv/shop").directory == "/srv/shop/src"


def test_warning_names_the_other_server_and_the_remedy() -> None:
    """An operator must find it without a search."""
    message, hint = warning("limpet_1", OWN)
    assert "`main:app` in /srv/shop (pid 11)" in message
    assert "--name" in hint


JAR = Jar([b"secret" * 4], "app", Attributes(), float)


def test_symlink_in_the_place_of_the_notes_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's server must not write into a file that somebody else has chosen."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "limpet"
    folder.mkdir(mode=0o700)
    target = tmp_path / "target"
    target.write_text("mine")
    (folder / f"{JAR.name}.servers").symlink_to(target)
    assert announce(Settings(app="main:app", by="affinity"), JAR) == []
    assert target.read_text() == "mine"


def test_directory_that_others_may_write_into_gets_no_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others can put there is not believed, and the server starts all the same."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "limpet"
    folder.mkdir()
    folder.chmod(0o777)
    assert announce(Settings(app="main:app", by="affinity"), JAR) == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "text", [b"garbage\n", b"[1]\n", b'{"pid": 1}\n', b"\xff\n\n", b'{"pid": "x", "started": 1}\n']
)
def test_notes_that_make_no_sense_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    """Another version, or a disk that was full, must not keep a server from starting."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "limpet").mkdir(mode=0o700)
    notes = tmp_path / "limpet" / f"{JAR.name}.servers"
    notes.write_bytes(text)
    assert announce(Settings(app="main:app", by="affinity"), JAR) == []
    assert notes.read_bytes().count(b"\n") == 1  # its own
