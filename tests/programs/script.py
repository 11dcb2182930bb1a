"""A program as users write it: one file, run by its path, that serves its own application until its input ends.

The arguments say how: `guard` leaves out nothing, `bare` starts the server on import too, `fork` has a child that
outlives the program.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import limpet

CONTROL = os.environ["TEST_CONTROL"]


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Say which worker serves, and that the path asks for the end if it does."""
    if scope["path"].startswith("/close"):
        limpet.current_worker().close_cluster(wait_for_connections=scope["path"].endswith("wait"))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(limpet.current_worker()._asdict()).encode()})


def tenant(request: limpet.Request) -> str | None:
    """A key function beside the application."""
    return request.headers.get("x-tenant")


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})  # as threads do that use sigwait
    with limpet.listen(app, 0, workers=2, by=[tenant, limpet.Ip()], control=CONTROL, graceful_timeout=10) as handle:
        if "fork" in sys.argv and os.fork() == 0:
            handle.close()  # not this process's to close
            os.closerange(0, 3)
            signal.pause()
        print(handle.address, flush=True)
        sys.stdin.read()
    print("closed", flush=True)


if __name__ == "__main__" or "bare" in os.environ.get("TEST_PROGRAM", ""):
    main()
