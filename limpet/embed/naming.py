"""The import string of an object, by which another process can import a program's application or key function.

Owns the way from an object to `module:attribute`, and the error if there is none. It imports no user code: it only
looks at modules that the program has already imported. embed/cluster.py calls it in the program that starts a server;
the children import by the string, as they do for `limpet run`.

1. The returned string names that very object in this process. A string that names another object is wrong.
2. A program's main file has another name when it is imported. It is named by its module (`python -m pkg.chat`) or by
   its file name, and only if the children will find the same file under that name.
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
    """Return `module:attribute` of the object *found*. Raises SettingsError, which says what to do, if it has none."""
    homes = _homes(found)
    if not homes:
        raise SettingsError(
            f"the {what} `{_shown(found)}` has no name under which a worker could import it",
            hint=f"give it a name at the top level of a module, or write it as text: {_example(what)}",
        )
    module, attribute = homes[0]
    return f"{_name_of_main(what, attribute) if module == _MAIN else module}:{attribute}"


def _homes(found: Any) -> list[tuple[str, str]]:
    """Return where *found* can be found: its own module and name first, the main module last."""
    own = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    homes = []
    if isinstance(own[0], str) and isinstance(own[1], str) and _resolve(sys.modules.get(own[0]), own[1]) is found:
        homes.append((own[0], own[1]))
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and module.__name__ == name:
            homes += [(name, attribute) for attribute, value in list(vars(module).items()) if value is found]
    return sorted(homes, key=lambda home: home[0] == _MAIN)  # stable; the main module last: other names can be imported


def _resolve(module: Any, attribute: str) -> Any:
    for name in attribute.split("."):
        module = getattr(module, name, None)
    return module


def _name_of_main(what: str, attribute: str) -> str:
    """Return the name under which the main module of this program can be imported. Raises SettingsError."""
    main = sys.modules[_MAIN]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    hint = f'put it into a module of its own and write it as "module:{attribute}"'
    if not isinstance(file, str):
        raise SettingsError(
            f"the {what} `{attribute}` is in `{_MAIN}`, which is not a file that a worker could import", hint=hint
        )
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
