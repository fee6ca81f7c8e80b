"""What the reader is taught to answer: places before words and characters, slips, and what it says to other questions."""

from __future__ import annotations

import numpy as np
import pytest

from vitrail.reader import answers, charset

FIRST = charset.first_place()


def _tokens(ids: object) -> list[str]:
    names = {index: token for token, index in charset.vocabulary().items()}
    return [names[int(index)] for index in np.asarray(ids)]


def _centres(text: str, pitch: float = 12.0) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Characters side by side from x = 10, lines 40 pixels apart, the first at y = 20."""
    points, x, y = [], 10.0, 20.0
    for character in text:
        points.append((np.nan, np.nan) if character == "\n" else (x, y))
        x, y = (10.0, y + 40) if character == "\n" else (x + pitch, y)
    return np.array(points)


def test_places_stand_before_words_and_characters() -> None:
    answer = answers.placed("a b\nc", _centres("a b\nc"), np.random.default_rng(0))
    expected = ["<y2>", "<x2>", "a", "<x5>", " ", "<y2>", "<x8>", "b", "\n", "<y7>", "<x2>", "c", "</s>"]
    rounded = [
        token if share < 0.5 else other
        for token, other, share in zip(
            _tokens(answer.first), _tokens(answer.second), answer.share, strict=True
        )
    ]
    assert rounded == expected
    assert answer.about.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, -1, 4, 4, 4, -1]


def test_a_place_between_two_is_both() -> None:
    answer = answers.placed("a", np.array([[15.0, 20.0]]), np.random.default_rng(0))
    # 15 pixels lie a quarter of the way from the middle of <x3> (14) to that of <x4> (18).
    assert _tokens(answer.first)[1] == "<x3>"
    assert _tokens(answer.second)[1] == "<x4>"
    assert answer.share[1] == pytest.approx(0.25)


def test_what_is_written_is_a_little_off_and_the_target_is_not() -> None:
    text = "Harbour 27"
    rng = np.random.default_rng(1)
    many = [answers.placed(text, _centres(text), rng, off=0.3, wrong=0.1) for _ in range(200)]
    assert all((answer.first == many[0].first).all() for answer in many)
    assert [c for c in _tokens(many[0].first)[:-1] if len(c) == 1] == list(text)
    written = np.stack([answer.written for answer in many])
    is_place = many[0].first >= FIRST
    away = written[:, is_place] - many[0].first[is_place]
    assert (away != 0).mean() > 0.2
    assert np.abs(away).max() <= 4, "no further than to the next character"
    slips = (written[:, ~is_place] != many[0].first[~is_place]).mean()
    assert 0.03 < slips < 0.15
    assert (written[:, -1] == charset.EOS).all(), "the end is never written wrongly"
    assert ((written >= FIRST) == is_place).all()


def test_places_stay_inside_their_range() -> None:
    far = np.array(
        [[charset.COLUMN * charset.COLUMNS + 50.0, charset.ROW * charset.ROWS + 50.0], [-9.0, -9.0]]
    )
    answer = answers.placed("ab", far, np.random.default_rng(0))
    last_column, last_row = FIRST + charset.COLUMNS - 1, FIRST + charset.COLUMNS + charset.ROWS - 1
    assert answer.first[0] == answer.second[0] == last_row
    assert answer.first[1] == last_column
    assert answer.first[3] == FIRST
    assert answer.written.max() < charset.VOCAB_SIZE


def test_questions_are_mostly_for_the_text() -> None:
    rng = np.random.default_rng(2)
    asked = [answers.question(rng, 0.1) for _ in range(2000)]
    others = {question for question, for_text in asked if not for_text}
    texts = {question for question, for_text in asked if for_text}
    assert 0.07 < sum(not for_text for _, for_text in asked) / 2000 < 0.13
    assert not others & texts
    assert set(answers.ASKED) == texts
    for question in (*texts, *others, answers.ABOUT):
        assert charset.UNK not in charset.encode(question)


def test_another_question_is_answered_without_places() -> None:
    answer = answers.plain(answers.ABOUT)
    assert charset.decode(answer.first.tolist()) == answers.ABOUT
    assert answer.first[-1] == charset.EOS
    assert (answer.about == -1).all()
    assert not answer.share.any()
