"""Which lines and branches of limpet/ the unit tests alone reach: `make coverage`.

Runs tests/unit under the library coverage, and prints one row for each package and one for each file below the mark.
With the name of a revision, it does the same in a copy of that revision: `python -m tools.coverage 72ee71a`.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
_COUNTS: Final = ("covered_lines", "num_statements", "covered_branches", "num_branches")


def measure(folder: Path, report: Path) -> dict[str, Any]:
    """Run the unit tests in *folder*, and return what coverage says of its files."""
    data = f"--data-file={report.with_suffix('.data')}"
    run = [sys.executable, "-m", "coverage", "run", data, "--branch", "--source=limpet"]
    subprocess.run([*run, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit"], cwd=folder, check=False)
    command = [sys.executable, "-m", "coverage", "json", data, "-q", "-o", str(report)]
    subprocess.run(command, cwd=folder, check=True)
    files: dict[str, Any] = json.loads(report.read_text())["files"]
    return files


def copy_of(revision: str, folder: Path) -> None:
    """Write the files of *revision* into *folder*."""
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


def row(name: str, counts: Counter[str]) -> str:
    """Return a line about *name*: the covered part of lines, of branches, and their numbers."""
    lines, branches = (
        f"{counts[covered] / counts[of]:6.1%} of {counts[of]:6,}" if counts[of] else "     -" + " " * 10
        for covered, of in (_COUNTS[:2], _COUNTS[2:])
    )
    return f"{name:44} {lines}   {branches}"


def main() -> int:
    """Measure, and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", nargs="?", help="measure a copy of this revision")
    parser.add_argument("--below", type=float, default=50.0, help="name files with fewer covered lines, in percent")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "copy" if given.revision else ROOT
        if given.revision:
            copy_of(given.revision, folder)
        files = measure(folder, Path(name) / "report.json")
    packages: dict[str, Counter[str]] = {}
    for path, found in files.items():
        counts = Counter({each: found["summary"][each] for each in _COUNTS})
        parts = path.split("/")
        packages.setdefault(parts[1] + "/" if len(parts) > 2 else "limpet/*.py", Counter()).update(counts)
        if (
            found["summary"]["num_statements"]
            and 100 * counts["covered_lines"] / counts["num_statements"] < given.below
        ):
            print(row(path, counts))
    print(f"\n{'package':44} {'lines':>16}   {'branches':>16}")
    for package, counts in sorted(packages.items()):
        print(row(package, counts))
    print(row("all", sum(packages.values(), Counter())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
