"""The README's first block, typed by a new user: every command as it stands, and what it says there comes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from limpet.routing.buckets import BUCKETS, table
from tests.harness import PATIENCE_S, free_port, wait_until

ROOT = Path(__file__).parents[2]
VARIES = [
    (r"\d\d:\d\d:\d\d", "TIME"),
    (r"pid \d+", "pid PID"),
    (r"after \d+\.\d s", "after N s"),
    (r"bucket \d+, digest [0-9a-f]+", "bucket B, digest D"),
    (r"(slot|worker) \d", r"\1 N"),
    (r"secret kept in \S+", "secret kept in FILE"),
]


def block() -> str:
    """Return the first block of the README."""
    found = re.search(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    return found[1]


def normal(text: str, port: int) -> list[str]:
    """Return the lines of *text* without what differs from run to run, those of the log in alphabetical order."""
    text = text.replace(str(port), "8000")
    for pattern, replacement in VARIES:
        text = re.sub(pattern, replacement, text)
    return sorted(line.strip() for line in text.splitlines() if line.strip())


class Shell:
    """A user's shell: one bash, into which commands are typed one after another."""

    def __init__(self, where: Path, environment: dict[str, str]) -> None:
        self.output = where / "output"
        self._file = self.output.open("w")
        self.process = subprocess.Popen(
            ["bash", "--norc"], stdin=subprocess.PIPE, stdout=self._file, stderr=self._file, text=True, cwd=where,
            env=environment, start_new_session=True,
        )  # fmt: skip

    def type(self, command: str) -> None:
        """Run *command* and wait until the prompt would be back."""
        assert self.process.stdin is not None
        seen = self.said().count("prompt-is-back")
        self.process.stdin.write(f"{command}\necho prompt-is-back\n")
        self.process.stdin.flush()
        wait_until(lambda: self.said().count("prompt-is-back") > seen, f"`{command}` is done", 120)

    def said(self) -> str:
        """Return all output up to now."""
        return self.output.read_text()

    def close(self) -> None:
        """End the shell and what it started."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(ProcessLookupError):  # the shell, and with it its group, may have ended by that
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(PATIENCE_S)
        self._file.close()


@pytest.fixture(name="runtime")
def _runtime() -> Iterator[str]:
    """A directory for sockets, whose paths may not be as long as those of other files."""
    with tempfile.TemporaryDirectory(prefix="limpet-") as folder:
        yield folder


def test_first_block_of_the_readme_does_what_it_shows(tmp_path: Path, runtime: str) -> None:
    """A first block that does not work is the last thing a new user reads."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "node_modules", "__pycache__", "results"))
    venv.create(tmp_path / "venv", with_pip=True)
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("LIMPET_", "PYTHON"))},
        "PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}",
        "LIMPET_BIND": f"127.0.0.1:{port}",
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": runtime,
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    shell = Shell(checkout, environment)
    try:
        commands = [line.removeprefix("$ ") for line in block().splitlines() if line.startswith("$ ")]
        for command in commands:
            command = command.replace("8000", str(port))
            if command.startswith("pip install"):
                command += " --quiet"
            if command.startswith("curl"):
                command = command.replace("curl", "curl --silent --show-error")
            shell.type(command)
            if command.endswith("&"):
                wait_until(lambda: "serving" in shell.said(), "the server serves")
            if command.startswith("kill"):
                wait_until(lambda: shell.said().count("ready after") == 5, "the worker is replaced")
    finally:
        shell.close()
        print(shell.said())  # for whoever reads of a failure
    shown = [line for line in block().splitlines() if not line.startswith("$ ")]
    said = [line for line in shell.said().splitlines() if not re.search(r"prompt-is-back|\[\d\]", line)]
    assert normal("\n".join(said), port) == normal("\n".join(shown), 8000), shell.said()


def test_digest_bucket_and_slot_of_an_example_fit_together() -> None:
    """An operator who follows one by hand must come to the same slot."""
    slots = table(4)
    for page in ("README.md", "docs/quickstart.md"):
        found = re.findall(r"slot (\d), .*bucket (\d+), digest ([0-9a-f]{16})", (ROOT / page).read_text())
        assert found
        for slot, bucket, digest in found:
            assert int(digest, 16) % BUCKETS == int(bucket)
            assert slots[int(bucket)] == int(slot)
