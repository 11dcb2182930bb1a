"""docs/docker.md: what the image would start is started, as the first process of a container."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import HERE, PATIENCE_S, free_port, wait_until
from tests.real.test_first_process import UNSHARE, children

PAGE = HERE.parent / "docs" / "docker.md"
KNOWN = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "CMD"}


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions of the page's Dockerfile with their arguments."""
    found = re.search(r"```dockerfile\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in found[1].splitlines())]


def image() -> dict[str, str]:
    """Return the instructions that a Dockerfile has once."""
    return dict(dockerfile())


def test_dockerfile_is_one() -> None:
    """An instruction that does not exist, or a command that a shell would run, fails only in somebody's pipeline."""
    names = [name for name, _ in dockerfile()]
    assert not set(names) - KNOWN
    assert (names[0], names[-1]) == ("FROM", "CMD")
    assert getattr(signal, image()["STOPSIGNAL"]) == signal.SIGTERM
    assert json.loads(image()["CMD"])[0] == "limpet"


@pytest.fixture
def container(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[str], Path]]:
    """Yield what CMD has started in a namespace of processes, the command of HEALTHCHECK, and the log."""
    ports = {"8000": str(free_port()), "9000": str(free_port())}
    command, check = json.loads(image()["CMD"]), json.loads(image()["HEALTHCHECK"].partition("CMD ")[2])
    for old, new in ports.items():
        command, check = ([word.replace(f":{old}", f":{new}") for word in each] for each in (command, check))
    (tmp_path / "chat.py").write_text("from tests.apps import echo as app\n")
    env = dict(pair.split("=", 1) for pair in shlex.split(image()["ENV"]))
    env = {name: str(tmp_path / Path(value).name) for name, value in env.items()}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*UNSHARE, *command],
            cwd=tmp_path,
            stderr=file,
            env={**env, "PATH": path, "PYTHONPATH": str(HERE.parent)},
            start_new_session=True,
        )
        try:
            yield process, check, log
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(
    subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0, reason="no PID namespace here"
)
def test_command_of_the_image_runs_as_first_process(
    container: tuple[subprocess.Popen[bytes], list[str], Path],
) -> None:
    """It serves, is healthy by the image's own check, and ends by the image's own signal."""
    process, check, log = container
    wait_until(lambda: "serving chat:app" in log.read_text() or process.poll() is not None, "it serves")
    health = subprocess.run([sys.executable, *check[1:]], capture_output=True, timeout=PATIENCE_S, check=False)
    assert health.returncode == 0, health.stderr.decode()
    [first] = children(process.pid)
    os.kill(first, getattr(signal, image()["STOPSIGNAL"]))
    assert process.wait(PATIENCE_S) == 0, log.read_text()
    health = subprocess.run([sys.executable, *check[1:]], capture_output=True, timeout=PATIENCE_S, check=False)
    assert health.returncode != 0
