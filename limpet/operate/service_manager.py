"""What the service manager is told: the notify protocol of systemd.

Owns the datagrams and when they are sent. supervisor/companions.py calls `look` in each turn of the loop; it compares
the fleet with what was sent last. A library would only replace `_flush`, and could not send descriptors.

1. READY, with MAINPID, is sent when clients can connect; RELOADING while workers are renewed; STOPPING when the server
   begins to stop.
2. WATCHDOG is sent from the loop itself, twice as often as required. It is sent only while at least one slot has a
   worker or starts one for the first time: a server that cannot start any worker is as useless as one that hangs.
3. While the server starts or stops, it asks for more time. `--start-timeout` and `--graceful-timeout` bound these
   phases; the manager's own limits should not end them earlier.
4. If the manager keeps descriptors (FDSTORE), it gets the listeners. If this process is killed, the next one has them
   from the start, and no client is refused in between.
5. What cannot be sent now is sent at the next look, in order. It never blocks.
"""

from __future__ import annotations

import array
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from typing import Final

from limpet.errors import reason
from limpet.fleet.fleet import Fleet, Phase
from limpet.fleet.lifecycle import Life, State
from limpet.system import activation

_MORE_TIME_S: Final = 30.0  # the time asked for, again after each third of it
_MOST_UNSENT: Final = 1024  # messages, if the manager does not read
log = logging.getLogger("limpet")


class Manager:
    """The service manager, if there is one."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) if path else None
        self._watchdog_s = _watchdog_s(environ) / 2
        self._watchdog_at = 0.0 if self._watchdog_s else float("inf")
        self._more_time_at = 0.0
        self._phase = "starting"
        self._status = ""
        self._unsent: deque[tuple[str, int]] = deque()  # text and a descriptor, or -1
        self._kept: set[str] = set()  # names of the descriptors that the manager keeps
        self._to_forget = activation.all_kept()
        self._keeps = activation.keeps(environ)

    def look(self, fleet: Fleet, now: float) -> None:
        """Send what has changed and what is due. *now* is monotonic."""
        if self._socket is None:
            return
        lives = [slot.life for slot in fleet.slots]
        phase = _phase(fleet)
        if phase != self._phase:
            self._phase, self._more_time_at = phase, now
            self._say(*_news(phase))
        if phase in ("starting", "stopping") and now >= self._more_time_at:
            self._more_time_at = now + _MORE_TIME_S / 3
            self._say(f"EXTEND_TIMEOUT_USEC={_MORE_TIME_S * 1e6:.0f}")
        if (status := _status(phase, lives)) != self._status:
            self._status = status
            self._say(f"STATUS={status}")
        if self._keeps:
            self._keep(fleet)
        if not self._flush():
            return
        if now >= self._watchdog_at and (phase == "stopping" or _alive(lives)):
            self._watchdog_at = now + self._watchdog_s
            self._say("WATCHDOG=1")
            self._flush()

    def _keep(self, fleet: Fleet) -> None:
        """Give the manager the listeners that it does not have yet.

        First have it drop those that are no longer used.
        """
        listeners = {
            activation.kept_name(member.bind.text, number): member.sock.fileno()
            for members in fleet.backend.listeners()
            for number, member in enumerate(members)
            if member.bind.kind != "fd"
        }
        for old in self._to_forget if not fleet.upgrades else ():  # else the previous supervisor has done that
            if old.name not in listeners:
                self._say("FDSTOREREMOVE=1", f"FDNAME={old.name}")
                os.close(old.fd)
        self._to_forget = []
        for name in listeners.keys() - self._kept if fleet.is_serving else ():
            self._say("FDSTORE=1", f"FDNAME={name}", fd=listeners[name])
            self._kept.add(name)

    def _say(self, *lines: str, fd: int = -1) -> None:
        if len(self._unsent) < _MOST_UNSENT:
            self._unsent.append(("\n".join(lines), fd))

    def _flush(self) -> bool:
        """Send what can be sent. Return whether nothing is left."""
        assert self._socket is not None
        try:
            while self._unsent:
                text, fd = self._unsent[0]
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
                self._socket.sendmsg([text.encode()], rights, 0, self._address)
                self._unsent.popleft()
        except BlockingIOError:  # the manager reads too slowly: try again at the next look
            return False
        except OSError as error:
            self._unsent.clear()
            log.warning(
                "cannot send messages to the service manager: %s (hint: see NOTIFY_SOCKET)",
                reason(error),
                extra={"event": "service_manager_unreachable"},
            )
            self._socket.close()
            self._socket = None
            return False
        return True


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Return within how many seconds the manager expects a sign of life from this process; 0 if it expects none."""
    try:
        meant = int(environ.get("WATCHDOG_PID") or os.getpid()) == os.getpid()
        return int(environ.get("WATCHDOG_USEC", "0")) / 1e6 if meant else 0.0
    except ValueError:
        return 0.0


def _phase(fleet: Fleet) -> str:
    if fleet.phase is not Phase.SERVING:
        return fleet.phase.value
    return "reloading" if fleet.is_upgrade_due or fleet.changes.current is not None else "ready"


def _news(phase: str) -> list[str]:
    if phase == "ready":
        return ["READY=1", f"MAINPID={os.getpid()}"]
    if phase == "reloading":
        return ["RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"]
    return ["STOPPING=1"]


def _alive(lives: list[Life]) -> bool:
    down = (State.BACKOFF, State.STOPPED)
    return any(life.state not in down and not life.deaths_before_ready for life in lives)


def _status(phase: str, lives: list[Life]) -> str:
    """Return the line that `systemctl status` shows."""
    ready = sum(life.state.serves for life in lives)
    text = f"{ready} of {len(lives)} workers ready"
    return text if phase == "ready" else f"{phase}, {text}"
