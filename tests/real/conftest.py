"""Servers of others that several tests need."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.harness import PATIENCE_S, free_port, wait_until


@contextlib.contextmanager
def _running(words: list[str], ready: str) -> Iterator[None]:
    """Run a server, from the moment at which it has logged *ready*."""
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            wait_until(lambda: ready in str(process.stdout and process.stdout.readline()), f"{words[0]} is ready")
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


@contextlib.contextmanager
def redis_server(address: str) -> Iterator[str]:
    """Run a Redis at *address* that keeps nothing, and yield its URL."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    words = [program, "--port", str(port), "--bind", address, "--protected-mode", "no", "--save", "", "--dir", "/tmp"]
    with _running(words, "Ready to accept"):
        yield f"redis://{address}:{port}/0"


@pytest.fixture
def redis() -> Iterator[str]:
    """The URL of a Redis of this test's own."""
    with redis_server("127.0.0.1") as url:
        yield url


@pytest.fixture
def nats() -> Iterator[str]:
    """The URL of a NATS of this test's own."""
    program = shutil.which("nats-server")
    if program is None:
        pytest.skip("nats-server is not installed")
    port = free_port()
    with _running([program, "-a", "127.0.0.1", "-p", str(port)], "Server is ready"):
        yield f"nats://127.0.0.1:{port}"
