"""The names that users may build on: which there are, what they weigh, and where they are described."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import limpet
from tools.docs import api_page

DOCS = Path(__file__).parents[2] / "docs"
NAMES = {
    "starting a server": ["Cluster", "Handle", "LimpetError", "listen"],
    "what identifies a client": [
        "Affinity",
        "Cookie",
        "Forwarded",
        "Header",
        "Ip",
        "Path",
        "Peer",
        "Query",
        "Request",
        "Sni",
    ],
    "in a worker": [
        "WorkerInfo",
        "current_worker",
        "forget",
        "learn",
        "listener",
        "mint",
        "on_shutdown",
        "on_start",
    ],
    "between workers": ["Message", "Subscription", "publish", "publish_sync", "subscribe"],
    "what workers share": [
        "Counter",
        "Stash",
        "StashBusy",
        "StashFull",
        "WorkerEnds",
        "counter",
        "limit",
        "once",
        "stash",
    ],
    "the package": ["__version__"],
}


def test_public_names_are_these() -> None:
    """A name, once released, stays; one that was let out by accident would have to stay as well."""
    assert sorted(limpet.__all__) == sorted(name for names in NAMES.values() for name in names)
    for name in limpet.__all__:
        assert getattr(limpet, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    """What looks for optional names, as `hasattr` does, must get the usual answer."""
    assert not hasattr(limpet, "serve")
    assert set(limpet.__all__) <= set(dir(limpet))


@pytest.mark.parametrize("name", [name for name in limpet.__all__ if inspect.isfunction(getattr(limpet, name))])
def test_public_function_is_typed(name: str) -> None:
    """The package says that it is typed, and editors believe it."""
    signature = inspect.signature(getattr(limpet, name))
    annotations = [each.annotation for each in signature.parameters.values()] + [signature.return_annotation]
    assert inspect.Signature.empty not in annotations
    assert (Path(limpet.__file__).parent / "py.typed").exists()


def test_importing_limpet_costs_an_application_nothing() -> None:
    """Applications import it in each worker, for a name or two: no server, event loop or socket comes with it."""
    code = "import sys; before = set(sys.modules); import limpet; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name for name in run.stdout.split() if name.startswith("limpet")} == {"limpet", "limpet.version"}
    assert not {"asyncio", "logging", "socket", "uvicorn"} & set(run.stdout.split())


def test_description_of_the_names_is_what_the_code_says() -> None:
    """`make docs` was run after the last change, and each public name has its entry."""
    assert (DOCS / "api.md").read_text() == api_page.page()
    described = {line.removeprefix("### ") for line in api_page.page().splitlines() if line.startswith("### ")}
    assert described == set(limpet.__all__) - {"__version__"}
