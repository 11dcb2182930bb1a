"""A real proxy for a test: it stays in the foreground, has a folder of its own, and ends with the test.

A class of it for each manner of use says how it is configured and when it serves. Its log is shown when a test fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.harness import PATIENCE_S, wait_until

COMMANDS: Final = {
    "haproxy": ["-W", "-db", "-f", "{file}"],
    "nginx": ["-e", "stderr", "-p", "{folder}", "-c", "{file}"],
    "caddy": ["run", "--adapter", "caddyfile", "--config", "{file}"],
    "traefik": [
        "--entryPoints.web.address=:{listen}",
        "--providers.file.filename={file}",
        "--providers.file.watch=true",
        "--log.level=WARN",
        "--global.checkNewVersion=false",
        "--global.sendAnonymousUsage=false",
    ],
}


class Foreground:
    """One running proxy of *kind*, by the configuration that `text` returns."""

    def __init__(self, kind: str, program: str, listen: int) -> None:
        self.kind = kind
        self.listen = listen
        self._program = program
        self._folder = tempfile.TemporaryDirectory(prefix="limpet-front-")
        self.folder = Path(self._folder.name)
        self.file = self.folder / ("limpet.yml" if kind == "traefik" else f"{kind}.conf")

    def text(self) -> str:
        """Return the configuration."""
        raise NotImplementedError

    def serves(self) -> bool:
        """Return whether it serves clients."""
        raise NotImplementedError

    def run(self, *words: str) -> None:
        """Run its program with *words*, as an operator does beside it."""
        subprocess.run([self._program, *words], check=True, capture_output=True)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def __enter__(self) -> Self:
        self.file.write_text(self.text())
        words = [word.format(file=self.file, folder=self.folder, listen=self.listen) for word in COMMANDS[self.kind]]
        env = os.environ | {"XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        self._log = open(self.folder / "log", "w+")  # closed in __exit__
        self._process = subprocess.Popen(
            [self._program, *words], stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL, env=env
        )
        try:
            wait_until(lambda: self.serves() or self._process.poll() is not None, f"{self.kind} serves or has ended")
            assert self._process.poll() is None, f"{self.kind} has ended"
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
