"""Scaling while the server goes on, on both backends: few clients move, nobody fails, and all come home again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal

import pytest

from tests.crowd import freeze
from tests.harness import Limpet, fetch, limpet_command, wait_until
from tests.public import Public, finished
from tests.real.test_upgrade import upgrade

CHAINS = {"kernel": "ip", "dispatcher": "header:x-user"}


def scale(server: Limpet, slots: int) -> None:
    """Scale *server* and wait until that is done."""
    change = finished(server, server.ask(command="scale", slots=slots)["change"])
    assert change["state"] == "done", change


@pytest.mark.parametrize("backend", ["kernel", "dispatcher"])
def test_clients_are_at_home_and_nobody_fails_while_slots_come_and_go(backend: str) -> None:
    """4 -> 2 -> 4: who must move does, between two requests; afterwards everybody is where he was."""
    arguments = ["--by", CHAINS[backend], "--backend", backend, "--websocket-spread", "0.2"]
    with Limpet("tests.apps:echo", "--workers", "2", *arguments) as server:
        public = Public(server, by_address=backend == "kernel", clients=24, sockets=0, pools=2)
        names = list(public.homes)
        two = {name: entry["slot"] for name, entry in zip(names, server.where(*names), strict=True)}
        public.homes_may_change = True

        async def both() -> None:
            async with public.present():
                await asyncio.to_thread(scale, server, 4)
                four = await asyncio.to_thread(server.where, *names)
                moved = [name for name, entry in zip(names, four, strict=True) if entry["slot"] != two[name]]
                assert 0 < len(moved) < len(names)
                assert {entry["slot"] for name, entry in zip(names, four, strict=True) if name in moved} <= {2, 3}
                await public.at_home({name: entry["slot"] for name, entry in zip(names, four, strict=True)})
                await asyncio.to_thread(scale, server, 2)
                assert len((await asyncio.to_thread(server.status))["slots"]) == 2
                await public.at_home(two)
                await asyncio.to_thread(scale, server, 4)
                await public.at_home({name: entry["slot"] for name, entry in zip(names, four, strict=True)})

        asyncio.run(both())
        assert public.seen.failures == []


def test_commands_and_signals_scale() -> None:
    """By hand, by a script, or by one that only knows signals."""
    with Limpet("tests.apps:echo", "--workers", "1", "--by", "ip") as server:
        assert limpet_command("scale", "2", "--control", server.control).returncode == 0
        assert [slot["state"] for slot in server.status()["slots"]] == ["ready"] * 2
        server.signal(signal.SIGTTIN)
        wait_until(lambda: "scaling to 3 done" in server.log, "there is one more")
        server.signal(signal.SIGTTOU)
        wait_until(lambda: server.log.count("scaling to 2 done") == 2, "there is one less")
        refused = limpet_command("scale", "0", "--control", server.control)
        assert refused.returncode == 5
        assert "invalid number of workers" in refused.stderr


@pytest.mark.parametrize(("backend", "upgraded"), [("kernel", True), ("dispatcher", False)])
def test_connection_that_waited_for_its_worker_meanwhile_goes_home(backend: str, upgraded: bool) -> None:
    """Its slot's next worker never knew another table, nor does a supervisor that was *upgraded* since."""
    arguments = ["--by", "ip", "--backend", backend, "--keep-alive-timeout", "60", "--hang-timeout", "60"]
    with Limpet("tests.apps:echo", "--workers", "2", *arguments) as server:
        addresses = [f"127.0.{number}.1" for number in range(1, 60)]
        before = server.where(*addresses)
        pid = server.worker(0)["pid"]
        freeze(pid)
        with contextlib.ExitStack() as stack:
            clients = []
            for address, home in zip(addresses, before, strict=True):
                if home["slot"] == 0:
                    client = stack.enter_context(server.connection(address))
                    client.request("GET", "/")
                    clients.append((client, address))
            wait_until(lambda: server.worker(0)["queued"] == len(clients), "all of them wait for slot 0")
            scale(server, 3)
            if upgraded:
                upgrade(server)
            os.kill(pid, signal.SIGKILL)
            for client, _ in clients:
                assert json.loads(client.getresponse().read())["slot"] == 0
            assert {server.where(address)[0]["slot"] for _, address in clients} == {0, 2}

            def at_home() -> bool:
                return all(
                    fetch(client).json()["slot"] == server.where(address)[0]["slot"] for client, address in clients
                )

            wait_until(at_home, "all are at home")


@pytest.mark.parametrize("server_kind", ["uvicorn", "hypercorn", "daphne", "gunicorn"])
def test_new_clients_stay_with_their_worker_after_a_scaling(server_kind: str) -> None:
    """A worker that went on with the old table would make cookies that lead its clients to other workers."""
    app = "tests.session_app:wsgi" if server_kind == "gunicorn" else "tests.session_app:asgi"
    with Limpet(app, "--workers", "1", "--by", "affinity", "--server", server_kind) as server:
        scale(server, 2)

        def stays() -> bool:
            first = server.request("/private")
            cookie = first.headers["set-cookie"].partition(";")[0]
            return bool(server.request("/private", cookie=cookie).json()["slot"] == first.json()["slot"])

        wait_until(stays, "the workers have heard of the new table")
        for _ in range(30):
            assert stays()
