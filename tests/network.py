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
from limpet.settings import Settings
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
COMMANDS: Final = {
    "haproxy": ["haproxy", "-W", "-db", "-f", "{file}"],
    "nginx": ["nginx", "-e", "stderr", "-p", "{folder}", "-c", "{file}"],
    "caddy": ["caddy", "run", "--adapter", "caddyfile", "--config", "{file}"],
    "traefik": [
        "traefik",
        "--entryPoints.web.address=:{listen}",
        "--providers.file.filename={file}",
        "--providers.file.watch=true",
        "--log.level=WARN",
        "--global.checkNewVersion=false",
        "--global.sendAnonymousUsage=false",
    ],
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

    def start_again(self) -> None:
        """Start limpet anew, and wait until it serves."""
        self.start()
        self.limpet.wait_serving()

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


class PrintedFront:
    """A running front with the configuration that `limpet front` prints, before the *machines*."""

    def __init__(
        self, kind: str, program: str, machines: Sequence[Machine], listen: int = LISTEN, **given: Any
    ) -> None:
        self.kind = kind
        self.url = f"http://{FRONT}:{listen}"
        self._program = program
        self._listen = listen
        self._settings = Settings(app="tests.front_app:asgi", admin=f":{ADMIN}", **given)
        self._folder = tempfile.TemporaryDirectory(prefix="limpet-front-")
        self._file = Path(self._folder.name, "limpet.yml" if kind == "traefik" else f"{kind}.conf")
        self._write(machines)

    def _write(self, machines: Sequence[Machine]) -> None:
        hosts = ",".join(machine.target for machine in machines)
        text = fronts.configuration(self.kind, self._settings, hosts, listen=self._listen)
        self._file.write_text(FRAMES[self.kind].format(text=text, folder=self._folder.name))

    def _words(self, kind: str) -> list[str]:
        words = (word.format(file=self._file, folder=self._folder.name, listen=self._listen) for word in COMMANDS[kind])
        return [self._program, *list(words)[1:]]

    def __enter__(self) -> Self:
        env = os.environ | {"XDG_DATA_HOME": self._folder.name, "XDG_CONFIG_HOME": self._folder.name}
        self._log = open(Path(self._folder.name, "log"), "w+")  # closed in __exit__
        self._process = subprocess.Popen(
            self._words(self.kind), stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL, env=env
        )
        try:
            wait_until(lambda: self._serves() or self._process.poll() is not None, f"{self.kind} serves or has ended")
            assert self._process.poll() is None, Path(self._log.name).read_text()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._process.wait()
            if error is not None:
                sys.stderr.write(f"\n--- {self.kind}'s log ---\n{Path(self._log.name).read_text()[-5000:]}")
            self._log.close()
            self._folder.cleanup()

    def change(self, machines: Sequence[Machine]) -> None:
        """Have these machines from now on, as an operator does it: by the file, and a reload."""
        self._write(machines)
        if self.kind == "haproxy":
            self._process.send_signal(signal.SIGUSR2)
        elif self.kind == "nginx":
            self._process.send_signal(signal.SIGHUP)
        elif self.kind == "caddy":
            words = ["reload", "--adapter", "caddyfile", "--config", str(self._file)]
            subprocess.run([self._program, *words], check=True, capture_output=True)

    def drain(self, machine: Machine, rest: Sequence[Machine]) -> None:
        """Send the clients of *machine* to the *rest*, and wait until that is so."""
        if self.kind == "haproxy":
            self._tell(f"set server limpet/{machine.name} state drain\n")
        else:
            self.change(rest)
        wait_until(lambda: machine.name not in self._served_by(16), f"{self.kind} sends nobody to {machine.name}")

    def _tell(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(Path(self._folder.name, "admin")))
            admin.sendall(command.encode())
            assert admin.recv(100).strip() == b""

    def _serves(self) -> bool:
        """Return whether it sends clients on: some accept before they have read where to."""
        try:
            return bool(self._served_by(1))
        except (OSError, ValueError, http.client.HTTPException):
            return False

    def _served_by(self, number: int) -> set[str]:
        """Return the names of the machines that *number* new clients come to."""
        names = set()
        for _ in range(number):
            with contextlib.closing(http.client.HTTPConnection(FRONT, self._listen, timeout=PATIENCE_S)) as asking:
                asking.request("GET", "/")
                names.add(json.loads(asking.getresponse().read())["host"])
        return names
