"""A network of a test's own: what it binds, routes and configures there is nobody else's.

A thread that leaves its network namespace takes its later sockets and processes with it, and no other thread; the
namespace ends with the last of them. Needs root; without it tests are skipped, where `CI` is set they fail.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

_CLONE_NEWNET = 0x40000000
IPV6_FREEBIND = 78
Answer = TypeVar("Answer")


def in_own_network(test: Callable[..., Answer], *args: Any, loopback: bool = True, **sysctls: int) -> Answer:
    """Return what *test* returns in a new network with *sysctls* (`net_core_optmem_max=2048`), and a *loopback*.

    All of 2001:db8::/32 and 64:ff9b::/96 is local in it: with IPV6_FREEBIND a socket can be bound to any address there.
    """
    with ThreadPoolExecutor(1) as outside:
        outside.submit(_leave).result()
        outside.submit(_furnish, loopback, sysctls).result()
        return outside.submit(test, *args).result()


def _leave() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) or not shutil.which("ip"):
        reason = f"no network of its own: {os.strerror(ctypes.get_errno())}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def _furnish(loopback: bool, sysctls: dict[str, int]) -> None:
    if loopback:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for network in ("2001:db8::/32", "64:ff9b::/96"):
            subprocess.run(["ip", "-6", "route", "add", "local", network, "dev", "lo"], check=True)
    for name, value in sysctls.items():
        family, group, rest = name.split("_", 2)
        with open(f"/proc/sys/{family}/{group}/{rest}", "w") as file:
            file.write(str(value))
