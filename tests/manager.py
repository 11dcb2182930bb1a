"""A service manager as far as a server sees it: a notify socket to write to, and sockets that were passed on."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.harness import PATIENCE_S


class Manager:
    """The manager's end of the notify protocol. `said` has all messages so far, `kept` the descriptors it was given."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.kept: dict[str, socket.socket] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self.variables = {"NOTIFY_SOCKET": str(folder / "notify")}

    def wait(self, wanted: str | Callable[[str], bool], timeout_s: float = PATIENCE_S) -> str:
        """Return the next message that has *wanted* as a line, or of which it is true."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            message = self.next(left_s)
            if message is None:
                break
            if wanted in message.splitlines() if isinstance(wanted, str) else wanted(message):
                return message
        raise AssertionError(f"not said: {wanted}; but {self.said}")

    def wait_silence(self, seconds: float) -> None:
        """Wait until nothing is said for *seconds*; what was said before is read first."""
        deadline = time.monotonic() + PATIENCE_S
        while self.next(seconds) is not None:
            assert time.monotonic() < deadline, f"never silent for {seconds:g} s: {self.said}"

    def next(self, timeout_s: float) -> str | None:
        """Return the next message, None if there is none within *timeout_s*."""
        self._socket.settimeout(timeout_s)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(4 * 64))
        except (TimeoutError, BlockingIOError):
            return None
        message = data.decode()
        fields = dict(line.split("=", 1) for line in message.splitlines())
        for _, _, packed in ancillary:
            [fd] = array.array("i", packed)
            self.kept[fields["FDNAME"]] = socket.socket(fileno=fd)
        self.said.append(message)
        return message

    def close(self) -> None:
        """Give up all descriptors."""
        self._socket.close()
        for kept in self.kept.values():
            kept.close()


@contextlib.contextmanager
def manager(folder: Path) -> Iterator[Manager]:
    """Return a manager for a server that is started with its `variables`."""
    with contextlib.closing(Manager(folder)) as made:
        yield made


@contextlib.contextmanager
def passing(folder: Path, sockets: Mapping[str, socket.socket]) -> Iterator[dict[str, Any]]:
    """Return what makes a `Limpet` start as by a manager that passes on *sockets*, by name."""
    path = folder / f"start-{len(os.listdir(folder))}"
    fds = [fcntl.fcntl(sock, fcntl.F_DUPFD, 50) for sock in sockets.values()]  # above where the shell puts them
    moved = " ".join(f"{3 + number}<&{fd} {fd}<&-" for number, fd in enumerate(fds))
    names = shlex.quote(":".join(sockets))
    variables = f"LISTEN_PID=$$ LISTEN_FDS={len(sockets)} LISTEN_FDNAMES={names}"
    path.write_text(f'#!/bin/bash\n{variables} exec {shlex.quote(sys.executable)} "$@" {moved}\n')
    path.chmod(0o700)
    try:
        yield {"python": str(path), "fds": fds}
    finally:
        for fd in fds:
            os.close(fd)
