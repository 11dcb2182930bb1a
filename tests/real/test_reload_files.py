"""`--reload`: a changed file is served soon, and one with a mistake costs nothing."""

from __future__ import annotations

from pathlib import Path

from tests.harness import HERE, Limpet, wait_until

APP = """
import json
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"VERSION"})
"""


def test_changed_files_are_served_and_broken_ones_are_not(tmp_path: Path) -> None:
    """Whoever writes an application saves it half done, too."""
    shop = tmp_path / "shop.py"
    shop.write_text(APP.replace("VERSION", "one"))
    arguments = ("--workers", "1", "--reload", "--reload-dir", str(tmp_path))
    with Limpet("shop:app", *arguments, cwd=tmp_path, env={"PYTHONPATH": str(HERE.parent)}) as server:
        supervisor = server.status()["pid"]
        assert server.request().body == b"one"

        shop.write_text("def broken(:\n")
        wait_until(
            lambda: "not reloaded, the old version keeps serving: shop.py, line 1: SyntaxError" in server.log,
            "it says so",
        )
        assert server.request().body == b"one"

        shop.write_text("import nowhere\n")
        wait_until(lambda: "reload failed" in server.log, "it says so")
        assert "No module named 'nowhere'" in server.log
        assert server.request().body == b"one"

        shop.write_text(APP.replace("VERSION", "two"))
        wait_until(lambda: server.request().body == b"two", "the new version serves")
        assert server.status()["pid"] == supervisor
        assert server.stop() == 0
        assert server.processes() == set()
