"""An upgrade from the last release whose modules lay flat in `limpet/`: its processes serve on under the new version.

The older version comes out of the repository's history. Where there is none, as in an unpacked sdist, nothing is said.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

import limpet
from tests.harness import HERE, Limpet, wait_until
from tests.public import Public, Seen, reload

BEFORE = "72ee71a8fa1c05b59ec4d3fc3a303855f967d2ba"
REPOSITORY = HERE.parent
CHAINS = {"kernel": "ip", "dispatcher": "header:x-user"}
has_history = (REPOSITORY / ".git").exists()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return the folder in which the older version is installed, and which `deploy` gives the newer one."""
    archive = subprocess.run(
        ["git", "archive", BEFORE, "limpet"], cwd=REPOSITORY, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tmp_path, filter="data")
    return tmp_path


def deploy(site: Path) -> None:
    """Put the newer version in place of the older one, as an installation does while the server runs."""
    shutil.rmtree(site / "limpet")
    shutil.copytree(Path(limpet.__file__).parent, site / "limpet", ignore=shutil.ignore_patterns("__pycache__"))


def upgrade(server: Limpet) -> None:
    """Have the supervisor replaced, and wait until it is and the dispatchers are new."""
    old = {entry["pid"] for entry in server.status()["dispatchers"]}
    server.signal(signal.SIGUSR2)
    wait_until(lambda: server.status()["upgrades"]["done"] == 1, "it is upgraded")
    wait_until(lambda: not {entry["pid"] for entry in server.status()["dispatchers"]} & old, "dispatchers are new")


@pytest.mark.skipif(not has_history, reason="the older version is in the repository's history, and there is none")
@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_nobody_notices_the_upgrade_from_flat_modules(backend: str, site: Path) -> None:
    """Files were moved and renamed; a running server must be able to follow, with the workers that it has."""
    env = {"PYTHONPATH": f"{site}:{REPOSITORY}"}
    flags = ["--workers", "2", "--by", CHAINS[backend], "--backend", backend]
    with Limpet("tests.apps:echo", *flags, env=env, cwd=site) as server:
        assert not (site / "limpet" / "supervisor").exists()
        workers = [slot["pid"] for slot in server.status()["slots"]]

        async def both() -> Seen:
            async with Public(server, by_address=backend == "kernel", clients=16, sockets=8).present() as seen:
                deploy(site)
                await asyncio.to_thread(upgrade, server)
                change = await asyncio.to_thread(reload, server)
                assert change["state"] == "done", "all workers are of the new version"
            return seen

        seen = asyncio.run(both())
        assert seen.failures == []
        assert not {slot["pid"] for slot in server.status()["slots"]} & set(workers)


@pytest.mark.skipif(not has_history, reason="the older version is in the repository's history, and there is none")
def test_older_supervisor_starts_workers_of_the_newer_version(site: Path) -> None:
    """Between the installation and the upgrade a worker may die, and its replacement is started by the older name."""
    env = {"PYTHONPATH": f"{site}:{REPOSITORY}"}
    with Limpet("tests.apps:echo", "--workers", "1", "--by", "header:x-user", env=env, cwd=site) as server:
        deploy(site)
        worker = server.worker(0)["pid"]
        os.kill(worker, signal.SIGKILL)
        server.wait_ready(0, other_than=worker)
        assert server.request(x_user="ada").status == 200
        assert b"limpet.child" in Path(f"/proc/{server.worker(0)['pid']}/cmdline").read_bytes()
