"""A key-value store that speaks a little of Redis's protocol: each client address has a database, in one worker.

limpet run examples.keyvalue:Connection --server stream --workers 4 --by ip
redis-cli -p 8000 set colour blue
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

_databases: defaultdict[str, dict[bytes, bytes]] = defaultdict(dict)


class Connection(asyncio.Protocol):
    """One client: `limpet run` makes one of these for each connection."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._database = _databases[str(transport.get_extra_info("peername")[0])]
        self._unread = b""

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while (found := _command(self._unread)) is not None:
            words, self._unread = found
            if words:
                self._transport.write(self._answer(words[0].upper(), words[1:]))

    def _answer(self, command: bytes, words: list[bytes]) -> bytes:
        match command, words:
            case b"PING", _:
                return b"+PONG\r\n"
            case b"SET", [key, value]:
                self._database[key] = value
                return b"+OK\r\n"
            case b"GET", [key]:
                return _bulk(self._database.get(key))
            case b"INCR", [key]:
                number = int(self._database.get(key, b"0")) + 1
                self._database[key] = b"%d" % number
                return b":%d\r\n" % number
            case b"DEL", keys:
                return b":%d\r\n" % sum(self._database.pop(key, None) is not None for key in keys)
        return b"-ERR unknown command or wrong number of arguments\r\n"


def _bulk(value: bytes | None) -> bytes:
    return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


def _command(data: bytes) -> tuple[list[bytes], bytes] | None:
    """Return the words of the first command in *data* and what follows it, None while it is not complete."""
    line, end, rest = data.partition(b"\r\n")
    if not end:
        return None
    if not line.startswith(b"*"):
        return line.split(), rest
    words = []
    for _ in range(int(line[1:])):
        length, end, rest = rest.partition(b"\r\n")
        size = int(length[1:] or b"0") if end else 0
        if not end or len(rest) < size + 2:
            return None
        words.append(rest[:size])
        rest = rest[size + 2 :]
    return words, rest
