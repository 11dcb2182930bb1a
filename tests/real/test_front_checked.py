"""Configurations of `limpet front` as the products themselves read them: HAProxy, nginx, and where installed Caddy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limpet import fronts
from limpet.errors import SettingsError
from limpet.settings import Settings

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
]
FRAMES = {
    "haproxy": "{text}",
    "nginx": "pid {folder}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off;\n{text}\n}}",
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
    file.write_text(FRAMES[kind].format(text=text, folder=tmp_path))
    command = [name, *(part.format(file=file, folder=tmp_path) for part in COMMANDS[kind][1:])]
    env = os.environ | {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=60)
    assert run.returncode == 0, run.stderr + run.stdout
    assert "warn" not in (run.stderr + run.stdout).lower().replace('"level":"warn"', ""), run.stderr
