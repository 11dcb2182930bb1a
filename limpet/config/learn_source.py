"""Where in a response the ids are that `--learn` remembers.

Owns what the text of a `--learn` means. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from limpet.errors import SettingsError
from limpet.protocol.request import set_cookie_value

_HINT: Final = "`--learn header:x-session-id`, `--learn cookie:NAME`, `--learn 'location:/files/([^/?]+)'`"


@dataclass(frozen=True, slots=True)
class Source:
    """Where in a response an id to learn stands."""

    header: bytes  # in lower case
    pattern: re.Pattern[str]  # its first group
    cookie: bytes = b""  # its name

    @classmethod
    def parse(cls, text: str) -> Source:
        """Return the source written as *text*. Raises SettingsError."""
        if text == "app":
            return cls(b"", re.compile(""))  # in no header
        kind, _, rest = text.partition(":")
        if kind == "location" and rest:
            try:
                pattern = re.compile(rest)
            except re.error as error:
                raise SettingsError(f"`{text}` is not a regular expression: {error}", hint=_HINT) from None
            if pattern.groups:
                return cls(b"location", pattern)
            raise SettingsError(f"`{text}` has no group, and its first group is the id", hint=_HINT)
        if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", rest) or kind not in ("header", "cookie"):
            raise SettingsError(
                f"`{text}` is not `header:NAME`, `cookie:NAME`, `location:REGEX` or `app`, where ids come from",
                hint=_HINT,
            )
        if kind == "header":
            return cls(rest.lower().encode(), re.compile(r"\A\s*(.*?)\s*\Z"))
        return cls(b"set-cookie", re.compile(""), rest.encode())

    def find(self, value: bytes) -> bytes | None:
        """Return the id in a header's *value*, as clients will send it."""
        if self.cookie:
            return set_cookie_value(value, self.cookie) or None
        text = value.decode("latin-1")
        found = self.pattern.search(unquote(text) if self.header == b"location" else text)
        if not found or not found[1]:
            return None
        return found[1].encode("utf-8" if self.header == b"location" else "latin-1")
