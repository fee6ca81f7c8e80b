"""Ends of rows: stop strings, end ids, time, and the user's criteria."""

from __future__ import annotations

import pytest
import torch

from tests.toy import Letters
from tests.unit.test_stream import byte_level
from vitrail.errors import InputError
from vitrail.generate.sampling import SamplingParameters, SamplingState
from vitrail.generate.stopping import Stopper, StopStrings, common_length


def _first_stop(text: str, stops: list[str]) -> str | None:
    """The text up to the id that completes a stop string."""
    tokenizer = byte_level()
    ids = tokenizer.encode(text)
    strings = StopStrings(stops, tokenizer)
    for end in range(1, len(ids) + 1):
        if strings(ids[:end]):
            return tokenizer.decode(ids[:end])
    return None


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two END three", ["END"], "one two END"),
        ("one two three", ["END"], None),
        ("aaa b aaab", ["aab"], "aaa b aaab"),
        ("first, second", [", s", "d"], "first, s"),
        ("größer", ["ö"], "grö"),
        ("am héad", ["é"], "am héa"),  # the id that completes é brings the next letter too
        ("x\n\ny", ["\n\n"], "x\n\n"),
        ("ab", ["abc"], None),
    ],
)
def test_stop_strings_end_at_the_id_that_completes_them(text, stops, expected):
    assert _first_stop(text, stops) == expected


def test_a_stop_string_of_the_past_does_not_stop():
    tokenizer = byte_level()
    strings = StopStrings(["stop"], tokenizer)
    ids = tokenizer.encode("stop it")
    assert strings(ids[:4])
    assert not any(strings(ids[:end]) for end in range(5, len(ids) + 1))


def test_common_length():
    assert common_length("abc", "abd") == 2
    assert common_length("ab", "abc") == 2
    assert common_length("", "x") == 0


def _rows(*histories: list[int]) -> list[SamplingState]:
    return [SamplingState(SamplingParameters(), list(h), drawn=1) for h in histories]


def test_reasons_of_each_row():
    stopper = Stopper((2, 7), limit=5, strings=StopStrings(["bc"], Letters()))
    rows = _rows([1, 2], [1, 7], [5, 6], [1, 9])
    rows.append(SamplingState(SamplingParameters(), [8], drawn=5))
    reasons = stopper.reasons(rows, range(5), lambda: torch.zeros(5, 2), None)
    assert reasons == ["eos", "eos", "stop", None, "length"]


def test_time_ends_every_row():
    stopper = Stopper((), limit=5, max_time=0.0)
    assert stopper.reasons(_rows([1], [3]), [0, 1], lambda: torch.zeros(2, 1), None) == ["time", "time"]


@pytest.mark.parametrize(
    "answer", [torch.tensor([False, True, False]), True, torch.tensor(True), torch.tensor([True])]
)
def test_criteria_answer_for_the_whole_batch(answer):
    stopper = Stopper((), limit=5, criteria=[lambda ids, scores: answer])
    reasons = stopper.reasons(_rows([1], [3]), [0, 1], lambda: torch.zeros(3, 1), None)
    every = not (isinstance(answer, torch.Tensor) and answer.numel() == 3)
    assert reasons == (["criteria", "criteria"] if every else [None, "criteria"])


@pytest.mark.parametrize("answer", [None, torch.tensor([True, False]), "yes"])
def test_other_answers_are_refused(answer):
    stopper = Stopper((), limit=5, criteria=[lambda ids, scores: answer])
    with pytest.raises(InputError, match="bool tensor"):
        stopper.reasons(_rows([1], [3], [4]), [0, 1, 2], lambda: torch.zeros(3, 1), None)
