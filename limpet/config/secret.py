"""The secret of a server: where it is kept between two starts, and who may read it.

Owns the file of the secret; knows nothing of what is derived from it, which is the business of `hashing`.
Called once per start.

1. Clients keep their homes over a restart only if the secret does. Without a place to keep it the server
   starts all the same, with a secret for this run and a warning.
2. Whoever knows the secret can choose a worker and overload it: nobody but the owner may read the file.
3. Servers that start at the same moment agree. A new secret is written under another name and linked to its
   own when it is complete: the first link wins, the others read what it holds. Nobody ever reads half a
   secret.
4. The secret is what a file holds, byte for byte, without white space around it: a copy of a kept file,
   given by `--secret-file`, is the same secret. Several lines are several secrets: see routing/affinity_cookie.py.
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
"""The variable of the environment that may hold the secret. No setting, since a flag would show in `ps`."""
_SHORTEST: Final = 16  # bytes: 64 bits even as hexadecimal text, what the key of the address hash has
_RANDOM: Final = 32  # bytes of a new secret: what the longest key derived from it has
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # fits into the 255 bytes of a file name


@dataclass(frozen=True, slots=True)
class Secret:
    """The secret, with what the log says about it."""

    value: bytes = field(repr=False)
    origin: str
    warning: tuple[str, str] | None = None  # message and hint


def load(name: str, secret_file: str | None, state_dir: str | None) -> Secret:
    """Return the secret of the server *name*: that of *secret_file*, of VARIABLE, or else the one kept in *state_dir*.

    Takes VARIABLE out of the environment. Makes the kept one if there is none. Raises SettingsError if *name* cannot be
    a file name, for what is too short for a secret, and for a file that others may read or write.
    """
    of_variable = os.environ.pop(VARIABLE, "").strip()  # children get it by another way, and no log of an environment
    if secret_file is not None:
        return _given(Path(secret_file).absolute())
    if of_variable:
        return Secret(_good(of_variable.encode(), f"`{VARIABLE}`"), f"from {VARIABLE}")
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"name `{name}`: up to 100 letters, digits, `_`, `.`, `-` are allowed, no `.` or `-` in front",
            hint=f"`--name {name_from_app(name)}`",
        )
    try:
        path = _directory(state_dir) / f"{name}.secret"
        return Secret(_kept(path), f"kept in {path}")
    except OSError as error:
        return _ephemeral(error)


def token(path: str) -> str:
    """Return the token in the file *path*, one line of text. Raises SettingsError as `load` does."""
    found = _given(Path(path).absolute()).value
    if not found.isascii() or len(found.split()) != 1:
        raise SettingsError(f"the token in `{path}` is not one word of ASCII", hint=_recipe(Path(path)))
    return found.decode()


def name_from_app(app: str) -> str:
    """Return the name of a server that was given none: `pkg.chat-app` for `pkg.chat:app`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", app).strip("-.")[:100] or "app"


def _given(path: Path) -> Secret:
    """Return the secret that the user keeps in *path*."""
    try:
        return Secret(_read(path), f"read from {path}")
    except FileNotFoundError:
        raise SettingsError(f"there is no secret file `{path}`", hint=_recipe(path)) from None
    except OSError as error:
        hint = f"`ls -ld {shlex.quote(str(path))}` shows what it is and who may read it"
        raise SettingsError(f"cannot read the secret file {_reason(error)}", hint=hint) from None


def _directory(state_dir: str | None) -> Path:
    """Return where secrets are kept; by the XDG rules a relative $XDG_STATE_HOME does not count."""
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
    """Return the secret in *path*. Raises OSError if it cannot be read, SettingsError if it is no good."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # for a FIFO
        found = os.fstat(file.fileno())
        mode = stat.S_IMODE(found.st_mode)
        _check_owner(path, found)
        if mode & 0o066:
            raise SettingsError(
                f"the secret file `{path}` has mode `{mode:04o}`: nobody but its owner may read or write it",
                hint=f"`chmod 600 {shlex.quote(str(path))}`",
            )
        return _good(file.read().strip(), f"the secret file `{path}`", hint=_recipe(path))


def _check_owner(path: Path, found: os.stat_result) -> None:
    """Raise SettingsError if somebody else has put *path* there, whose file is *found*.

    He would know the secret; and by a symlink he could make root read a file of its own and tell workers what is in it.
    """
    for owner in (found.st_uid, path.lstat().st_uid):
        if owner not in (0, os.geteuid()):
            raise SettingsError(
                f"the secret file `{path}` belongs to user {owner}: it may be this user's, {os.geteuid()}, or root's",
                hint=f"`chown -h {os.geteuid()} {shlex.quote(str(path))}`, if you trust what it holds",
            )
    if not stat.S_ISREG(found.st_mode):
        raise SettingsError(f"the secret file `{path}` is not a regular file", hint=_recipe(path))


def _good(value: bytes, where: str, hint: str | None = None) -> bytes:
    """Return *value*, the secret in *where*. Raises SettingsError if a line of it is too short."""
    for number, line in enumerate(value.splitlines() or [b""], 1):
        if len(line.strip()) < _SHORTEST:
            which = f"line {number} of {where}" if b"\n" in value else where
            message = f"{which} holds {len(line.strip())} bytes: at least {_SHORTEST} are needed"
            raise SettingsError(message, hint=hint or f"`export {VARIABLE}=$(head -c {_RANDOM} /dev/urandom | base64)`")
    return value


def _make(path: Path) -> None:
    """Make *path* with a new secret, or leave it alone if another server was faster."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        try:
            file.write(_new() + b"\n")
            file.flush()
            os.fsync(file.fileno())  # after a power failure a name without its bytes would be worse than none
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)  # not a rename: that would replace what others already use
        finally:
            os.unlink(draft)


def _new() -> bytes:
    """Return a new secret, as text that is easy to copy."""
    return os.urandom(_RANDOM).hex().encode()


def _ephemeral(error: OSError) -> Secret:
    """Return a secret for this run alone, since *error* forbids to keep one."""
    message = f"cannot keep the secret ({_reason(error)}): clients get other homes at the next start"
    hint = "`--state-dir /var/lib/limpet` keeps it there; `--secret-file FILE` reads one of your own"
    return Secret(_new(), "made for this run", (message, hint))


def _reason(error: OSError) -> str:
    """Return what the system says, and about which path."""
    path = error.filename2 or error.filename
    reason = (error.strerror or str(error)).lower()
    return reason if path is None else f"`{path}`: {reason}"


def _recipe(path: Path) -> str:
    """Return the command that makes a good secret file."""
    return f"`(umask 077; head -c {_RANDOM} /dev/urandom | base64 > {shlex.quote(str(path))})` makes one"
