"""What limpet says when it cannot do what it was asked to.

One class per remedy: the class, and the exit code of the command line, tell what kind of thing has to change.
A message says where, what was found and what is allowed, in one line without a full stop, with backticks
around values; a hint is something that can be pasted. This file knows no other file of limpet.

1. These errors are for people: they are shown without a traceback. A bug is any other exception and keeps
   its own.
2. An exit code, once released, keeps its meaning: service managers and scripts depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class LimpetError(Exception):
    """Something else went wrong."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint is not None:
            self.add_note(f"hint: {hint}")  # for a program that does not catch it: a traceback shows notes

    def render(self) -> str:
        """Return the text for stderr: the error, and after a blank line its hint."""
        return render("error", self.message, self.hint)


class SettingsError(LimpetError):
    """A flag, variable, configuration file or argument is wrong: change it."""

    exit_code = 2


class ListenError(LimpetError):
    """An address cannot be listened on: free it or choose another."""

    exit_code = 3


class AppError(LimpetError):
    """The application cannot be imported or does not start: repair it."""

    exit_code = 4


class ControlError(LimpetError):
    """No running server was found, or it refused the command: start it or name its control socket."""

    exit_code = 5


class BackendError(LimpetError):
    """This system or these settings do not allow the chosen backend: choose another."""

    exit_code = 6


def render(level: str, message: str, hint: str | None = None) -> str:
    """Return *message* as users see it: its level before it, its hint below it, each on one line."""
    return f"{level}: {_one_line(message)}\n" + (f"\nhint: {_one_line(hint)}\n" if hint else "")


def _one_line(text: str) -> str:
    """Return *text* with what is not printable escaped: messages quote what others wrote, and go to terminals."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, as shells have it."""

EXIT_CODES: dict[int, str] = {
    0: "Done.",
    **{
        error.exit_code: error.__doc__ or ""
        for error in (LimpetError, SettingsError, ListenError, AppError, ControlError, BackendError)
    },
    INTERRUPTED: "Interrupted by Ctrl-C, before it could serve or while it waited for a server.",
}
"""What each exit code of the command line means."""


def failure_of(told: Mapping[str, Any]) -> LimpetError:
    """Return the error that another process told of, of the class that has its exit code."""
    kinds = {kind.exit_code: kind for kind in LimpetError.__subclasses__()}
    return kinds.get(told["code"], LimpetError)(told["message"], hint=told["hint"])


def reason(error: OSError) -> str:
    """Return what the system said, as the end of a message: `address already in use`."""
    said = error.strerror or str(error)
    return said[:1].lower() + said[1:]
