"""What the documents say in words about forward(), for both families, against transformers where it can do it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vitrail
from tests.parity.pairs import IMAGE, VISION_LANGUAGE, Pair, Shape, build, close, images, inputs

LLAVA = VISION_LANGUAGE[0]
MISTRAL3 = next(shape for shape in VISION_LANGUAGE if shape.name == "small-3")
FAMILIES = [LLAVA, MISTRAL3]
LISTED = [-2, -1, 0]
EVEN = ((4, 6), (2, 2), (8, 2))


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def shape(request: pytest.FixtureRequest) -> Shape:
    found: Shape = request.param
    return found


@pytest.fixture(scope="module")
def pair(shape: Shape) -> Pair:
    return build(shape)


@pytest.fixture(scope="module")
def prompt(shape: Shape) -> dict[str, Tensor]:
    """One conversation with three images."""
    return inputs(shape, None)


def full(shape: Shape) -> dict[str, str]:
    """The reference's keyword for taking all patches; Mistral3 of 4.57 has none."""
    return {"vision_feature_select_strategy": "full"} if shape.family == "llava" else {}


def run(model: Any, given: dict[str, Tensor], **options: Any) -> Any:
    with torch.no_grad():
        return model(**given, **options)


# --- vision_feature_layer, vision_feature_select_strategy -------------------------------------------------


@pytest.mark.parametrize("layer", [-3, -2, -1, 0, 1, 2])
def test_one_feature_layer(pair: Pair, shape: Shape, prompt: dict[str, Tensor], layer: int) -> None:
    ours = run(pair.ours, prompt, vision_feature_layer=layer)
    theirs = run(pair.theirs, prompt, vision_feature_layer=layer, **full(shape))
    close(ours.logits, theirs.logits, "logits")
    close(ours.image_hidden_states, joined(theirs.image_hidden_states), "image_hidden_states")
    same = run(pair.ours, prompt, vision_feature_layer=[layer])
    assert torch.equal(ours.logits, same.logits)


def test_a_list_of_layers_joins_their_features_for_llava(prompt: dict[str, Tensor]) -> None:
    shape = Shape("list", "llava", {}, {}, {"vision_feature_layer": LISTED})
    pair = build(shape)
    given = inputs(shape, None)
    close(run(pair.ours, given).logits, run(pair.theirs, given).logits, "as configured")
    other = [0, 1, -1]
    ours = run(pair.ours, given, vision_feature_layer=other)
    theirs = run(pair.theirs, given, vision_feature_layer=other, **full(shape))
    close(ours.logits, theirs.logits, "as called")


def test_a_list_of_layers_joins_their_features_for_mistral3() -> None:
    """The reference fails here; so its own norm and merger are applied to each layer, then joined for linear_1."""
    shape = Shape("list", "mistral3", {}, {}, {"vision_feature_layer": LISTED}, EVEN)
    pair = build(shape)
    given = inputs(shape, None)
    with pytest.raises(RuntimeError):
        run(pair.theirs, given)
    ours = run(pair.ours, given)
    projector = pair.theirs.model.multi_modal_projector
    with torch.no_grad():
        hidden = pair.theirs.model.vision_tower(**images(shape), output_hidden_states=True).hidden_states
        sizes = images(shape)["image_sizes"]
        merged = [projector.patch_merger(projector.norm(hidden[i][0]), sizes) for i in LISTED]
        features = projector.linear_2(projector.act(projector.linear_1(torch.cat(merged, dim=-1))))
        close(ours.image_hidden_states, features, "features")
        rows = pair.theirs.get_input_embeddings()(given["input_ids"])
        rows[given["input_ids"] == IMAGE] = features
        theirs = pair.theirs(inputs_embeds=rows, attention_mask=given["attention_mask"])
    close(ours.logits, theirs.logits, "logits")


def test_layers_must_fit_the_projector_and_the_tower(pair: Pair, prompt: dict[str, Tensor]) -> None:
    with pytest.raises(vitrail.InputError, match="2 layers"):
        run(pair.ours, prompt, vision_feature_layer=[-1, -2])
    for layer in (3, -4):
        with pytest.raises(vitrail.InputError, match="vision_feature_layer"):
            run(pair.ours, prompt, vision_feature_layer=layer)


def test_the_tower_has_no_class_token_to_leave_out(
    pair: Pair, shape: Shape, prompt: dict[str, Tensor]
) -> None:
    """ "default" equals "full": transformers would leave the first patch out, and then count one too few."""
    default, whole, none = (
        run(pair.ours, prompt, vision_feature_select_strategy=s).logits for s in ("default", "full", None)
    )
    assert torch.equal(default, whole) and torch.equal(none, whole)
    close(whole, run(pair.theirs, prompt, **full(shape)).logits, "logits")
    with pytest.raises(vitrail.InputError, match="'patch'"):
        run(pair.ours, prompt, vision_feature_select_strategy="patch")


def test_a_configured_strategy_is_the_same_too() -> None:
    settings = build(LLAVA).ours.config.to_dict()
    pair = build(LLAVA)
    given = inputs(LLAVA, None)
    changed = vitrail.LlavaConfig.from_dict({**settings, "vision_feature_select_strategy": "default"})
    model = vitrail.LlavaForConditionalGeneration(changed).eval()
    model.load_state_dict(pair.ours.state_dict())
    assert torch.equal(run(model, given).logits, run(pair.ours, given).logits)


# --- logits_to_keep, labels -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keep", [1, 4, torch.tensor([5]), torch.tensor([7, 2, 3]), torch.tensor([-1, -2])], ids=str
)
def test_logits_to_keep(pair: Pair, prompt: dict[str, Tensor], keep: int | Tensor) -> None:
    every = run(pair.ours, prompt, logits_to_keep=0).logits
    kept = run(pair.ours, prompt, logits_to_keep=keep).logits
    assert every.shape[1] == prompt["input_ids"].shape[1]
    wanted = every[:, -keep:] if isinstance(keep, int) else every[:, keep]
    close(kept, wanted, "of ours")
    close(kept, run(pair.theirs, prompt, logits_to_keep=keep).logits, "of theirs")


def test_logits_to_keep_must_be_a_number_or_one_dimensional(pair: Pair, prompt: dict[str, Tensor]) -> None:
    with pytest.raises(vitrail.InputError, match="1-D"):
        run(pair.ours, prompt, logits_to_keep=torch.tensor([[1]]))


def test_labels_of_minus_100_do_not_count(pair: Pair, prompt: dict[str, Tensor]) -> None:
    ids = prompt["input_ids"]
    labels = torch.where(ids == IMAGE, -100, ids)
    some = labels.clone()
    some[:, :-4] = -100
    losses = []
    for given in (labels, some):
        ours, theirs = run(pair.ours, prompt, labels=given), run(pair.theirs, prompt, labels=given)
        assert ours.loss.shape == ()
        close(ours.loss, theirs.loss, "loss")
        losses.append(float(ours.loss))
    assert losses[0] != losses[1]
    last = torch.nn.functional.cross_entropy(ours.logits[0, -5:-1], ids[0, -4:])
    close(ours.loss, last, "the loss of the last four")


def test_labels_outside_the_vocabulary_are_refused(pair: Pair, prompt: dict[str, Tensor]) -> None:
    labels = torch.full_like(prompt["input_ids"], 96)
    with pytest.raises(vitrail.ContextError, match="96"):
        run(pair.ours, prompt, labels=labels)


# --- outputs ----------------------------------------------------------------------------------------------

EVERYTHING = {"output_attentions": True, "output_hidden_states": True, "use_cache": True}


def test_tuples_hold_what_the_references_hold(pair: Pair, prompt: dict[str, Tensor]) -> None:
    labels = prompt["input_ids"]
    ours = run(pair.ours, prompt, labels=labels, return_dict=False, **EVERYTHING)
    theirs = run(pair.theirs, prompt, labels=labels, return_dict=False, **EVERYTHING)
    assert isinstance(ours, tuple) and len(ours) == len(theirs) == 6
    close(ours[0], theirs[0], "loss")
    close(ours[1], theirs[1], "logits")
    close(ours[2][0][0], theirs[2][0][0], "the first layer's keys")
    for place, what in ((3, "hidden_states"), (4, "attentions")):
        for mine, other in zip(ours[place], theirs[place], strict=True):
            close(mine, other, what)
    close(ours[5], joined(theirs[5]), "image_hidden_states")
    shortest = run(pair.ours, prompt, return_dict=False, use_cache=False)
    assert len(shortest) == len(run(pair.theirs, prompt, return_dict=False, use_cache=False)) == 2


def test_the_configuration_can_ask_for_tuples_attentions_and_hidden_states(shape: Shape) -> None:
    asked = {"return_dict": False, "output_attentions": True, "output_hidden_states": True}
    plain = build(shape)
    model = type(plain.ours)(
        type(plain.ours.config).from_dict({**plain.ours.config.to_dict(), **asked})
    ).eval()
    model.load_state_dict(plain.ours.state_dict())
    given = inputs(shape, None)
    output = run(model, given)
    assert isinstance(output, tuple) and len(output) == 5
    told = run(model, given, return_dict=True, output_attentions=False, output_hidden_states=False)
    assert told.attentions is None and told.hidden_states is None
    assert torch.equal(output[0], told.logits)
    tower = run(model.vision_tower, images(shape), return_dict=True)
    assert tower.attentions is None  # the tower's own configuration does not ask


def test_shapes_of_what_is_recorded(pair: Pair, shape: Shape) -> None:
    given = inputs(shape, "left")
    output = run(pair.ours, given, **EVERYTHING)
    batch, new = given["input_ids"].shape
    text, tower = pair.ours.config.text_config, pair.ours.config.vision_config
    assert [tuple(h.shape) for h in output.hidden_states] == [(batch, new, text.hidden_size)] * 4
    assert [tuple(a.shape) for a in output.attentions] == [(batch, text.num_attention_heads, new, new)] * 3
    rows = output.attentions[0].sum(-1)
    assert torch.allclose(rows[given["attention_mask"].bool()[:, None].expand_as(rows)], torch.ones(()))
    seen = run(pair.ours.vision_tower, images(shape), output_attentions=True, output_hidden_states=True)
    patches = sum(h * w for h, w in shape.images)
    assert [tuple(h.shape) for h in seen.hidden_states] == [(1, patches, tower.hidden_size)] * 3
    assert [tuple(a.shape) for a in seen.attentions] == [(1, tower.num_attention_heads, patches, patches)] * 2
    assert torch.equal(seen.last_hidden_state, seen.hidden_states[-1])
    assert torch.equal(run(pair.ours.vision_tower, images(shape), return_dict=False)[0], seen[0])


def test_image_hidden_states_are_the_image_features(
    pair: Pair, shape: Shape, prompt: dict[str, Tensor]
) -> None:
    features = run(pair.ours.get_image_features, images(shape))
    assert [len(image) for image in features] == shape.tokens
    output = run(pair.ours, prompt)
    assert torch.equal(output.image_hidden_states, torch.cat(features))
    assert tuple(output.image_hidden_states.shape) == (
        sum(shape.tokens),
        pair.ours.config.text_config.hidden_size,
    )


def test_attribute_key_and_index(pair: Pair, prompt: dict[str, Tensor]) -> None:
    output = run(pair.ours, prompt, use_cache=False)
    assert output.logits is output["logits"] and output.logits is output[0]
    assert list(output) == list(output.keys()) == ["logits", "image_hidden_states"]
    assert output.loss is None and "loss" not in output and output.get("loss", 3) == 3
    assert output[:1] == (output.logits,)
    assert [k for k, _ in output.items()] == list(run(pair.theirs, prompt, use_cache=False))
    with pytest.raises(KeyError):
        output["loss"]


# --- inputs_embeds, past_key_values, cache_position -------------------------------------------------------


def test_embeddings_with_images(pair: Pair, prompt: dict[str, Tensor]) -> None:
    given = {k: v for k, v in prompt.items() if k != "input_ids"}
    rows = pair.ours.get_input_embeddings()(prompt["input_ids"]).detach()
    ours = run(pair.ours, given, inputs_embeds=rows)
    assert torch.equal(ours.logits, run(pair.ours, prompt).logits)
    close(ours.logits, run(pair.theirs, given, inputs_embeds=rows).logits, "logits")
    for wrong in ({}, {"inputs_embeds": rows, "input_ids": prompt["input_ids"]}):
        with pytest.raises(vitrail.InputError, match="exactly one"):
            run(pair.ours, given, **wrong)


MORE = torch.tensor([[20, 21, 22]])


def legacy(cache: Any) -> tuple[tuple[Tensor, Tensor], ...]:
    return tuple((layer[0], layer[1]) for layer in cache)


@pytest.mark.parametrize("form", ["as returned", "tuple", "the reference's"])
def test_past_key_values(pair: Pair, prompt: dict[str, Tensor], form: str) -> None:
    ours, theirs = run(pair.ours, prompt), run(pair.theirs, prompt)
    past: Any = ours.past_key_values
    text = pair.ours.config.text_config
    wanted = (1, text.num_key_value_heads, prompt["input_ids"].shape[1], text.head_dim)
    assert len(past) == text.num_hidden_layers
    for layer in past:
        assert [tuple(part.shape) for part in layer] == [wanted, wanted]
    if form != "as returned":
        past = legacy(past if form == "tuple" else theirs.past_key_values)
    follow = run(pair.ours, {"input_ids": MORE}, past_key_values=past)
    reference = run(pair.theirs, {"input_ids": MORE}, past_key_values=theirs.past_key_values)
    close(follow.logits, reference.logits, "logits")
    assert follow.past_key_values[0][0].shape[2] == wanted[2] + 3
    whole = {**prompt, "input_ids": torch.cat([prompt["input_ids"], MORE], dim=1)}
    whole = {k: v for k, v in whole.items() if k not in ("attention_mask", "position_ids")}
    close(follow.logits, run(pair.ours, whole).logits[:, -3:], "whole")


def test_cache_position(pair: Pair, prompt: dict[str, Tensor]) -> None:
    new = prompt["input_ids"].shape[1]
    first = run(pair.ours, prompt, cache_position=torch.arange(new))
    assert torch.equal(first.logits, run(pair.ours, prompt).logits)
    with pytest.raises(vitrail.InputError, match=f"count from {new}"):
        run(
            pair.ours,
            {"input_ids": MORE},
            past_key_values=first.past_key_values,
            cache_position=torch.arange(3),
        )
    place = torch.arange(new, new + 3)
    follow = run(pair.ours, {"input_ids": MORE}, past_key_values=first.past_key_values, cache_position=place)
    theirs = run(pair.theirs, prompt)
    reference = run(
        pair.theirs, {"input_ids": MORE}, past_key_values=theirs.past_key_values, cache_position=place
    )
    close(follow.logits, reference.logits, "logits")


def test_use_cache(pair: Pair, prompt: dict[str, Tensor]) -> None:
    assert run(pair.ours, prompt, use_cache=False).past_key_values is None
    assert run(pair.ours, prompt).past_key_values is not None


def test_position_ids(pair: Pair, prompt: dict[str, Tensor]) -> None:
    given = {**prompt, "position_ids": prompt["position_ids"] * 2 + 5}
    ours = run(pair.ours, given)
    close(ours.logits, run(pair.theirs, given).logits, "logits")
    assert not torch.allclose(ours.logits, run(pair.ours, prompt).logits, atol=1e-3)


# --- nothing is ignored silently --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["head_mask", "token_type_ids", "output_attention", "lm_kwargs"])
def test_unknown_arguments_are_named(pair: Pair, prompt: dict[str, Tensor], name: str) -> None:
    with pytest.raises(vitrail.UnsupportedError, match=name):
        run(pair.ours, prompt, **{name: True})
    with pytest.raises(vitrail.UnsupportedError, match=name):
        run(pair.ours.vision_tower, {"pixel_values": prompt["pixel_values"]}, **{name: True})
    with pytest.raises(vitrail.UnsupportedError, match=name):
        pair.ours.get_image_features(prompt["pixel_values"], **{name: True})


def test_masks_of_four_dimensions_are_refused(pair: Pair, prompt: dict[str, Tensor]) -> None:
    new = prompt["input_ids"].shape[1]
    with pytest.raises(vitrail.UnsupportedError, match="4 dimensions"):
        run(pair.ours, {**prompt, "attention_mask": torch.ones(1, 1, new, new)})


def joined(features: Tensor | tuple[Tensor, ...]) -> Tensor:
    return features if isinstance(features, Tensor) else torch.cat(list(features))
