"""What a setting is: one declaration, from which every place that reads or shows the setting is built.

Owns the parts of a declaration and how its values are read. It does not know which settings exist: config/settings.py
declares the fields of a dataclass with `setting()` and collects them with `declared()`. The type of a field says what
it can hold:

    bool  int  float  str  str | None  Literal["a", "b"]  tuple[str, ...]

1. Text is read in the same way from the command line, a variable and a file. TOML's own types are taken as they are.
2. A bad value is a SettingsError that says where it was set, what was found and what is allowed.
3. A unit belongs to the name of the field (`head_timeout_s`), not to the flag (`--head-timeout`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from limpet.errors import SettingsError

UNITS = {"_s": "seconds", "_bytes": "bytes", "_mib": "MiB"}

SWITCH = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


@dataclass(frozen=True, slots=True)
class ValueType:
    """What a setting can hold."""

    metavar: str
    """Placeholder for the value in help texts; empty for a switch."""
    allowed: str
    read: Callable[[Any], object]
    """Turns text, or a value of TOML's own types, into the field's value. Raises ValueError."""
    is_narrow: bool = False
    """Whether *allowed* says more than *metavar* does."""
    is_list: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting, as the command line, the environment, the file and the documentation see it."""

    name: str
    type: ValueType
    default: str
    meaning: str
    check: Callable[[str], object] | None
    platform_variable: str | None
    in_file: bool

    @property
    def key(self) -> str:
        """Return the key in a TOML file: the name without its unit, and without the final `_` of `for_`."""
        unit = _unit(self.name) or ""
        return self.name.removesuffix(unit).rstrip("_").replace("_", "-")

    @property
    def flag(self) -> str:
        """Return how the command line spells it. Only the application is an argument instead of a flag."""
        return "APP" if self.name == "app" else f"--{self.key}"

    @property
    def variable(self) -> str:
        return f"LIMPET_{self.key.replace('-', '_').upper()}"

    def read(self, given: object, where: str) -> object:
        """Return the field's value for *given*, which was set at *where*. Raises SettingsError."""
        try:
            value = self.type.read(given)
        except ValueError:
            found = given if isinstance(given, str) else json.dumps(given, default=str)
            raise SettingsError(f"{where} must be {self.type.allowed}, not `{found}`") from None
        if self.check:
            for text in value if isinstance(value, tuple) else (value,):
                try:
                    self.check(text)
                except SettingsError as error:
                    raise SettingsError(f"{where}: {error.message}", hint=error.hint) from None
        return value


def setting(
    meaning: str,
    default: Any = dataclasses.MISSING,
    *,
    shown: str | None = None,
    metavar: str = "TEXT",
    low: float = 0,
    high: float = 0,
    check: Callable[[str], object] | None = None,
    platform_variable: str | None = None,
    in_file: bool = True,
) -> Any:
    """Declare a field.

    A function as *default* is called when a default is needed; *shown* is what users read instead. *low* and *high*
    bound a number. *check* is called with each text and raises SettingsError. *platform_variable* is a variable that
    hosting platforms set for any server they start. It only replaces the default.
    """
    metadata = {name: value for name, value in locals().items() if name != "default"}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def declared(settings: type) -> tuple[Setting, ...]:
    """Return the settings that the fields of the dataclass *settings* declare, in their order."""
    annotations = get_type_hints(settings)
    return tuple(
        Setting(
            name=field.name,
            type=_type(field, annotations[field.name]),
            default=_default(field),
            **{name: field.metadata[name] for name in ("meaning", "check", "platform_variable", "in_file")},
        )
        for field in dataclasses.fields(settings)
    )


def _unit(name: str) -> str | None:
    return next((unit for unit in UNITS if name.endswith(unit)), None)


def _default(field: dataclasses.Field[Any]) -> str:
    """Return the default as users read it."""
    if field.metadata["shown"]:
        return str(field.metadata["shown"])
    if field.default is dataclasses.MISSING:
        return "must be given"
    if field.default in (None, "", ()):
        return "none"
    if isinstance(field.default, bool):
        return "`true`" if field.default else "`false`"
    return f"`{','.join(field.default) if isinstance(field.default, tuple) else field.default}`"


def _type(field: dataclasses.Field[Any], annotation: Any) -> ValueType:
    """Return the kind of a field. Text and lists may be empty only if the default is empty."""
    metavar = field.metadata["metavar"]
    if annotation is bool:
        return ValueType("", "`true` or `false`", _read_switch)
    if annotation in (int, float):
        return _number(field, annotation)
    if get_origin(annotation) is Literal:
        return _choice(get_args(annotation))
    if get_origin(annotation) is tuple:
        return _list(metavar, may_be_empty=field.default == ())
    return _text(metavar, may_be_empty=field.default == "")


def _read_switch(given: object) -> bool:
    if isinstance(given, str) and given.lower() in SWITCH:
        return SWITCH[given.lower()]
    if isinstance(given, bool):
        return given
    raise ValueError


def _number(field: dataclasses.Field[Any], type_: type[int] | type[float]) -> ValueType:
    low, high = field.metadata["low"], field.metadata["high"]
    types, noun = ((int,), "a whole number") if type_ is int else ((int, float), "a number")
    unit = UNITS.get(_unit(field.name) or "")

    def read(given: Any) -> object:
        number = type_(given) if isinstance(given, str) else given
        if isinstance(number, types) and not isinstance(number, bool) and low <= number <= high:
            return type_(number)
        raise ValueError

    allowed = f"{noun} of {unit} from {low} to {high}" if unit else f"{noun} from {low} to {high}"
    return ValueType(unit.upper() if unit else "N", allowed, read, is_narrow=True)


def _choice(choices: tuple[str, ...]) -> ValueType:
    def read(given: object) -> object:
        if given in choices:
            return given
        raise ValueError

    allowed = " or ".join(", ".join(f"`{choice}`" for choice in choices).rsplit(", ", 1))
    return ValueType(f"[{'|'.join(choices)}]", allowed, read, is_narrow=True)


def _list(metavar: str, may_be_empty: bool) -> ValueType:
    def read(given: object) -> object:
        items = given.split(",") if isinstance(given, str) else given
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            texts = tuple(item.strip() for item in items if item.strip())
            if texts or may_be_empty:
                return texts
        raise ValueError

    return ValueType(
        metavar, "a list of text" if may_be_empty else "a list of text that is not empty", read, is_list=True
    )


def _text(metavar: str, may_be_empty: bool) -> ValueType:
    def read(given: object) -> object:
        if isinstance(given, str) and (given or may_be_empty):
            return given
        raise ValueError

    return ValueType(metavar, "text" if may_be_empty else "text that is not empty", read)
