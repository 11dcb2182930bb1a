"""nginx and HAProxy in front of a server, configured by the very text of docs/behind-a-proxy.md.

Each listens on a free port of 127.0.0.1, keeps its files in a directory of its own, stays in the foreground and ends
with the test. Where Debian's package is not installed the test is skipped; where `CI` is set it fails.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path
from typing import Final

import pytest

from tests.foreground import Foreground
from tests.harness import HERE, free_port

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


class Front(Foreground):
    """One running proxy before the server on *port*, by the part of the document that begins with *form*."""

    def __init__(self, form: str, port: int, **replaced: str) -> None:
        """*replaced* are words of the document, with `_` for `-`, and what stands in their place."""
        program = form.partition(" ")[0]
        if shutil.which(program) is None or (form == "nginx stream" and not STREAM.exists()):
            if os.environ.get("CI"):
                pytest.fail(f"{form} is not installed")
            pytest.skip(f"{form} is not installed")
        super().__init__(program, program, free_port())
        self._form = form
        self._replaced = replaced
        self._upstream = port
        self.port = self.listen

    def text(self) -> str:
        user = "user root;" if os.getuid() == 0 else ""
        return FRAMES[self._form].format(folder=self.folder, documented=self._documented(), user=user)

    def _documented(self) -> str:
        """Return the configuration in the document, for the ports of this test."""
        [text] = re.findall(rf"^```{self._form}\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
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

    def serves(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
