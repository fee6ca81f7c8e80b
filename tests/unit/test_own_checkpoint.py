"""Loading Vitrail's own quantised checkpoints: mapped, strict, saved again, moved, cast, adapted, tied."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file

import vitrail
from tests import quantised, tiny
from vitrail.errors import CheckpointError, ConfigError, InputError, UnsupportedError, VitrailError
from vitrail.files.safetensors import SafetensorsFile, write_safetensors
from vitrail.model import layers
from vitrail.ops.weight import dequantize
from vitrail.quant.replace import QuantEmbedding, Quantized, QuantLinear, TiedHead
from vitrail.weights.checkpoint import open_checkpoint
from vitrail.weights.devices import placement
from vitrail.weights.memory import CPU, Form, kept_bytes, mapped_bytes, peak_bytes
from vitrail.weights.plan import make_plan

UP = "model.language_model.layers.0.mlp.up_proj"
SAVED = "language_model.model.layers.0.mlp.up_proj.weight"
TABLE = "model.language_model.embed_tokens"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised.source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def q4(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In q4, head, embeddings and tower in q8."""
    out = tmp_path_factory.mktemp("written") / "q4"
    quantised.written(folder, out)
    return out


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose head is its table of embeddings, in q4."""
    root = tmp_path_factory.mktemp("tied")
    quantised.written(quantised.source(root / "source", "ministral3"), root / "q4")
    return root / "q4"


def _ids(model: Any, **options: Any) -> torch.Tensor:
    prompt = torch.tensor([[1, 7, 30, 99, 4]])
    generated: torch.Tensor = model.generate(prompt, max_new_tokens=6, do_sample=False, **options)
    return generated


def _packed(model: Any) -> dict[str, Quantized]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Quantized)}


# --- what is loaded ---------------------------------------------------------------------------------------------


def test_each_part_has_its_format(q4: Path) -> None:
    model = quantised.load(q4)
    kinds = {name: layer.format.name for name, layer in _packed(model).items()}
    assert kinds["lm_head"] == kinds[TABLE] == "q8"
    assert {kind for name, kind in kinds.items() if "vision_tower" in name or "projector" in name} == {"q8"}
    assert {kind for name, kind in kinds.items() if ".layers." in name and "vision" not in name} == {"q4"}
    assert isinstance(model.get_input_embeddings(), QuantEmbedding)
    assert model.config.quantization_config == vitrail.QuantizeConfig()
    assert not model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_models_type_is_what_was_asked_and_packed_weights_are_never_cast(
    q4: Path, dtype: torch.dtype
) -> None:
    model = quantised.load(q4, dtype=dtype)
    assert model.dtype == dtype
    stored = load_file(q4 / "model.safetensors")
    for part, tensor in model.get_submodule(UP).packed.tensors.items():
        assert tensor.dtype == stored[f"{SAVED}.{part}"].dtype
        assert torch.equal(tensor, stored[f"{SAVED}.{part}"])
    assert model.get_input_embeddings()(torch.tensor([1, 2])).dtype == dtype
    assert model(torch.tensor([[1, 2, 3]])).logits.dtype == dtype


@pytest.mark.parametrize("format", ["q4", "q8"])
def test_it_answers_as_the_model_with_the_decoded_weights_does(
    folder: Path, tmp_path: Path, format: str
) -> None:
    """Within what rounding the activations to 8 bits changes: the logits of both point the same way."""
    quantised.written(folder, tmp_path / "q", vitrail.QuantizeConfig(format))
    model, plain = quantised.load(tmp_path / "q"), quantised.load(folder)
    for name, layer in _packed(model).items():
        plain.get_submodule(name).weight.data = dequantize(layer.packed, torch.float32)
    prompt = torch.tensor([[1, 7, 30, 99, 4, 11, 12, 13]])
    got, wanted = model(prompt).logits, plain(prompt).logits
    assert torch.nn.functional.cosine_similarity(got, wanted, dim=-1).min() > 0.999
    assert (got - wanted).norm() < 0.05 * wanted.norm()


def test_layers_of_one_input_are_one_call(q4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Query, key and value, gate and up, each as alone."""
    block = quantised.load(q4).model.language_model.layers[0]
    modules = (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
    rows = torch.randn(5, 64)
    together: list[int] = []
    real = layers.linear_group

    def linear_group(x: torch.Tensor, weights: Any) -> list[torch.Tensor]:
        together.append(len(weights))
        return real(x, weights)

    monkeypatch.setattr(layers, "linear_group", linear_group)
    found = layers.project(rows, *modules)
    assert all(torch.equal(one, module(rows)) for one, module in zip(found, modules, strict=True))
    block.mlp(rows)
    assert together == [3, 2]


def test_images_are_read(q4: Path) -> None:
    processor = vitrail.AutoProcessor.from_pretrained(q4)
    inputs = processor(text="[INST][IMG]What?[/INST]", images=[tiny.image(40, 56)], return_tensors="pt")
    model = quantised.load(q4)
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert ids.shape[1] > inputs["input_ids"].shape[1]
    assert torch.equal(ids, quantised.load(q4).generate(**inputs, max_new_tokens=5, do_sample=False))


def test_quantising_while_loading_gives_the_same_model(folder: Path, q4: Path) -> None:
    asked = vitrail.QuantizeConfig()
    made, loaded = quantised.load(folder, quantization_config=asked), quantised.load(q4)
    assert made.config.quantization_config is asked
    assert torch.equal(_ids(made), _ids(loaded))
    state, other = made.state_dict(), loaded.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert quantised.load(folder, quantization_config=asked.to_dict()).config.quantization_config == asked


def test_the_embedded_reader_in_8_bits_reads_the_sign(tmp_path: Path) -> None:
    from vitrail.reader import charset, embedded_path

    quantised.written(embedded_path(), tmp_path / "q8", vitrail.QuantizeConfig("q8"))
    assert (tmp_path / "q8" / "model.safetensors").stat().st_size < 0.6 * 5_802_760
    processor = vitrail.AutoProcessor.from_pretrained(tmp_path / "q8")
    model = quantised.load(tmp_path / "q8", dtype="float32")
    sign = Path(__file__).parents[2] / "examples" / "sign.png"
    content = [{"type": "image", "path": str(sign)}, {"type": "text", "text": "What does it say?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    ids = model.generate(**inputs, max_new_tokens=80, do_sample=False)
    assert charset.decode(ids[0, inputs["input_ids"].shape[1] :].tolist()) == "Reading Room\nSecond Floor"


# --- mapped -----------------------------------------------------------------------------------------------------


def test_packed_weights_lie_in_the_mapped_file(q4: Path) -> None:
    """Writing to the file through another handle shows in the model, so nothing was copied."""
    opened = SafetensorsFile(q4 / "model.safetensors")
    model = quantised.load(q4)
    for layer in _packed(model).values():
        assert layer.packed.tensors["codes"].data_ptr() % 64 == 0
    lowest = min(layer.packed.tensors["codes"].data_ptr() for layer in _packed(model).values())
    for name, entry in opened.entries.items():
        if name.endswith(".codes"):
            path = name.replace("language_model.model.", "model.language_model.", 1).removesuffix(
                ".weight.codes"
            )
            path = {"language_model.lm_head": "lm_head"}.get(path, path)
            path = path if path == "lm_head" or path.startswith("model.") else f"model.{path}"
            first = min(e.start for n, e in opened.entries.items() if n.endswith(".codes"))
            assert (
                model.get_submodule(path).packed.tensors["codes"].data_ptr() - lowest == entry.start - first
            )


def test_a_file_that_another_library_wrote_is_copied_where_it_is_not_aligned(
    q4: Path, tmp_path: Path
) -> None:
    """Same tensors in another order: they load, and kernels get what is aligned."""
    for file in q4.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").unlink()
    save_file(load_file(q4 / "model.safetensors"), tmp_path / "model.safetensors", {"format": "pt", "a": "b"})
    model = quantised.load(tmp_path)
    assert all(layer.format.can_be_mapped(layer.packed) for layer in _packed(model).values())
    assert torch.equal(_ids(model), _ids(quantised.load(q4)))


def _planned(folder: Path) -> tuple[Any, Any, Any]:
    model, checkpoint = quantised.network(folder), open_checkpoint(folder)
    return model, checkpoint, make_plan(model, checkpoint, None)


def test_what_stays_mapped_needs_no_memory(q4: Path) -> None:
    model, checkpoint, plan = _planned(q4)
    where = placement(model, None)
    form = Form(torch.bfloat16)
    kept = sum(kept_bytes(model, checkpoint, plan, form).values())
    mapped = mapped_bytes(model, checkpoint, plan, form, where)
    packed = sum(stored.weight.nbytes for stored in plan.packed.values())
    assert mapped >= packed > 100_000
    assert peak_bytes(model, checkpoint, plan, form, where) == {CPU: kept - mapped}
    elsewhere = placement(model, "meta")
    assert peak_bytes(model, checkpoint, plan, form, elsewhere)[torch.device("meta")] == kept


# --- moved, cast, saved, adapted --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["q4", "tied"])
def test_saving_writes_the_same_file_again(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(name)
    model = quantised.load(source, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / file).read_bytes() == (source / file).read_bytes()
    model.save_pretrained(tmp_path)  # over the file that is mapped: it is replaced, not changed
    assert (tmp_path / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_a_model_can_be_saved_where_it_is_mapped_from(q4: Path, tmp_path: Path) -> None:
    quantised.load(q4, dtype=torch.bfloat16).save_pretrained(tmp_path)
    model = quantised.load(tmp_path, dtype=torch.bfloat16)
    before = _ids(model)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert torch.equal(_ids(model), before)
    assert torch.equal(_ids(quantised.load(tmp_path, dtype=torch.bfloat16)), before)


def test_a_tied_head_is_the_table(tied: Path) -> None:
    model = quantised.load(tied)
    head = model.get_output_embeddings()
    assert isinstance(head, TiedHead)
    assert head.weight is model.get_input_embeddings().weight
    model.tie_weights()  # is so already
    assert model.get_output_embeddings() is head
    assert not any(name.startswith("lm_head") for name in model.state_dict())
    plain = quantised.network(tied)
    assert model.num_parameters() == plain.num_parameters()
    rows = torch.randn(3, 64)
    assert torch.equal(head(rows), QuantLinear(head.weight, head.format)(rows))
    for moved in (model.to(torch.bfloat16), copy.deepcopy(model), model.to("meta")):
        assert moved.get_output_embeddings().weight is moved.get_input_embeddings().weight
    assert model.get_output_embeddings().weight.device.type == "meta"


def test_casting_changes_what_embeddings_give_and_no_code(q4: Path) -> None:
    model = quantised.load(q4, dtype=torch.float32)
    before = {
        name: {k: t.clone() for k, t in layer.packed.tensors.items()}
        for name, layer in _packed(model).items()
    }
    model.to(torch.bfloat16)
    assert model.get_input_embeddings()(torch.tensor([3])).dtype == torch.bfloat16
    for name, layer in _packed(model).items():
        assert layer.packed.dtype == torch.bfloat16
        assert all(torch.equal(layer.packed.tensors[k], t) for k, t in before[name].items())
    assert torch.equal(_ids(model), _ids(quantised.load(q4, dtype=torch.bfloat16)))


def test_state_dicts_make_the_round_trip(q4: Path, folder: Path) -> None:
    model = quantised.load(q4)
    other = quantised.load(folder, quantization_config=vitrail.QuantizeConfig())
    for layer in _packed(other).values():
        layer.packed.tensors["codes"].zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(_ids(other), _ids(model))
    state = model.state_dict()
    state[f"{UP}.weight.scales"] = state[f"{UP}.weight.scales"][:1]
    with pytest.raises(RuntimeError, match=r"up_proj\.weight\.scales is"):
        other.load_state_dict(state)


def test_resizing_a_packed_table_is_refused(q4: Path) -> None:
    model = quantised.load(q4)
    with pytest.raises(UnsupportedError, match="quantised"):
        model.resize_token_embeddings(600)
    assert model.resize_token_embeddings(512) is model.get_input_embeddings()


@pytest.mark.parametrize("name", ["q4", "tied"])
def test_an_adapter_learns_over_it(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(name)
    model = quantised.load(source)
    before = _ids(model)
    torch.manual_seed(0)  # some of an adapter's random beginnings do not learn at this rate
    model.add_adapter(vitrail.LoraConfig(r=4, target_modules="all-linear"))
    assert torch.equal(_ids(model), before)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.02)  # with more, the tied one leaps about
    ids = torch.tensor([[1, 7, 30, 99, 4, 5, 6, 7]])
    losses = []
    for _ in range(5):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1
    model.save_pretrained(tmp_path / "adapter")
    again = quantised.load(source)
    again.load_adapter(tmp_path / "adapter")
    assert torch.equal(again(ids).logits, model(ids).logits)
    path = f"{UP}.base_layer"
    assert torch.equal(
        model.get_submodule(path).packed.tensors["codes"],
        quantised.load(source).get_submodule(UP).packed.tensors["codes"],
    )
    model.merge_and_unload()
    assert isinstance(model.get_submodule(UP), torch.nn.Linear)
    assert isinstance(model.get_input_embeddings(), QuantEmbedding)  # it had no adapter
    model.save_pretrained(tmp_path / "merged")
    assert torch.equal(_ids(quantised.load(tmp_path / "merged")), _ids(model))


def test_an_adapter_on_a_packed_table_is_refused(q4: Path) -> None:
    model = quantised.load(q4)
    with pytest.raises(UnsupportedError, match="embed_tokens"):
        model.add_adapter(vitrail.LoraConfig(target_modules=["embed_tokens"]))
    with pytest.raises(UnsupportedError, match="embed_tokens is quantised"):
        model.add_adapter(vitrail.LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]))


def test_the_language_model_alone_is_loaded_from_it(q4: Path) -> None:
    model = vitrail.MistralForCausalLM.from_pretrained(q4)
    assert torch.equal(_ids(model), _ids(quantised.load(q4)))
    assert torch.equal(_ids(quantised.load(q4, vision=False)), _ids(model))


# --- what does not fit ------------------------------------------------------------------------------------------


def test_files_and_settings_that_do_not_go_together(q4: Path, folder: Path) -> None:
    for asked in (vitrail.QuantizeConfig("q8"), vitrail.BitsAndBytesConfig(load_in_4bit=True)):
        with pytest.raises(UnsupportedError, match="quantised already"):
            quantised.load(q4, quantization_config=asked)
        with pytest.raises(UnsupportedError, match="quantised already"):  # text_config says nothing
            vitrail.MistralForCausalLM.from_pretrained(q4, quantization_config=asked)
    assert quantised.load(q4, quantization_config=vitrail.QuantizeConfig()) is not None
    with pytest.raises(InputError, match=r"keep names what .* nonsense"):
        quantised.load(folder, quantization_config=vitrail.QuantizeConfig(keep=["nonsense", "q_proj"]))


def _changed(q4: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    out.mkdir()
    for file in q4.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    tensors = {name: tensor.clone() for name, tensor in load_file(q4 / "model.safetensors").items()}
    change(tensors)
    (out / "model.safetensors").unlink()
    write_safetensors(out / "model.safetensors", tensors)
    return out


CODES, SCALES, LEVELS = f"{SAVED}.codes", f"{SAVED}.scales", f"{SAVED}.levels"
Q8_CODES = "language_model.lm_head.weight.codes"


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        (CODES, None, r"up_proj\.weight\.codes is missing"),
        (SCALES, None, r"up_proj\.weight\.scales is missing"),
        (LEVELS, None, r"up_proj\.weight\.levels is missing"),
        (CODES, lambda t: t[:, :-1].contiguous(), r"up_proj\.weight\.codes is .* a matrix of \(160, 64\) in q4 has"),
        (CODES, lambda t: t[:-1].contiguous(), r"up_proj\.weight\.codes is"),
        (CODES, lambda t: t.flatten(), r"up_proj\.weight\.codes is"),
        (CODES, lambda t: t.view(torch.int8), r"up_proj\.weight\.codes is torch\.int8 .* in q8 has"),
        (CODES, lambda t: t.float(), r"up_proj\.weight\.codes is torch\.float32, which is no format"),
        (SCALES, lambda t: t[:, :-1].contiguous(), r"up_proj\.weight\.scales has .* another number of scales"),
        (SCALES, lambda t: t[:-1].contiguous(), r"up_proj\.weight\.scales is .* has torch\.bfloat16 \(10, 2, 16\)"),
        (SCALES, lambda t: t.repeat(1, 2, 1), r"up_proj\.weight\.scales has .* another number of scales"),
        (SCALES, lambda t: t[:, :0].contiguous(), r"up_proj\.weight\.scales has .* another number of scales"),
        (SCALES, lambda t: t.flatten(), r"up_proj\.weight\.scales has .* another number of scales"),
        (SCALES, lambda t: t.float(), r"up_proj\.weight\.scales is torch\.float32"),
        (LEVELS, lambda t: t[:15].contiguous(), r"up_proj\.weight\.levels is"),
        (LEVELS, lambda t: t.short(), r"up_proj\.weight\.levels is torch\.int16"),
        (LEVELS, lambda t: t.flip(0), r"up_proj\.weight\.levels must ascend"),
        (LEVELS, lambda t: torch.cat([t[:-1], t.new_tensor([64])]), r"up_proj\.weight\.levels must ascend from -63"),
        (LEVELS, lambda t: torch.cat([t.new_tensor([-128]), t[1:]]), r"up_proj\.weight\.levels must ascend from -63"),
        (Q8_CODES, lambda t: t[:-1].contiguous(), r"lm_head\.weight\.codes is"),
        (Q8_CODES, None, r"lm_head\.weight\.codes is missing"),
        (f"{SAVED}.zeros", lambda t: torch.zeros(1), r"up_proj\.weight\.zeros beside the codes of q4 is unexpected"),
        (SAVED, lambda t: torch.zeros(160, 64), r"up_proj\.weight beside the codes of q4 is unexpected"),
        ("language_model.model.embed_tokens.weight.levels", lambda t: torch.zeros(16), "embed_tokens.weight.levels beside"),
        ("language_model.model.norm.weight.codes", lambda t: torch.zeros(1), r"1 unexpected .*norm\.weight\.codes"),
    ],
)  # fmt: skip
def test_what_is_amiss_is_named(
    q4: Path, tmp_path: Path, key: str, change: Callable[[torch.Tensor], torch.Tensor] | None, said: str
) -> None:
    def apply(tensors: dict[str, torch.Tensor]) -> None:
        if change is None:
            del tensors[key]
        else:
            tensors[key] = change(tensors.get(key, torch.zeros(0)))

    folder = _changed(q4, tmp_path / "bad", apply)
    with pytest.raises(CheckpointError, match=said):
        quantised.load(folder)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        ({"version": 2}, CheckpointError, "layout version 2; this Vitrail reads version 1"),
        ({"version": None}, CheckpointError, "layout version None"),
        ({"version": True}, CheckpointError, "layout version True"),
        ({"format": "q3"}, ConfigError, "format must be one of q4, q8, got 'q3'"),
        ({"group": 16}, ConfigError, "group must be one of 32, 64, 128"),
        ({"zeros": 1}, ConfigError, "does not know zeros"),
        (
            {"quant_method": "exl3"},
            UnsupportedError,
            r"'bitsandbytes' \(nf4, fp4, int8\) and 'vitrail' \(q4, q8\)",
        ),
    ],
)
def test_settings_in_the_file_that_are_unknown(
    q4: Path, tmp_path: Path, value: dict[str, Any], error: type[VitrailError], said: str
) -> None:
    folder = _changed(q4, tmp_path / "bad", lambda tensors: None)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] |= value
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(error, match=said):
        quantised.load(folder)


def test_files_tell_the_format_where_the_configuration_does_not(q4: Path, tmp_path: Path) -> None:
    folder = _changed(q4, tmp_path / "silent", lambda tensors: None)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    said = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert quantised.load(folder).config.quantization_config == vitrail.QuantizeConfig.from_dict(said)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model of one layer in q4, for many changes."""
    root = tmp_path_factory.mktemp("small")
    config = vitrail.MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    tiny.randomize(vitrail.MistralForCausalLM(config)).save_pretrained(root / "source")
    quantised.written(root / "source", root / "q4")
    return root / "q4"


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_and_offsets_are_refused_or_harmless(
    small: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Bytes of the header or numbers in it changed: the file loads, or a VitrailError says why not. Nothing else."""
    content = bytearray((small / "model.safetensors").read_bytes())
    length = int.from_bytes(content[:8], "little")
    if data.draw(st.booleans(), label="numbers"):
        header = json.loads(bytes(content[8 : 8 + length]))
        name = data.draw(st.sampled_from([name for name in header if name != "__metadata__"]))
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        number = st.integers(-(2**64), 2**64) | st.integers(0, 5000)
        if field == "dtype":
            header[name][field] = data.draw(st.sampled_from(["U8", "I8", "BF16", "F32", "BOOL", "Q4", ""]))
        else:
            at = data.draw(st.integers(0, len(header[name][field]) - 1))
            header[name][field][at] = data.draw(number)
        text = json.dumps(header).encode()
        content[: 8 + length] = len(text).to_bytes(8, "little") + text
    else:
        for _ in range(data.draw(st.integers(1, 4), label="bytes")):
            content[data.draw(st.integers(0, 8 + length - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans(), label="cut"):
        content = content[: data.draw(st.integers(0, len(content)))]
    bad = tmp_path / "bad"
    bad.mkdir(exist_ok=True)
    (bad / "config.json").write_bytes((small / "config.json").read_bytes())
    (bad / "model.safetensors").unlink(missing_ok=True)
    (bad / "model.safetensors").write_bytes(content)
    try:
        model = vitrail.MistralForCausalLM.from_pretrained(bad)
    except VitrailError:
        return
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 64)
