"""The admin process: uvicorn serves the pages of app.py on the listener that the supervisor keeps, until it is gone.

Owns the process and nothing else. It imports no user code and has none of the server's channels or memory.

1. Its heartbeats come through the event loop. They are objects of JSON, as a supervisor that is older expects on the
   line; one for which there is no room is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
import sys
from typing import Final

import uvicorn

from limpet import logs
from limpet.config.settings import Settings
from limpet.operate.admin.app import App
from limpet.operate.admin.asking import Server
from limpet.operate.admin.guard import Guard
from limpet.system import descriptors, memfile, signals

_BEAT: Final = b"{}\n"
_BEAT_S: Final = 1.0  # between two heartbeats at most
_BEATS: Final = 4  # at least, within the time after which this process counts as one that hangs


def main() -> int:
    """Serve until the supervisor has ended; return the exit code."""
    descriptors.have_standard_streams()
    signals.leave_to_the_supervisor()
    told = json.loads(memfile.read(int(sys.argv[1])))
    shared = told.get("shared", -1), told.get("directory", "")  # an older supervisor had none
    descriptors.keep_from_programs([told["line"], told["listener"], *([shared[0]] if shared[0] >= 0 else [])])
    settings = Settings.from_json(told["settings"])
    logs.configure(settings.log_level, settings.log_file, settings.log_format)
    line, listener = socket.socket(fileno=told["line"]), socket.socket(fileno=told["listener"])
    line.setblocking(False)
    is_unix = listener.family == socket.AF_UNIX
    is_local = not is_unix and ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
    guard = Guard(told["token"], is_unix=is_unix, is_local=is_local)
    beat_s = min(_BEAT_S, settings.hang_timeout_s / _BEATS)
    asyncio.run(_serve(App(Server(told["control"]), guard, *shared), line, listener, beat_s))
    return 0


async def _beat(line: socket.socket, beat_s: float) -> None:
    """Tell the supervisor again and again that this event loop goes round."""
    while True:
        with contextlib.suppress(OSError):  # it does not read for a while, or has ended
            line.send(_BEAT, socket.MSG_NOSIGNAL)
        await asyncio.sleep(beat_s)


async def _serve(app: App, line: socket.socket, listener: socket.socket, beat_s: float) -> None:
    config = uvicorn.Config(
        app,
        loop="asyncio",  # serves unix sockets by the same call
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        limit_concurrency=256,
    )
    server = uvicorn.Server(config)

    def end() -> None:  # the supervisor says nothing, so what can be read is the end of the line
        asyncio.get_running_loop().remove_reader(line.fileno())
        server.should_exit = True

    asyncio.get_running_loop().add_reader(line.fileno(), end)
    tasks = [asyncio.create_task(each) for each in (app.live.run(), _beat(line, beat_s))]
    await server.serve(sockets=[listener])
    for task in tasks:
        task.cancel()
