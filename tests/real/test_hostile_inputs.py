"""docs/hostile-inputs.md says what limpet answers to bytes that are meant to be misunderstood."""

from __future__ import annotations

import json

import pytest

from tests.hostile import COSTS, INPUTS, LIMPET, PAGE, RESULTS, UVICORN, of_limpet, page

KNOWN = json.loads(RESULTS.read_text())


@pytest.mark.parametrize("backend", LIMPET)
def test_limpet_answers_as_documented(backend: str) -> None:
    """Two readers of one stream that disagree are a way in, so a change of an answer has to be somebody's decision."""
    seen = of_limpet(backend)
    assert seen == {column: KNOWN["answers"][column] for column in LIMPET[backend]}


def test_nobody_takes_what_is_behind_a_request_for_another_one() -> None:
    """That is what smuggling needs. Each input that carries `/other` is one that could be taken for two requests."""
    for column in ("limpet", "a later request", "limpet, kernel backend", "a later request there"):
        assert [name for name in INPUTS if "/other" in KNOWN["answers"][column][name]] == []


def test_whatever_the_dispatcher_lets_pass_the_worker_answers_alike() -> None:
    """The first request of a connection and a later one must mean the same."""
    first, later = LIMPET["dispatcher"]
    for name in INPUTS:
        if KNOWN["answers"][first][name].startswith("200"):
            assert KNOWN["answers"][later][name] == KNOWN["answers"][first][name]


def test_page_is_what_was_measured() -> None:
    """`make hostile` writes it."""
    assert PAGE.read_text().partition(COSTS)[0] == page(KNOWN["answers"], KNOWN["uvicorn"])
    assert list(KNOWN["answers"]) == [*LIMPET["dispatcher"], *LIMPET["kernel"], UVICORN]
