"""What the text of a setting has to look like: one function for each kind, which raises SettingsError.

Called by config/settings.py for each text that was given. Asks the file that knows what such a text means, and only
when there is one: `limpet status` has no settings.
"""

from __future__ import annotations

import re

from limpet.config.bind import Served
from limpet.errors import SettingsError


def app(text: str) -> None:
    """Raise SettingsError unless *text* reads `module:attribute`; whether that exists, a worker finds out."""
    module, _, attribute = text.partition(":")
    names_object = all(name.isidentifier() for name in attribute.split("."))
    if names_object and re.fullmatch(r"[\w.-]+", module) and not module.endswith(".py"):
        return
    module = re.sub(r"[^\w.-]+", ".", module.removesuffix(".py")).strip(".") or "module"
    hint = f"`limpet run {module}:{attribute if names_object else 'app'}`"
    raise SettingsError(f"`{text}` is not `module:attribute`", hint=hint)


def name(text: str) -> None:
    """Raise SettingsError unless *text* can be part of the name of a file."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", text):
        raise SettingsError(
            f"`{text}` is not a name: up to 100 letters, digits, `_`, `.` and `-` are allowed, no `.` or `-` first"
        )


def bind(text: str) -> None:
    from limpet.config.bind import Bind

    Bind.parse(text)
    own = Served.parse(text)
    for name, check in (("app", app), ("by", by), ("server", server), ("proxy_protocol", _proxy_protocol)):
        if value := getattr(own, name):
            try:
                check(value)
            except SettingsError as error:
                raise SettingsError(f"`{name}`: {error.message}", hint=error.hint) from None


def _proxy_protocol(text: str) -> None:
    if text not in ("off", "required"):
        raise SettingsError(f"must be `off` or `required`, not `{text}`")


def admin(text: str) -> None:
    if any(Served.parse(text)[1:]):
        raise SettingsError(f"`{text}` serves no application", hint="`--admin 127.0.0.1:9000`")
    bind(text)


def by(text: str) -> None:
    from limpet.routing.key_chain import KeyChain, Trust

    KeyChain.parse(text, Trust.parse(""))


def trust(text: str) -> None:
    from limpet.routing.key_chain import Trust

    Trust.parse(text)


def affinity_cookie(text: str) -> None:
    from limpet.routing.affinity_cookie import Attributes

    Attributes.parse(text)


def learn(text: str) -> None:
    from limpet.config.learn_source import Source

    Source.parse(text)


def preset(text: str) -> None:
    from limpet.config.presets import check_preset

    check_preset(text)


def server(text: str) -> None:
    from limpet.config.server_kinds import kind

    kind(text)


def umask(text: str) -> None:
    if not re.fullmatch("0?[0-7]{1,3}", text):
        raise SettingsError(f"`{text}` is no mask of rights: up to three octal digits are", hint="`--umask 007`")
