"""Draws: the counter-based generator, the inverse of the distribution, and what cannot be drawn."""

from __future__ import annotations

import pytest
import torch

from vitrail.configs.generation import GenerationConfig
from vitrail.errors import InputError
from vitrail.generate.sampling import Sampler, SamplingParameters, SamplingState, draw, philox, uniform, warp


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers of the Random123 library
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert philox(counter, key) == expected


def test_uniform_draws_fill_the_unit_interval_evenly():
    draws = torch.tensor([uniform(7, stream, step) for stream in range(8) for step in range(500)])
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    counts = torch.histc(draws, bins=10, min=0, max=1)
    # 4000 draws: each tenth holds 400 ± 19 (one standard deviation)
    assert int((counts - 400).abs().max()) < 80
    assert len(set(draws.tolist())) > 3990


def test_uniform_depends_on_every_bit_of_its_name():
    names = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**63, 0, 0), (0, 2**40, 0), (0, 0, 2**33)]
    assert len({uniform(*name) for name in names}) == len(names)


def _row(drawn: int = 0, seed: int = 0, **parameters) -> SamplingState:
    return SamplingState(SamplingParameters(do_sample=True, **parameters), seed=seed, drawn=drawn)


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, -torch.inf])
    count = 4000
    ids = draw(logits.expand(count, -1), [_row(drawn=n) for n in range(count)])
    found = torch.bincount(ids, minlength=5) / count
    assert torch.allclose(found, logits.softmax(0), atol=0.03)
    assert found[4] == 0


def test_a_row_draws_the_same_in_any_company():
    logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(1))
    rows = [
        _row(seed=3),
        _row(seed=4, top_k=5),
        SamplingState(SamplingParameters()),
        _row(seed=5, top_p=0.5, temperature=0.3),
        _row(seed=6, min_p=0.2, repetition_penalty=1.7),
    ]
    rows[4].history = [1, 2, 3]
    together, scores = Sampler()(logits, rows)
    for n, row in enumerate(rows):
        alone, own_scores = Sampler()(logits[n : n + 1], [row])
        assert int(alone) == int(together[n])
        assert torch.equal(own_scores[0], scores[n])
    assert int(together[2]) == int(logits[2].argmax())


def test_processing_leaves_the_logits_alone():
    logits = torch.randn(2, 10)
    before = logits.clone()
    row = _row(
        temperature=0.5, top_k=3, top_p=0.9, repetition_penalty=2.0, min_new_tokens=1, eos_token_ids=(2,)
    )
    row.history = [1, 5]
    Sampler()(logits, [row, row])
    assert torch.equal(logits, before)


def test_the_history_grows_with_drawn_ids():
    row = _row(repetition_penalty=2.0)
    logits = torch.ones(1, 4)
    assert Sampler()(logits, [row])[1].tolist() == [[1, 1, 1, 1]]
    row.add(2)
    assert Sampler()(logits, [row])[1].tolist() == [[1, 1, 0.5, 1]]
    assert row.drawn == 1


def test_ends_outside_the_vocabulary_are_no_concern():
    row = SamplingState(SamplingParameters(min_new_tokens=2, eos_token_ids=(1, 99)))
    ids, scores = Sampler()(torch.tensor([[0.0, 5.0, 1.0]]), [row])
    assert ids.tolist() == [2]
    assert scores[0, 1] == -torch.inf


def test_top_k_larger_than_the_vocabulary_keeps_everything():
    logits = torch.randn(1, 6)
    assert torch.equal(warp(logits, [_row(top_k=50)]), logits)


@pytest.mark.parametrize("value", [float("nan"), -torch.inf])
@pytest.mark.parametrize("do_sample", [True, False])
def test_nothing_is_drawn_from_scores_that_are_none(value, do_sample):
    rows = [SamplingState(SamplingParameters(do_sample=do_sample))] * 2
    logits = torch.stack([torch.zeros(4), torch.full((4,), value)])
    with pytest.raises(InputError, match="row 1"):
        draw(logits, rows)


def test_sampling_at_temperature_zero_is_refused():
    with pytest.raises(InputError, match="do_sample=False"):
        SamplingParameters.from_config(GenerationConfig(do_sample=True, temperature=0.0))
    assert not SamplingParameters.from_config(GenerationConfig(temperature=0.0)).do_sample


def test_min_length_counts_the_prompt_and_min_new_tokens_does_not():
    config = GenerationConfig(min_length=12, min_new_tokens=1)
    assert SamplingParameters.from_config(config, width=7).min_new_tokens == 5
    assert SamplingParameters.from_config(config, width=20).min_new_tokens == 1


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 9.0])
def test_top_p_of_a_large_vocabulary_sorts_only_what_matters(spread: float) -> None:
    """The same ids as by sorting everything, for peaked and flat scores, after top-k, and for rows that keep all."""
    generator = torch.Generator().manual_seed(int(spread * 100))
    scores = torch.randn(4, 20000, generator=generator, dtype=torch.float64) * spread
    scores[1, 100:] = -torch.inf
    rows = [_row(top_p=mass) for mass in (0.9, 0.5, 0.999, 1e-9)]
    ascending, order = scores.sort(dim=-1)
    for chosen in ([0], [1], [2], [3], [0, 1, 2, 3]):
        found = warp(scores[chosen], [rows[n] for n in chosen])
        for place, row in enumerate(chosen):
            tail = 1 - rows[row].parameters.top_p
            keep = order[row][ascending[row].softmax(-1).cumsum(-1) > tail]
            expected = torch.full_like(scores[row], -torch.inf)
            expected[keep] = scores[row, keep]
            expected[order[row, -1]] = ascending[row, -1]
            assert torch.equal(found[place], expected)
    mixed = warp(scores, [_row(top_p=1.0), *rows[1:]])
    assert torch.equal(mixed[0], scores[0])
