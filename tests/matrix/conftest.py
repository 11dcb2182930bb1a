"""Writes what the matrix found into docs/servers.md: `make matrix`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.matrix.variants import VARIANTS, Variant, header

DOCS: Final = Path(__file__).parents[2] / "docs" / "servers.md"
_found: defaultdict[tuple[Variant, str, str], list[str]] = defaultdict(list)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what each test found: that it holds, that it does not, or why it was skipped."""
    report = yield
    if hasattr(item, "callspec") and "case" in item.callspec.params:
        case: Any = item.callspec.params["case"]
        found = _found[case.variant, case.backend, item.originalname]
        if isinstance(report.longrepr, tuple):
            found.append(report.longrepr[2].removeprefix("Skipped: "))
        elif report.failed:
            found.append("FAILS")
        elif report.when == "call":
            found.append("yes")
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the rows of which the session has found out all; the others stay as they were."""
    before, _, rest = DOCS.read_text().partition("<!-- matrix -->\n")
    old, _, after = rest.partition("<!-- end of matrix -->")
    rows = {tuple(row.split(" | ")[:2]): row for row in old.splitlines()[2:]}
    for variant in VARIANTS:
        if all(_found[variant, backend, name] for backend in variant.backends for name, _ in header()):
            cells = [variant.name, variant.made, ", ".join(variant.backends), *_cells(variant)]
            rows[f"| {variant.name}", variant.made] = f"| {' | '.join(cells)} |"
    titles = ["server", "application", "backends", *(title for _, title in header())]
    head = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    known = [rows[key] for variant in VARIANTS if (key := (f"| {variant.name}", variant.made)) in rows]
    table = "\n".join([*head, *known])
    DOCS.write_text(f"{before}<!-- matrix -->\n{table}\n<!-- end of matrix -->{after}")


def _cells(variant: Variant) -> list[str]:
    cells = []
    for name, _ in header():
        found = {backend: _worst(_found[variant, backend, name]) for backend in variant.backends}
        told = {answer for answer in found.values() if answer != "not on this backend"} or {"not on this backend"}
        texts = told if len(told) == 1 else {f"{backend}: {answer}" for backend, answer in found.items()}
        cells.append("; ".join(sorted(texts)))
    return cells


def _worst(found: list[str]) -> str:
    """Return what all runs of one test say together."""
    return "FAILS" if "FAILS" in found else found[-1]
