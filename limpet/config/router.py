"""The router that the settings describe, built in one place for every process that asks where a key belongs.

Owns the way from settings and secret to a `Router`. The supervisor, dispatchers, workers and `limpet check` call it.
They differ in what they pass: only dispatchers and workers load key functions.

1. The same settings and the same secret give the same slots for all keys in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from limpet.config.settings import Settings
from limpet.routing.affinity_cookie import Jar
from limpet.routing.hashing import Hasher
from limpet.routing.key_chain import Chains, KeyChain
from limpet.routing.learned_ids import Learned
from limpet.routing.router import Router

LoadFunction = Callable[[str], Callable[..., object]]
OnError = Callable[[str, BaseException | str], None]


class Clocks(NamedTuple):
    """The clocks of a router."""

    wall: Callable[[], float]
    monotonic: Callable[[], float]


def build_router(
    settings: Settings,
    secret: bytes,
    *,
    load: LoadFunction | None = None,
    on_error: OnError | None = None,
    on_found: Callable[[int], None] = lambda bits: None,
    clocks: Clocks | None = None,
    learned: memoryview[int] | None = None,
) -> Router:
    """Return the router that *settings* describe. Raises SettingsError, and whatever *load* raises.

    *load* imports a key function; without it, functions stay unresolved and never run. *on_error* is called when a
    function raised or did not return a key; *on_found* is called with the elements that have found keys. If the
    *secret* has several lines, the last one decides the slots. Without *clocks* the router knows no cookies. *learned*
    is the memory of the learned ids.
    """
    lines = [line.strip() for line in secret.splitlines()] or [b""]
    jar = None
    if clocks is not None:
        jar = Jar(lines, settings.cluster, settings.cookie_attributes, clocks.wall)
    chains = {each.by: KeyChain.parse(each.by, settings.trusted, load, on_error, jar) for each in settings.served}
    chain = Chains([chains[each.by] for each in settings.served]) if len(chains) > 1 else chains.popitem()[1]
    return Router(
        chain,
        Hasher(lines[-1]),
        settings.workers,
        failover=settings.on_down != "refuse",
        jar=jar if chain.has_affinity else None,
        learned=None if learned is None else Learned(learned, settings.learn_idle_s),
        on_found=on_found,
        now=clocks.monotonic if clocks is not None else float,
    )
