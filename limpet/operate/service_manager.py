"""What the service manager is told: the notify protocol of systemd.

Owns the datagrams and when they are due. Looks at the supervisor at each turn of its loop and says what has changed;
the supervisor knows nothing of it. A library would save the lines of `_flush` and could not send descriptors.

1. READY is said when clients may come, MAINPID with it; RELOADING while workers are renewed; STOPPING at the start of
   the end.
2. WATCHDOG is said by the loop itself, at twice the pace that is asked for, and only while at least one slot has a
   worker or is getting one at the first try: a server that cannot start any is as good as one that hangs.
3. While it starts or stops, it asks for more time: `--start-timeout` and `--graceful-timeout` bound that, and the
   manager's own limits should not cut it short.
4. If it keeps descriptors (FDSTORE), it gets the listeners: should this process be killed, the next one has them from
   the start, and no client is refused meanwhile.
5. What cannot be sent now is sent at the next look, in order. Blocks never.
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

_MORE_TIME_S: Final = 30.0  # asked for at once; again when a third of it has passed
_MOST_UNSENT: Final = 1024  # messages for a manager that does not read
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
        self._unsent: deque[tuple[str, int]] = deque()  # with a descriptor, or -1
        self._kept: set[str] = set()  # names of descriptors that it has
        self._to_forget = activation.all_kept()
        self._keeps = activation.keeps(environ)

    def look(self, fleet: Fleet, now: float) -> None:
        """Say what has changed, and what is due. *now* is monotonic."""
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
        """Give it the listeners that it does not have yet; first let it forget those that are of no use any more."""
        listeners = {
            activation.kept_name(member.bind.text, number): member.sock.fileno()
            for members in fleet.backend.listeners()
            for number, member in enumerate(members)
            if member.bind.kind != "fd"
        }
        for old in self._to_forget if not fleet.upgrades else ():  # else the last supervisor has done that
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
        """Send what can be sent; return whether that was all."""
        assert self._socket is not None
        try:
            while self._unsent:
                text, fd = self._unsent[0]
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
                self._socket.sendmsg([text.encode()], rights, 0, self._address)
                self._unsent.popleft()
        except BlockingIOError:  # it does not read as fast as this: at the next look
            return False
        except OSError as error:
            self._unsent.clear()
            log.warning("the service manager cannot be told anything: %s (hint: see NOTIFY_SOCKET)", reason(error))
            self._socket.close()
            self._socket = None
            return False
        return True


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Return within how many seconds the manager wants a sign of life from this process; 0 if it wants none."""
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
