"""The end of a handler: what is logged, and that it ends nothing else."""

from __future__ import annotations

import asyncio
import logging

import pytest

from limpet.worker.handling import handling


def test_exception_of_a_handler_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """It is the user's bug; the other connections of the worker go on."""
    with caplog.at_level(logging.DEBUG), handling(ConnectionError):
        raise ValueError("a bug")
    [record] = caplog.records
    assert (record.levelname, record.__dict__["event"]) == ("ERROR", "handler_failed")
    assert record.exc_info is not None


def test_client_that_is_gone_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """It happens all day, and a traceback for each would hide the bugs."""
    with caplog.at_level(logging.DEBUG), handling(ConnectionError):
        raise ConnectionResetError
    [record] = caplog.records
    assert (record.levelname, record.__dict__["event"]) == ("DEBUG", "client_gone")


def test_handler_that_is_cancelled_ends_as_such() -> None:
    """A worker that drains cancels what has not ended in time."""
    with pytest.raises(asyncio.CancelledError), handling(ConnectionError):
        raise asyncio.CancelledError
