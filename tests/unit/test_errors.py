"""Errors: what users see, and what scripts rely on."""

from __future__ import annotations

import errno
import os

import pytest

from limpet import errors
from limpet.errors import LimpetError, ListenError

CLASSES: list[type[LimpetError]] = [LimpetError, *LimpetError.__subclasses__()]


def test_error_is_rendered_with_its_hint_below() -> None:
    """People look for the same thing in the same place: what happened first, what to paste last."""
    error = ListenError("cannot listen on `127.0.0.1:8000`: address already in use", hint="`--bind 127.0.0.1:0`")
    assert error.render() == (
        "error: cannot listen on `127.0.0.1:8000`: address already in use\n\nhint: `--bind 127.0.0.1:0`\n"
    )


def test_error_without_hint_is_one_line() -> None:
    """An empty hint would be noise."""
    assert LimpetError("no").render() == "error: no\n"


def test_warning_reads_like_an_error() -> None:
    """One form for all that people are told."""
    assert errors.render("warning", "careful", "`--so`") == "warning: careful\n\nhint: `--so`\n"


def test_error_is_one_line_whatever_it_quotes() -> None:
    """Neither a line break nor a colour code of somebody else's gets into a log or a terminal."""
    assert LimpetError("`a\nb\x1b[31m\udc80`").render() == "error: `a\\nb\\x1b[31m\\udc80`\n"


def test_error_survives_being_logged_as_text() -> None:
    """Whoever formats it like any other exception gets the message, not a tuple."""
    assert str(LimpetError("no", hint="`yes`")) == "no"


def test_exit_codes_are_what_was_released() -> None:
    """Service managers and scripts test for these numbers."""
    assert {each.__name__: each.exit_code for each in CLASSES} == {
        "LimpetError": 1,
        "SettingsError": 2,
        "ListenError": 3,
        "AppError": 4,
        "ControlError": 5,
        "BackendError": 6,
    }


@pytest.mark.parametrize("error", CLASSES)
def test_each_exit_code_is_explained(error: type[LimpetError]) -> None:
    """A code that the documentation leaves out is one that nobody can act on."""
    assert errors.EXIT_CODES[error.exit_code] == error.__doc__


@pytest.mark.parametrize("number", [errno.EADDRINUSE, errno.EACCES, errno.ENOENT])
def test_reason_goes_into_the_middle_of_a_sentence(number: int) -> None:
    """The system speaks in headlines."""
    said = errors.reason(OSError(number, os.strerror(number)))
    assert said[0].islower()
    assert said.lower() == os.strerror(number).lower()


def test_reason_of_an_error_that_has_only_text() -> None:
    """Some OSErrors come from libraries and have neither number nor strerror."""
    assert errors.reason(OSError("Odd")) == "odd"
