"""`limpet.on_start` and `limpet.on_shutdown`: an application's own start and end, on every server."""

from __future__ import annotations

from pathlib import Path

import pytest

from limpet.config.server_kinds import KINDS
from tests.harness import Limpet, wait_until

STARTS = ["first start", "second start"]
ENDS = ["failing end", "last end", "gate"]


def hooked(server: str, place: Path) -> Limpet:
    """Return a server, not started, of one worker."""
    env = {f"TEST_{name}": str(place / name.lower()) for name in ("NOTE", "GATE", "FAULT")}
    app = f"tests.hooked_app:{KINDS[server].interface}"
    return Limpet(app, "--server", server, "--workers", "1", "--graceful-timeout", "20", env=env)


@pytest.mark.parametrize("server", [name for name, kind in KINDS.items() if kind.interface in ("asgi", "wsgi")])
def test_worker_is_ready_after_its_start_and_gone_after_its_end(server: str, tmp_path: Path) -> None:
    """What must be there for the first request is there, and what must be saved is saved, however long that takes."""
    notes = tmp_path / "note"
    is_asgi = KINDS[server].interface == "asgi"
    with hooked(server, tmp_path) as limpet:
        started = [*STARTS, "lifespan.startup"] if is_asgi else STARTS
        assert notes.read_text().splitlines() == started
        assert limpet.request().json()["slot"] == 0
        pid = limpet.worker(0)["pid"]
        limpet.signal()
        wait_until(lambda: "last end" in notes.read_text(), "the worker is at its end")
        assert Path(f"/proc/{pid}").exists()
        (tmp_path / "gate").touch()
        assert limpet.wait_ended() == 0
        ended = ["lifespan.shutdown", *ENDS] if is_asgi else ENDS
        assert notes.read_text().splitlines() == [*started, *ended]
        assert "`tests.hooked_app:fails`, called at the end of the worker, failed" in limpet.log


@pytest.mark.parametrize("server", ["uvicorn", "gunicorn"])
def test_start_that_fails_is_a_failed_start(server: str, tmp_path: Path) -> None:
    """A worker without what its application needs must not get clients."""
    (tmp_path / "fault").touch()
    with hooked(server, tmp_path).launched() as limpet:
        assert limpet.wait_ended() == 4
        assert (
            "`tests.hooked_app:first`, called at the start of the worker, raised RuntimeError: no database"
            in limpet.log
        )
        assert "Traceback" in limpet.log
