"""What clients can ask at the control socket: for each command, its fields and their types.

Owns the one table that every request is checked against before anything acts on it. Pure. supervisor/commands.py gives
the commands their meaning.

1. `checked` returns a request whose fields have the types of the table, or raises ControlError in the words of the
   table. It drops fields that the table does not name, because a newer client may send them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from limpet.errors import ControlError
from limpet.routing.elements import AFFINITY

_LONGEST_KEY: Final = 65_536  # bytes: no request head is longer


class Field(NamedTuple):
    """One field of a request."""

    what: str  # in words, for the error message
    fits: Callable[[object], bool]
    is_needed: bool = True


def _is_whole(found: object) -> bool:
    return isinstance(found, int) and not isinstance(found, bool)


def _is_switch(found: object) -> bool:
    return isinstance(found, bool)


def _is_hex(found: object, sizes: tuple[int, ...] = ()) -> bool:
    if not isinstance(found, str):
        return False
    try:
        size = len(bytes.fromhex(found))
    except ValueError:
        return False
    return size in sizes if sizes else size <= _LONGEST_KEY


def _is_key(found: object) -> bool:
    """Return whether *found* is a key as text, a key that cli/explain.py has found, or an affinity cookie."""
    if isinstance(found, str):
        return len(found) <= _LONGEST_KEY
    if not isinstance(found, dict):
        return False
    if "cookie" in found:
        return _is_hex(found["cookie"])
    is_address = found.get("is_address")
    sizes = (4, 8, 16) if is_address else (8,) if found.get("element") == AFFINITY else ()  # of addresses; of a digest
    return isinstance(found.get("element"), str) and _is_switch(is_address) and _is_hex(found.get("value"), sizes)


def _are_keys(found: object) -> bool:
    return isinstance(found, list) and all(map(_is_key, found))


_SLOT: Final = Field("the number of a slot", _is_whole)
_COMMANDS: Final[Mapping[str, Mapping[str, Field]]] = {
    "status": {},
    "figures": {},
    "routing": {},
    "events": {"after": Field("a number", _is_whole, is_needed=False)},
    "where": {"keys": Field("a list of texts, or of keys in the form of `limpet explain`", _are_keys)},
    "stop": {"wait_for_connections": Field("true or false", _is_switch, is_needed=False)},
    "scale": {"slots": Field("a number of workers", _is_whole)},
    "reload": {"slot": _SLOT._replace(is_needed=False)},
    "drain": {"slot": _SLOT},
    "undrain": {"slot": _SLOT},
    "stack": {"slot": _SLOT, "read": Field("true or false", _is_switch, is_needed=False)},
    "change": {"number": Field("the number of a change", _is_whole)},
}


def checked(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return `command` and those fields of *request* that its command has. Raises ControlError."""
    command = request.get("command")
    fields = _COMMANDS.get(command) if isinstance(command, str) else None
    if fields is None:
        raise ControlError(f"this server does not know the command {_shown(command)}")
    found: dict[str, Any] = {"command": command}
    for name, field in fields.items():
        value = request.get(name)
        if value is None and not field.is_needed:
            continue
        if not field.fits(value):
            raise ControlError(f"`{command}`: `{name}` must be {field.what}, not {_shown(value)}")
        found[name] = value
    return found


def _shown(found: object) -> str:
    text = found if isinstance(found, str) else repr(found)
    return f"`{ascii(text)[1:-1][:60]}`"
