"""docs/settings.md and docs/exit-codes.md, made from the declarations in config/settings.py and errors.py.

Owns the words around the tables. What a setting is called, and what an exit code means, stands where it is declared.
`python -m tools.docs.settings_page` prints the first, with the word `exit-codes` the other; `make docs` runs both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from limpet.config.settings import SETTINGS
from limpet.errors import EXIT_CODES

PREFACE = """\
# Settings

The command line is asked first, then the variable, then the file that `--config` names, then the preset that `--for`
names ([presets](presets.md)), and last the default.

A list is written with commas; a flag may also be repeated, and a TOML file may have an array. A switch is
`--access-log` or `--no-access-log` on the command line, `true` or `false` elsewhere. In the file all keys
stand at the top, in no table; an underscore in a key is as good as a dash; an unknown key is an error. Paths
are relative to the directory in which `limpet` was started. An empty variable counts as not set.
`WEB_CONCURRENCY` comes after the file: it is a default that the platform chose.

    bind = ["127.0.0.1:8000", "unix:/run/chat.sock"]
    by = "cookie:user,ip"
    workers = 4

A bind may have an application of its own on the same workers, and a key chain of its own: `127.0.0.1:8001=admin:app`,
`127.0.0.1:8001=admin:app?by=ip`, `127.0.0.1:8001?by=ip` (in a list `%2C` is a comma of the chain). uvicorn alone serves
several.

In Python a keyword is a key of the file, with underscores: `limpet.listen("chat:app", 8000, head_timeout=5)`.
"""

EXIT_CODES_PREFACE = """\
# Exit codes

What `limpet run` ends with, and every other command. A number keeps its meaning from one version to the next. stderr
says in one line what was found and what is allowed, and a hint has something to paste.

"""

_AFTER_EXIT_CODES = """
- `limpet run` ends with 0 after a stop, by a command or a signal. With 2 to 6 it has not served anybody.
- `limpet reload`, `scale` and `stop` wait for the outcome. A reload ends with 4 when a new worker does not start: the
  old ones go on serving. A command that the server refuses ends with 5.
- A service manager may start again after 1 and 3, and need not after 2 ([systemd](systemd.md)).
- A command that a signal killed has 128 and the signal's number, as shells have it.
"""


def exit_codes() -> str:
    """Return docs/exit-codes.md."""
    codes = [(str(code), meaning) for code, meaning in EXIT_CODES.items()]
    return EXIT_CODES_PREFACE + "\n".join([*_table(("Code", "Meaning"), codes), _AFTER_EXIT_CODES])


def reference() -> str:
    """Return docs/settings.md."""
    settings = [
        (
            f"`{each.flag}`",
            f"`{each.variable}`",
            f"`{each.key}`" if each.in_file else "",
            each.default,
            f"{each.meaning}; {each.type.allowed}" if each.type.is_narrow else each.meaning,
        )
        for each in SETTINGS
    ]
    return "\n".join(
        [
            PREFACE,
            *_table(("Flag", "Variable", "TOML key", "Default", "Meaning"), settings),
            "",
        ]
    )


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [titles, ("---",) * len(titles), *rows]]


if __name__ == "__main__":
    print(exit_codes() if sys.argv[1:] == ["exit-codes"] else reference(), end="")
