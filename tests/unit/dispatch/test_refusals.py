"""The answers that no worker gives: complete, final, and understood by any client."""

from __future__ import annotations

import http.client
import io

import pytest

from limpet.dispatch.refusals import answer
from limpet.ipc.scoreboard import DISPATCHER_CELLS

COUNTED = [int(name.removeprefix("refused_")) for name in DISPATCHER_CELLS if name.startswith("refused_")]


def parsed(data: bytes) -> tuple[bytes, http.client.HTTPMessage, bytes]:
    """Return status line, headers and the rest of a response."""
    source = io.BytesIO(data)
    return source.readline(), http.client.parse_headers(source), source.read()


@pytest.mark.parametrize("status", COUNTED)
@pytest.mark.parametrize("reason", ["", "TLS on a plain port"])
def test_answer_is_one_whole_response_that_ends_the_connection(status: int, reason: str) -> None:
    """Each status that is counted has an answer; a wrong length would make the client wait, or read garbage."""
    line, headers, body = parsed(answer(status, reason))
    assert line.startswith(f"HTTP/1.1 {status} ".encode())
    assert (headers["connection"], headers["content-length"]) == ("close", str(len(body)))
    assert reason in body.decode()
    assert body.endswith(b"\n")


def test_answer_is_text_to_a_browser() -> None:
    """With its coding said, so that nothing that a client has sent could ever be taken for markup."""
    assert parsed(answer(400))[1]["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("status", COUNTED)
def test_only_who_may_come_again_is_told_when(status: int) -> None:
    """A bad request will be as bad in a second; a slot without room may have some by then."""
    assert parsed(answer(status))[1]["retry-after"] == ("1" if status in (429, 503) else None)
