"""The entry point of the bridge: `python -m limpet.entry.bridge FD`.

Owns the assembly of the process from what operate/bridge_keeper.py wrote into descriptor FD.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys

from limpet import logs
from limpet.config.settings import Settings
from limpet.coordination.bridge import Bridge, connector
from limpet.coordination.bus import Seat
from limpet.ipc.boot import BusPlace
from limpet.operate.bridge_keeper import shown
from limpet.system import descriptors, memfile, signals


def main() -> int:
    """Bridge until the supervisor has ended."""
    descriptors.have_standard_streams()
    signals.leave_to_the_supervisor()
    told = json.loads(memfile.read(int(sys.argv[1])))
    place = BusPlace(*told["place"])
    descriptors.keep_from_programs([told["line"], *place.inherited_fds])
    settings = Settings.from_json(told["settings"])
    logs.configure(settings.log_level, None, settings.log_format)
    assert settings.bus is not None
    connect = connector(settings.bus, settings.cluster)
    line = socket.socket(fileno=told["line"])
    asyncio.run(Bridge(Seat(place)).run(connect, line, shown(settings.bus)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
