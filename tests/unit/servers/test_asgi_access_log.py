"""The access log of WSGI servers: what it does to what the application returned."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from limpet.config.router import build_router
from limpet.config.settings import Settings
from limpet.servers.asgi import accessed


class Answer:
    """Counts how often it is closed."""

    closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return iter((b"a", b"b"))

    def close(self) -> None:
        """Count."""
        self.closed += 1


@pytest.mark.parametrize("pieces", [0, 1, 2])
def test_body_is_closed_once_however_much_of_it_was_sent(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Applications give database connections back in `close`: a call too few leaks them."""
    written: list[str] = []
    monkeypatch.setattr("limpet.logs.write", written.append)
    settings = Settings(app="a:b", server="waitress", access_log=True)
    answer = Answer()
    app = accessed(lambda environ, start: answer, settings, 0, build_router(settings, b"secret"))
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "1",
    }
    body = app(environ, lambda *args: None)
    given = iter(body)
    for _ in range(pieces):
        next(given)
    body.close()
    assert answer.closed == 1
    assert len(written) == 1
