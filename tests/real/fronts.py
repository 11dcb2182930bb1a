"""nginx and HAProxy in front of a server, configured by the very text of docs/behind-a-proxy.md.

Each listens on a free port of 127.0.0.1, keeps its files in a directory of its own, stays in the foreground and ends
with the test. Where Debian's package is not installed the test is skipped; where `CI` is set it fails.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final

import pytest

from tests.harness import HERE, PATIENCE_S, free_port, wait_until

DOCUMENT: Final = HERE.parent / "docs" / "behind-a-proxy.md"
# Around the documented part: what a packaged configuration says already, and where files may be written.
FRAMES: Final = {
    "nginx": """
daemon off; worker_processes 2; pid {folder}/pid; {user}
events {{ worker_connections 1024; }}
http {{
    access_log off; client_max_body_size 0; keepalive_requests 1000000;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
{documented}
}}
""",
    "haproxy": """
global
    nbthread 2
{documented}
""",
    "nginx stream": """
daemon off; worker_processes 2; pid {folder}/pid; {user}
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events {{ worker_connections 1024; }}
{documented}
""",
}
FRAMES["haproxy tcp"] = FRAMES["haproxy"]
STREAM: Final = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
COMMANDS: Final = {
    "nginx": ["nginx", "-e", "stderr", "-p", "{folder}", "-c", "{folder}/nginx.conf"],
    "haproxy": ["haproxy", "-db", "-f", "{folder}/haproxy.conf"],
}


class Front:
    """One running proxy before the server on *port*, by the part of the document that begins with *kind*."""

    def __init__(self, kind: str, port: int, **replaced: str) -> None:
        """*replaced* are words of the document, with `_` for `-`, and what stands in their place."""
        program = kind.partition(" ")[0]
        if shutil.which(program) is None or (kind == "nginx stream" and not STREAM.exists()):
            if os.environ.get("CI"):
                pytest.fail(f"{kind} is not installed")
            pytest.skip(f"{kind} is not installed")
        self._kind = kind
        self._program = program
        self._replaced = replaced
        self._upstream = port
        self._folder = tempfile.TemporaryDirectory(prefix="limpet-front-")
        self.port = free_port()

    def __enter__(self) -> Front:
        folder = self._folder.name
        text = FRAMES[self._kind].format(
            folder=folder, documented=self._documented(), user="user root;" if os.getuid() == 0 else ""
        )
        Path(folder, f"{self._program}.conf").write_text(text)
        self._log = open(Path(folder, "log"), "w+")  # closed in __exit__
        command = [part.format(folder=folder) for part in COMMANDS[self._program]]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL)
        try:
            wait_until(lambda: self._serves() or self._process.poll() is not None, f"{self._kind} serves or has ended")
            assert self._process.poll() is None, Path(folder, "log").read_text()
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
                self._log.seek(0)
                sys.stderr.write(f"\n--- {self._kind}'s log ---\n{self._log.read()}")
            self._log.close()
            self._folder.cleanup()

    def _documented(self) -> str:
        """Return the configuration in the document, for the ports of this test."""
        [text] = re.findall(rf"^```{self._kind}\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
        for documented, actual in (
            (":80\n", f" 127.0.0.1:{self.port}\n"),
            ("listen 80;", f"listen 127.0.0.1:{self.port};"),
        ):
            text = text.replace(documented, actual)
        for name, other in self._replaced.items():
            word = name.replace("_", "-")
            assert word in text
            text = text.replace(word, other)
        assert str(self.port) in text
        assert "127.0.0.1:8000" in text
        return str(text.replace("127.0.0.1:8000", f"127.0.0.1:{self._upstream}"))

    def _serves(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
