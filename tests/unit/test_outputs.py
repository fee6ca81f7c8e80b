"""Output objects: attribute, key and index access, None left out, tuples."""

from __future__ import annotations

import pytest
import torch

from vitrail.generate.outputs import GenerateOutput
from vitrail.model.outputs import (
    BaseModelOutput,
    CausalLMOutputWithPast,
    LlavaCausalLMOutputWithPast,
    Mistral3CausalLMOutputWithPast,
    ModelOutput,
)

LOGITS, LOSS, FEATURES = torch.zeros(1, 2, 3), torch.tensor(1.0), torch.ones(4, 5)


def test_three_ways_to_a_field() -> None:
    output = LlavaCausalLMOutputWithPast(logits=LOGITS, image_hidden_states=FEATURES)
    assert output.logits is output["logits"] is output[0] is LOGITS
    assert output.image_hidden_states is output["image_hidden_states"] is output[1] is FEATURES
    assert output[-1] is FEATURES
    assert output[:1] == (LOGITS,)


def test_fields_that_are_none_do_not_count() -> None:
    output = CausalLMOutputWithPast(loss=LOSS, logits=LOGITS)
    assert output[0] is LOSS
    assert output.hidden_states is None
    assert tuple(output) == output.keys() == ("loss", "logits")
    assert len(output) == 2
    assert output.to_tuple() == output.values() == (LOSS, LOGITS)
    assert dict(output.items()) == {"loss": LOSS, "logits": LOGITS}
    assert "logits" in output
    assert "hidden_states" not in output
    assert output.get("attentions", 7) == 7
    assert output.get("loss") is LOSS
    with pytest.raises(KeyError, match="hidden_states"):
        output["hidden_states"]
    with pytest.raises(KeyError, match="to_tuple"):
        output["to_tuple"]
    with pytest.raises(IndexError):
        output[2]


def test_order_of_fields_is_the_documents() -> None:
    names = ("loss", "logits", "past_key_values", "hidden_states", "attentions", "image_hidden_states")
    output = Mistral3CausalLMOutputWithPast(*range(6))  # type: ignore[arg-type]
    assert output.keys() == names
    assert output.to_tuple() == (0, 1, 2, 3, 4, 5)
    assert BaseModelOutput(LOGITS, (LOGITS,), (LOGITS,)).keys() == (
        "last_hidden_state",
        "hidden_states",
        "attentions",
    )


def test_what_generate_returns_is_read_in_the_same_ways() -> None:
    ids = torch.ones(1, 2, dtype=torch.int64)
    output = GenerateOutput(ids, finish_reasons=("eos",))
    assert isinstance(output, ModelOutput)
    assert output.sequences is output["sequences"] is output[0] is ids
    assert tuple(output) == output.keys() == ("sequences", "finish_reasons")
    assert output.to_tuple() == output[:] == (ids, ("eos",))
    with pytest.raises(KeyError, match="scores"):
        output["scores"]
