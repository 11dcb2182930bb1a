"""What the text of a setting must look like: one function for each kind of text, which raises SettingsError.

Owns only the choice of the check. config/settings.py calls it for each text that was given. It asks the file that knows
what the text means. It imports that file only then, because commands such as `limpet status` read no settings.
"""

from __future__ import annotations

import re

from limpet.config.bind import Served
from limpet.errors import SettingsError


def app(text: str) -> None:
    """Raise SettingsError unless *text* has the form `module:attribute`.

    A worker finds out whether the object exists.
    """
    module, _, attribute = text.partition(":")
    names_object = all(name.isidentifier() for name in attribute.split("."))
    if names_object and re.fullmatch(r"[\w.-]+", module) and not module.endswith(".py"):
        return
    module = re.sub(r"[^\w.-]+", ".", module.removesuffix(".py")).strip(".") or "module"
    hint = f"`limpet run {module}:{attribute if names_object else 'app'}`"
    raise SettingsError(f"`{text}` is not `module:attribute`", hint=hint)


def name(text: str) -> None:
    """Raise SettingsError unless *text* can be part of a file name."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", text):
        raise SettingsError(
            f"invalid name `{text}`: expected up to 100 letters, digits, `_`, `.` and `-`, not `.` or `-` at the start"
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
        raise SettingsError(
            f"`{text}` names an application or an option, but the admin address takes only an address",
            hint="`--admin 127.0.0.1:9000`",
        )
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
        raise SettingsError(f"invalid umask `{text}`: expected one to three octal digits", hint="`--umask 007`")


def bus(text: str) -> None:
    if not re.match(r"(rediss?|unix|nats)://.", text):
        raise SettingsError(
            "the URL of the bus must begin with `redis://`, `rediss://`, `unix://` or `nats://`",
            hint="`--bus redis://127.0.0.1:6379`",
        )
