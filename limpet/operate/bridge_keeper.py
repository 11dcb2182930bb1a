"""The supervisor's side of the bridge (coordination/bridge.py): its start, and another one when it has ended.

Owns its place on the bus, which is new for each process, and the line by whose end each learns of the other's.

1. The supervisor says nothing on the line, and reads nothing of it but its end.
2. An upgrade in place ends the bridge, because the line does not survive the exec. The next supervisor starts another.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import selectors
import subprocess
import sys
from typing import Final
from urllib.parse import urlsplit

from limpet.config import privileges
from limpet.coordination.interest import ROWS
from limpet.errors import SettingsError, reason
from limpet.fleet.fleet import Fleet
from limpet.ipc.control_link import Link
from limpet.system import memfile

_ROW: Final = ROWS - 1
_PAUSE_S: Final = 1.0
log = logging.getLogger("limpet")


class BridgeKeeper:
    """The bridge of one supervisor, none without `--bus`."""

    def __init__(self, fleet: Fleet, selector: selectors.BaseSelector) -> None:
        """Raises SettingsError if the library for the engine is not installed."""
        self._fleet = fleet
        self._selector = selector
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Link
        self._start_at = float("inf")
        url = fleet.settings.bus
        if url is not None:
            library = "nats" if url.startswith("nats") else "redis"
            if importlib.util.find_spec(library) is None:
                raise SettingsError(
                    f"`--bus {shown(url)}` needs the library `{library}`", hint=f"`pip install 'limpet[{library}]'`"
                )
            self._start_at = 0.0

    @property
    def pids(self) -> set[int]:
        """The process that this waits for, as long as it has not ended."""
        return {self._process.pid} if self._process is not None and self._process.poll() is None else set()

    def look(self, now: float) -> None:
        """Start the bridge if that is due, or when it has ended. *now* is monotonic."""
        if self._process is not None and self._process.poll() is not None:
            self._end(now, f"the bridge of the bus exited with code {self._process.returncode}")
        if self._process is None and now >= self._start_at:
            self._spawn(now)

    def _spawn(self, now: float) -> None:
        resources = self._fleet.resources
        resources.newest_serial += 1
        settings = self._fleet.settings
        identity = privileges.wanted(settings)
        ours, theirs = Link.pair()
        try:
            with theirs, resources.bus.admit(_ROW, resources.newest_serial) as place:
                told = {"settings": settings.to_json(), "line": theirs.fileno(), "place": place}
                with memfile.lent("limpet-bridge", json.dumps(told).encode()) as fd:
                    self._process = subprocess.Popen(
                        [sys.executable, "-P", "-m", "limpet.entry.bridge", str(fd)],
                        stdin=subprocess.DEVNULL,
                        pass_fds=(fd, theirs.fileno(), *place.inherited_fds),
                        process_group=0,
                        **(identity.as_arguments() if identity is not None else {}),
                    )
        except OSError as error:
            ours.close()
            self._end(now, f"cannot start the bridge of the bus: {reason(error)}")
            return
        self._link = ours

    def _end(self, now: float, why: str) -> None:
        self._fleet.resources.bus.dismiss(_ROW)
        if self._process is not None:
            self._link.close()
            self._process = None
        self._start_at = now + _PAUSE_S
        log.warning("%s; the next one starts in %.0f s", why, _PAUSE_S, extra={"event": "bridge_ended"})

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._link.close()
            self._process.kill()
            self._process.wait()
            self._fleet.resources.bus.dismiss(_ROW)
            self._process = None


def shown(url: str) -> str:
    """Return *url* without a user and a password."""
    found = urlsplit(url)
    return f"{found.scheme}://{found.hostname or ''}{f':{found.port}' if found.port else ''}{found.path}"
