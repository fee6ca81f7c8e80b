"""Processed logits of every option equal those of transformers' processors, in transformers' order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

transformers = pytest.importorskip("transformers")

from transformers.generation import logits_process as theirs  # noqa: E402

from vitrail.configs.generation import GenerationConfig  # noqa: E402
from vitrail.generate.sampling import SamplingParameters, SamplingState, penalise, warp  # noqa: E402

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.floats(0.3, 3.0),
        "min_length": st.integers(0, 12),
        "min_new_tokens": st.integers(0, 6),
        "temperature": st.floats(0.05, 5.0),
        "top_k": st.integers(0, 40),
        "top_p": st.floats(0.0, 1.0),
        "min_p": st.floats(0.0, 1.0),
    },
)


def _theirs(options, prompt_length, ids, logits):
    """The chain that GenerationMixin builds, made by transformers itself."""
    config = transformers.GenerationConfig(do_sample=True, **options)
    model = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )
    config._eos_token_tensor = torch.tensor([2, 5])
    chain = model._get_logits_processor(config, input_ids_seq_length=prompt_length, device="cpu")
    return chain(ids, logits)


@given(
    options=OPTIONS,
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 3),
    vocabulary=st.integers(6, 70),
    drawn=st.integers(0, 6),
    flat=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_combination_of_options(options, seed, rows, vocabulary, drawn, flat):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * 4
    if flat:  # equal scores, where a rule has to say what it does with ties
        logits = logits.round()
    prompt = 5
    ids = torch.randint(0, vocabulary, (rows, prompt + drawn), generator=generator)
    expected = _theirs(options, prompt, ids, logits.clone())

    config = GenerationConfig(do_sample=True, eos_token_id=[2, 5], **options)
    parameters = SamplingParameters.from_config(config, width=prompt)
    states = [SamplingState(parameters, row.tolist(), drawn=drawn) for row in ids]
    found = warp(penalise(logits, states), states)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32])
@pytest.mark.parametrize("vocabulary", [131072])
def test_a_real_vocabulary(vocabulary, dtype):
    logits = torch.randn(2, vocabulary, generator=torch.Generator().manual_seed(3), dtype=dtype) * 3
    ids = torch.randint(0, vocabulary, (2, 40), generator=torch.Generator().manual_seed(4))
    options = {"repetition_penalty": 1.1, "temperature": 0.7, "top_k": 100, "top_p": 0.9, "min_p": 0.01}
    parameters = SamplingParameters.from_config(GenerationConfig(do_sample=True, **options))
    states = [SamplingState(parameters, row.tolist()) for row in ids]
    assert torch.equal(warp(penalise(logits, states), states), _theirs(options, 40, ids, logits.clone()))


def test_allowed_ids_are_their_prefix_constraint():
    logits = torch.randn(2, 9)
    allowed = [[1, 4], [7]]
    expected = theirs.PrefixConstrainedLogitsProcessor(lambda row, ids: allowed[row], 1)(
        torch.zeros(2, 3, dtype=torch.long), logits
    )
    states = [SamplingState(SamplingParameters()) for _ in allowed]
    for state, ids in zip(states, allowed, strict=True):
        state.allowed = torch.zeros(9, dtype=torch.bool)
        state.allowed[ids] = True
    assert torch.equal(penalise(logits, states), expected)
