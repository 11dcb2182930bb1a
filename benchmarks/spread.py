"""How evenly clients lie, and how many move, on 1 to 1,000 machines of 64 workers: a simulation.

Machines are chosen as the fronts document it: nginx's `hash ... consistent` (160 points for each machine, by CRC-32),
HAProxy's `hash-type consistent` (16 points for each unit of weight), rendezvous hashing (Caddy, Traefik). Workers are
chosen by limpet's own code. No network, no process: the ways are computed.

    python benchmarks/spread.py > benchmarks/results/spread.json
"""

from __future__ import annotations

import bisect
import hashlib
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from limpet.fronts.haproxy import WEIGHT
from limpet.routing.buckets import table
from limpet.routing.hashing import Hasher

MACHINES = (1, 2, 3, 10, 100, 1000)
WORKERS = 64
CLIENTS = 30_000
PAIRS = 1_000_000  # of client and machine that are scored at most
SECRET = b"\x5a" * 32
ZIPF = 1.1  # the most active client sends 1/H of all requests, the k-th 1/k^1.1 of that

Choose = Callable[[str], int]


@cache
def score(text: str) -> int:
    """Return 32 bits of a hash that is as even as any."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


class Ring:
    """What takes the machine of the next point on the ring."""

    def __init__(self, points: Sequence[tuple[int, int]], place: Callable[[str], int]) -> None:
        self._ordered = sorted(points)
        self._at = [point for point, _ in self._ordered]
        self._place = place

    def __call__(self, client: str) -> int:
        return self._ordered[bisect.bisect_left(self._at, self._place(client)) % len(self._at)][1]

    def fullest(self) -> float:
        """Return how many times the mean of all machines the largest share of the ring is."""
        owned: Counter[int] = Counter()
        for (before, _), (point, machine) in zip([self._ordered[-1], *self._ordered], self._ordered, strict=False):
            owned[machine] += (point - before) % (1 << 32)
        return max(owned.values()) * len(owned) / (1 << 32) if len(owned) > 1 else 1.0


def nginx(machines: Sequence[int]) -> Choose:
    """Points are CRC-32 of the address and the point before."""
    points = []
    for machine in machines:
        host, port = f"10.{machine >> 16}.{machine >> 8 & 255}.{machine & 255}".encode(), b"8000"
        base, before = zlib.crc32(host + b"\0" + port), b"\0\0\0\0"
        for _ in range(160):
            point = zlib.crc32(before, base)
            before = point.to_bytes(4, "little")
            points.append((point, machine))
    return Ring(points, lambda client: zlib.crc32(client.encode()))


def haproxy(machines: Sequence[int], weight: int = WEIGHT) -> Choose:
    """16 points for each unit of weight, by the number of the server."""
    return Ring([(score(f"{m}/{n}"), m) for m in machines for n in range(16 * weight)], score)


def haproxy_weight_1(machines: Sequence[int]) -> Choose:
    """HAProxy's default weight."""
    return haproxy(machines, 1)


def rendezvous(machines: Sequence[int]) -> Choose:
    """Each pair of client and machine has a score; the highest wins."""
    seeds = [(machine, hashlib.blake2b(str(machine).encode(), digest_size=8)) for machine in machines]

    def choose(client: str) -> int:
        best, chosen = -1, -1
        for machine, seed in seeds:
            state = seed.copy()
            state.update(client.encode())
            found = int.from_bytes(state.digest(), "big")
            if found > best:
                best, chosen = found, machine
        return chosen

    return choose


FRONTS = {"nginx": nginx, "haproxy": haproxy, "haproxy, weight 1": haproxy_weight_1, "rendezvous": rendezvous}


def slots(clients: Sequence[str], workers: int) -> list[int]:
    """Return the slot of each client, by limpet's own hash and table."""
    hasher, owners = Hasher(SECRET), table(workers)
    return [owners[hasher.bucket(hasher.digest(client.encode(), False))] for client in clients]


def share(before: Sequence[object], after: Sequence[object]) -> float:
    """Return which part of the clients is elsewhere."""
    return round(sum(a != b for a, b in zip(before, after, strict=True)) / len(before), 5)


def fullest(homes: Sequence[object], places: int, weights: Sequence[float] | None = None) -> float:
    """Return how many times the mean the fullest place has."""
    load: Counter[object] = Counter()
    for home, weight in zip(homes, weights or [1.0] * len(homes), strict=True):
        load[home] += weight  # type: ignore[assignment]
    return round(max(load.values()) * places / sum(load.values()), 3)


def result(front: Callable[[Sequence[int]], Choose], number: int) -> dict[str, object]:
    """Return what is seen on *number* machines."""
    clients = [f"client-{n}" for n in range(min(CLIENTS, PAIRS // number) if front is rendezvous else CLIENTS)]
    machines = list(range(1, number + 1))
    choose, choose_of_more = front(machines), front([*machines, number + 1])
    at = [choose(client) for client in clients]
    slot = slots(clients, WORKERS)
    order = random.Random(1).sample(range(len(clients)), len(clients))
    weights = [0.0] * len(clients)
    for rank, client in enumerate(order, start=1):
        weights[client] = rank**-ZIPF
    more = [choose_of_more(client) for client in clients]
    found: dict[str, object] = {
        "clients": len(clients),
        "machine_added": {"moved": share(at, more), "least": round(1 / (number + 1), 5)},
        "moved_to_an_old_machine": sum(a != b and b != number + 1 for a, b in zip(at, more, strict=True)),
        "worker_added": {"moved": share(slot, slots(clients, WORKERS + 1)), "least": round(1 / (WORKERS + 1), 5)},
        "fullest_machine": round(choose.fullest(), 3) if isinstance(choose, Ring) else 1.0,  # of the ways there are
        "fullest_machine_of_these": fullest(at, number),
        "fullest_worker_of_a_machine": fullest(slot, WORKERS),
        "fullest_machine_skewed": fullest(at, number, weights),
        "busiest_client": round(max(weights) / sum(weights), 4),
    }
    if number > 1:
        lost = machines[number // 2]
        choose_of_fewer = front([m for m in machines if m != lost])
        less = [choose_of_fewer(client) for client in clients]
        was = [a == lost for a in at]
        found["machine_lost"] = {
            "moved": share(at, less),
            "its_share": round(sum(was) / len(at), 5),
            "moved_from_others": sum(a != b and not w for a, b, w in zip(at, less, was, strict=True)),
        }
    return found


def page(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the table in docs/scaling.md."""
    lines = [
        "| front | machines | added: moved | least possible | lost: moved | of others | fullest machine |",
        "|---|---|---|---|---|---|---|",
    ]
    for front, by_number in found.items():
        for number, seen in by_number.items():
            added, lost = seen["machine_added"], seen.get("machine_lost", {"moved": 1.0, "moved_from_others": 0})
            lines.append(
                f"| {front} | {number} | {added['moved']:.2%} | {added['least']:.2%} | {lost['moved']:.2%} | "
                f"{lost['moved_from_others']} | {seen['fullest_machine']:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    results = {name: {str(number): result(front, number) for number in MACHINES} for name, front in FRONTS.items()}
    print(json.dumps({"workers": WORKERS, "zipf": ZIPF, "results": results}, indent=1))
