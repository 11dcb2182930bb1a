"""The secret of a server: where it is kept between two starts, and who may read it.

Owns the file of the secret. It does not know what is derived from the secret; that is the business of routing/. Called
once for each start.

1. Clients keep their slots over a restart only if the secret stays the same. Without a place to keep it, the server
   still starts, with a secret for this run and a warning.
2. Anyone who knows the secret can choose a worker and overload it, so only the owner may read the file.
3. Servers that start at the same moment get the same secret. A new secret is written under a temporary name and linked
   to its real name when it is complete. The first link wins, and the other servers read that file. No server ever reads
   half a secret.
4. The secret is the content of the file, byte for byte, without white space around it. A copy of a kept file, given by
   `--secret-file`, is the same secret. Several lines are several secrets: see routing/affinity_cookie.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from limpet.errors import SettingsError

VARIABLE: Final = "LIMPET_SECRET"
"""The environment variable that may hold the secret. It is not a setting, because a flag would show in `ps`."""
_SHORTEST: Final = 16  # bytes: 64 bits even as hexadecimal text, the length of the address hash's key
_RANDOM: Final = 32  # bytes of a new secret: the length of the longest key derived from it
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # fits into the 255 bytes of a file name


@dataclass(frozen=True, slots=True)
class Secret:
    """The secret, with what the log says about it."""

    value: bytes = field(repr=False)
    origin: str
    warning: tuple[str, str] | None = None  # message and hint


def load(name: str, secret_file: str | None, state_dir: str | None) -> Secret:
    """Return the secret of the server *name*: from *secret_file*, from VARIABLE, or else the one kept in *state_dir*.

    Removes VARIABLE from the environment. Makes the kept secret if there is none. Raises SettingsError if *name* cannot
    be a file name, if the secret is too short, or if others may read or write its file.
    """
    of_variable = os.environ.pop(VARIABLE, "").strip()  # children get it by another way, and no log of an environment
    if secret_file is not None:
        return _given(Path(secret_file).absolute())
    if of_variable:
        return Secret(_good(of_variable.encode(), f"`{VARIABLE}`"), f"from {VARIABLE}")
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"invalid name `{name}`: expected up to 100 letters, digits, `_`, `.` and `-`, not `.` or `-` at the start",
            hint=f"`--name {name_from_app(name)}`",
        )
    try:
        path = _directory(state_dir) / f"{name}.secret"
        return Secret(_kept(path), f"kept in {path}")
    except OSError as error:
        return _ephemeral(error)


def token(path: str) -> str:
    """Return the token in the file *path*, which must hold one word of ASCII. Raises SettingsError as `load` does."""
    found = _given(Path(path).absolute()).value
    if not found.isascii() or len(found.split()) != 1:
        raise SettingsError(f"the token in `{path}` is not one word of ASCII", hint=_recipe(Path(path)))
    return found.decode()


def name_from_app(app: str) -> str:
    """Return the name of a server that was given none: `pkg.chat-app` for `pkg.chat:app`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", app).strip("-.")[:100] or "app"


def _given(path: Path) -> Secret:
    """Return the secret in *path*, a file of the user."""
    try:
        return Secret(_read(path), f"read from {path}")
    except FileNotFoundError:
        raise SettingsError(f"the secret file `{path}` does not exist", hint=_recipe(path)) from None
    except OSError as error:
        hint = f"`ls -ld {shlex.quote(str(path))}` shows what it is and who may read it"
        raise SettingsError(f"cannot read the secret file {_reason(error)}", hint=hint) from None


def _directory(state_dir: str | None) -> Path:
    """Return the directory for secrets. A relative $XDG_STATE_HOME is ignored, as the XDG rules demand."""
    if state_dir is not None:
        return Path(state_dir).absolute()
    for base in (os.environ.get("XDG_STATE_HOME", ""), os.path.expanduser("~/.local/state")):
        if os.path.isabs(base):
            return Path(base, "limpet")
    raise FileNotFoundError(errno.ENOENT, "no home directory")


def _kept(path: Path) -> bytes:
    """Return the secret in *path*, which is made if it does not exist."""
    try:
        return _read(path)
    except FileNotFoundError:
        _make(path)
        return _read(path)


def _read(path: Path) -> bytes:
    """Return the secret in *path*.

    Raises OSError if it cannot be read, SettingsError if it is not safe or too short.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # for a FIFO
        found = os.fstat(file.fileno())
        mode = stat.S_IMODE(found.st_mode)
        _check_owner(path, found)
        if mode & 0o066:
            raise SettingsError(
                f"the secret file `{path}` has mode `{mode:04o}`: only its owner may read or write it",
                hint=f"`chmod 600 {shlex.quote(str(path))}`",
            )
        return _good(file.read().strip(), f"the secret file `{path}`", hint=_recipe(path))


def _check_owner(path: Path, found: os.stat_result) -> None:
    """Raise SettingsError if another user has put the file at *path* there. *found* is the file's status.

    That user would know the secret. With a symbolic link, that user could also make root read another file and pass its
    content to workers.
    """
    for owner in (found.st_uid, path.lstat().st_uid):
        if owner not in (0, os.geteuid()):
            raise SettingsError(
                f"the secret file `{path}` belongs to user {owner}: expected this user, {os.geteuid()}, or root",
                hint=f"`chown -h {os.geteuid()} {shlex.quote(str(path))}`, if you trust its content",
            )
    if not stat.S_ISREG(found.st_mode):
        raise SettingsError(f"the secret file `{path}` is not a regular file", hint=_recipe(path))


def _good(value: bytes, where: str, hint: str | None = None) -> bytes:
    """Return *value*, the secret from *where*. Raises SettingsError if one of its lines is too short."""
    for number, line in enumerate(value.splitlines() or [b""], 1):
        if len(line.strip()) < _SHORTEST:
            which = f"line {number} of {where}" if b"\n" in value else where
            message = f"{which} holds {len(line.strip())} bytes: at least {_SHORTEST} are needed"
            raise SettingsError(message, hint=hint or f"`export {VARIABLE}=$(head -c {_RANDOM} /dev/urandom | base64)`")
    return value


def _make(path: Path) -> None:
    """Make *path* with a new secret. If another server was faster, keep its file."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        try:
            file.write(_new() + b"\n")
            file.flush()
            os.fsync(file.fileno())  # after a power failure, an empty file would be worse than none
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)  # not a rename: it would replace a secret that others already use
        finally:
            os.unlink(draft)


def _new() -> bytes:
    """Return a new secret, as text that is easy to copy."""
    return os.urandom(_RANDOM).hex().encode()


def _ephemeral(error: OSError) -> Secret:
    """Return a secret for this run only, because *error* prevents keeping one."""
    message = f"cannot keep the secret ({_reason(error)}): clients get other slots after the next start"
    hint = "`--state-dir /var/lib/limpet` keeps it there; `--secret-file FILE` reads one of your own"
    return Secret(_new(), "made for this run", (message, hint))


def _reason(error: OSError) -> str:
    """Return what the system says about *error*, and about which path."""
    path = error.filename2 or error.filename
    reason = (error.strerror or str(error)).lower()
    return reason if path is None else f"`{path}`: {reason}"


def _recipe(path: Path) -> str:
    """Return a command that makes a good secret file."""
    return f"`(umask 077; head -c {_RANDOM} /dev/urandom | base64 > {shlex.quote(str(path))})` makes one"
