"""Writes what the matrix found into docs/servers.md, when all of it was run: `make matrix`."""

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
    """Write the table, if the session has found out all of it."""
    columns = [name for name, _ in header()]
    wanted = {(variant, backend, name) for variant in VARIANTS for backend in variant.backends for name in columns}
    if wanted <= set(_found):
        before, _, rest = DOCS.read_text().partition("<!-- matrix -->\n")
        after = rest.partition("<!-- end of matrix -->")[2]
        DOCS.write_text(f"{before}<!-- matrix -->\n{table()}<!-- end of matrix -->{after}")


def table() -> str:
    """Return the table of what was found."""
    titles = ["server", "application", "backends", *(title for _, title in header())]
    rows = [[variant.name, variant.made, ", ".join(variant.backends), *_cells(variant)] for variant in VARIANTS]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [titles, ["---"] * len(titles), *rows])


def _cells(variant: Variant) -> list[str]:
    cells = []
    for name, _ in header():
        found = {backend: _found[variant, backend, name][-1] for backend in variant.backends}
        told = {answer for answer in found.values() if answer != "not on this backend"} or {"not on this backend"}
        texts = told if len(told) == 1 else {f"{backend}: {answer}" for backend, answer in found.items()}
        cells.append("; ".join(sorted(texts)))
    return cells
