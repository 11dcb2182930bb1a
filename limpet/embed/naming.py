"""The import string of an object: how a program's own application or key function is found again in another process.

Owns the way from an object to `module:attribute`, and what is said where there is none. Imports nothing of the user's:
it looks only at what the program has imported already. Called by embed/cluster.py, in the program that starts a server;
the children import by the string, as they do for `limpet run`.

1. What is returned names that very object, in this process: a string that would name another one is no answer.
2. A program's main file has another name when it is imported. It is named by its module (`python -m pkg.chat`) or its
   file name, and only if that is what the children will find.
"""

from __future__ import annotations

import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from limpet.errors import SettingsError

_MAIN: Final = "__main__"


def import_string(found: Any, what: str) -> str:
    """Return `module:attribute` of the object *found*. Raises SettingsError that says what to do if it has none."""
    homes = _homes(found)
    if not homes:
        raise SettingsError(
            f"the {what} `{_shown(found)}` has no name by which a worker could import it",
            hint=f"give it a name at the top level of a module, or write it as text: {_example(what)}",
        )
    module, attribute = homes[0]
    return f"{_name_of_main(what, attribute) if module == _MAIN else module}:{attribute}"


def _homes(found: Any) -> list[tuple[str, str]]:
    """Return where *found* is: the module and name that it gives itself first, the main module last."""
    own = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    homes = []
    if isinstance(own[0], str) and isinstance(own[1], str) and _resolve(sys.modules.get(own[0]), own[1]) is found:
        homes.append((own[0], own[1]))
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and module.__name__ == name:
            homes += [(name, attribute) for attribute, value in list(vars(module).items()) if value is found]
    return sorted(homes, key=lambda home: home[0] == _MAIN)  # a stable order: a file that is imported is imported


def _resolve(module: Any, attribute: str) -> Any:
    for name in attribute.split("."):
        module = getattr(module, name, None)
    return module


def _name_of_main(what: str, attribute: str) -> str:
    """Return the name by which the main module of this program can be imported. Raises SettingsError."""
    main = sys.modules[_MAIN]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    hint = f'put it into a module of its own and write it as "module:{attribute}"'
    if not isinstance(file, str):
        raise SettingsError(f"the {what} `{attribute}` is in `{_MAIN}`, which is not a file to import", hint=hint)
    name = Path(file).stem
    path = Path(file).resolve()
    place = PathFinder.find_spec(name) if re.fullmatch(r"[^\W\d]\w*", name) else None
    if place is None or place.origin is None or Path(place.origin).resolve() != path:
        raise SettingsError(f"the {what} `{attribute}` is in `{path}`, which cannot be imported by its name", hint=hint)
    return name


def _shown(found: Any) -> str:
    return str(getattr(found, "__qualname__", None) or f"{type(found).__name__} object")


def _example(what: str) -> str:
    return '`by="python:keys:tenant"`' if what == "key function" else '`limpet.listen("chat:app", 8000)`'
