"""Configurations of `limpet front` as the products themselves read them: HAProxy, nginx, and where installed Caddy.

Those with PROXY headers run before a limpet, too.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limpet import fronts
from limpet.config.settings import Settings
from limpet.errors import SettingsError
from tests.foreground import Foreground
from tests.harness import Limpet, free_port
from tests.real.fronts import STREAM
from tests.secure import make_pair

HOSTS = "127.0.0.1:8001,127.0.0.1:8002"
NETWORKS = ("10.0.0.0/8", "2001:db8::/32")
CHAINS: list[dict[str, Any]] = [
    {"by": "affinity"},
    {"by": "cookie:user,header:x-user,query:q,path:/files/([^/?]+),affinity"},
    {"by": "forwarded/32/128", "trust": NETWORKS},
    {"by": "forwarded/24/48", "trust": NETWORKS},
    {"by": "header:mcp-session-id", "learn": ("header:mcp-session-id",)},
    {"by": "path:/files/(?:[a-z]{1,2}/)?([^/?]+)$", "learn": ("location:/files/([^/?]+)", "cookie:sid")},
    {"by": "query:sid", "mint": "socketio"},
    {"by": "cookie:user,ip/24/48", "trust": NETWORKS, "proxy_protocol": "required"},
    {"by": "header:x-user,ip/32/128", "trust": NETWORKS, "proxy_protocol": "required"},
    {"by": "sni,ip", "trust": NETWORKS, "proxy_protocol": "required"},
    {"by": "sni,ip/24/48", "trust": NETWORKS, "proxy_protocol": "required", "tls_cert": "cert.pem"},
    {"by": "sni", "tls_cert": "cert.pem"},
    {"by": "bearer,affinity"},
    {"by": "ip", "trust": NETWORKS, "proxy_protocol": "required", "server": "stream"},
]
FRAMES = {
    "haproxy": "{text}",
    "nginx": "pid {folder}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off;\n{text}\n}}",
    "nginx stream": f"pid {{folder}}/pid; error_log stderr;\nload_module {STREAM};\nevents {{{{}}}}\n{{text}}",
    "caddy": "{text}",
}
COMMANDS = {
    "haproxy": ["haproxy", "-c", "-f", "{file}"],
    "nginx": ["nginx", "-t", "-e", "stderr", "-p", "{folder}", "-c", "{file}"],
    "caddy": ["caddy", "validate", "--adapter", "caddyfile", "--config", "{file}"],
}


def program(kind: str) -> str:
    """Return the path of what runs a front of *kind*, Debian's or PyPI's; skip the test where it is not installed."""
    found = shutil.which(kind, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        if os.environ.get("CI") and kind in ("haproxy", "nginx"):
            pytest.fail(f"{kind} is not installed")
        pytest.skip(f"{kind} is not installed")
    return found


@pytest.mark.parametrize("given", CHAINS, ids=lambda given: given["by"])
@pytest.mark.parametrize("kind", COMMANDS)
def test_configuration_is_accepted(kind: str, given: dict[str, Any], tmp_path: Path) -> None:
    """Who is given a configuration that does not start writes one by hand."""
    name = program(kind)
    try:
        text = fronts.configuration(kind, Settings(app="a:app", **given), HOSTS, health=":9000/ready")
    except SettingsError:
        assert kind != "haproxy"  # it can express all of these
        return
    file = tmp_path / f"{kind}.conf"
    frame = "nginx stream" if "\nstream {" in text else kind
    file.write_text(FRAMES[frame].format(text=text, folder=tmp_path))
    command = [name, *(part.format(file=file, folder=tmp_path) for part in COMMANDS[kind][1:])]
    env = os.environ | {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=60)
    assert run.returncode == 0, run.stderr + run.stdout
    assert "warn" not in (run.stderr + run.stdout).lower().replace('"level":"warn"', ""), run.stderr


class Printed(Foreground):
    """A running front before limpet on this machine, by what `limpet front` prints for the same flags."""

    def __init__(self, kind: str, server: Limpet, **given: Any) -> None:
        super().__init__(kind, program(kind), free_port())
        self._server = server
        self._given = given

    def text(self) -> str:
        settings = Settings(app="a:app", **self._given)
        text = fronts.configuration(self.kind, settings, f"127.0.0.1:{self._server.port}", listen=self.listen)
        frame = "nginx stream" if "\nstream {" in text else self.kind
        off = "daemon off;\n" if self.kind == "nginx" else ""
        return off + FRAMES[frame].format(text=text, folder=self.folder)

    def serves(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.listen)) == 0


ORIGINS: list[tuple[str, dict[str, Any]]] = [
    ("haproxy", {"by": "ip/32/128"}),
    ("caddy", {"by": "ip/32/128"}),
    ("haproxy", {"by": "sni,ip", "tls": True}),
    ("nginx", {"by": "sni,ip", "tls": True}),
    ("haproxy", {"by": "ip", "tls": True}),
    ("nginx", {"by": "ip", "tls": True}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "given"), ORIGINS, ids=lambda each: each if isinstance(each, str) else each["by"])
def test_client_of_a_front_that_sends_proxy_headers_is_at_home(
    kind: str, given: dict[str, Any], tmp_path: Path
) -> None:
    """An idle connection of the front that is used for another client would pass that off as the first one."""
    settings = {"by": given["by"], "trust": ("127.0.0.1",), "proxy_protocol": "required"}
    flags = ["--by", given["by"], "--trust", "127.0.0.1", "--proxy-protocol", "required", "--workers", "3"]
    context = None
    if "tls" in given:
        make_pair(tmp_path, "first.example")
        settings |= {"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
        flags += ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
        context = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        context.check_hostname = False  # whatever name is asked for
    with Limpet("tests.apps:echo", *flags) as server, Printed(kind, server, **settings) as front:
        slots = set()
        for number in range(2, 14):
            client, name = f"127.0.0.{number}", f"tenant-{number}.example"
            home = server.where(f"sni={name}" if "sni" in given["by"] else f"ip={client}")[0]["slot"]
            slots.add(home)
            for _ in range(2):
                plain = socket.create_connection(("127.0.0.1", front.listen), 30, source_address=(client, 0))
                with context.wrap_socket(plain, server_hostname=name) if context else plain as wire:
                    for _ in range(2):
                        told = answer(wire)
                        assert (told["client"][0], told["slot"]) == (client, home)
        assert len(slots) == 3


def answer(wire: socket.socket) -> Any:
    """Return what the application says to a GET."""
    wire.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    response = http.client.HTTPResponse(wire)
    response.begin()
    return json.loads(response.read())
