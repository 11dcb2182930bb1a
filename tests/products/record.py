"""Write down how many sessions of each product fail, on limpet and on uvicorn's own workers: `make measure-products`.

Asks each test file of this folder for its `PRODUCT`, or those named as arguments. What is found is kept in
benchmarks/results/products.json, from which `make docs` makes the table in docs/presets.md; products that are not asked
keep what they have there.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.harness import HERE
from tests.products.stage import SESSIONS, Product, played, python

RESULTS: Final = HERE.parent / "benchmarks" / "results" / "products.json"
RUNS: Final = [(server, way) for server in ("limpet", "uvicorn") for way in ("plain", "nginx")]


def version(product: Product) -> str:
    """Return the version of *product* where it is installed."""
    script = f"import importlib.metadata; print(importlib.metadata.version({product.package!r}))"
    return subprocess.run(
        [product.python or python(), "-c", script], check=True, capture_output=True, text=True
    ).stdout.strip()


def measured(product: Product) -> dict[str, Any]:
    """Return what came of all runs of *product*."""
    runs: dict[str, Any] = {}
    for server, way in RUNS:
        if server == "uvicorn" and product.refuses:
            runs[f"{server} {way}"] = {"refused": product.refuses}
            continue
        outcome = played(product, server, way)
        runs[f"{server} {way}"] = {"failures": sorted(outcome.failures), "workers": len(outcome.pids)}
        print(f"{product.name} on {server}, {way}: {len(outcome.failures)} of {SESSIONS} failed", flush=True)
    return {"version": version(product), "sessions": SESSIONS, "runs": runs}


def main(names: list[str]) -> None:
    """Measure the products *names*, or all."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        product = getattr(importlib.import_module(f"tests.products.{path.stem}"), "PRODUCT", None)
        if product is not None and (not names or product.name in names):
            found = measured(product)
            kept = json.loads(RESULTS.read_text())
            RESULTS.write_text(json.dumps(kept | {product.name: found}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
