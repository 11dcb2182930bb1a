"""Memory files: a reader finds everything from the beginning, and a system without them is named."""

from __future__ import annotations

import ast
import contextlib
import errno
import fcntl
import os
from pathlib import Path

import pytest

from limpet.errors import LimpetError
from limpet.system import memfile

PACKAGE = Path(__file__).parents[3] / "limpet"


def test_what_was_written_is_read_from_the_beginning() -> None:
    """Writer and reader share one position, and the writer's is at the end."""
    fd = memfile.create("limpet-test", b"one")
    assert os.read(fd, 2) == b"on"
    assert memfile.read(fd) == b"one"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_file_is_no_programs_by_accident() -> None:
    """A program that the application starts would otherwise have the secret."""
    fd = memfile.create("limpet-test")
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_file_can_be_sealed_only_if_that_was_asked_for() -> None:
    """A worker that was taken over could seal its file for stacks, and the supervisor could not empty it."""
    plain, sealed = memfile.create("limpet-test"), memfile.create("limpet-test", may_be_sealed=True)
    with pytest.raises(PermissionError):
        fcntl.fcntl(plain, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    os.close(plain)
    os.close(sealed)


def test_shared_file_can_be_neither_shortened_nor_sealed() -> None:
    """Every process that has mapped it would end by SIGBUS, or later ones could not map it."""
    fd = memfile.create_shared("limpet-test", 4096)
    try:
        assert os.fstat(fd).st_size == 4096
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 1)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    finally:
        os.close(fd)


def test_lent_file_is_closed_whatever_happens() -> None:
    """Each start of a process would otherwise cost its starter a descriptor."""
    with contextlib.suppress(KeyError), memfile.lent("limpet-test", b"one") as fd:
        assert os.pread(fd, 10, 0) == b"one"
        raise KeyError
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOSYS])
def test_system_that_forbids_memory_files_is_named(refusal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wrote the seccomp profile needs the name of the call."""
    monkeypatch.setattr(os, "memfd_create", _raiser(OSError(refusal, os.strerror(refusal))))
    with pytest.raises(LimpetError) as caught:
        memfile.create("limpet-test")
    assert "memfd_create" in str(caught.value.hint)


def test_lack_of_room_is_another_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may pass, so a slot waits for its next try, and a leftover waits for a free descriptor."""
    monkeypatch.setattr(os, "memfd_create", _raiser(OSError(errno.EMFILE, "Too many open files")))
    with pytest.raises(OSError, match="Too many"):
        memfile.create("limpet-test")


def test_memory_files_are_made_in_one_place() -> None:
    """Each other place would have its own answer to a system that forbids them."""
    calls = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "memfd_create"
    }
    assert calls == {"memfile.py"}


def _raiser(error: OSError) -> object:
    def refuse(*_: object) -> int:
        raise error

    return refuse
