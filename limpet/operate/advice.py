"""Warnings from a server's figures: signs of a setup that will not work well.

Owns the signs and their texts. Each sign is decided from what was counted in an interval, and has a hint that can be
pasted. Pure. operate/advising.py counts and logs.

1. A sign needs at least _ENOUGH connections or requests: a handful of clients is never evenly spread.
2. A sign says what was seen and what follows from it. It does not claim that the setup is wrong; the hint says where to
   look or what to change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_ENOUGH: Final = 1000  # connections or requests
_ONE_ADDRESS: Final = 0.97  # of the connections
_MANY_TIMES: Final = 4.0  # times the mean number of requests of the other slots
_NEARLY_FULL: Final = 0.8  # of the descriptors
_FAST_CLOCKS: Final = frozenset(
    {"", "tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "riscv_clocksource"}
)


class Sign(NamedTuple):
    """One warning. Warnings with the same *event* about the same thing are logged at most once an hour."""

    event: str
    text: str
    hint: str
    about: str = ""  # the element of the key chain that is meant, if there may be several


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What does not change while a server runs."""

    chain: Sequence[str]  # the elements of the key chain
    server: str = "uvicorn"
    moves: bool = True
    closes: bool = True  # whether it ends each connection with its response, if it cannot move connections
    has_dispatcher: bool = True
    descriptors: int = 1 << 20  # that a process may have
    clock: str = ""  # the clock source of the kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was counted in an interval, what there is now, and which elements have found a key since the start."""

    requests: Sequence[int] = ()  # of each slot
    received: Sequence[int] = ()
    handed: int = 0
    keyless: int = 0
    same_address: int = 0
    open: Mapping[int, int] = field(default_factory=dict)  # by slot: connections and copies of its worker
    routed: int = 0  # since the start: connections whose key was looked for
    found: frozenset[str] = frozenset()
    any_keyless: bool = False  # since the start


def signs(facts: Facts, seen: Seen) -> Iterator[Sign]:
    """Yield the warnings that are due."""
    crowd = list(_one_address(facts, seen))
    yield from crowd
    yield from _no_key(facts, seen)
    yield from () if crowd else _busy_slot(facts, seen)
    yield from _idle_elements(facts, seen)
    yield from _cannot_move(facts, seen)
    yield from _limits(facts, seen)


def _one_address(facts: Facts, seen: Seen) -> Iterator[Sign]:
    if not facts.chain[0].startswith("ip"):
        return
    if facts.has_dispatcher:  # if a share p has one address, two in a row have it in p * p of the cases
        count, share = seen.handed, (seen.same_address / max(1, seen.handed)) ** 0.5
        what = "came from 1 address"
    else:
        count, share = sum(seen.received), max(seen.received, default=0) / max(1, sum(seen.received))
        what = "went to 1 slot, most likely from 1 address"
        share = share if len(seen.received) > 1 else 0.0
    if count >= _ENOUGH and share >= _ONE_ADDRESS:
        yield Sign(
            "one_address",
            f"{share:.0%} of the last {count} connections {what}: behind a proxy `--by {facts.chain[0]}` sends "
            "everybody to one worker",
            "`--by forwarded --trust 10.0.0.0/8` uses the client address that the proxy passes on",
        )


def _no_key(facts: Facts, seen: Seen) -> Iterator[Sign]:
    if seen.handed >= _ENOUGH and seen.keyless > seen.handed / 2 and "affinity" not in facts.chain:
        chain = ",".join(facts.chain)
        yield Sign(
            "no_key",
            f"{seen.keyless / seen.handed:.0%} of the last {seen.handed} connections had no key for `{chain}`: their "
            "clients may get a different worker each time",
            f"`limpet explain` shows why for a request; `--by {chain},affinity` gives them a cookie from limpet",
        )


def key_is_set(facts: Facts) -> Sign:
    """Return the warning that the application sets the cookie by which its clients are routed."""
    cookies = ",".join(each for each in facts.chain if each.startswith("cookie:"))
    return Sign(
        "key_set",
        f"the application sets a cookie that is the key (`{cookies}`): a client that gets the cookie, or a new value, "
        "goes to another worker with its next request",
        f"`--learn {cookies}` keeps the client on the worker that made the cookie; `--by affinity` routes by a cookie "
        "from limpet",
    )


def _busy_slot(facts: Facts, seen: Seen) -> Iterator[Sign]:
    total, most = sum(seen.requests), max(seen.requests, default=0)
    if total < _ENOUGH or len(seen.requests) < 2:
        return
    others = (total - most) / (len(seen.requests) - 1)
    if most >= _MANY_TIMES * max(1.0, others):
        slot = list(seen.requests).index(most)
        times = f"{most / others:.0f} times" if others >= 1 else "far more than"
        yield Sign(
            "busy_slot",
            f"slot {slot} has served {most / total:.0%} of the last {total} requests, {times} the mean of the others: "
            "one of its keys probably has very many requests",
            f"`limpet status` shows the slots, `--access-log` the digest of each request's key; a key chain with more "
            f"different keys than `{','.join(facts.chain)}` spreads them",
        )


def _idle_elements(facts: Facts, seen: Seen) -> Iterator[Sign]:
    """Yield a sign for each element that never found a key. Only elements that were asked count.

    An element was asked if an element behind it found a key, or if no element did.
    """
    if seen.routed < _ENOUGH:
        return
    for number, element in enumerate(facts.chain):
        behind = facts.chain[number + 1 :]
        asked = seen.any_keyless or any(each in seen.found for each in behind)
        if asked and element not in seen.found:
            rest = ",".join(each for each in facts.chain if each != element)
            remedy = f"; to remove it: `--by {rest}`" if rest else ""
            yield Sign(
                "idle_element",
                f"`{element}` of the key chain has found no key in {seen.routed} connections",
                f"`limpet explain` shows for a request what the element looks for{remedy}",
                element,
            )


def _cannot_move(facts: Facts, seen: Seen) -> Iterator[Sign]:
    requests, received = sum(seen.requests), sum(seen.received)
    looks_into_requests = not all(element.startswith("ip") for element in facts.chain)
    if facts.moves or not facts.closes or not looks_into_requests or requests < _ENOUGH or received < 0.9 * requests:
        return
    yield Sign(
        "cannot_move",
        f"each of the last {requests} requests needed its own connection, because {facts.server} cannot move "
        "connections between workers",
        "`--server uvicorn` moves connections and keeps them open",
    )


def _limits(facts: Facts, seen: Seen) -> Iterator[Sign]:
    slot, most = max(seen.open.items(), key=lambda item: item[1], default=(0, 0))
    if most >= _NEARLY_FULL * facts.descriptors:
        yield Sign(
            "few_descriptors",
            f"worker {slot} has {most} connections and copies, and its limit is {facts.descriptors} descriptors",
            f"`ulimit -n {16 * facts.descriptors}` before the start; in a systemd unit "
            f"`LimitNOFILE={16 * facts.descriptors}`",
        )
    if facts.clock not in _FAST_CLOCKS:
        yield Sign(
            "slow_clock",
            f"the clock source of this machine is `{facts.clock}`, which costs each request microseconds",
            "`cat /sys/devices/system/clocksource/clocksource0/available_clocksource` shows the alternatives",
        )
