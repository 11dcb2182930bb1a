"""Machines of a test's own: network namespaces on a bridge, each with a limpet in it, and a front before them.

All of it is made in the network that the test runs in (`namespace.in_own_network`), which is the front's and the
clients'. A namespace lives as long as a process is in it; its first one ends with the test, whatever happens to that.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from limpet import fronts
from limpet.config.settings import Settings
from tests.foreground import Foreground
from tests.harness import PATIENCE_S, Limpet, wait_until

FRONT: Final = "10.77.0.1"
PORT: Final = 8000
LISTEN: Final = 8080
ADMIN: Final = 9000
# Around the printed part: what a packaged configuration says already, and where files may be written.
FRAMES: Final = {
    "haproxy": "global\n    nbthread 2\n    stats socket {folder}/admin level admin expose-fd listeners\n{text}",
    "nginx": "daemon off; worker_processes 2; pid {folder}/pid; user root;\n"
    "events {{ worker_connections 4096; }}\nhttp {{ access_log off;\n{text}\n}}",
    "caddy": "{text}",
    "traefik": "{text}",
}


def ip(*words: str) -> None:
    """Run `ip WORDS`."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Bridge:
    """What joins the machines; the front's address is on it."""

    def __enter__(self) -> Self:
        ip("link", "add", "br0", "type", "bridge")
        ip("addr", "add", f"{FRONT}/24", "dev", "br0")
        ip("link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        ip("link", "del", "br0")


class Machine:
    """One host: a namespace, and a limpet with two workers that can be started again."""

    def __init__(self, number: int, *flags: str, app: str = "tests.front_app:asgi") -> None:
        self.name = f"host{number}"
        self.address = f"10.77.0.{10 + number}"
        self.target = f"{self.address}:{PORT}"
        self._link = f"veth{number}"
        self._flags = flags
        self._app = app
        self._folder = tempfile.TemporaryDirectory(prefix="limpet-machine-")

    def __enter__(self) -> Self:
        # It ends when its stdin does, so with the test.
        self._first = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        pid = self._first.pid
        own = os.stat("/proc/thread-self/ns/net").st_ino
        wait_until(lambda: os.stat(f"/proc/{pid}/ns/net").st_ino != own, f"{self.name} has a network")
        ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        ip("link", "set", self._link, "master", "br0", "up")
        enter = ["nsenter", "--net", "--target", str(pid)]
        for words in (f"addr add {self.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            subprocess.run([*enter, "ip", *words.split()], check=True)
        self._held = Path(self._folder.name, "held")
        self._held.mkdir()
        self._python = Path(self._folder.name, "python")
        self._python.write_text(f'#!/bin/sh\nexec {" ".join(enter)} {sys.executable} "$@"\n')
        self._python.chmod(0o700)
        self.start()
        return self

    def start(self) -> None:
        """Start limpet without waiting."""
        self.limpet = Limpet(
            self._app,
            *("--workers", "2", "--keep-alive-timeout", str(fronts.KEEP_ALIVE_S), "--graceful-timeout", "2"),
            *("--admin", f"0.0.0.0:{ADMIN}", *self._flags),
            bind=f"0.0.0.0:{PORT}",
            env={"TEST_HOST": self.name, "TEST_HELD": str(self._held)},
            python=str(self._python),
        )
        self.limpet.start()

    def wait_ready(self) -> None:
        """Wait until it serves, and says so: HAProxy takes out a host that is not ready when it is asked first."""
        self.limpet.wait_serving()
        wait_until(self._is_ready, f"{self.name} is ready")

    def _is_ready(self) -> bool:
        with contextlib.closing(http.client.HTTPConnection(self.address, ADMIN, timeout=PATIENCE_S)) as asking:
            asking.request("GET", "/ready")
            return asking.getresponse().status == 200

    def start_again(self) -> None:
        """Start limpet anew, and wait until it is ready."""
        self.start()
        self.wait_ready()

    def kill(self) -> None:
        """SIGKILL the supervisor, and wait until the workers have ended, too."""
        assert self.limpet.process is not None
        os.kill(self.limpet.pid, signal.SIGKILL)  # nsenter has become it
        self.limpet.process.wait()
        self.limpet.wait_gone()
        self.limpet.__exit__(None, None, None)

    def wait_holding(self, number: int) -> None:
        """Wait until *number* requests for `/held` have come."""
        wait_until(lambda: len(os.listdir(self._held)) >= number, f"{self.name} has {number} requests under way")

    def link(self, state: str) -> None:
        """Take the cable out (`down`), or put it in (`up`)."""
        ip("link", "set", self._link, state)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.limpet.__exit__(kind, error, trace)
        finally:
            self._end()

    def _end(self) -> None:
        assert self._first.stdin is not None
        self._first.stdin.close()
        self._first.wait(PATIENCE_S)
        subprocess.run(["ip", "link", "del", self._link], check=False, capture_output=True)
        self._folder.cleanup()


class PrintedFront(Foreground):
    """A running front with the configuration that `limpet front` prints, before the *machines*."""

    def __init__(
        self, kind: str, program: str, machines: Sequence[Machine], listen: int = LISTEN, **given: Any
    ) -> None:
        super().__init__(kind, program, listen)
        self.url = f"http://{FRONT}:{listen}"
        self._machines = machines
        self._settings = Settings(app="tests.front_app:asgi", admin=f":{ADMIN}", **given)

    def text(self) -> str:
        hosts = ",".join(machine.target for machine in self._machines)
        text = fronts.configuration(self.kind, self._settings, hosts, listen=self.listen)
        return FRAMES[self.kind].format(text=text, folder=self.folder)

    def change(self, machines: Sequence[Machine]) -> None:
        """Have these machines from now on, as an operator does it: by the file, and a reload."""
        self._machines = machines
        self.file.write_text(self.text())
        if self.kind == "haproxy":
            self.signal(signal.SIGUSR2)
        elif self.kind == "nginx":
            self.signal(signal.SIGHUP)
        elif self.kind == "caddy":
            self.run("reload", "--adapter", "caddyfile", "--config", str(self.file))

    def drain(self, machine: Machine, rest: Sequence[Machine]) -> None:
        """Send the clients of *machine* to the *rest*, and wait until that is so."""
        if self.kind == "haproxy":
            self._tell(f"set server limpet/{machine.name} state drain\n")
        else:
            self.change(rest)
        wait_until(lambda: machine.name not in self._served_by(16), f"{self.kind} sends nobody to {machine.name}")

    def _tell(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.folder / "admin"))
            admin.sendall(command.encode())
            assert admin.recv(100).strip() == b""

    def serves(self) -> bool:
        """Return whether it sends clients on: some accept before they have read where to."""
        try:
            return bool(self._served_by(1))
        except (OSError, ValueError, http.client.HTTPException):
            return False

    def _served_by(self, number: int) -> set[str]:
        """Return the names of the machines that *number* new clients come to."""
        names = set()
        for _ in range(number):
            with contextlib.closing(http.client.HTTPConnection(FRONT, self.listen, timeout=PATIENCE_S)) as asking:
                asking.request("GET", "/")
                names.add(json.loads(asking.getresponse().read())["host"])
        return names
