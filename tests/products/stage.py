"""One product on stage: an application of it, a server, sessions that all run at once, and what came of each.

A product's file says what a session does, in a browser (`in_browsers`) or with a client of the product's; this file
starts what it plays against: limpet with the product's preset, or uvicorn's own workers, each plain or behind nginx,
whose pooled connections carry everybody's requests. Servers run in the products' environment (`make products` makes
it), not in that of the tests.

1. A session fails when something it should see did not come, or came from another process.
2. Nothing is tried again.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.harness import HERE, Limpet, wait_until
from tests.products.browsers import Browser, Page, ProtocolError
from tests.real.fronts import Front

SESSIONS: Final = 20
WORKERS: Final = 4
START_S: Final = 300.0  # four processes that import hundreds of megabytes, beside whatever else runs
ENVIRONMENT: Final = Path(os.environ.get("LIMPET_TEST_PRODUCTS", HERE.parent / ".venv-products"))
APPS: Final = HERE / "products" / "apps"
EXAMPLES: Final = HERE.parent / "examples"
PATIENT: Final = {  # longer than nginx keeps idle connections: else the two close and use one at the same time
    "limpet": ("--keep-alive-timeout", "75"),
    "uvicorn": ("--timeout-keep-alive", "75"),
}

FILE_BYTES: Final = 300_000  # more than any buffer on the way holds

Play = Callable[[Page, str, Path], Awaitable[set[int]]]
"""Be one session on an empty page: given the URL of the server and a file; return the pids of who has answered."""
Client = Callable[[str, int], "Outcome"]
"""Play so many sessions, all at once, with the server at a URL."""


@dataclass(frozen=True)
class Product:
    """A product, its application and the client that plays its sessions."""

    name: str  # of the preset
    package: str  # in which its version is found
    client: Client
    flags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    plain: tuple[str, ...] = ()  # how Python runs several workers of it without limpet, if not by uvicorn
    refuses: str = ""  # why it has no workers of its own at all
    python: str = ""  # that has it, if not that of the products
    example: str = ""  # in examples/ that is the application, if there is none in apps/

    @property
    def home(self) -> Path:
        """The folder of the application, `app:app`."""
        return EXAMPLES / self.example if self.example else APPS / self.name


@dataclass
class Outcome:
    """What came of one run."""

    failures: list[str] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)


def python() -> str:
    """Return the Python that has the products; skip the test without it, fail where `CI` is set."""
    found = ENVIRONMENT / "bin" / "python"
    if not found.exists():
        if os.environ.get("CI"):
            pytest.fail(f"no products in {ENVIRONMENT}")
        pytest.skip("`make products` installs them")
    return str(found)


@contextmanager
def at_home(product: Product) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a copy of the application's folder, in which a server is started, and its variables: it may write there."""
    with tempfile.TemporaryDirectory(prefix="limpet-product-") as folder:
        shutil.copytree(product.home, folder, dirs_exist_ok=True)
        yield Path(folder), {"HOME": folder, "PYTHONWARNINGS": "ignore", **product.env}


@contextmanager
def on_limpet(product: Product, *flags: str) -> Iterator[int]:
    """Yield the port of limpet with the preset of *product*."""
    given = ("--workers", str(WORKERS), "--for", product.name, "--graceful-timeout", "1", *product.flags, *flags)
    given += ("--start-timeout", f"{START_S:g}")
    with (
        at_home(product) as (folder, env),
        Limpet("app:app", *given, python=product.python or python(), env=env, cwd=folder, start_s=START_S) as server,
    ):
        yield server.port


@contextmanager
def on_uvicorn(product: Product, *flags: str) -> Iterator[int]:
    """Yield the port of uvicorn's own workers, or the product's, which take connections as they come."""
    uvicorn = ["-m", "uvicorn", "app:app", "--port", "0", "--workers", str(WORKERS)]
    uvicorn += ["--timeout-graceful-shutdown", "1", "--no-use-colors", *flags]
    command = [product.python or python(), *(product.plain or uvicorn)]
    with at_home(product) as (folder, env):
        process = subprocess.Popen(
            command,
            env={**os.environ, **env},
            cwd=folder,
            stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
            text=True,
        )
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
        reader.start()

        def started() -> bool:
            assert process.poll() is None, "".join(said)
            return len(re.findall("Application startup complete|Booting worker", "".join(said))) >= WORKERS

        try:
            wait_until(started, "uvicorn's workers have started", START_S)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", "".join(said))
            assert found
            yield int(found[1])
        finally:
            process.terminate()
            try:
                process.wait(START_S)
            finally:
                process.kill()
                process.wait()
                reader.join()


@contextmanager
def on_stage(product: Product, server: str, way: str, *flags: str) -> Iterator[int]:
    """Yield the port at which clients reach *product* on *server* ("limpet", "uvicorn"), "plain" or through "nginx"."""
    with ExitStack() as stack:
        flags += PATIENT[server] if way == "nginx" else ()
        port = stack.enter_context((on_limpet if server == "limpet" else on_uvicorn)(product, *flags))
        yield stack.enter_context(Front("nginx", port)).port if way == "nginx" else port


def played(product: Product, server: str, way: str, *flags: str, sessions: int = SESSIONS) -> Outcome:
    """Return what came of *sessions* sessions, all at once."""
    with on_stage(product, server, way, *flags) as port:
        return product.client(f"http://127.0.0.1:{port}", sessions)


def in_browsers(play: Play) -> Client:
    """Return the client that does *play* in as many contexts of one browser as there are sessions."""

    async def crowd(url: str, sessions: int, folder: Path) -> Outcome:
        outcome = Outcome()
        async with Browser(folder, sessions) as browser:
            await asyncio.gather(*(_one(browser, play, url, folder, number, outcome) for number in range(sessions)))
        return outcome

    def client(url: str, sessions: int) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="limpet-browser-") as folder:
            return asyncio.run(crowd(url, sessions, Path(folder)))

    return client


async def _one(browser: Browser, play: Play, url: str, folder: Path, number: int, outcome: Outcome) -> None:
    page = await browser.page()
    file = folder / f"file-{number}.txt"
    file.write_bytes(b"%d" % (number % 10) * FILE_BYTES)
    try:
        pids = await play(page, url, file)
        assert len(pids) == 1, f"answered by {len(pids)} processes"
        outcome.pids |= pids
    except (AssertionError, ProtocolError, TimeoutError) as error:
        outcome.failures.append(f"session {number}: {error}; {page.complaints[:5]}")


def pid_in(text: str) -> int:
    """Return the process id that an application has put into *text*."""
    found = re.search(r"pid (\d+)", text)
    assert found, f"no process has signed {text!r}"
    return int(found[1])


async def count_on(page: Page, shown: str, numbers: Iterable[int], button: str, part: str = "") -> set[int]:
    """Click *button* for each of *numbers* and see it in the element *shown*; return the pids of who has counted."""
    pids = set()
    for number in numbers:
        await page.click(button, part)
        pids.add(pid_in(await page.text(shown, f"count {number} ")))
    return pids


def all_at_home(outcome: Outcome) -> None:
    """Fail unless every session was served whole, and at least two workers had some."""
    assert outcome.failures == []
    assert len(outcome.pids) >= 2
