"""Errors for users: what limpet says when it cannot do what it was asked to do.

This file owns the error classes and their exit codes. There is one class for each remedy: the class and the exit code
tell what kind of thing the user has to change. Every part of limpet raises these errors; this file imports nothing of
limpet.

1. A message says where, what was found, and what is allowed, on one line, without a full stop, with backticks around
   values. A hint can be pasted.
2. These errors are for users and are shown without a traceback. Any other exception is a bug and keeps its traceback.
3. An exit code keeps its meaning once it is released, because service managers and scripts depend on it.
"""

from __future__ import annotations

from typing import ClassVar


class LimpetError(Exception):
    """limpet failed for another reason: see the message."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint is not None:
            self.add_note(f"hint: {hint}")  # for programs that do not catch it: tracebacks show notes

    def render(self) -> str:
        """Return the text for stderr: the error, then a blank line and the hint."""
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
    """Return *message* as users see it: the level before it, and the hint below it, each on one line."""
    return f"{level}: {_one_line(message)}\n" + (f"\nhint: {_one_line(hint)}\n" if hint else "")


def _one_line(text: str) -> str:
    """Return *text* with unprintable characters escaped, because messages quote foreign text and go to terminals."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, as in shells."""

EXIT_CODES: dict[int, str] = {
    0: "Done.",
    **{
        error.exit_code: error.__doc__ or ""
        for error in (LimpetError, SettingsError, ListenError, AppError, ControlError, BackendError)
    },
    INTERRUPTED: "Ctrl-C interrupted the command before the server could serve, or while it waited for a server.",
}
"""The meaning of each exit code of the command line."""


def failure_of(message: str, hint: str | None, code: int) -> LimpetError:
    """Return the error that another process reported, as an instance of the class whose exit code is *code*."""
    kinds = {kind.exit_code: kind for kind in LimpetError.__subclasses__()}
    return kinds.get(code, LimpetError)(message, hint=hint)


def reason(error: OSError) -> str:
    """Return the system's text for *error*, for the end of a message: `address already in use`."""
    said = error.strerror or str(error)
    return said[:1].lower() + said[1:]
