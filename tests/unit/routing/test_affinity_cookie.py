"""Limpet's own cookie: it brings its client home, and nothing that a client makes up brings it anywhere."""

from __future__ import annotations

import base64
import os
import secrets
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.errors import SettingsError
from limpet.protocol.request import Peer, Request
from limpet.routing.affinity_cookie import DEFAULT, MAX_AGE_S, TRIED, Attributes, Jar, Opened
from limpet.routing.hashing import Hasher
from limpet.routing.key_chain import KeyChain, Trust
from limpet.routing.router import Router

SECRET, OLD, FOREIGN = b"new" * 8, b"old" * 8, b"else" * 8
PEER = Peer("192.0.2.1", 4711, "127.0.0.1:8000")
SLOTS = 4


class Clock:
    """A clock that the test sets."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def jar(*lines: bytes, cluster: str = "app", text: str = DEFAULT, clock: Clock | None = None) -> Jar:
    return Jar(lines or (SECRET,), cluster, Attributes.parse(text), clock or Clock())


def minted(made_by: Jar, slot: int = 0, slots: int = SLOTS) -> str:
    return made_by.mint(lives_at(slot, slots), secrets.token_bytes)[0]


def lives_at(slot: int, slots: int = SLOTS):  # type: ignore[no-untyped-def]
    return Router(KeyChain.parse("affinity", Trust.parse("")), Hasher(SECRET), slots).lives_at(slot)


def request(*values: str | bytes, name: str | None = None, before: bytes = b"") -> Request:
    pairs = [b"%b=%b" % ((name or jar().name).encode(), v.encode() if isinstance(v, str) else v) for v in values]
    return Request("GET", "/", PEER, [(b"cookie", before + b"; ".join([b"a=1", *pairs, b"z=2"]))])


VALID = minted(jar())


@pytest.mark.parametrize("slots", [1, 2, 4, 37, 256])
def test_cookie_brings_its_client_to_the_slot_that_minted_it(slots: int) -> None:
    """The router hashes no cookie again: the worker that mints and the dispatcher that reads must agree."""
    cookies = jar()
    router = Router(KeyChain.parse("affinity,ip", Trust.parse(""), jar=cookies), Hasher(b"other"), slots)
    for slot in {0, slots // 2, slots - 1}:
        route = router.route(PEER, request(minted(cookies, slot, slots)))
        assert route is not None
        assert (route.slot, route.home) == (slot, slot)


@given(st.integers(0, len(VALID) - 1), st.sampled_from(string.printable))
def test_changed_character_makes_it_none(position: int, character: str) -> None:
    """Whoever could change one without losing the proof could try cookies until one lives where he likes."""
    changed = VALID[:position] + character + VALID[position + 1 :]
    assert (jar().open(changed.encode()) is not None) == (changed == VALID)


@given(st.binary(max_size=60))
def test_bytes_made_up_are_none(value: bytes) -> None:
    """Nothing that a client sends raises, and nothing passes for a cookie."""
    assert jar().open(value) is None


@given(
    st.one_of(
        st.builds(lambda cut: VALID[:cut], st.integers(0, len(VALID) - 1)),
        st.builds(lambda at, extra: VALID[:at] + extra + VALID[at:], st.integers(0, 36), st.text(min_size=1)),
        st.builds(lambda times: VALID * times, st.integers(2, 3)),
        st.just(VALID.swapcase()),
        st.just(VALID + "="),
        st.just(f'"{VALID}"'),
    )
)
def test_cut_stretched_and_quoted_are_none(value: str) -> None:
    """Each cookie has one spelling: base64 as such has many, which all would be the same client."""
    assert jar().open(value.encode("utf-8", "replace")) is None


def test_other_spelling_of_the_same_bytes_is_none() -> None:
    """Python reads `+` for `-` and `/` for `_`: such a client would have two cookies for one."""
    value = next(value for value in iter(lambda: minted(jar()), "") if "-" in value and "_" in value)
    assert jar().open(value.encode()) is not None
    assert jar().open(value.replace("-", "+").encode()) is None
    assert jar().open(value.replace("_", "/").encode()) is None


def test_ten_thousand_random_ones_go_by_the_rest_of_the_chain() -> None:
    """A client that guesses gains nothing: it is where it would be without a cookie."""
    cookies = jar()
    router = Router(KeyChain.parse("affinity,ip", Trust.parse(""), jar=cookies), Hasher(SECRET), SLOTS)
    wanted = router.route(PEER, request())
    assert wanted is not None
    for _ in range(10_000):
        guess = secrets.token_urlsafe(27)
        assert len(guess) == len(VALID)
        assert router.route(PEER, request(guess)) == wanted


@given(st.binary(min_size=16, max_size=64), st.text(string.ascii_letters, min_size=1, max_size=20))
def test_cookie_of_another_cluster_is_none(secret: bytes, cluster: str) -> None:
    """Two servers of one host see each other's cookies; a name of its own keeps them, the proof tells them apart."""
    other = Jar((secret,), cluster, Attributes(), Clock())
    if (secret, cluster) != (SECRET, "app"):
        assert jar().open(minted(other).encode()) is None
        assert other.name != jar().name
        assert jar().find(request(minted(other), name=other.name)) is None


def test_first_proven_value_counts_whatever_stands_beside_it() -> None:
    """A cookie of another path, a stale one or junk must not make its client a new one with each request."""
    cookies, other = jar(), minted(jar())
    wanted = cookies.find(request(VALID))
    assert wanted is not None
    junk = "x" * len(VALID)
    for values in ([VALID, "x"], ["x", VALID], [junk, VALID], [VALID, junk], [VALID, other], [VALID, VALID]):
        assert cookies.find(request(*values)) == wanted
        assert cookies.is_good([value for _, value in request(*values).raw_headers])
    assert cookies.find(request(other, VALID)) == cookies.find(request(other))


def test_value_that_is_too_old_gives_way_to_the_next() -> None:
    """A browser sends the cookie of an old path first, for as long as it keeps it."""
    clock = Clock()
    cookies = jar(text="Max-Age=60", clock=clock)
    stale = minted(cookies)
    clock.now += 61
    fresh = minted(cookies)
    assert cookies.find(request(fresh)) is not None
    assert cookies.find(request(stale, fresh)) == cookies.find(request(fresh))


def test_quoted_cookie_is_the_same_cookie() -> None:
    """Some clients write `name="value"`, and `cookie:` has always read both as one value."""
    assert jar().find(request(VALID)) is not None
    assert jar().find(request(f'"{VALID}"')) == jar().find(request(VALID))


def test_values_that_are_tried_are_few() -> None:
    """A head full of forgeries must not cost the dispatcher a hash for each."""
    junk = [f"{number:0{len(VALID)}}" for number in range(TRIED)]
    assert jar().find(request(*junk, VALID)) is None
    assert jar().find(request(*junk[1:], VALID)) is not None


def test_lookalike_names_are_not_it() -> None:
    """`xlimpet_1` and `limpet_1x` are cookies of somebody else."""
    name = jar().name
    for lookalike in (f"x{name}", f"{name}x", name.upper(), name.split("_")[0]):
        assert jar().find(request(VALID, name=lookalike)) is None
    assert jar().find(request(VALID, before=f"x{name}=forged; ".encode())) is not None


def test_client_cannot_tell_which_of_its_cookies_live_together() -> None:
    """Else it could collect a thousand and send them all to one worker: what is shown must not give the slot away."""
    cookies, lives_in_first = jar(), lives_at(0, 2)
    homes = [slot for slot in range(2) for _ in range(400)]
    shown = [base64.urlsafe_b64decode(minted(cookies, slot, 2)) for slot in homes]
    for start in range(len(shown[0]) - 7):
        for order in ("big", "little"):
            guessed = [lives_in_first(int.from_bytes(raw[start : start + 8], order)) for raw in shown]
            right = sum(guess == (slot == 0) for guess, slot in zip(guessed, homes, strict=True))
            assert 0.35 < right / len(homes) < 0.65  # 8 standard deviations


def test_changed_secret_moves_nobody_and_is_renewed_in_the_same_slot() -> None:
    """A new first line is how a secret is changed: those with old cookies stay where they are."""
    before, after, without = jar(OLD), jar(SECRET, OLD), jar(SECRET)
    value = minted(before, 2)
    old = after.find(request(value, name=before.name))
    assert old is not None
    assert before.open(value.encode()) == old._replace(is_current=True)
    assert after.is_due(old)
    renewed, _ = after.mint(lives_at(2), secrets.token_bytes, old)
    assert without.find(request(renewed, name=without.name)) is not None
    assert without.find(request(value, name=before.name)) is None


def test_new_cookie_counts_before_the_old_one() -> None:
    """After a change of the secret a browser has both for a while."""
    before, after = jar(OLD), jar(SECRET, OLD)
    old, new = minted(before), minted(after)
    header = f"{before.name}={old}; {after.name}={new}".encode()
    assert after.find(Request("GET", "/", PEER, [(b"cookie", header)])) == after.open(new.encode())


def test_cookie_ends_with_its_age_however_often_it_is_used() -> None:
    """Max-Age is said to the browser and held against the cookie: a client may keep it for longer."""
    clock = Clock()
    cookies = jar(text="Max-Age=100; Max-Idle=50", clock=clock)
    value, born = cookies.mint(lives_at(0), secrets.token_bytes)
    for _ in range(2):
        clock.now += 40
        opened = cookies.open(value.encode())
        assert opened is not None
        assert cookies.is_due(opened)
        value, born = cookies.mint(lives_at(0), secrets.token_bytes, opened)
    assert "Max-Age=20" in cookies.header(value, born, is_https=False)
    clock.now += 21
    assert cookies.open(value.encode()) is None


def test_cookie_that_was_not_used_ends() -> None:
    """Max-Idle ends the session of who has left, and is not noted on every response."""
    clock = Clock()
    cookies = jar(text="Max-Idle=60", clock=clock)
    value = minted(cookies)
    clock.now += 10
    opened = cookies.open(value.encode())
    assert opened is not None
    assert not cookies.is_due(opened)
    clock.now += 51
    assert cookies.open(value.encode()) is None


@pytest.mark.parametrize(
    ("text", "is_https", "wanted"),
    [
        ("", False, "Path=/; SameSite=Lax; HttpOnly"),
        ("", True, "Path=/; SameSite=Lax; HttpOnly; Secure"),
        ("secure=no", True, "Path=/; SameSite=Lax; HttpOnly"),
        ("SameSite=None; Secure; Partitioned", False, "Path=/; SameSite=None; HttpOnly; Secure; Partitioned"),
        ("samesite=STRICT; HttpOnly=no; Path=/a/b", False, "Path=/a/b; SameSite=Strict"),
        ("Domain=example.com", False, "Path=/; SameSite=Lax; Domain=example.com; HttpOnly"),
        ("Max-Age=60", False, "Path=/; SameSite=Lax; Max-Age=60; HttpOnly"),
    ],
)
def test_attributes_are_set_as_asked_for(text: str, is_https: bool, wanted: str) -> None:
    """A page in a frame of another site needs SameSite=None, Secure and Partitioned, or its browser keeps no cookie."""
    cookies = jar(text=text)
    assert cookies.header("v", int(Clock.now), is_https=is_https) == f"{cookies.name}=v; {wanted}"


@pytest.mark.parametrize(
    "text",
    [
        *("SameSite=None", "Partitioned", "SameSite=loose", "Max-Age=x", f"Max-Age={MAX_AGE_S + 1}", "Max-Age=-1"),
        *("Path=a", "Path=/;a b", "Domain=a b", "Expires=tomorrow", "Secure=perhaps", "Path=/\r\nX: y"),
    ],
)
def test_attributes_that_no_browser_takes_are_refused_at_the_start(text: str) -> None:
    """A cookie that browsers drop in silence makes every client a new one each time."""
    with pytest.raises(SettingsError) as caught:
        Attributes.parse(text)
    assert caught.value.hint


def test_value_is_pinned() -> None:
    """The layout is wire format: browsers hold cookies that an older version has made."""
    value, _ = jar().mint(lambda _: True, lambda size: bytes(range(size)))
    assert (jar().name, value) == PINNED
    assert jar().open(value.encode()) == Opened(PINNED_DIGEST, int(Clock.now), int(Clock.now), is_current=True)


PINNED = ("limpet_24af75cf", "AAECAwQFBmtJ0gBrSdIAUunDr8btjiFtICVo")
PINNED_DIGEST = 0x7A083E5F5136A37A


def test_random_bytes_come_from_the_system() -> None:
    """The default of the worker: two cookies of one second differ."""
    assert len({jar().mint(lambda _: True, os.urandom)[0] for _ in range(100)}) == 100


def test_large_forgeries_are_not_remembered() -> None:
    """What a dispatcher keeps of cookies is bounded in bytes, not only in number."""
    cookies = jar()
    assert cookies.find(request("x" * 60_000)) is None
    assert cookies._open.cache_info().currsize == 0
    assert cookies.find(request(minted(cookies))) is not None
    assert cookies._open.cache_info().currsize == 1
