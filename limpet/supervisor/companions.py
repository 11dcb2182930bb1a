"""What runs beside a server, in its process or as its child, and could be left out: no request depends on it.

Owns the life of these: the service manager's news (operate/service_manager.py), the process that watches files
(operate/watch.py), the one that answers at `--admin` (operate/admin/), and warnings that come from figures
(operate/advising.py). The supervisor enters this as a context for its whole life and calls `look` in each turn.

1. Nothing here may cost the server anything: what fails is logged, and tried again or left.
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
        """*control* is the path of the control socket; *changed* is called when files have changed.

        *kept* is the admin process's listener that another supervisor has left in this process. Raises LimpetError.
        """
        self._fleet = fleet
        settings = fleet.settings
        self._manager = service_manager.Manager()
        self._adviser = Adviser(fleet)
        self._watcher = Watcher(settings.reload_dir if settings.reload else None, selector, changed)
        self.admin = Keeper(settings, control, selector, kept)

    def __enter__(self) -> Companions:
        self._watcher.__enter__()
        self.admin.start(time.monotonic())
        return self

    def __exit__(self, *_: Any) -> None:
        self._watcher.__exit__()
        self.admin.close()

    @property
    def pids(self) -> set[int]:
        """The processes that somebody here waits for."""
        return self._watcher.pids | self.admin.pids

    def look(self, now: float) -> None:
        """Do what is due. *now* is monotonic."""
        self._manager.look(self._fleet, now)
        self.admin.look(now)
        self._adviser.look(now)
