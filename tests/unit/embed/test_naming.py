"""Objects are named so that another process finds the very same, or the program is told what to do instead."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from limpet.embed.naming import import_string
from limpet.errors import SettingsError
from tests import apps, bind_apps

at_top = lambda request: None  # noqa: E731 - a name is all that a lambda needs


class Outer:
    """A class with an application inside."""

    @staticmethod
    def app() -> None:
        """Be one."""


def test_function_has_the_name_that_it_gives_itself() -> None:
    """That is where it was defined, whoever else has imported it."""
    assert import_string(apps.echo, "application") == "tests.apps:echo"
    assert import_string(Outer.app, "application") == f"{__name__}:Outer.app"


def test_object_without_a_name_is_found_where_it_is_assigned() -> None:
    """Applications of most frameworks are instances, which know no name."""
    assert import_string(bind_apps.shop, "application") == "tests.bind_apps:shop"
    assert import_string(at_top, "key function") == f"{__name__}:at_top"


@pytest.mark.parametrize("found", [lambda request: None, object(), Outer()])
def test_object_that_nobody_can_import_is_refused_with_the_way_out(found: Any) -> None:
    """A worker is another process: what exists in this one alone cannot be served."""
    with pytest.raises(SettingsError, match="no name under which a worker could import it") as raised:
        import_string(found, "key function")
    assert "top level" in str(raised.value.hint)


def test_local_function_is_refused() -> None:
    """Its name reads like one that could be imported."""

    async def app() -> None: ...

    with pytest.raises(SettingsError, match="local_function_is_refused"):
        import_string(app, "application")


def replaced(name: str) -> object:
    """Return an object that says that it is *name* of this module, which has another."""
    made = type(name, (), {"__module__": __name__})
    assert made is not globals()[name]
    return made


def test_name_of_another_object_is_no_answer() -> None:
    """A decorator may have put something else in its place."""
    with pytest.raises(SettingsError):
        import_string(replaced("Outer"), "application")


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a main module with an application in it."""
    module = ModuleType("__main__")
    exec("def app(): pass", vars(module))
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


def test_main_module_is_named_by_how_python_was_started(main: ModuleType) -> None:
    """`python -m shop.web` serves what `limpet run shop.web:app` would."""
    main.__spec__ = ModuleSpec("shop.web", None)
    assert import_string(main.app, "application") == "shop.web:app"


@pytest.mark.parametrize(("file", "is_found"), [("web.py", True), ("my-web.py", False)])
def test_main_file_is_named_by_its_name_if_that_can_be_imported(
    main: ModuleType, file: str, is_found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python web.py` is imported as `web`; a name with a dash, or another file of that name first, is none."""
    (tmp_path / file).touch()
    main.__file__ = str(tmp_path / file)
    monkeypatch.syspath_prepend(str(tmp_path))
    if is_found:
        assert import_string(main.app, "application") == "web:app"
        (tmp_path / "first").mkdir()
        (tmp_path / "first" / file).touch()
        monkeypatch.syspath_prepend(str(tmp_path / "first"))
    with pytest.raises(SettingsError, match="cannot be imported by its name"):
        import_string(main.app, "application")


def test_main_that_is_no_file_is_refused(main: ModuleType) -> None:
    """What was typed into a prompt exists nowhere else."""
    with pytest.raises(SettingsError, match="not a file that a worker could import"):
        import_string(main.app, "application")
