"""What runs beside a server, in its process or as its child, and could be left out: nobody's request depends on it.

Owns the life of these: the service manager's news (operate/service_manager.py), the process that watches files
(operate/watch.py), the one that answers at `--admin` (admin/), warnings that come from figures (operate/advising.py),
and the latest events for whoever asks (events.py). The supervisor enters this as a context for its whole life and calls
`look` in each turn.

1. Nothing here may cost the server anything: what fails is logged, and tried again or left.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from limpet.errors import LimpetError
from limpet.events import Recent
from limpet.operate import service_manager
from limpet.operate.admin.keeper import Keeper
from limpet.operate.advising import Adviser
from limpet.operate.watch import Watcher
from limpet.supervisor import snapshot

if TYPE_CHECKING:
    from limpet.supervisor.supervisor import Supervisor


class Beside:
    """The companions of one supervisor."""

    def __init__(
        self,
        server: Supervisor,
        selector: selectors.BaseSelector,
        changed: Callable[[], object],
        before: snapshot.Packed | None,
    ) -> None:
        """*changed* is called when files have changed. *before* is what another supervisor has left in this process."""
        self._server = server
        self.began_at = time.monotonic()
        self.events = Recent()
        logging.getLogger("limpet").addHandler(self.events)
        settings = server.settings
        self._manager = service_manager.Manager()
        self._adviser = Adviser(server)
        self._watcher = Watcher(settings.reload_dir if settings.reload else None, selector, changed)
        try:
            kept = None if before is None else snapshot.admin(before)
            self.admin = Keeper(settings, server.control.path, selector, kept)
        except LimpetError:
            server.control.close()
            raise

    def __enter__(self) -> Beside:
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
        self._manager.look(self._server, now)
        self.admin.look(now)
        self._adviser.look(now)
