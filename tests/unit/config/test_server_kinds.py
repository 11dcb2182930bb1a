"""What is written about servers in several places is the same: settings, extras, docs/servers.md and `KINDS`."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from limpet.config.server_kinds import KINDS, kind
from limpet.config.settings import load
from limpet.errors import AppError, SettingsError
from limpet.servers import registry
from tests.matrix.variants import VARIANTS

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", [*KINDS, "my.package:serve"])
def test_server_can_be_chosen(name: str) -> None:
    """By its name, or by that of an adapter of the user's own, which is not imported to find out."""
    assert load({"app": "a:b", "server": name}, {}).server == name


@pytest.mark.parametrize("name", ["uvicron", "my.package", ":serve", "my package:serve"])
def test_unknown_server_is_refused_with_those_that_exist(name: str) -> None:
    """Not in the workers, later."""
    with pytest.raises(SettingsError) as caught:
        load({"app": "a:b", "server": name}, {})
    assert f"unknown server `{name}`" in caught.value.message
    assert "`uvicorn`" in str(caught.value.hint)


def test_installed_package_offers_a_server_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its users need not know its modules."""
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[limpet.servers]\nmine = mine.adapter:serve\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert kind("mine").module == "mine.adapter:serve"
    kind.cache_clear()


def test_every_optional_server_has_an_extra() -> None:
    """The hint of a server that is not installed can be pasted."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = ["gevent", *(kind.extra for kind in KINDS.values() if kind.extra)]
    assert set(wanted) <= set(extras)
    assert extras["all"] == [f"limpet[{','.join(sorted(wanted))}]"]


@pytest.mark.parametrize("name", [name for name, found in KINDS.items() if found.extra])
def test_server_that_is_not_installed_is_named_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base install has uvicorn alone."""
    for module in [*sys.modules]:
        if module.startswith("limpet.servers.") or module.partition(".")[0] == name:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(AppError) as caught:
        registry.module(name)
    assert caught.value.message.startswith(f"`--server {name}` needs the package `{name}`")
    assert caught.value.hint == f"`pip install 'limpet[{KINDS[name].extra}]'`"


def test_matrix_has_every_server_and_docs_have_the_matrix() -> None:
    """What was never tried is not offered, and what the docs say was tried."""
    assert {variant.server for variant in VARIANTS} == set(KINDS)
    text = (ROOT / "docs" / "servers.md").read_text()
    rows = text.partition("<!-- matrix -->\n")[2].partition("<!-- end of matrix -->")[0].splitlines()
    assert [row.split(" | ")[:3] for row in rows[2:]] == [
        [f"| {variant.name}", variant.made, ", ".join(variant.backends)] for variant in VARIANTS
    ]
    assert "FAILS" not in text
