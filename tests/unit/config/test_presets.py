"""Presets: what `--for` sets, that anything else wins over it, and that what the docs say is the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limpet.config import settings
from limpet.config.presets import MINTED, PRESETS, listing
from limpet.config.settings import SETTINGS, Settings
from limpet.errors import SettingsError
from limpet.protocol.request import Peer, Request
from limpet.routing.key_chain import KeyChain, Trust
from tools.docs.presets_page import reference

REPOSITORY = Path(__file__).parents[3]
APP = {"app": "chat:app"}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_sets_what_its_row_says_and_nothing_else(name: str) -> None:
    """A row with a key or a value that settings do not know would fail at the first user's start."""
    loaded = settings.load({**APP, "for_": name}, {})
    plain = Settings(app="chat:app", for_=name)
    rows = {each.key: (getattr(loaded, each.name), getattr(plain, each.name)) for each in SETTINGS}
    assert {key for key, (given, default) in rows.items() if given != default} == set(PRESETS[name].sets)
    assert not PRESETS[name].sets.keys() & {"workers", "bind", "app", "for"}


def test_preset_is_weaker_than_all_other_sources(tmp_path: Path) -> None:
    """Whoever sets something means it; a preset only knows what most people need."""
    preset = settings.load({**APP, "for_": "reflex"}, {})
    file = tmp_path / "limpet.toml"
    file.write_text("by = 'cookie:file'\nfor = 'reflex'\n")
    assert preset.by == PRESETS["reflex"].sets["by"]
    assert settings.load({**APP, "for_": "reflex", "by": "ip"}, {}).by == "ip"
    assert settings.load(APP, {"LIMPET_FOR": "reflex", "LIMPET_BY": "ip"}).by == "ip"
    assert settings.load({**APP, "config": str(file)}, {}).by == "cookie:file"
    assert settings.load(APP, {"LIMPET_FOR": "reflex", "WEB_CONCURRENCY": "3"}).workers == 3


def test_unknown_preset_names_the_nearest() -> None:
    """A typing mistake must not cost a search in the documentation."""
    with pytest.raises(SettingsError) as caught:
        settings.load({**APP, "for_": "reflecks"}, {})
    assert caught.value.message == "`--for`: there is no preset `reflecks`"
    assert str(caught.value.hint).startswith("`--for reflex`")


def test_listing_has_a_line_for_each_preset() -> None:
    """`limpet presets` is what people look at before they read anything."""
    assert [line.split()[0] for line in listing().splitlines()] == sorted(PRESETS)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if "mint" in preset.sets])
def test_minted_ids_are_looked_for(name: str) -> None:
    """An id that hashes home brings nobody home while no element of the chain finds it."""
    sets = PRESETS[name].sets
    elements = [element.spec for element in KeyChain.parse(sets["by"], Trust()).elements]
    assert MINTED[sets["mint"]] in elements
    assert "affinity" not in elements[: elements.index(MINTED[sets["mint"]])]


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/gradio_api/call/predict/0123456789abcdef0123456789abcdef", True),
        ("/gradio_api/call/v2/predict/0123456789abcdef0123456789abcdef", True),
        ("/app/gradio_api/call/predict/0123456789abcdef0123456789abcdef?x=1", True),
        ("/gradio_api/call/predict", False),
        ("/gradio_api/call/v2/predict", False),
        ("/gradio_api/queue/data?session_hash=abc", False),
    ],
)
def test_event_of_gradio_is_found_in_the_path_of_its_result(target: str, found: bool) -> None:
    """curl fetches the result in a request of its own, and has nothing but this id."""
    request = Request("GET", target, Peer(None, None, ""), [])
    [first, *_] = KeyChain.parse(PRESETS["gradio"].sets["by"], Trust()).elements
    key = first.find(request.peer, request)
    assert (key is not None) == found
    assert key is None or key.value == b"0123456789abcdef0123456789abcdef"


def test_documentation_is_what_the_table_says() -> None:
    """`make docs` was run after the last change of the table, or of what was measured."""
    measured = json.loads((REPOSITORY / "benchmarks" / "results" / "products.json").read_text())
    assert (REPOSITORY / "docs" / "presets.md").read_text() == reference(measured)


def test_each_figure_stands_in_its_own_column() -> None:
    """The file of results is sorted by name, the table is not: a figure under the wrong title would be a lie."""
    runs = {"limpet nginx": 2, "limpet plain": 1, "uvicorn nginx": 4, "uvicorn plain": 3}
    failed = {run: {"failures": ["it"] * number} for run, number in runs.items()}
    text = reference({"product": {"version": "1", "sessions": 20, "runs": failed}})
    assert "| product | version | limpet | limpet behind nginx | uvicorn | uvicorn behind nginx |" in text
    assert "| `product` | 1 | 1 of 20 | 2 of 20 | 3 of 20 | 4 of 20 |" in text
