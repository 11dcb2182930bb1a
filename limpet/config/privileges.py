"""As whom children run: `--user` and `--group`, for a server that root starts.

Owns who that is, and how a process becomes it for good. The supervisor stays what it is: it reads no byte of a client
and runs no code of users, but has to open files and sockets for the next worker. Whatever does read or run these, a
worker, a dispatcher, the admin process or the trial of an application, is of that user from its first line on.
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
    """A user with the groups of its processes."""

    uid: int
    gid: int
    groups: tuple[int, ...]  # further ones
    environment: dict[str, str]  # what a login would set

    def as_arguments(self) -> dict[str, Any]:
        """Return what makes `subprocess.Popen` start a process of this user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": self.groups}

    def become(self) -> None:
        """Make this process one of this user, for good."""
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        os.environ.update(self.environment)


def wanted(settings: Settings) -> Identity | None:
    """Return as whom the children of *settings* run, None for the user that starts the server. Raises SettingsError."""
    if settings.user is None and settings.group is None:
        return None
    found = _found(settings.user, settings.group)
    if os.geteuid() != 0 and (found.uid, found.gid) != (os.geteuid(), os.getegid()):
        raise SettingsError(
            f"`--user` and `--group` are for root, and this is user {os.geteuid()}, group {os.getegid()}",
            hint="leave them out, or start limpet as root: `User=` in a unit of systemd does the same",
        )
    return found if os.geteuid() == 0 else None


@lru_cache(maxsize=4)  # each child asks, and a directory of users may be slow
def _found(user: str | None, group: str | None) -> Identity:
    entry = _entry(user or str(os.geteuid()))
    uid = entry.pw_uid if entry else int(user or os.geteuid())
    if group is not None:
        gid = _gid(group)
    elif entry is not None:
        gid = entry.pw_gid
    else:
        raise SettingsError(f"user {uid} is not known, and so has no group", hint=f"`--user {uid} --group {uid}`")
    groups = [each for each in os.getgrouplist(entry.pw_name, gid) if each != gid] if entry else []
    environment = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name} if entry else {"HOME": "/"}
    return Identity(uid, gid, tuple(groups), environment)


def _entry(user: str) -> pwd.struct_passwd | None:
    """Return what is known of *user*, None for a number that nobody has. Raises SettingsError."""
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
