"""Keywords of from_pretrained over nested configurations: one key changes one value, and what is dropped is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vitrail
from tests.tiny import DATA
from vitrail.errors import ConfigError, UnsupportedError

FOLDERS = ("pixtral-0", "mistral3-0", "ministral3-0")


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "vocab_size", 20),
        ("text_config", "rms_norm_eps", 0.01),
        ("text_config", "rope_theta", 5.0),
        ("vision_config", "image_size", 56),
    ],
)
def test_one_nested_key_changes_one_value(folder: str, part: str, key: str, value: Any) -> None:
    plain = vitrail.AutoConfig.from_pretrained(DATA / folder)
    for loader in (vitrail.AutoConfig, type(plain)):
        changed = loader.from_pretrained(DATA / folder, **{part: {key: value}})
        assert getattr(getattr(changed, part), key) == value
        setattr(getattr(changed, part), key, getattr(getattr(plain, part), key))
        assert changed == plain
        assert type(getattr(changed, part)) is type(getattr(plain, part))


@pytest.mark.parametrize(
    ("given", "read"),
    [({"image_token_id": 7}, "image_token_index"), ({"image_token_index": 7}, "image_token_id")],
)
def test_keywords_override_every_spelling(given: dict[str, int], read: str) -> None:
    config = vitrail.Mistral3Config.from_dict({read: 12, "torch_dtype": "float32"}, **given, dtype="float16")
    assert config.image_token_index == 7
    assert config.torch_dtype is config.dtype is torch.float16
    config = vitrail.Mistral3Config.from_dict({"dtype": "float32"}, torch_dtype="float16")
    assert config.torch_dtype is torch.float16


def test_rotary_settings_merge_unless_they_say_their_type() -> None:
    plain = vitrail.AutoConfig.from_pretrained(DATA / "ministral3-0").text_config.rope_parameters

    def rope(**given: Any) -> Any:
        config = vitrail.AutoConfig.from_pretrained(DATA / "ministral3-0", text_config=given)
        return config.text_config.rope_parameters

    assert rope(rope_parameters={"factor": 3.0}) == {**plain, "factor": 3.0}
    assert rope(rope_scaling={"factor": 3.0}, rope_theta=5.0) == {**plain, "factor": 3.0, "rope_theta": 5.0}
    assert rope(rope_scaling=None) == {"rope_theta": plain["rope_theta"], "rope_type": "default"}
    whole = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    with pytest.warns(UserWarning, match="rope_parameters takes the place .* llama_4_scaling_beta"):
        assert rope(rope_parameters=whole) == {**whole, "rope_theta": plain["rope_theta"]}


@pytest.mark.filterwarnings("error")
def test_a_whole_configuration_takes_the_place_of_a_part() -> None:
    folder = DATA / "ministral3-0"
    plain = vitrail.AutoConfig.from_pretrained(folder)
    text = vitrail.AutoConfig.from_pretrained(folder).text_config
    text.vocab_size = 99
    assert vitrail.AutoConfig.from_pretrained(folder, text_config=text).text_config == text  # nothing is lost
    assert vitrail.AutoConfig.from_pretrained(folder, text_config=None) == plain
    small = vitrail.MistralConfig(vocab_size=20)
    with pytest.warns(UserWarning, match="text_config takes the place .* hidden_size, .* rope_scaling"):
        assert vitrail.AutoConfig.from_pretrained(folder, text_config=small).text_config == small


def test_a_part_that_the_file_lacks_begins_at_its_defaults() -> None:
    config = vitrail.Mistral3Config.from_dict({}, text_config={"vocab_size": 20})
    usual = vitrail.Mistral3Config().text_config
    assert config.text_config.to_dict() == {**usual.to_dict(), "vocab_size": 20}
    with pytest.raises(ConfigError, match="text_config must be"):
        vitrail.Mistral3Config.from_dict({"text_config": 3}, text_config={"vocab_size": 20})


@pytest.mark.parametrize(
    "loader", [vitrail.AutoModelForImageTextToText, vitrail.Mistral3ForConditionalGeneration]
)
def test_models_take_keys_of_their_configuration(loader: Any) -> None:
    plain = vitrail.AutoConfig.from_pretrained(DATA / "mistral3-0")
    model = loader.from_pretrained(DATA / "mistral3-0", text_config={"rms_norm_eps": 0.01})
    assert model.model.language_model.config.rms_norm_eps == 0.01
    plain.text_config.rms_norm_eps = 0.01
    plain.text_config.dtype = plain.vision_config.dtype = torch.float32  # loading notes it in every part
    assert model.config.text_config == plain.text_config
    assert model.config.vision_config == plain.vision_config
    with pytest.raises(UnsupportedError, match="argument text_confg, use_cach; did you mean text_config"):
        loader.from_pretrained(DATA / "mistral3-0", text_confg={"rms_norm_eps": 0.01}, use_cach=1)


def test_a_text_model_takes_its_own_keys() -> None:
    plain = vitrail.AutoConfig.from_pretrained(DATA / "mistral3-0").text_config
    model = vitrail.MistralForCausalLM.from_pretrained(DATA / "mistral3-0", rope_theta=5.0)
    assert model.config.rope_theta == 5.0
    plain.rope_theta = 5.0
    plain.dtype = model.config.dtype
    assert model.config == plain


@pytest.mark.parametrize("kind", [vitrail.LlavaConfig, vitrail.Mistral3Config])
@pytest.mark.parametrize(
    ("part", "slip", "meant"),
    [("text_config", "hiden_size", "hidden_size"), ("vision_config", "imag_size", "image_size")],
)
def test_slip_in_a_part_is_refused_where_it_is_given_and_kept_where_it_was_read(
    kind: Any, part: str, slip: str, meant: str
) -> None:
    for make in (kind, lambda **given: vitrail.AutoConfig.for_model(kind.model_type, **given)):
        with pytest.raises(ConfigError, match=f"no key '{slip}'; did you mean {meant}"):
            make(**{part: {slip: 1}})
    assert getattr(getattr(kind(**{part: {"my_own_note": 1}}), part), "my_own_note") == 1  # noqa: B009
    assert kind.from_dict({part: {slip: 1}}).to_dict()[part][slip] == 1
    assert kind.from_dict({part: {slip: 1}}, **{part: {"num_hidden_layers": 2}}).to_dict()[part][slip] == 1


@pytest.mark.parametrize("name", ["nonsense", 3, {"text_config": "nonsense"}])
def test_attention_of_no_name_is_refused_by_configurations(name: Any) -> None:
    for make in (vitrail.MistralConfig, vitrail.PixtralVisionConfig, vitrail.LlavaConfig):
        with pytest.raises(UnsupportedError, match=r"attn_implementation .* is not supported"):
            make(attn_implementation=name)
        assert "attn_implementation" not in make(attn_implementation="sdpa").to_dict()
    with pytest.raises(UnsupportedError, match=r"attn_implementation .* is not supported"):
        vitrail.Mistral3Config.from_pretrained(DATA / "mistral3-0", attn_implementation=name)
    with pytest.raises(UnsupportedError, match="attn_implementation"):
        vitrail.AutoConfig.from_pretrained(DATA / "mistral3-0", attn_implementation=name)


def test_rotary_settings_that_nothing_reads_are_refused() -> None:
    default, yarn = DATA / "mistral3-0", DATA / "ministral3-0"
    for given in ({"factor": 2.0}, {"rope_type": "default", "factor": 2.0}, {"facter": 2.0}):
        with pytest.raises(
            ConfigError, match="changes nothing for rope_type 'default'; give 'rope_type': 'yarn'"
        ):
            vitrail.AutoConfig.from_pretrained(default, text_config={"rope_parameters": given})
        with pytest.raises(ConfigError, match="changes nothing for rope_type 'default'"):
            vitrail.MistralConfig(rope_scaling=given)
    with pytest.raises(ConfigError, match="facter; did you mean factor"):
        vitrail.AutoConfig.from_pretrained(yarn, text_config={"rope_parameters": {"facter": 2.0}})
    assert vitrail.MistralConfig.from_dict({"rope_scaling": {"factor": 2.0}}).rope_scaling is None


def test_dtype_of_one_part_is_refused_by_models_and_read_by_configurations() -> None:
    folder, given = DATA / "mistral3-0", {"text_config": {"torch_dtype": "bfloat16"}}
    assert vitrail.AutoConfig.from_pretrained(folder, **given).text_config.dtype is torch.bfloat16
    with pytest.raises(UnsupportedError, match="text_config: torch_dtype bfloat16 for one part"):
        vitrail.AutoModelForImageTextToText.from_pretrained(folder, **given)
    model = vitrail.AutoModelForImageTextToText.from_pretrained(folder, dtype="bfloat16", **given)
    assert model.dtype is model.config.text_config.dtype is torch.bfloat16


def test_keys_that_files_have_are_taken_by_every_constructor() -> None:
    packed = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    for kind in (
        vitrail.MistralConfig,
        vitrail.PixtralVisionConfig,
        vitrail.LlavaConfig,
        vitrail.Mistral3Config,
    ):
        made = kind(quantization_config=packed, initializer_range=0.5)
        assert made.to_dict()["quantization_config"] == packed
        assert made.initializer_range == 0.5
