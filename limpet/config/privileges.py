"""The user that children run as: `--user` and `--group`, for a server that root starts.

Owns who that user is, and how a process becomes it permanently. The supervisor keeps its own user: it reads no client
byte and runs no user code, but must open files and sockets for the next worker. Every process that reads client bytes
or runs user code starts as that user: workers, dispatchers, terminators, the admin process, and the trial's import of
the application.
"""

from __future__ import annotations

import grp
import os
import pwd
from functools import lru_cache
from typing import Any, NamedTuple

from limpet.config.settings import Settings
from limpet.errors import SettingsError


class Identity(NamedTuple):
    """A user, with the groups of its processes."""

    uid: int
    gid: int
    groups: tuple[int, ...]  # supplementary groups
    environment: dict[str, str]  # what a login would set

    def as_arguments(self) -> dict[str, Any]:
        """Return the arguments with which `subprocess.Popen` starts a process of this user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": self.groups}

    def become(self) -> None:
        """Turn this process permanently into one of this user."""
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        os.environ.update(self.environment)


def wanted(settings: Settings) -> Identity | None:
    """Return the user for the children of *settings*, or None for the user that starts the server.

    Raises SettingsError.
    """
    if settings.user is None and settings.group is None:
        return None
    found = _found(settings.user, settings.group)
    if os.geteuid() != 0 and (found.uid, found.gid) != (os.geteuid(), os.getegid()):
        raise SettingsError(
            f"only root can use `--user` and `--group`, and this is user {os.geteuid()}, group {os.getegid()}",
            hint="leave them out, or start limpet as root; `User=` in a systemd unit has the same effect",
        )
    return found if os.geteuid() == 0 else None


@lru_cache(maxsize=4)  # each start of a child asks, and a user directory may be slow
def _found(user: str | None, group: str | None) -> Identity:
    entry = _entry(user or str(os.geteuid()))
    uid = entry.pw_uid if entry else int(user or os.geteuid())
    if group is not None:
        gid = _gid(group)
    elif entry is not None:
        gid = entry.pw_gid
    else:
        raise SettingsError(
            f"user {uid} has no entry in the user database, so its group is unknown",
            hint=f"`--user {uid} --group {uid}`",
        )
    groups = [each for each in os.getgrouplist(entry.pw_name, gid) if each != gid] if entry else []
    environment = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name} if entry else {"HOME": "/"}
    return Identity(uid, gid, tuple(groups), environment)


def _entry(user: str) -> pwd.struct_passwd | None:
    """Return the entry of *user*, or None for a number without an entry. Raises SettingsError."""
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        if user.isdecimal() and int(user) < 1 << 32:
            return None
        raise SettingsError(f"there is no user `{user}`", hint=f"`getent passwd {user}`") from None


def _gid(group: str) -> int:
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise SettingsError(f"there is no group `{group}`", hint=f"`getent group {group}`") from None
