"""A container's profile of system calls that leaves out `memfd_create`: older ones of Docker did."""

from __future__ import annotations

import errno
import platform
import subprocess
import sys

import pytest

from tests.harness import HERE, PATIENCE_S

NUMBERS = {"x86_64": 319, "aarch64": 279}
FORBIDDEN = """
import ctypes, os, sys

number, refusal = map(int, sys.argv[1:3])

class Step(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint)]

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.POINTER(Step))]

steps = (Step * 4)(
    Step(0x20, 0, 0, 0),  # load the number of the call
    Step(0x15, 0, 1, number),  # is it the one?
    Step(0x06, 0, 0, 0x50000 | refusal),  # SECCOMP_RET_ERRNO
    Step(0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
)
libc = ctypes.CDLL(None, use_errno=True)
filtered = libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(Program(4, steps)), 0, 0) == 0
if not filtered:
    sys.exit(77)  # this kernel has no filters
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Forbids a call by a filter of the kernel, and then becomes another program."""


@pytest.mark.skipif(platform.machine() not in NUMBERS, reason="the call has another number on this machine")
@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
@pytest.mark.parametrize("more", [[], ["--by", "ip", "--backend", "kernel"]], ids=["dispatcher", "kernel"])
def test_system_without_memory_files_is_named_in_one_error(refusal: int, more: list[str]) -> None:
    """A traceback of the first child that cannot be told its settings says nothing to who wrote the profile."""
    limpet = [sys.executable, "-m", "limpet", "run", "tests.apps:echo", "--bind", "127.0.0.1:0", *more]
    command = [sys.executable, "-c", FORBIDDEN, str(NUMBERS[platform.machine()]), str(refusal), *limpet]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=HERE.parent)
    if ended.returncode == 77:
        pytest.skip("the kernel has no seccomp filters")
    assert ended.returncode == 1
    assert "cannot make a memory file: " in ended.stderr
    assert "hint: allow `memfd_create` in the seccomp profile" in ended.stderr
    assert "Traceback" not in ended.stderr
