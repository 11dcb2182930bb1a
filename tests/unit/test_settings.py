"""Settings: declared once, read alike from everywhere, and errors that say where to look."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet import settings
from limpet.declare import Setting
from limpet.errors import SettingsError
from limpet.settings import SETTINGS, Settings

APP = {"app": "chat:app"}
BY_NAME = {each.name: each for each in SETTINGS}


def load(
    flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None, toml: str | None = None
) -> Settings:
    """Return the settings of `limpet run chat:app` with these flags, variables and lines of a file."""
    if toml is None:
        return settings.load({**APP, **(flags or {})}, environ or {})
    path = Path(os.environ["PYTEST_FILE"])
    path.write_text(toml)
    return settings.load({**APP, "config": str(path), **(flags or {})}, environ or {})


@pytest.fixture(autouse=True)
def _file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
