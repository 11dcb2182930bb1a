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

This page is a reference: it lists every setting with its flag, its variable, its key in a TOML file, and its default.
`limpet check APP` shows problems with your settings without starting a server.

## Where settings come from

Limpet takes each setting from the first of these places that has it:

1. the command line,
2. the environment variable,
3. the TOML file that `--config` names,
4. the preset that `--for` names ([presets](presets.md)),
5. the default.

`WEB_CONCURRENCY` applies only if nothing else sets `workers`.

    bind = ["127.0.0.1:8000", "unix:/run/chat.sock"]
    by = "cookie:user,ip"
    workers = 4

- **Lists** are written with commas. You can also repeat a flag, and use an array in a TOML file.
- **Switches** are `--access-log` or `--no-access-log` on the command line, and `true` or `false` elsewhere.
- **The TOML file** has all keys at the top, in no table. `-` and `_` in a key mean the same. An unknown key is an
  error.
- **Paths** are relative to the directory in which `limpet` was started.
- **An empty variable** counts as not set.
- **In Python** a keyword is a key of the file, with underscores: `limpet.listen("chat:app", 8000, head_timeout=5)`.
"""

GROUPS = {  # first setting: title of its table, and what has to be said before it
    "app": ("The application", ""),
    "bind": (
        "Addresses and workers",
        "A bind may have its own application on the same workers, and its own key chain:\n"
        "`127.0.0.1:8001=admin:app`, `127.0.0.1:8001=admin:app?by=ip`, `127.0.0.1:8001?by=ip`. In a list, write a\n"
        "comma of the chain as `%2C`. Only uvicorn can serve several applications.\n",
    ),
    "by": ("Keys and sessions", ""),
    "server": ("The server in a worker", ""),
    "tls-cert": ("TLS, and the path under a proxy", ""),
    "backend": ("How connections get to workers", ""),
    "user": ("Identity and secrets", ""),
    "control": ("Control and admin", ""),
    "backlog": ("Bounds", ""),
    "max-surge": ("The life of workers", ""),
    "access-log": ("Logs and debugging", ""),
}

EXIT_CODES_PREFACE = """\
# Exit codes

This page is a reference: it lists the exit codes of `limpet run` and of every other command. A number keeps its meaning
from one version to the next. In addition, stderr says in one line what was found and what is allowed, and a hint has
something to paste.

"""

_AFTER_EXIT_CODES = """
- `limpet run` ends with 0 after a stop by a command or a signal. If it ends with 2 to 6, it has not served any client.
- `limpet reload`, `scale` and `stop` wait for the outcome. A reload ends with 4 if a new worker does not start; the old
  workers go on serving. A command that the server refuses ends with 5.
- A service manager may start limpet again after 1 and 3. It need not do so after 2 ([systemd](systemd.md)).
- If a signal kills a command, its exit code is 128 plus the number of the signal, as in shells.
"""


def exit_codes() -> str:
    """Return docs/exit-codes.md."""
    codes = [(str(code), meaning) for code, meaning in EXIT_CODES.items()]
    return EXIT_CODES_PREFACE + "\n".join([*_table(("Code", "Meaning"), codes), _AFTER_EXIT_CODES])


def reference() -> str:
    """Return docs/settings.md: a table for each group, and in it an anchor for each setting."""
    lines = [PREFACE]
    rows: list[tuple[str, ...]] = []
    for each in [*SETTINGS, None]:
        if rows and (each is None or each.key in GROUPS):
            lines += [*_table(("Flag", "Variable", "TOML key", "Default", "Meaning"), rows), ""]
            rows = []
        if each is None:
            break
        if each.key in GROUPS:
            title, before = GROUPS[each.key]
            lines += [f"## {title}", "", *([before] if before else [])]
        meaning = f"{each.meaning}; {each.type.allowed}" if each.type.is_narrow else each.meaning
        flag = f'<a id="{each.key}"></a>`{each.flag}`'
        rows.append((flag, f"`{each.variable}`", f"`{each.key}`" if each.in_file else "", each.default, meaning))
    return "\n".join(lines)


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [titles, ("---",) * len(titles), *rows]]


if __name__ == "__main__":
    print(exit_codes() if sys.argv[1:] == ["exit-codes"] else reference(), end="")
