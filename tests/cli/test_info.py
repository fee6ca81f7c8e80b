"""`vitrail info`: what it says is what loading finds; nothing is loaded, and what would not load is an error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests import geometries, tiny
from tests.hub_server import HubServer
from tests.unit.test_memory_plan import FORMS, held
from tests.unit.test_parameter_counts import MODELS
from vitrail.cli import bench
from vitrail.cli.main import main
from vitrail.files.formatting import in_words
from vitrail.images.grid import image_tokens

KEYS = {
    "model", "folder", "architecture", "model_type", "format", "formats", "weights", "geometry", "parameters", "tied",
    "memory", "free", "cache", "positions", "images", "tokenizer", "question", "speed",
}  # fmt: skip


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """told(arguments…) → the JSON object."""

    def run(*arguments: object) -> dict[str, Any]:
        assert main(["info", *map(str, arguments), "--json"]) == 0
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        record: dict[str, Any] = json.loads(out)
        assert set(record) == KEYS
        return record

    return run


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Any:
    """shown(arguments…) → what a person sees, its blanks drawn together."""

    def run(*arguments: object) -> str:
        assert main(["info", *map(str, arguments)]) == 0
        return " ".join(capsys.readouterr().out.split())

    return run


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Ministral 3 3B in Mistral's own format: tied, YaRN."""
    params = geometries.small("Ministral 3 3B")
    tensors = geometries.native_tensors(geometries.model_of(params), params)
    return geometries.write_native(tmp_path_factory.mktemp("native"), params, tensors, shards=2)


@pytest.mark.parametrize("family", ["tiny_llava", "tiny_ministral3"])
def test_it_is_what_loading_finds(family: str, told: Any, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    record = told(folder)
    model = vitrail.AutoModelForImageTextToText.from_pretrained(folder)
    counts = record["parameters"]
    assert counts["total"] == model.num_parameters() == record["architecture"]["parameters"]
    assert counts["vision_tower"] == model.vision_tower.num_parameters()
    assert counts["embeddings"] == model.get_input_embeddings().weight.numel()
    assert record["tied"] == (counts["head"] == 0) == (family == "tiny_ministral3")
    assert sum(counts[part] for part in counts if part != "total") == counts["total"]
    assert record["memory"]["float32"]["weights"] == held(model)
    packed = vitrail.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=FORMS["nf4"].quantization
    )
    assert record["memory"]["nf4"]["weights"] == held(packed)
    text = model.config.text_config
    cache = vitrail.KVCache(text, blocks=1, block=1000)
    assert record["cache"]["float32"] == cache.nbytes
    assert record["positions"] == text.max_position_embeddings
    assert record["weights"]["here"]
    assert record["weights"]["dtypes"] == {"float32": held(model)}
    assert record["weights"]["bytes"] == (folder / "model.safetensors").stat().st_size
    assert record["tokenizer"]["used"] == "tokenizer.json"


@pytest.mark.parametrize("name", MODELS)
def test_published_geometries_from_the_configuration_alone(name: str, told: Any, tmp_path: Path) -> None:
    make, text, tower, adapter, total = MODELS[name]
    config = make()
    config.dtype = "bfloat16"
    config.save_pretrained(tmp_path)
    record = told(tmp_path)
    counts = record["parameters"]
    assert counts["total"] == total
    assert (counts["vision_tower"], counts["projector"]) == (tower, adapter)
    assert counts["embeddings"] + counts["language_model"] + counts["head"] == text
    assert record["memory"]["bfloat16"]["weights"] == 2 * total
    assert record["memory"]["float32"]["weights"] == 4 * total
    assert record["memory"]["nf4"]["weights"] < total
    assert not record["weights"]["here"]
    assert record["cache"]["bfloat16"] == {
        "Pixtral Large": 360_448_000, "Ministral 3 8B": 139_264_000, "Ministral 3 3B": 106_496_000,
    }.get(name, 163_840_000)  # fmt: skip


def test_images_cost_what_the_processor_makes_of_them(tiny_mistral3: Path, told: Any) -> None:
    record = told(tiny_mistral3)
    images = record["images"]
    processor = vitrail.AutoProcessor.from_pretrained(tiny_mistral3)
    assert (images["patch_size"], images["merge"], images["dialect"]) == (7, 2, "hf")
    for row in images["sizes"]:
        image = tiny.image(row["height"], row["width"])
        inputs = processor(text="[IMG]", images=[image], return_tensors="pt")
        assert inputs["input_ids"].shape[1] == row["tokens"] == row["hf"]
        assert inputs["image_sizes"].tolist() == [[row["read_height"], row["read_width"]]]
        edge = images["longest_edge"]
        assert row["mistral"] == image_tokens(
            row["height"], row["width"], patch_size=7, merge=2, longest_edge=edge, dialect="mistral"
        )


def test_a_folder_in_mistrals_own_format(native: Path, told: Any, shown: Any) -> None:
    record = told(native)
    assert (record["format"], record["formats"]) == ("mistral", ["mistral"])
    assert record["images"]["dialect"] == "mistral"
    assert (
        record["parameters"]["total"]
        == vitrail.AutoModelForImageTextToText.from_pretrained(native).num_parameters()
    )
    assert record["tied"]
    assert len(record["weights"]["files"]) == 2
    assert record["tokenizer"] == {}
    text = shown(native)
    assert "Mistral's own format" in text
    assert "tokenizer none" in text
    assert "head tied" in text
    assert "YaRN × 16" in text


def test_both_formats_and_both_tokenizers(native: Path, tmp_path: Path, told: Any, shown: Any) -> None:
    pytest.importorskip("mistral_common")
    folder = tmp_path / "both"
    shutil.copytree(native, folder)
    vitrail.AutoModelForImageTextToText.from_pretrained(native).save_pretrained(folder)
    tokenizer = {"added_tokens": [{"id": 10, "content": "[IMG]"}], "model": {"vocab": {"a": 0}}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tekken.json").write_text(json.dumps({"config": {"default_vocab_size": 300}, "vocab": []}))
    first, second = told(folder), told(folder, "--format", "mistral")
    assert (first["format"], second["format"]) == ("hf", "mistral")
    assert first["formats"] == ["hf", "mistral"]
    assert first["parameters"] == second["parameters"]
    assert second["images"]["dialect"] == "mistral"
    assert first["tokenizer"] == {
        "used": "tekken.json",
        "found": ["tekken.json", "tokenizer.json"],
        "ids": 300,
    }
    text = shown(folder)
    assert "Hugging Face's format (Mistral's own format is there too: --format mistral)" in text
    assert "tekken.json, 300 ids; tokenizer.json is there too: tokenizer_mode='hf'" in text
    (folder / "model.safetensors").unlink()  # config.json alone is half a format
    assert told(folder)["formats"] == ["mistral"]
    assert "is there too: --format" not in shown(folder)


def test_the_embedded_reader_and_the_tree(shown: Any, told: Any) -> None:
    text = shown()
    record = told()
    assert record["model"] == "embedded"
    for words in (
        "model embedded", "class Mistral3ForConditionalGeneration", "vision tower", "NF4, double", "cache of 1,000",
        "× layers PixtralAttentionLayer", "gate_proj", "└── lm_head", "tied to the embeddings", "free memory",
        f"all {record['parameters']['total']:,}",
    ):  # fmt: skip
        assert words in text, words


def test_a_text_model(tmp_path: Path, told: Any, shown: Any) -> None:
    vitrail.MistralForCausalLM(tiny.config("mistral3").text_config).save_pretrained(tmp_path)
    record = told(tmp_path)
    assert record["images"] == {}
    assert record["parameters"]["vision_tower"] == 0
    assert record["geometry"].keys() == {"text"}
    text = shown(tmp_path)
    assert "reads text only" in text
    assert "read at" not in text


def test_a_quantised_checkpoint(tiny_llava: Path, tmp_path: Path, told: Any, shown: Any) -> None:
    loaded = vitrail.AutoModelForImageTextToText.from_pretrained(
        tiny_llava, quantization_config=FORMS["nested"].quantization
    )
    loaded.save_pretrained(tmp_path)
    record = told(tmp_path)
    assert record["weights"]["quantized"] == "nf4"
    assert record["memory"].keys() == {"float32", "bfloat16"}  # of the rest; packed weights stay as they are
    assert record["memory"]["float32"]["weights"] == held(
        vitrail.AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    )
    assert record["parameters"]["total"] == loaded.num_parameters()
    assert "quantised: nf4" in shown(tmp_path)
    (tmp_path / "model.safetensors").unlink()  # the configuration alone says it too
    alone = told(tmp_path)
    assert alone["memory"].keys() == record["memory"].keys()
    for form, need in alone["memory"].items():
        assert need["weights"] == need["while_loading"] == record["memory"][form]["weights"]


def test_what_does_not_fit_is_marked(
    tiny_llava: Path, told: Any, shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = told(tiny_llava)
    need, cache = record["memory"], {form: in_words(size) for form, size in record["cache"].items()}
    monkeypatch.setattr("vitrail.describe.free_memory", lambda device: need["bfloat16"]["while_loading"])
    text = shown(tiny_llava)
    assert f"{cache['bfloat16']} yes q8" in text
    assert f"{cache['float32']} no bfloat16" in text
    monkeypatch.setattr("vitrail.describe.free_memory", lambda device: None)
    assert "free memory unknown" in shown(tiny_llava)


def test_a_name_of_the_hub_fetches_no_weights(
    hub: HubServer, tiny_llava: Path, told: Any, shown: Any
) -> None:
    hub.add("owner/tiny", tiny_llava)
    record = told("owner/tiny")
    assert not [name for name in hub.sent() if name.endswith(".safetensors")]
    size = (tiny_llava / "model.safetensors").stat().st_size
    assert record["weights"] == {
        "files": ["model.safetensors"], "bytes": size, "dtypes": {}, "quantized": None, "here": False,
        "bits_per_weight": None,
    }  # fmt: skip
    assert record["model"] == "owner/tiny"
    here = told(tiny_llava)
    for same in ("parameters", "images", "cache", "tokenizer", "architecture"):
        assert record[same] == here[same], same
    for form, need in record["memory"].items():  # the order of tensors in the files is not known yet
        assert need["weights"] == here["memory"][form]["weights"]
    assert "not here: 1 file" in shown("owner/tiny")


def test_nothing_is_loaded(tiny_llava: Path, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("vitrail.files.safetensors.SafetensorsFile.tensor", refuse)
    assert told(tiny_llava)["weights"]["here"]


def test_a_name_from_a_file_steers_no_terminal(tiny_llava: Path, tmp_path: Path, shown: Any) -> None:
    folder = tmp_path / "a\x1b[31m\x07b"
    shutil.copytree(tiny_llava, folder)
    assert "\x1b" not in shown(folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "neither config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12"), "is not a safetensors file"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "has no vocabulary"),
        (
            lambda folder: (
                tiny.model("mistral3").save_pretrained(folder / "x")
                or shutil.move(folder / "x" / "model.safetensors", folder / "model.safetensors")
            ),
            "do not fit LlavaForConditionalGeneration",
        ),
    ],
    ids=["no configuration", "damaged weights", "damaged tokenizer", "foreign weights"],
)
def test_what_would_not_load_is_an_error(
    tiny_llava: Path, tmp_path: Path, damage: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_llava, tmp_path / "copy"))
    damage(folder)
    assert main(["info", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("shard", "lacks 1 of its shards: consolidated-00002-of-00002.safetensors"),
        ("index", "does not list tensors that its files hold"),
        ("twice", "hold the same tensors"),
        ("shape", "up_proj.weight is (144, 48) in the files, (72, 48) in the model"),
    ],
)
def test_files_that_contradict_each_other(
    native: Path, tmp_path: Path, damage: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(native, tmp_path / "copy"))
    second = folder / "consolidated-00002-of-00002.safetensors"
    if damage == "shard":
        second.unlink()
    elif damage == "index":
        index = {"weight_map": {"norm.weight": second.name}}
        (folder / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    elif damage == "twice":
        shutil.copy(second, folder / "consolidated-00003-of-00002.safetensors")
    else:
        params = json.loads((folder / "params.json").read_text())
        (folder / "params.json").write_text(json.dumps(params | {"hidden_dim": 72}))
    for command in (["info", str(folder)], ["convert", str(folder), str(tmp_path / "out"), "--to", "hf"]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert said in err
    assert not (tmp_path / "out").exists()


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["info", str(tmp_path / "none")], "there is no folder"),
        (["info", "a", "b"], "unexpected"),
        (["info", "--format", "gguf"], "gguf"),
        (["info", str(tmp_path), "--revision", "x"], "--revision is for names on the hub"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err


# --- published geometries, without files ---------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt to connect, or to look for a file on the hub, fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("vitrail.files.checkpoint_folder.CheckpointFolder.open", refuse)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("pixtral-12b", 12_682_739_712), ("ministral-3-3b", 3_849_090_048)],
)  # fmt: skip
def test_info_geometry_counts_the_published_parameters_without_a_network(
    told: Any, offline: None, name: str, parameters: int
) -> None:
    found = told(name)
    assert found["parameters"]["total"] == parameters
    assert found["memory"]["bfloat16"]["weights"] == 2 * parameters
    assert (found["format"], found["weights"]["files"], found["folder"]) == ("", [], "")
    read = found["memory"]["q4"]["read_per_token"]
    assert read < found["memory"]["q4"]["weights"]
    assert found["speed"]["tokens_per_second"]["q4"] == pytest.approx(
        found["speed"]["bytes_per_second"] / read, abs=1e-3
    )
    assert found["question"]["ids"] == found["images"]["sizes"][2]["tokens"] + 32
    assert found["speed"]["question_seconds"] == pytest.approx(
        found["question"]["flop"] / found["speed"]["flop_per_second"], abs=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", bench.GEOMETRIES)
def test_info_every_geometry_says_whether_it_fits_and_how_fast(shown: Any, offline: None, name: str) -> None:
    text = shown(name)
    assert "fits now tokens/s at most" in text
    assert "a published geometry; no files were looked at" in text


def test_info_small_model_has_no_limit_by_memory(told: Any) -> None:
    """Caches may hold its weights."""
    assert set(told()["speed"]["tokens_per_second"].values()) == {None}


def test_info_folder_of_a_geometrys_name_is_that_folder(
    told: Any, tiny_mistral3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_mistral3, tmp_path / "pixtral-12b")
    monkeypatch.chdir(tmp_path)
    assert told("pixtral-12b")["format"] == "hf"


def test_info_geometry_with_a_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "pixtral-12b", "--format", "hf"]) == 2
    assert "pixtral-12b is a geometry without files" in capsys.readouterr().err
