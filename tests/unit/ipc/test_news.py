"""What a child may say, and what becomes of everything else: it runs the user's code, so it may say anything."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet.fleet.lifecycle import Event
from limpet.ipc.control_link import Link
from limpet.ipc.news import BadNewsError, Failed, Leaving, Left, Missing, News, Ready, Stop, message, parse
from limpet.ipc.orders import Certificate
from limpet.supervisor.lines import Lines
from tests.unit.stage import Stage

SAID: list[News] = [Ready(), Left(), Leaving(), Missing(3), Stop(False), Failed("no", "hint", 3, "a\nb")]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(["ready", "left", "leaving", "missing", "stop", "failed", "else"])
FIELDS = st.sampled_from(["stack", "slot", "wait_for_connections", "message", "hint", "code", "detail"])


def outcome(line: bytes) -> News | BadNewsError:
    """Return what *line* says, or what is wrong with it."""
    try:
        return parse(line)
    except BadNewsError as error:
        return error


@pytest.mark.parametrize("said", SAID, ids=repr)
def test_news_arrive_as_they_were_sent(said: News) -> None:
    """Both ends are made from one table."""
    assert parse(json.dumps(message(said)).encode()) == said


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"",
        b"{}",
        b"[1]",
        b"null",
        b"[" * 100_000,
        b'{"news": ["ready"]}',
        b'{"news": "missing"}',
        b'{"news": "missing", "slot": true}',
        b'{"news": "stop"}',
        b'{"news": "failed"}',
        b'{"news": "failed", "message": "no", "hint": null, "code": 1}',
        b'{"news": "failed", "message": 1, "hint": null, "code": 1, "detail": ""}',
        b"\xff\xfe",
    ],
    ids=range(14),
)
def test_whatever_else_a_child_says_is_refused_in_words(line: bytes) -> None:
    """An exception of another kind would end the supervisor, and with it every worker."""
    with pytest.raises(BadNewsError):
        parse(line)


@given(st.binary(max_size=60) | JSON.map(lambda found: json.dumps(found).encode()))
def test_any_line_is_news_or_bad_news(line: bytes) -> None:
    """There is no third outcome."""
    assert str(outcome(line)).isprintable()


@given(NAMES, st.dictionaries(FIELDS, JSON, max_size=5))
def test_any_fields_are_news_or_bad_news(name: str, fields: dict[str, object]) -> None:
    """Fields of the wrong type are the likelier mistake."""
    assert str(outcome(json.dumps({"news": name, **fields}).encode())).isprintable()


def test_text_of_a_child_cannot_command_a_terminal() -> None:
    """The message of a failure is logged, and shown by `limpet status`."""
    said = json.dumps({"news": "failed", "message": "a\x1b[2J\nb", "hint": "\x9b1m", "code": 1, "detail": "x\n\x07y"})
    failed = parse(said.encode())
    assert failed == Failed("a\\x1b[2J\\nb", "\\x9b1m", 1, "x\n\\x07y")


class Heard:
    """A stage with one worker whose line is heard, and who was refused."""

    def __init__(self, stage: Stage) -> None:
        self.news: list[News] = []
        self.refused: list[str] = []
        self.slot = stage.fleet.slots[0]
        assert self.slot.child is not None
        self.child = self.slot.child
        self.far_end = stage.resources._far_ends[self.child.pid]
        self.lines = Lines(
            stage.lines._selector,
            lambda member, child, news: self.news.append(news),
            lambda member, child, why: self.refused.append(why),
            stage.clock,
        )

    def say(self, data: bytes) -> None:
        """Have the worker say *data*, as much as fits, and be heard once."""
        self.far_end.send(data)
        self.lines.hear(self.slot, self.child)


def test_child_that_says_something_odd_is_refused_and_not_heard_any_more() -> None:
    """What follows on the line may be anything."""
    with Stage().start() as stage:
        heard = Heard(stage)
        heard.say(b'{"news": "left"}\n{"news": 1}\n{"news": "left"}\n')
        assert heard.news == [Left()]
        assert heard.refused == ['said something unknown: `{"news": 1}`']
        assert heard.child.link.closed


def test_child_that_floods_its_line_is_refused_within_a_turn() -> None:
    """Reading it to its end would keep the supervisor from everything else."""
    with Stage().start() as stage:
        heard = Heard(stage)
        heard.say(b'{"news": "left"}\n' * 2000)
        assert len(heard.news) <= 1024
        assert len(heard.refused) == 1


def test_child_may_ask_for_all_channels_every_half_second() -> None:
    """That is what one does that has no free descriptors, and it must not be punished for it."""
    with Stage().start() as stage:
        heard = Heard(stage)
        for _ in range(8):
            heard.say(b"".join(b'{"news": "missing", "slot": %d}\n' % slot for slot in range(256)))
            stage.clock.now += 0.5
        assert heard.refused == []
        assert len(heard.news) == 8 * 256


def test_message_without_an_end_is_refused_before_it_fills_memory() -> None:
    """The rest of a message is kept until it comes."""
    with Stage().start() as stage:
        heard = Heard(stage)
        heard.far_end.setblocking(False)
        while not heard.refused:
            heard.say(b"x" * 30_000)
        assert len(heard.child.link.unread) < 300_000


def test_turn_reads_a_bounded_amount_of_a_line() -> None:
    """A child that writes as fast as it is read would keep the supervisor in one turn for ever."""
    ours, theirs = Link.pair()
    with theirs:
        theirs.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += theirs.send(b"x" * 1023 + b"\n")
        bound = sent // 4
        first = sum(len(line) + 1 for line in ours.receive_lines(bound))
        assert first < sent
        taken = first
        while taken + len(ours.unread) < sent:
            taken += sum(len(line) + 1 for line in ours.receive_lines(bound))
    ours.close()


def test_child_that_asks_and_does_not_read_is_refused_before_its_answers_fill_memory() -> None:
    """An answer that finds no room waits in the supervisor."""
    with Stage().start() as stage:
        heard = Heard(stage)
        heard.lines = Lines(
            stage.lines._selector,
            lambda member, child, news: child.tell(Certificate("x" * 1000)),
            lambda member, child, why: heard.refused.append(why),
            stage.clock,
        )
        most = 0
        for _ in range(100):
            heard.say(b'{"news": "missing", "slot": 0}\n' * 500)
            most = max(most, len(heard.child.link.unsent))
            if heard.refused:
                break
            stage.clock.now += 1
        assert heard.refused == ["said more than can be answered, because it does not read the answers"]
        assert most < 5000


def test_second_process_that_is_ready_in_one_member_changes_nothing() -> None:
    """The lifecycle knows one READY for each process; a predecessor's means nothing."""
    with Stage().start() as stage:
        slot = stage.fleet.slots[0]
        old = slot.child
        assert old is not None
        stage.processes.apply(slot, Event.RENEW)
        stage.ready(slot)
        assert slot.announced(old) is None
