"""Servers of others that several tests need."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.harness import PATIENCE_S, free_port, wait_until


@contextlib.contextmanager
def redis_server(address: str) -> Iterator[str]:
    """Run a Redis at *address* that keeps nothing, and yield its URL."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    words = [program, "--port", str(port), "--bind", address, "--protected-mode", "no", "--save", "", "--dir", "/tmp"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        wait_until(lambda: "Ready to accept" in str(process.stdout and process.stdout.readline()), "Redis is ready")
        yield f"redis://{address}:{port}/0"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        if process.stdout is not None:
            process.stdout.close()


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
    process = subprocess.Popen([program, "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        wait_until(lambda: "Server is ready" in str(process.stderr and process.stderr.readline()), "NATS is ready")
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        if process.stderr is not None:
            process.stderr.close()
