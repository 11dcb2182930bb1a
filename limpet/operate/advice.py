"""What in the figures of a server tells that something is set up in a way that will not do.

Pure. Owns the signs and their words: each is a decision from what was counted in a while, with a hint that can be
pasted. operate/advising.py counts and logs.

1. A sign needs _ENOUGH of what it is about: a handful of clients is never even.
2. It says what was seen and what follows, not that it must be wrong: a hint is there to look or to change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_ENOUGH: Final = 1000  # connections or requests
_ONE_ADDRESS: Final = 0.97  # of the connections
_MANY_TIMES: Final = 4.0  # as many requests as the mean of the other slots
_NEARLY_FULL: Final = 0.8  # of the descriptors
_FAST_CLOCKS: Final = frozenset(
    {"", "tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "riscv_clocksource"}
)


class Sign(NamedTuple):
    """One warning. Of one *cause* there is one in an hour."""

    cause: str
    text: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What does not change while a server runs."""

    chain: Sequence[str]  # the elements
    server: str = "uvicorn"
    moves: bool = True
    closes: bool = True  # each connection with its response, where it cannot move them
    has_dispatcher: bool = True
    descriptors: int = 1 << 20  # that a process may have
    clock: str = ""  # what the kernel tells the time by


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was counted in a while; what there is now; and which elements have found a key since the start."""

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
    """Yield what is to be warned of."""
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
    if facts.has_dispatcher:  # a share p of all comes twice in a row in p * p of the cases
        count, share = seen.handed, (seen.same_address / max(1, seen.handed)) ** 0.5
        what = "came from 1 address"
    else:
        count, share = sum(seen.received), max(seen.received, default=0) / max(1, sum(seen.received))
        what = "came to 1 slot, most likely from 1 address"
        share = share if len(seen.received) > 1 else 0.0
    if count >= _ENOUGH and share >= _ONE_ADDRESS:
        yield Sign(
            "one address",
            f"{share:.0%} of the last {count} connections {what}: behind a proxy `--by {facts.chain[0]}` sends "
            "everybody to one worker",
            "`--by forwarded --trust 10.0.0.0/8` uses the client address that the proxy passes on",
        )


def _no_key(facts: Facts, seen: Seen) -> Iterator[Sign]:
    if seen.handed >= _ENOUGH and seen.keyless > seen.handed / 2 and "affinity" not in facts.chain:
        chain = ",".join(facts.chain)
        yield Sign(
            "no key",
            f"{seen.keyless / seen.handed:.0%} of the last {seen.handed} connections had no key by `{chain}`: each of "
            "their clients is placed anew every time",
            f"`limpet explain` shows why for a request; `--by {chain},affinity` gives them a cookie of limpet's",
        )


def key_is_set(facts: Facts) -> Sign:
    """Return the warning that the application sets the cookie by which its clients are routed."""
    cookies = ",".join(each for each in facts.chain if each.startswith("cookie:"))
    return Sign(
        "key set",
        f"the application sets a cookie that is the key (`{cookies}`): a client that gets one, or a new value, goes to "
        "another worker with its next request",
        f"`--learn {cookies}` keeps it where the cookie was made; `--by affinity` goes by a cookie of limpet's",
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
            "busy slot",
            f"slot {slot} has served {most / total:.0%} of the last {total} requests, {times} the mean of the others: "
            "a key of its clients carries very much",
            f"`limpet status` shows the slots, `--access-log` the digest of each request; a finer `--by` than "
            f"`{','.join(facts.chain)}` divides it",
        )


def _idle_elements(facts: Facts, seen: Seen) -> Iterator[Sign]:
    """Elements that were asked, since one behind them has found a key or nobody has, and have never found one."""
    if seen.routed < _ENOUGH:
        return
    for number, element in enumerate(facts.chain):
        behind = facts.chain[number + 1 :]
        asked = seen.any_keyless or any(each in seen.found for each in behind)
        if asked and element not in seen.found:
            rest = ",".join(each for each in facts.chain if each != element)
            remedy = f"; without it: `--by {rest}`" if rest else ""
            yield Sign(
                f"idle element {element}",
                f"`{element}` of the key chain has found no key in {seen.routed} connections",
                f"`limpet explain` shows for a request what it looks for{remedy}",
            )


def _cannot_move(facts: Facts, seen: Seen) -> Iterator[Sign]:
    requests, received = sum(seen.requests), sum(seen.received)
    looks_into_requests = not all(element.startswith("ip") for element in facts.chain)
    if facts.moves or not facts.closes or not looks_into_requests or requests < _ENOUGH or received < 0.9 * requests:
        return
    yield Sign(
        "cannot move",
        f"each of the last {requests} requests needed a connection of its own: {facts.server} cannot move connections "
        "between workers",
        "`--server uvicorn` moves them, and keeps them open",
    )


def _limits(facts: Facts, seen: Seen) -> Iterator[Sign]:
    slot, most = max(seen.open.items(), key=lambda item: item[1], default=(0, 0))
    if most >= _NEARLY_FULL * facts.descriptors:
        yield Sign(
            "descriptors",
            f"worker {slot} has {most} connections and copies, and may have {facts.descriptors} descriptors",
            f"`ulimit -n {16 * facts.descriptors}` before the start; in a unit of systemd "
            f"`LimitNOFILE={16 * facts.descriptors}`",
        )
    if facts.clock not in _FAST_CLOCKS:
        yield Sign(
            "clock",
            f"this machine tells the time by `{facts.clock}`, which costs each request microseconds",
            "`cat /sys/devices/system/clocksource/clocksource0/available_clocksource` shows what else there is",
        )
