"""What runs beside a server and could be left out: no request depends on it.

Owns the life of these: the messages to the service manager (operate/service_manager.py), the process that watches files
(operate/watch.py), the process that serves `--admin` (operate/admin/), the bridge of `--bus`
(operate/bridge_keeper.py), and warnings from figures (operate/advising.py).
The supervisor enters it as a context for its whole life and calls `look` in each turn.

1. Nothing here may harm the server. A failure is logged, and then tried again or given up.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limpet.fleet.fleet import Fleet
from limpet.net.listener import Listener
from limpet.operate import service_manager
from limpet.operate.admin.keeper import Keeper
from limpet.operate.advising import Adviser
from limpet.operate.bridge_keeper import BridgeKeeper
from limpet.operate.watch import Watcher


class Companions:
    """The companions of one supervisor."""

    def __init__(
        self,
        fleet: Fleet,
        selector: selectors.BaseSelector,
        control: Path,
        changed: Callable[[], object],
        kept: Listener | None,
    ) -> None:
        """*control* is the path of the control socket. *changed* is called when files have changed.

        *kept* is the admin process's listener that the previous supervisor left in this process. Raises LimpetError.
        """
        self._fleet = fleet
        settings = fleet.settings
        self._manager = service_manager.Manager()
        self._adviser = Adviser(fleet)
        self._watcher = Watcher(settings.reload_dir if settings.reload else None, selector, changed)
        self._bridge = BridgeKeeper(fleet, selector)
        self.admin = Keeper(settings, control, selector, kept, fleet.resources.kept)

    def __enter__(self) -> Companions:
        self._watcher.__enter__()
        self.admin.start(time.monotonic())
        return self

    def __exit__(self, *_: Any) -> None:
        self._watcher.__exit__()
        self.admin.close()
        self._bridge.close()

    @property
    def pids(self) -> set[int]:
        """The processes that the companions themselves wait for."""
        return self._watcher.pids | self.admin.pids | self._bridge.pids

    def look(self, now: float) -> None:
        """Do what is due. *now* is monotonic."""
        self._manager.look(self._fleet, now)
        self.admin.look(now)
        self._bridge.look(now)
        self._adviser.look(now)
