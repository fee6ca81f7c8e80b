"""weights/quantize.py: what is written, that it is all or nothing, and that a killed work goes on to the same bytes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import vitrail
from tests import geometries, quantised, tiny
from vitrail.errors import CheckpointError, ConfigError, InputError
from vitrail.files import safetensors_writer
from vitrail.files.safetensors import SafetensorsFile
from vitrail.ops.weight import dequantize
from vitrail.quant.formats.vitrail import quantize_own
from vitrail.quant.policy import nf4_config
from vitrail.weights.convert import convert
from vitrail.weights.quantize import write

Q4 = vitrail.QuantizeConfig()
Q8 = vitrail.QuantizeConfig("q8")
UP = "model.language_model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised.source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source in q4, in several files, written without disturbance."""
    out = tmp_path_factory.mktemp("whole") / "q4"
    quantised.written(folder, out, shard_bytes=60_000)
    return out


# --- what is written --------------------------------------------------------------------------------------------


def test_files_begin_their_codes_at_multiples_of_64(folder: Path, tmp_path: Path) -> None:
    quantised.written(folder, tmp_path / "q4")
    entries = SafetensorsFile(tmp_path / "q4" / "model.safetensors").entries
    lie = sorted(entries, key=lambda name: entries[name].start)
    kinds = [name.rpartition(".")[2] if ".weight." in name else "plain" for name in lie]
    codes = kinds.count("codes")
    assert codes > 30
    assert set(kinds[:codes]) == {"codes"}
    assert set(kinds[codes : 2 * codes]) == {"scales"}
    assert {"codes", "scales"}.isdisjoint(kinds[2 * codes :])
    assert all(entries[name].start % 64 == 0 for name in lie[:codes])
    assert all(entry.start % entry.dtype.itemsize == 0 for entry in entries.values())
    large = [entry for entry in entries.values() if entry.stop - entry.start >= 1 << 16]
    assert all(entry.start % 16 == 0 for entry in large)


def test_the_formats_own_library_opens_it(folder: Path, whole: Path) -> None:
    index = json.loads((whole / "model.safetensors.index.json").read_text("utf-8"))
    found = {}
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(whole / file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    assert set(found) == set(index["weight_map"])
    values = load_file(folder / "model.safetensors")["language_model.model.layers.0.mlp.up_proj.weight"]
    wanted = quantize_own(values, "q4", 32)
    for part, tensor in wanted.tensors.items():
        assert torch.equal(found[f"language_model.model.layers.0.mlp.up_proj.weight.{part}"], tensor)
    config = json.loads((whole / "config.json").read_text("utf-8"))["quantization_config"]
    assert config == {
        "quant_method": "vitrail", "version": 1, "format": "q4", "group": 32,
        "lm_head": "q8", "embeddings": "q8", "vision": "q8", "keep": [],
    }  # fmt: skip


def test_everything_beside_the_weights_comes_along(folder: Path, whole: Path) -> None:
    beside = {path.name for path in folder.iterdir()} - {"model.safetensors", "config.json"}
    assert {
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "processor_config.json",
    } <= beside
    assert all((whole / name).read_bytes() == (folder / name).read_bytes() for name in beside)


@pytest.mark.parametrize(
    "config", [Q4, Q8, vitrail.QuantizeConfig("q4", 64, "bf16", "q4", "bf16", ["*.layers.1.mlp"])]
)
def test_quantising_while_loading_and_saving_writes_the_same(
    folder: Path, tmp_path: Path, config: vitrail.QuantizeConfig
) -> None:
    quantised.written(folder, tmp_path / "a", config)
    model = quantised.load(folder, dtype=torch.bfloat16, quantization_config=config)
    model.save_pretrained(tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("vision", [True, False])
def test_nf4_is_what_bitsandbytes_saves(folder: Path, tmp_path: Path, vision: bool) -> None:
    config = nf4_config(quantised.network(folder), vision=vision, keep=["down_proj"] if vision else [])
    quantised.written(folder, tmp_path / "a", config)
    quantised.load(folder, dtype=torch.bfloat16, quantization_config=config).save_pretrained(tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_sources_of_every_kind_give_the_same(tmp_path: Path) -> None:
    """Hugging Face's names, Mistral's own files, and several shards."""
    params = geometries.small("Ministral 3 8B")
    params |= {"dim": 64, "hidden_dim": 96}
    model = geometries.model_of(params).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "hf", max_shard_size="50KB")
    convert(tmp_path / "hf", tmp_path / "own", "mistral")
    found = []
    for name in ("hf", "own"):
        out = tmp_path / f"q-{name}"
        quantised.written(tmp_path / name, out)
        found.append((out / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    assert not (tmp_path / "q-own" / "params.json").exists()


@pytest.mark.parametrize("biased", [True, False])
def test_the_projectors_biases_are_as_the_files_have_them(tmp_path: Path, biased: bool) -> None:
    """Published configurations do not say whether there are any."""
    source = quantised.source(tmp_path / "a", multimodal_projector_bias=biased)
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["multimodal_projector_bias"] = not biased
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    quantised.written(source, tmp_path / "q", Q8)
    model = quantised.load(tmp_path / "q")
    assert (model.model.multi_modal_projector.linear_1.bias is not None) == biased
    assert model.config.multimodal_projector_bias == biased


def test_a_checkpoint_of_bitsandbytes_is_decoded_first(folder: Path, tmp_path: Path) -> None:
    nf4 = vitrail.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    quantised.load(folder, dtype=torch.bfloat16, quantization_config=nf4).save_pretrained(tmp_path / "nf4")
    quantised.written(tmp_path / "nf4", tmp_path / "q8", Q8)
    packed = quantised.load(tmp_path / "nf4").get_submodule(UP).packed
    again = quantised.load(tmp_path / "q8").get_submodule(UP).packed
    wanted = quantize_own(dequantize(packed, packed.dtype), "q8", 32)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in wanted.tensors.items())


def test_float32_becomes_16_bits_where_it_is_not_packed(tmp_path: Path) -> None:
    folder = quantised.source(tmp_path / "a", dtype=torch.float32)
    quantised.written(folder, tmp_path / "b", vitrail.QuantizeConfig(keep=["q_proj"]))
    stored = load_file(tmp_path / "b" / "model.safetensors")
    kept = stored["language_model.model.layers.0.self_attn.q_proj.weight"]
    exact = load_file(folder / "model.safetensors")
    assert kept.dtype == torch.bfloat16
    assert torch.equal(kept, exact["language_model.model.layers.0.self_attn.q_proj.weight"].bfloat16())
    norm = "language_model.model.norm.weight"
    assert torch.equal(stored[norm], exact[norm])  # a vector stays exact
    assert quantised.load(tmp_path / "b", dtype="auto").dtype == torch.float32


def test_the_report_says_what_every_layer_lost(folder: Path, tmp_path: Path) -> None:
    config = vitrail.QuantizeConfig(keep=["v_proj"])
    seen: list[tuple[str, int, int]] = []
    work = quantised.work(folder, tmp_path / "q", config)
    report = write(work, progress=lambda *now: seen.append(now)).as_json()
    layers = {layer["name"]: layer for layer in report["layers"]}
    exact = load_file(folder / "model.safetensors")
    model = quantised.load(tmp_path / "q")
    wrong = whole = 0.0
    for name, layer in layers.items():
        if layer["relative_error"] is None:
            assert layer["format"] in ("bf16", "float32")
            continue
        path = name.removesuffix(".weight")
        saved = name.replace("model.language_model.", "language_model.model.").replace("model.v", "v")
        weight = exact[
            saved.replace("model.multi", "multi").replace("lm_head", "language_model.lm_head")
        ].double()
        off = dequantize(model.get_submodule(path).packed, torch.float64) - weight
        assert layer["relative_error"] == pytest.approx(float(off.norm() / weight.norm()), rel=1e-5)
        wrong, whole = wrong + float(off.square().sum()), whole + float(weight.square().sum())
    assert report["relative_error"] == pytest.approx((wrong / whole) ** 0.5, rel=1e-5)
    assert [layer["relative_error"] for layer in report["worst"]] == sorted(
        (layer["relative_error"] or 0 for layer in layers.values()), reverse=True
    )[:5]
    assert report["bytes"] == sum(t.nbytes for t in load_file(tmp_path / "q" / "model.safetensors").values())
    assert report["bits_per_weight"] == pytest.approx(
        report["bytes"] * 8 / sum(t.numel() for t in exact.values()), 1e-3
    )
    assert [name for name, _, _ in seen] == [*layers, ""]
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1:] == (report["bytes"], report["bytes"])


def test_a_value_that_is_no_number_is_named(tmp_path: Path) -> None:
    model = tiny.model("llava", **quantised.WIDE)
    with torch.no_grad():
        model.get_submodule(UP).weight[3, 5] = float("inf")
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match=rf"{UP}\.weight holds a value that is not finite"):
        quantised.written(tmp_path / "a", tmp_path / "q")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# --- all or nothing ---------------------------------------------------------------------------------------------


def test_a_target_that_exists_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(InputError, match="exists already"):
            quantised.work(folder, tmp_path / name)
    (tmp_path / "empty").mkdir()
    quantised.written(folder, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"]


def test_a_disk_without_room_is_told_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**4, 0, 10**4))
    with pytest.raises(CheckpointError, match=r"10,000 bytes free, and the weights need"):
        quantised.written(folder, tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


def _full_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The disk is full when so many tensors have been written."""
    real, left = safetensors_writer.write_values, [count]

    def write_values(stream: Any, tensor: torch.Tensor) -> None:
        left[0] -= 1
        if left[0] < 0:
            stream.write(b"some")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(stream, tensor)

    monkeypatch.setattr(safetensors_writer, "write_values", write_values)


def test_a_disk_that_fills_leaves_nothing_under_the_name(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _full_after(patch, 5)
        with pytest.raises(CheckpointError, match=r"q4 cannot be written: No space left on device\.$"):
            quantised.written(folder, tmp_path / "q4")
    assert list(tmp_path.iterdir()) == []  # no file was finished
    with monkeypatch.context() as patch:
        _full_after(patch, 50)
        with pytest.raises(
            CheckpointError, match=r"No space left on device\. Finished files are kept in .*goes on"
        ):
            quantised.written(folder, tmp_path / "q4", shard_bytes=60_000)
    assert [path.name for path in tmp_path.iterdir()] == [".q4.quantizing"]
    kept = sorted(path.name for path in (tmp_path / ".q4.quantizing" / "new").iterdir())
    assert 0 < len(kept) < len(list(whole.glob("*.safetensors")))
    done = quantised.written(folder, tmp_path / "q4", shard_bytes=60_000)
    assert done.kept_files == len(kept)
    assert quantised.bytes_of(tmp_path / "q4") == quantised.bytes_of(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["q4"]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests import quantised
from vitrail.files import safetensors_writer
count, real = int(sys.argv[3]), safetensors_writer.write_values
def write_values(stream, tensor):
    global count
    count -= 1
    if count < 0:
        stream.write(b"half")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    real(stream, tensor)
safetensors_writer.write_values = write_values
quantised.written(Path(sys.argv[1]), Path(sys.argv[2]), shard_bytes=60_000)
"""


@pytest.mark.slow
def test_a_killed_work_goes_on_to_the_same_bytes(folder: Path, whole: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for count in (40, 40):  # killed twice, the second time while it goes on
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "q4"), str(count)],
            cwd=root, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert [path.name for path in tmp_path.iterdir()] == [".q4.quantizing"]
    new = tmp_path / ".q4.quantizing" / "new"
    finished = [json.loads(line)["file"] for line in _journal(tmp_path).read_text().splitlines()[1:]]
    assert 1 < len(finished) < len(list(whole.glob("*.safetensors")))
    # One of the finished files is damaged afterwards: it is written again.
    damaged = new / finished[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    done = quantised.written(folder, tmp_path / "q4", shard_bytes=60_000)
    assert done.kept_files == len(finished) - 1
    assert quantised.bytes_of(tmp_path / "q4") == quantised.bytes_of(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["q4"]
    undisturbed = quantised.written(folder, tmp_path / "other", shard_bytes=60_000).as_json()
    assert done.as_json()["layers"] == undisturbed["layers"]


def _journal(root: Path) -> Path:
    return root / ".q4.quantizing" / "journal.jsonl"


def _broken_off(folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _full_after(patch, 50)
        with pytest.raises(CheckpointError):
            quantised.written(folder, root / "q4", shard_bytes=60_000)


def test_other_work_is_not_gone_on_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _broken_off(folder, tmp_path, monkeypatch)
    before = quantised.bytes_of(tmp_path / ".q4.quantizing" / "new")
    for other in ({"config": Q8}, {"shard_bytes": 70_000}):
        with pytest.raises(InputError, match="unfinished work of other settings"):
            quantised.written(folder, tmp_path / "q4", **{"shard_bytes": 60_000, **other})
    later = time.time_ns() + 10**9
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    os.utime(copy / "model.safetensors", ns=(later, later))
    with pytest.raises(InputError, match="of another model"):
        quantised.written(copy, tmp_path / "q4", shard_bytes=60_000)
    assert quantised.bytes_of(tmp_path / ".q4.quantizing" / "new") == before


def test_two_processes_do_not_write_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    _broken_off(folder, tmp_path, monkeypatch)
    with _journal(tmp_path).open("ab") as other:
        fcntl.flock(other.fileno(), fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing"):
            quantised.written(folder, tmp_path / "q4", shard_bytes=60_000)
    assert quantised.written(folder, tmp_path / "q4", shard_bytes=60_000).kept_files > 0


@pytest.mark.parametrize(
    "damage", ['{"file": "model-', "[]\n", '{"file": "model-00001-of-00099.safetensors"}\n']
)
def test_a_journal_that_was_cut_off_costs_work_and_nothing_else(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    _broken_off(folder, tmp_path, monkeypatch)
    with _journal(tmp_path).open("a") as stream:
        stream.write(damage)
    assert quantised.written(folder, tmp_path / "q4", shard_bytes=60_000).kept_files > 0
    assert quantised.bytes_of(tmp_path / "q4") == quantised.bytes_of(whole)


# --- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"format": "q5"}, "format must be one of q4, q8, got 'q5'"),
        ({"group": 33}, "group must be one of 32, 64, 128, got 33"),
        ({"group": True}, "group must be"),
        ({"lm_head": "nf4"}, "lm_head must be one of q8, q4, bf16"),
        ({"embeddings": None}, "embeddings must be"),
        ({"vision": 8}, "vision must be"),
        ({"keep": "down_proj"}, "keep must be a list"),
        ({"keep": [""]}, "keep must be a list"),
        ({"keep": ["x" * 1001]}, "keep must be a list"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        vitrail.QuantizeConfig(**wrong)
    if "keep" not in wrong:
        with pytest.raises(ConfigError, match=said):
            vitrail.QuantizeConfig.from_dict({**Q4.to_dict(), **wrong})


def test_settings_make_the_round_trip() -> None:
    config = vitrail.QuantizeConfig("q8", 128, "bf16", "q4", "bf16", ["a*", "b"])
    assert vitrail.QuantizeConfig.from_dict(config.to_dict()) == config != Q8
    assert hash(vitrail.QuantizeConfig.from_dict(config.to_dict())) == hash(config)
    assert json.loads(repr(config).removeprefix("QuantizeConfig ")) == config.to_dict()
