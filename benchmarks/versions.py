"""Two versions of limpet side by side in one run: `python benchmarks/versions.py BEFORE [AFTER] [--output FILE]`.

BEFORE and AFTER are commits; AFTER is the working copy by default. Each is taken out of the repository, and measured by
its own scripts, in turn: instructions of a request and of a connection in user space (callgrind, which other load does
not disturb); CPU time of `limpet --version`; time until 4 workers serve; resident memory of each kind of process. Of
times the least of all rounds counts, since other load only adds. A FILE with results of the same two versions is
completed, so times and instructions can be measured in two runs: `--skip-instructions`, and `--rounds 0`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import free_port, machine, tree

ROOT = Path(__file__).parents[1]
PARTS = ("limpet", "benchmarks", "tests", "examples", "tools", "pyproject.toml")
ROLES = {"supervisor": b"limpet\0run", "dispatcher": b"child\0dispatcher", "worker": b"child\0worker"}
_APP = "async def app(scope, receive, send):\n    pass\n"


class Version:
    """One version in a folder of its own."""

    def __init__(self, commit: str | None, where: Path) -> None:
        self.name = commit or "working copy"
        self.where = where
        if commit is None:
            for part in PARTS:
                copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
                copy(ROOT / part, where / part)
        else:
            data = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
            with tarfile.open(fileobj=io.BytesIO(data)) as files:
                files.extractall(where, filter="data")
        (where / "trivial.py").write_text(_APP)
        self.env = {**os.environ, "PYTHONPATH": str(where), "PYTHONDONTWRITEBYTECODE": ""}

    def run(self, *words: str) -> str:
        """Return what a script of this version prints."""
        done = subprocess.run(
            [sys.executable, *words], cwd=self.where, env=self.env, capture_output=True, text=True, check=True
        )
        return done.stdout

    def instructions(self) -> dict[str, float]:
        """Return thousands of instructions: of a request with one user for each connection, of one with mixed users, of
        a connection in the dispatcher.
        """
        found = {}
        for kind in ("single", "mixed"):
            said = self.run("benchmarks/mixed_costs.py", "--kind", kind, "--instructions")
            found[f"request, {kind}"] = float(re.search(r"([\d.]+) thousand", said)[1])  # type: ignore[index]
        out = str(self.where / "costs.json")
        said = self.run("benchmarks/dispatcher_costs.py", "--instructions", "1000", "--out", out)
        found["connection, dispatcher"] = float(re.search(r"'one_at_a_time': ([\d.]+)", said)[1])  # type: ignore[index]
        return found

    def version_cpu_s(self) -> float:
        """Return the CPU time of `limpet --version`."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.run("-m", "limpet", "--version")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def start(self) -> dict[str, float]:
        """Return how long 4 workers take to serve, and the resident memory in KiB of each kind of process then."""
        flags = ["--workers", "4", "--by", "header:x-user", "--bind", f"127.0.0.1:{free_port()}"]
        state = ["--state-dir", str(self.where / "state"), "--control", str(self.where / "control.sock")]
        began = time.monotonic()
        server = subprocess.Popen(
            [sys.executable, "-m", "limpet", "run", "trivial:app", *flags, *state],
            cwd=self.where,
            env=self.env,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert server.stderr is not None
        try:
            while "serving" not in (line := server.stderr.readline()):
                assert line, "the server has ended"
            found = {"start_s": time.monotonic() - began}
            time.sleep(1)  # what a process does right after its start is over
            for pid in tree(server.pid):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                role = next((name for name, word in ROLES.items() if word in words), None)
                if role is not None:
                    status = Path(f"/proc/{pid}/status").read_text()
                    kib = int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]
                    found[f"{role}_rss_kib"] = min(kib, found.get(f"{role}_rss_kib", kib))
            return found
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate()


def main() -> None:
    """Measure both, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after", nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--skip-instructions", action="store_true")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        versions = [Version(given.before, Path(one)), Version(given.after, Path(other))]
        found: list[dict[str, float]] = [{}, {}]
        for _ in range(given.rounds):
            for version, least in zip(versions, found, strict=True):
                for name, value in {"version_cpu_s": version.version_cpu_s(), **version.start()}.items():
                    least[name] = min(value, least.get(name, value))
        if not given.skip_instructions:
            for version, least in zip(versions, found, strict=True):
                least |= {f"thousand instructions: {name}": value for name, value in version.instructions().items()}
    result: dict[str, Any] = {"machine": machine(), "versions": [each.name for each in versions], "found": found}
    if given.output and given.output.exists():
        before = json.loads(given.output.read_text())
        if before["versions"] == result["versions"]:
            found[:] = [earlier | now for earlier, now in zip(before["found"], found, strict=True)]
    print(f"{'':44}{versions[0].name[:12]:>14}{versions[1].name[:12]:>14}{'ratio':>8}")
    for name, value in found[0].items():
        print(f"{name:44}{value:14.3f}{found[1][name]:14.3f}{found[1][name] / value:8.3f}")
    if given.output:
        given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
