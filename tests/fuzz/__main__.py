"""Look for bytes that make limpet do what it must not: `python -m tests.fuzz [--seconds 600] [TARGET...]`.

Guided by the coverage of limpet's own code (atheris, which is libFuzzer). One target after the other; what was tried,
and for how long, goes to benchmarks/results/fuzz.json. Bytes that were found to be too much are kept in tests/corpus,
so that from then on each run of the tests tries them.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus"
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
LONGEST = 2048  # bytes of an input


def fuzz(name: str, arguments: list[str]) -> None:
    """Call the target *name* with one input after the other, in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["limpet"]):
        from tests.fuzz import targets
    atheris.Setup([name, *arguments], targets.TARGETS[name])
    atheris.Fuzz()


def run(name: str, seconds: int) -> dict[str, object]:
    """Fuzz the target *name* for so long in a process of its own; return what came of it."""
    seeds = CORPUS / name
    with tempfile.TemporaryDirectory(prefix="limpet-fuzz-") as found:
        flags = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-artifact_prefix={seeds}/", "-timeout=10"]
        command = [sys.executable, "-m", "tests.fuzz", "--here", name, *flags, "-print_final_stats=1", found, seeds]
        started = time.monotonic()
        process = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False)
        took_s = time.monotonic() - started
        kept = len(list(Path(found).iterdir()))
    inputs = re.search(r"number_of_executed_units:\s*(\d+)", process.stderr)
    coverage = re.findall(r"\bcov: (\d+) ft: (\d+)", process.stderr)
    if process.returncode:
        sys.stderr.write(process.stderr[-4000:])
    return {
        "seconds": round(took_s),
        "inputs": int(inputs[1]) if inputs else 0,
        "edges": int(coverage[-1][0]) if coverage else 0,
        "interesting": kept,
        "finding": process.returncode != 0,
    }


def main() -> int:
    """Fuzz what the arguments name; return 1 if anything was found."""
    if sys.argv[1:2] == ["--here"]:
        fuzz(sys.argv[2], sys.argv[3:])
        return 0
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("targets", nargs="*", help="all by default")
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"targets": {}}
    found = False
    for name in given.targets or TARGETS:
        outcome = run(name, given.seconds)
        found = found or bool(outcome["finding"])
        print(f"{name}: {outcome}", flush=True)
        if given.seconds >= 60:  # a short run tries whether it works, and is no result
            results["python"], results["machine"] = platform.python_version(), platform.platform()
            results["targets"][name] = outcome
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
