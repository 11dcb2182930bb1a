"""From a typed message to the JSON object that travels on a line, and back.

This file owns that form: one field holds the name of the kind, and the others are the fields of its dataclass. It does
not know any kind. ipc/orders.py and supervisor/program_link.py give it a table of names and classes.

1. It is for messages of a process that is trusted. What a child says goes through ipc/news.py, which checks each field.
2. The process on the other side may have another version of limpet, because an upgrade keeps children. So a message of
   an unknown kind is None, and an unknown field is left out. A new field needs a default value, and no field may be
   removed or renamed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

M = TypeVar("M")


class Codec(Generic[M]):
    """The messages of one direction of a line, *kinds*, each named in the field *tag*."""

    def __init__(self, tag: str, kinds: Mapping[str, type[M]]) -> None:
        self._tag = tag
        self._kinds = kinds
        self._names = {kind: name for name, kind in kinds.items()}
        self._fields = {kind: [each.name for each in dataclasses.fields(kind)] for kind in kinds.values()}  # type: ignore[arg-type]

    def pack(self, message: M) -> dict[str, Any]:
        """Return *message* as a message for `Link.send`."""
        kind = type(message)
        return {self._tag: self._names[kind], **{name: getattr(message, name) for name in self._fields[kind]}}

    def unpack(self, said: Mapping[str, Any]) -> M | None:
        """Return the message that `pack` made *said* of, or None if this version does not know its kind."""
        kind = self._kinds.get(said[self._tag])
        return None if kind is None else kind(**{name: said[name] for name in self._fields[kind] if name in said})
