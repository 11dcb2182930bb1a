"""Where `--learn` finds ids in a response.

Owns the meaning of the text of a `--learn`. Pure: it sees one header's value at a time. `Settings.learn_sources` parses
the text; sessions/sessions.py finds the ids of each response with the result.
"""

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
    """The place in a response where an id to learn stands."""

    header: bytes  # in lower case
    pattern: re.Pattern[str]  # its first group is the id
    cookie: bytes = b""  # its name

    @classmethod
    def parse(cls, text: str) -> Source:
        """Return the source for *text*. Raises SettingsError."""
        if text == "app":
            return cls(b"", re.compile(""))  # the application calls `limpet.learn`; no header is read
        kind, _, rest = text.partition(":")
        if kind == "location" and rest:
            try:
                pattern = re.compile(rest)
            except re.error as error:
                raise SettingsError(f"`{text}` is not a regular expression: {error}", hint=_HINT) from None
            if pattern.groups:
                return cls(b"location", pattern)
            raise SettingsError(f"`{text}` has no group, but the id is what its first group matches", hint=_HINT)
        if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", rest) or kind not in ("header", "cookie"):
            raise SettingsError(
                f"invalid source `{text}`: expected `header:NAME`, `cookie:NAME`, `location:REGEX` or `app`",
                hint=_HINT,
            )
        if kind == "header":
            return cls(rest.lower().encode(), re.compile(r"\A\s*(.*?)\s*\Z"))
        return cls(b"set-cookie", re.compile(""), rest.encode())

    def find(self, value: bytes) -> bytes | None:
        """Return the id in *value*, a header's value, in the form in which clients will send it.

        None if there is no id.
        """
        if self.cookie:
            return set_cookie_value(value, self.cookie) or None
        text = value.decode("latin-1")
        found = self.pattern.search(unquote(text) if self.header == b"location" else text)
        if not found or not found[1]:
            return None
        return found[1].encode("utf-8" if self.header == b"location" else "latin-1")
