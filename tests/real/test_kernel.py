"""The kernel backend: the kernel's answer is Python's, for every address, and nobody is turned away meanwhile.

The groups here are those of limpet/kernel.py, so a test can look at each listener; servers are real ones.
"""

from __future__ import annotations

import ipaddress
import os
import random
import select
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from limpet.config.bind import Bind
from limpet.config.router import build_router
from limpet.config.settings import Settings
from limpet.errors import BackendError, ListenError
from limpet.net import backend, reuseport_group
from limpet.net.accept_queue import backlog
from limpet.net.reuseport_group import Group
from limpet.protocol.request import Peer
from limpet.routing.buckets import BUCKETS, table
from limpet.routing.hashing import Hasher
from limpet.routing.key_chain import KeyChain, Trust
from limpet.routing.router import Router
from tests.crowd import freeze
from tests.harness import Limpet, limpet_command, wait_until
from tests.namespace import IPV6_FREEBIND, in_own_network
from tests.wire import Wire

WORKERS = 4
GET = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"
SECRET = bytes(range(32))


def loopback_address() -> str:
    """Return a random address of 127.0.0.0/8."""
    return str(ipaddress.IPv4Address(random.randrange(0x7F000001, 0x7FFFFFFF)))


def documentation_address() -> str:
    """Return a random address of 2001:db8::/32."""
    return str(ipaddress.IPv6Address(0x20010DB8 << 96 | random.getrandbits(96)))


def router(slots: int = WORKERS, chain: str = "ip") -> Router:
    """Return what routes by addresses."""
    return Router(KeyChain.parse(chain, Trust.parse("")), Hasher(SECRET), slots)


def slot_of(router: Router, source: str) -> int:
    """Return Python's answer."""
    route = router.route(Peer(address=source, port=1, listener="l"), None)
    assert route
    return route.slot


@contextmanager
def listening(router: Router, host: str = "127.0.0.1", slots: int = 0, size: int = 1024) -> Iterator[Group]:
    """Return a group that lets clients in."""
    text = f"[{host}]:0" if ":" in host else f"{host}:0"
    with closing(Group.open(Bind.parse(text), slots or router.slots, size)) as group:
        group.listen(backend.program(router, router.owners))
        yield group


def knock(group: Group, source: str) -> int:
    """Return which listener a connection from *source* comes to."""
    port = group.members[0].sock.getsockname()[1]
    with socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET) as client:
        client.settimeout(5)
        if ":" in source:
            client.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        client.bind((source, 0))
        client.connect(("::1" if ":" in source else "127.0.0.1", port))
        found = select.select([member.sock for member in group.members], [], [], 5)[0]
        [slot] = [slot for slot, member in enumerate(group.members) if member.sock in found]
        group.members[slot].sock.accept()[0].close()
        return slot


def compare(router: Router, host: str, addresses: Callable[[], str], count: int) -> None:
    """Compare Python's answer with the kernel's for *count* addresses, of which every slot gets some."""
    seen: Counter[int] = Counter()
    with listening(router, host) as group:
        for source in (addresses() for _ in range(count)):
            seen[slot_of(router, source)] += 1
            assert knock(group, source) == slot_of(router, source), source
    assert len(seen) == router.slots


# --- the group


@pytest.mark.parametrize(
    ("host", "slots", "chain"),
    [("127.0.0.1", 4, "ip"), ("127.0.0.1", 64, "ip"), ("0.0.0.0", 3, "ip/16"), ("::", 4, "ip"), ("::", 5, "ip/24/56")],
)
def test_kernel_and_python_agree_on_thousands_of_loopback_addresses(host: str, slots: int, chain: str) -> None:
    """`limpet where` is true for both backends; on a bind for IPv6 clients of IPv4 count by their IPv4 address."""
    compare(router(slots, chain), host, loopback_address, 2000)


@pytest.mark.parametrize(("slots", "chain"), [(4, "ip"), (5, "ip/32/48"), (4, "ip/32/128"), (3, "ip/32/40")])
def test_kernel_and_python_agree_on_thousands_of_ipv6_addresses(slots: int, chain: str) -> None:
    """Networks of any length: the words of an IPv6 address are hashed as in Python, and the rest is not."""
    in_own_network(compare, router(slots, chain), "::", documentation_address, 1000)


def test_kernel_and_python_agree_on_clients_behind_nat64() -> None:
    """The kernel finds the IPv4 address in 64:ff9b::/96 as Python does: one home on both backends."""

    def translated() -> str:
        return f"64:ff9b::{ipaddress.IPv4Address(random.getrandbits(32))}"

    in_own_network(compare, router(), "::", translated, 500)


def test_both_families_of_one_bind_agree_in_turn() -> None:
    """The program tells IPv4 from IPv6 for each packet."""

    def either() -> str:
        return random.choice((loopback_address, documentation_address))()

    in_own_network(compare, router(), "::", either, 1000)


def test_scaling_moves_the_share_of_the_new_slot_and_back() -> None:
    """Who scales from 4 to 5 slots moves a fifth of the buckets, all to the new slot; back at 4 all are home."""
    four, five = router(4), router(5)
    sources = [loopback_address() for _ in range(600)]
    with listening(four) as group:
        before = [knock(group, source) for source in sources]
        group.grow(5)
        assert [knock(group, source) for source in sources] == before  # the new one has no program that picks it
        group.place(backend.program(five, five.owners))
        after = [knock(group, source) for source in sources]
        group.place(backend.program(four, four.owners))
        assert [knock(group, source) for source in sources] == before
    assert after == [slot_of(five, source) for source in sources]
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {4}
    assert sum(old != new for old, new in zip(table(4), table(5), strict=True)) <= BUCKETS // 5


def test_nobody_is_placed_before_the_group_is_complete() -> None:
    """A client that knocks meanwhile is not refused and not misplaced: it knocks again, and comes to its slot."""
    python = router()
    source = next(source for source in iter(loopback_address, None) if slot_of(python, source) == 3)
    with closing(Group.open(Bind.parse("127.0.0.1:0"), WORKERS, 16)) as group, socket.socket() as client:
        first = group.members[0]
        reuseport_group.close_door(first.sock)
        first.listen()
        client.bind((source, 0))
        client.setblocking(False)
        client.connect_ex(first.sock.getsockname())
        assert select.select([client], [client], [], 0.1)[:2] == ([], [])
        first.close()
    with listening(python) as group:
        assert knock(group, source) == 3


def test_one_of_two_groups_that_start_at_once_is_told_that_the_address_is_taken() -> None:
    """Both have bound the port when they begin to listen; in one group they would share clients in silence."""
    with closing(Group.open(Bind.parse("127.0.0.1:0"), WORKERS, 16)) as one:
        address = one.members[0].address_text
        with closing(Group.open(Bind.parse(address), WORKERS, 16)) as other:
            one.listen(backend.program(router(), table(WORKERS)))
            with pytest.raises(ListenError, match="address already in use"):
                other.listen(backend.program(router(), table(WORKERS)))
            assert {knock(one, loopback_address()) for _ in range(100)} == set(range(WORKERS))


def test_program_of_the_same_user_that_forces_its_way_in_gets_nobody() -> None:
    """Only SO_REUSEPORT can do that; the program picks no listener that it does not know."""
    python = router()
    with listening(python) as group, socket.socket() as intruder:
        intruder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        intruder.bind(group.members[0].sock.getsockname())
        intruder.listen()
        for source in (loopback_address() for _ in range(200)):
            assert knock(group, source) == slot_of(python, source)
        assert backlog(intruder).waiting == 0


def test_closed_door_keeps_who_waits_and_lets_nobody_in() -> None:
    """A server that stops serves who is in its backlog; who comes later is not accepted by a socket nobody reads."""
    with listening(router(1)) as group:
        [member] = group.members
        with socket.create_connection(member.sock.getsockname()), socket.socket() as late:
            reuseport_group.close_door(member.sock)
            late.setblocking(False)
            late.connect_ex(member.sock.getsockname())
            assert select.select([late], [late], [], 0.1)[:2] == ([], [])
            assert backlog(member.sock)[:2] == (1, 1024)
            assert backlog(member.sock).dropped == 1


def test_largest_program_fits_where_the_kernel_still_has_its_old_limit() -> None:
    """Kernels of some distributions allow 20 KB for options of a socket; a program counts as one."""
    largest = router(256, "ip/31/127")

    def attach() -> None:
        reuseport_group.probe(backend.program(largest, largest.owners))

    in_own_network(attach, net_core_optmem_max=20480)


def test_trial_says_what_is_wrong() -> None:
    """Who asked for the kernel has to know what to change."""
    wanted = router()

    def refused() -> BackendError:
        with pytest.raises(BackendError) as caught:
            reuseport_group.probe(backend.program(wanted, wanted.owners))
        return caught.value

    small = in_own_network(refused, net_core_optmem_max=2048)
    assert "cannot allocate memory" in small.message
    assert "sysctl -w net.core.optmem_max=" in str(small.hint)
    assert "network is unreachable" in in_own_network(refused, loopback=False).message


# --- the choice


def chosen(**given: Any) -> tuple[str, str]:
    """Return which backend a server takes, and why."""
    settings = Settings(app="tests.apps:echo", **{"workers": WORKERS, "by": "ip", **given})
    return backend.choose(settings, build_router(settings, SECRET))


def test_auto_takes_the_kernel_for_addresses() -> None:
    """The limit of what is possible is the default where it can be had."""
    why = "the key chain is `ip/24`, and a trial showed that the kernel places connections"
    assert chosen(by="ip/24") == ("kernel", why)
    assert chosen(backend="dispatcher") == ("dispatcher", "chosen by `--backend dispatcher`")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            {"by": "cookie:user"},
            "the key chain `cookie:user` is not just `ip`, and the kernel sees only addresses",
        ),
        ({"by": "forwarded"}, "the key chain `forwarded` is not just `ip`, and the kernel sees only addresses"),
        (
            {"bind": ("unix:/run/x",)},
            "`--bind unix:/run/x` is not a TCP address, and the kernel backend needs one listener for",
        ),
        (
            {"bind": (":80", "fd:3")},
            "`--bind fd:3` is not a TCP address, and the kernel backend needs one listener for",
        ),
        ({"max_connections_per_worker": 9}, "`--max-connections-per-worker`: the kernel backend counts no connections"),
        ({"dispatchers": 2}, "`--dispatchers 2`: the kernel backend has no dispatchers"),
    ],
)
def test_what_the_kernel_cannot_do_goes_through_a_dispatcher_or_is_refused(given: dict[str, Any], why: str) -> None:
    """`auto` avoids the kernel and says why; who insists gets the reason as an error, and what to do."""
    name, reason = chosen(**given)
    assert (name, reason[: len(why)]) == ("dispatcher", why)
    with pytest.raises(BackendError) as caught:
        chosen(backend="kernel", **given)
    assert caught.value.message.startswith(f"the kernel backend is not available: {why}")
    assert "--backend dispatcher" in str(caught.value.hint)


def test_auto_takes_a_dispatcher_where_the_trial_fails() -> None:
    """A kernel that does not place connections must not be found out by clients."""
    name, why = in_own_network(chosen, net_core_optmem_max=2048)
    assert (name, why.partition(":")[0]) == ("dispatcher", "this system cannot place connections")


def test_kernel_that_cannot_be_had_ends_with_the_exit_code_of_backends(tmp_path: Path) -> None:
    """A service manager can tell a wrong backend from a broken application."""
    done = limpet_command(
        *("run", "tests.apps:echo", "--backend", "kernel", "--bind", f"unix:{tmp_path}/s"),
        *("--state-dir", str(tmp_path)),
    )
    assert done.returncode == 6
    assert "error: the kernel backend is not available: `--bind unix:" in done.stderr
    assert "\nhint: `--backend dispatcher`" in done.stderr


def test_check_shows_the_program_without_its_key() -> None:
    """What an operator prints and passes on must not tell how to choose a worker."""
    done = limpet_command("check", "tests.apps:echo", "--workers", "4", "--show-bpf")
    assert done.returncode == 0, done.stderr
    assert "\nbackend kernel: the key chain is `ip`, and a trial" in done.stdout
    assert done.stdout.count("<key>") == 4
    assert done.stdout.endswith("ret a\n; 672 instructions\n")


# --- the server


def serve(*args: str, app: str = "tests.apps:echo", **how: Any) -> Limpet:
    """Return a server on the kernel backend that has not been started."""
    return Limpet(app, "--workers", str(WORKERS), "--by", "ip", "--backend", "kernel", *args, **how)


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[Limpet]:
    with serve() as server:
        yield server


def address_in(server: Limpet, slot: int) -> str:
    """Return an address whose clients are served in *slot*."""
    addresses = [loopback_address() for _ in range(100)]
    places = server.where(*addresses)
    return next(address for address, place in zip(addresses, places, strict=True) if place["slot"] == slot)


def waiting(server: Limpet, source: str, count: int, stack: ExitStack) -> list[Wire]:
    """Return clients from *source* that have sent a request; close them at the end of *stack*."""
    address = ("127.0.0.1", server.port)
    return [stack.enter_context(Wire(address, source)).send(GET) for _ in range(count)]


def test_server_says_which_backend_it_took_and_why(server: Limpet) -> None:
    """An operator must not have to guess which way clients come."""
    assert server.log.count("backend kernel: the key chain is `ip`, and a trial showed") == 1
    status = server.status()
    assert (status["backend"], status["dispatchers"]) == ("kernel", [])


def test_every_client_is_served_where_limpet_says(server: Limpet) -> None:
    """New connections, distinct addresses, all workers: and the application sees the client's own address."""
    addresses = [loopback_address() for _ in range(200)]
    for address, place in zip(addresses, server.where(*addresses), strict=True):
        reply = server.request(source=address).json()
        assert (reply["slot"], reply["pid"], reply["client"][0]) == (place["slot"], place["pid"], address)
        assert place["home"] == place["slot"]
    assert {place["slot"] for place in server.where(*addresses)} == set(range(WORKERS))


def test_switching_the_backend_moves_nobody(server: Limpet) -> None:
    """One contract: the same secret, key and table, so the same home."""
    addresses = [loopback_address() for _ in range(100)]
    before = [server.request(source=address).json()["slot"] for address in addresses]
    with Limpet("tests.apps:echo", "--workers", str(WORKERS), "--by", "ip", "--backend", "dispatcher") as other:
        assert other.status()["backend"] == "dispatcher"
        assert [other.request(source=address).json()["slot"] for address in addresses] == before


def test_second_server_on_the_port_is_refused(server: Limpet, tmp_path: Path) -> None:
    """In one group with the first it would take its clients away in silence."""
    (tmp_path / "control").mkdir()
    for choice in ("kernel", "dispatcher"):
        arguments = ["run", "tests.apps:echo", "--by", "ip", "--backend", choice, "--state-dir", str(tmp_path)]
        done = limpet_command(*arguments, "--bind", f"127.0.0.1:{server.port}")
        assert (done.returncode, "address already in use" in done.stderr) == (3, True), done.stderr


def test_several_binds_have_one_home(tmp_path: Path) -> None:
    """A client's home is a matter of its address alone, whichever door it takes."""
    with serve("--bind", "[::]:0") as server:
        ports = [int(url.rpartition(":")[2]) for url in server.status()["binds"]]
        for address in (loopback_address() for _ in range(50)):
            slots = set()
            for port in ports:
                with Wire(("127.0.0.1", port), address) as wire:
                    slots.add(wire.send(GET).reply().json()["slot"])
            assert slots == {server.where(address)[0]["slot"]}


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_backlog_is_as_long_as_it_was_asked_for(loop: str) -> None:
    """asyncio listens again with 100; then a burst of a few hundred clients would wait for seconds."""
    with serve("--backlog", "300", "--loop", loop) as server:
        server.request()
        command = ["ss", "-Hltn", f"sport = :{server.port}"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert [line.split()[2] for line in lines] == ["300"] * WORKERS


def test_one_worker_needs_no_group() -> None:
    """The kernel knows no program for a single listener."""
    with Limpet("tests.apps:echo", "--workers", "1", "--by", "ip", "--backend", "kernel") as server:
        assert server.request(source=loopback_address()).json()["slot"] == 0


def test_status_shows_what_waits_in_the_kernel(server: Limpet) -> None:
    """A worker that hangs shows as a queue that grows, in its slot."""
    source, entry = address_in(server, 1), server.worker(1)
    os.kill(entry["pid"], signal.SIGSTOP)
    with ExitStack() as stack:
        clients = waiting(server, source, 5, stack)
        assert [slot["queued"] for slot in server.status()["slots"]] == [0, 5, 0, 0]
        os.kill(entry["pid"], signal.SIGCONT)
        assert {client.reply().json()["pid"] for client in clients} == {entry["pid"]}
        assert server.worker(1)["queued"] == 0


def test_what_waits_in_the_backlog_of_a_killed_worker_is_served_by_the_next(server: Limpet) -> None:
    """The listener is the supervisor's: no client sees more of a crash than a delay."""
    source, entry = address_in(server, 2), server.worker(2)
    os.kill(entry["pid"], signal.SIGSTOP)
    with ExitStack() as stack:
        clients = waiting(server, source, 20, stack)
        os.kill(entry["pid"], signal.SIGKILL)
        places = {(reply["slot"], reply["pid"]) for reply in (client.reply().json() for client in clients)}
        assert places == {(2, server.wait_ready(2, other_than=entry["pid"])["pid"])}


def test_signal_to_all_processes_at_once_serves_who_waits_in_the_listeners() -> None:
    """systemd signals the whole control group: a worker drains before it is told that it is last."""
    with serve() as server, ExitStack() as stack:
        pids = [entry["pid"] for entry in server.status()["slots"]]
        for pid in pids:
            freeze(pid)
        clients = waiting(server, "127.0.0.1", 10, stack) + waiting(server, address_in(server, 1), 10, stack)
        for pid in [*pids, server.pid]:
            os.kill(pid, signal.SIGTERM)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert [client.reply().status for client in clients] == [200] * 20
        assert server.wait_ended() == 0


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_worker_without_free_descriptors_leaves_clients_in_the_queue(loop: str) -> None:
    """libuv would close them, which nobody would see but the clients."""
    with serve("--loop", loop, descriptors=(600, 600)) as server, ExitStack() as stack:  # the loop accepts some 60
        source = address_in(server, 1)
        clients = [stack.enter_context(Wire(("127.0.0.1", server.port), source)) for _ in range(700)]
        wait_until(lambda: "too many open files" in server.log.lower(), "it is full")
        assert server.worker(1)["queued"] > 0
        assert select.select([client.sock for client in clients], [], [], 0)[0] == []
        for client in clients[:300]:
            client.close()
        assert {client.send(GET).reply().status for client in clients[300:]} == {200}
        assert server.log.count("cannot take connections") == (loop == "uvloop")  # asyncio has words of its own


@pytest.mark.parametrize("way", ["kernel", "dispatcher"])
def test_full_backlog_is_counted_and_warned_of_once(way: str) -> None:
    """The kernel drops without a word; clients only seem slow, and repeat themselves."""
    arguments = ["--workers", str(WORKERS), "--by", "ip", "--backend", way, "--backlog", "4"]
    with Limpet("tests.apps:echo", *arguments) as server, ExitStack() as stack:
        source = address_in(server, 0)
        pid = server.worker(0)["pid"] if way == "kernel" else server.dispatcher()
        os.kill(pid, signal.SIGSTOP)
        waiting(server, source, 5, stack)  # the kernel takes one more than it was told
        for _ in range(3):
            late = stack.enter_context(socket.socket())
            late.setblocking(False)
            late.bind((source, 0))
            late.connect_ex(("127.0.0.1", server.port))
        wait_until(lambda: server.totals()["backlog_drops"] >= 6, "repeated attempts are counted, too")
        os.kill(pid, signal.SIGCONT)
        assert server.log.count("because the backlog of 4 was full (hint: `--backlog 8`") == 1
        where = f"slot 0 at {server.url}" if way == "kernel" else server.url
        assert f"WARNING {where}: " in server.log


def test_nobody_is_accepted_before_the_application_has_started(tmp_path: Path) -> None:
    """A worker that is not ready would answer with errors, or not at all."""
    gate = tmp_path / "gate"
    gate.touch()
    with serve(app="tests.apps:gated_start", env={"TEST_GATE": str(gate)}) as server, ExitStack() as stack:
        source = address_in(server, 3)
        gate.unlink()
        server.kill_worker(3, wait_for_next=False)
        clients = waiting(server, source, 3, stack)
        wait_until(lambda: server.worker(3)["state"] == "starting", "a new worker has been started")
        assert server.worker(3)["queued"] == 3
        gate.touch()
        assert {client.reply().status for client in clients} == {200}


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_worker_that_drains_leaves_the_rest_to_its_successor(tmp_path: Path, loop: str) -> None:
    """It finishes what it has; the listener that it leaves is not shut down but waits for the next."""
    gate = tmp_path / "gate"
    served = serve("--loop", loop, app="tests.apps:gated_next", env={"TEST_GATE": str(gate)})
    with served as server, ExitStack() as stack:
        source, entry = address_in(server, 1), server.worker(1)
        [busy] = waiting(server, source, 1, stack)
        assert busy.head()[0] == 200
        os.kill(entry["pid"], signal.SIGTERM)
        wait_until(lambda: not listens(entry["pid"], server.port), "the worker has left its listener")
        late = waiting(server, source, 5, stack)
        assert server.worker(1)["queued"] == 5
        gate.touch()
        assert {client.reply().json()["pid"] for client in late} == {server.wait_ready(1, entry["pid"])["pid"]}


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_stop_serves_what_is_in_the_backlog_first(loop: str) -> None:
    """Who was let in is served or answered, also by a server that ends."""
    with serve("--loop", loop) as server, ExitStack() as stack:
        source, entry = address_in(server, 0), server.worker(0)
        os.kill(entry["pid"], signal.SIGSTOP)
        clients = waiting(server, source, 10, stack)
        server.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in server.log, "it stops")
        os.kill(entry["pid"], signal.SIGCONT)
        assert [client.reply().status for client in clients] == [200] * 10
        assert server.wait_ended() == 0


def test_orphans_leave_their_listeners_first(tmp_path: Path) -> None:
    """After a crash of the supervisor the next server must find the port free, whatever the old workers still do."""
    gate = tmp_path / "gate"
    server = serve(app="tests.apps:gated", env={"TEST_GATE": str(gate)})
    with server, ExitStack() as stack:
        [busy] = waiting(server, address_in(server, 0), 1, stack)
        assert busy.head()[0] == 200
        port = server.port
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.running, "the supervisor has ended")
        wait_until(lambda: not any(listens(pid, port) for pid in server.processes()), "the listeners are left")
        with serve(bind=f"127.0.0.1:{port}") as successor:
            assert successor.request().status == 200
        gate.touch()
        assert busy.chunk()
        assert busy.chunk() == b""


@pytest.mark.parametrize("way", ["kernel", "dispatcher"])
def test_failover_goes_to_the_next_in_rank_and_comes_home(tmp_path: Path, way: str) -> None:
    """Who would rather start anew elsewhere than wait; `limpet where` follows, and everybody comes home in the end."""
    gate = tmp_path / "gate"
    gate.touch()
    arguments = ["--workers", str(WORKERS), "--by", "ip", "--backend", way, "--on-down", "failover"]
    with Limpet("tests.apps:gated_start", *arguments, env={"TEST_GATE": str(gate)}) as server:
        addresses = [loopback_address() for _ in range(60)]
        before = server.where(*addresses)
        gate.unlink()
        server.kill_worker(3, wait_for_next=False)
        wait_until(lambda: all(place["slot"] != 3 for place in server.where(*addresses)), "clients have another slot")
        for address, old, new in zip(addresses, before, server.where(*addresses), strict=True):
            assert new["home"] == old["slot"]
            assert (new["slot"] == old["slot"]) == (old["slot"] != 3)
            assert server.request(source=address).json()["slot"] == new["slot"]
        gate.touch()
        server.wait_ready(3)
        assert [server.request(source=address).json()["slot"] for address in addresses] == [
            place["slot"] for place in before
        ]


def test_ipv6_clients_are_served_where_limpet_says() -> None:
    """The whole way with a real server: two hosts of one /64 are one client, of two networks they are two."""

    def ask() -> None:
        with serve(bind="[::]:0") as server:
            addresses = [documentation_address() for _ in range(60)]
            for address, place in zip(addresses, server.where(*addresses), strict=True):
                neighbour = str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(address)) ^ 0xFFFF))
                for source in (address, neighbour):
                    assert served_in(server.port, source) == place["slot"]
            assert {place["slot"] for place in server.where(*addresses)} == set(range(WORKERS))

    in_own_network(ask)


def served_in(port: int, source: str) -> int:
    """Return the slot that serves a client at the IPv6 address *source*."""
    with socket.socket(socket.AF_INET6) as client:
        client.settimeout(10)
        client.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        client.bind((source, 0))
        client.connect(("::1", port))
        client.sendall(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        reply = client.makefile("rb").read()
    return int(reply.partition(b'"slot": ')[2].partition(b",")[0])


def listens(pid: int, port: int) -> bool:
    """Return whether the process *pid* has a listener on *port* open."""
    command = ["ss", "-Hltnp", f"sport = :{port}"]
    return f"pid={pid}," in subprocess.run(command, capture_output=True, text=True, check=True).stdout
