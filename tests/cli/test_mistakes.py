"""A person's mistakes on the command line: status 2, one line on stderr that says what to do, never a traceback."""

from __future__ import annotations

import json
import shutil
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import tiny
from vitrail.cli.main import app, main

Says = Callable[..., str]


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Says:
    """Run the command line on a mistake, check how it is told, and give what was said."""

    def run(*arguments: object) -> str:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert status == 2, (out, err)
        assert out == ""
        assert err.startswith("vitrail: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture(scope="module")
def sign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good image."""
    path = tmp_path_factory.mktemp("images") / "sign.png"
    tiny.image(48, 64).save(path)
    return path


@pytest.fixture
def copy(tiny_mistral3: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be damaged."""
    return Path(shutil.copytree(tiny_mistral3, tmp_path / "copy"))


def png(height: int, width: int) -> bytes:
    """A PNG file whose header says (height, width) and whose pixels are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


# --- the line itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask"], "question is missing"),
        (["ask", "sign.png", ""], "question is empty"),
        (["ask", "sign.png", "-"], "question is missing"),
        (["ask", "-", "-", "What?"], "once"),
        (["ask", "sign.png", "What?", "--colour"], "--colour"),
        (["ask", "sign.png", "What?", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["ask", "sign.png", "What?", "--max-new-tokens", "many"], "many"),
        (["ask", "sign.png", "What?", "--max-image-tokens", "1"], "--max-image-tokens"),
        (["ask", "sign.png", "What?", "--temperature", "-1"], "--temperature"),
        (["ask", "sign.png", "What?", "--top-p", "1.5", "--temperature", "1"], "--top-p"),
        (["ask", "sign.png", "What?", "--seed", "3"], "--temperature"),
        (["ask", "sign.png", "What?", "--dtype", "int3"], "int3"),
        (["tokens"], "IMAGE"),
        (["answer", "sign.png"], "answer"),
    ],
)
def test_wrong_arguments(says: Says, arguments: list[str], said: str) -> None:
    """What the parser or the command refuses names the culprit."""
    assert said in says(*arguments)


@pytest.mark.parametrize("name", sorted(app.commands))
def test_every_command_shows_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` answers with lines that can be copied."""
    assert main([name, "--help"]) == 0
    _, found, examples = capsys.readouterr().out.partition("Examples:\n")
    assert found
    assert f"vitrail {name} " in examples


def test_a_forgotten_question(says: Says, sign: Path) -> None:
    """A lone image is no question."""
    assert "a question is missing" in says("ask", sign)


# --- images ----------------------------------------------------------------------------------------------


def test_a_missing_file(says: Says, tmp_path: Path) -> None:
    """The path is named."""
    assert "nothing.png" in says("ask", tmp_path / "nothing.png", "What?")


def test_a_folder(says: Says, tmp_path: Path) -> None:
    """A folder is no image."""
    assert str(tmp_path) in says("ask", tmp_path, "What?")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"just some text\n", "no image"),
        (b"", "empty"),
        (png(64, 64)[:20], "damaged"),
        (png(0, 64), "no image"),
        (png(14143, 14143), "million"),
        (png(3000, 1), "times"),
    ],
    ids=["text", "empty", "truncated", "no pixels", "200 million pixels", "1x3000"],
)
def test_a_file_that_is_no_usable_image(says: Says, tmp_path: Path, content: bytes, said: str) -> None:
    """Told before any model is loaded, from the header where that is enough."""
    path = tmp_path / "sign.png"
    path.write_bytes(content)
    assert said in says("ask", path, "What?")
    assert said in says("tokens", path)


def test_an_image_cut_off_in_its_pixels(says: Says, sign: Path, tmp_path: Path) -> None:
    """The header is good and half of the pixels are missing."""
    path = tmp_path / "cut.png"
    whole = sign.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in says("ask", path, "What?")


class _Server(BaseHTTPRequestHandler):
    """/missing answers 404, /large says that it is huge."""

    def do_GET(self) -> None:
        if self.path == "/large":
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 40))
            self.end_headers()
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a small web server on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "said"), [("/missing", "404"), ("/large", "large")])
def test_a_url_that_gives_no_image(says: Says, server: str, path: str, said: str) -> None:
    """What the server answered is told."""
    assert said in says("ask", server + path, "What?")


# --- checkpoints -------------------------------------------------------------------------------------------


def test_a_missing_checkpoint(says: Says, sign: Path, tmp_path: Path) -> None:
    """The folder is named."""
    assert "nowhere" in says("ask", sign, "What?", "--model", tmp_path / "nowhere")


def test_an_empty_checkpoint(says: Says, sign: Path, tmp_path: Path) -> None:
    """The missing file is named."""
    assert "config.json" in says("ask", sign, "What?", "--model", tmp_path)


def test_images_for_a_model_that_reads_text(says: Says, sign: Path, copy: Path) -> None:
    """A text model gets no images."""
    config = json.loads((copy / "config.json").read_text())["text_config"]
    (copy / "config.json").write_text(json.dumps(config))
    assert "reads text only" in says("ask", sign, "What?", "--model", copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bert"}, "bert"),
        ({"model_type": None}, "model_type"),
        ({"text_config": None}, "text_config"),
        ({"spatial_merge_size": "two"}, "spatial_merge_size"),
    ],
)
def test_a_wrong_config(says: Says, sign: Path, copy: Path, change: dict[str, object], said: str) -> None:
    """The key is named."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    assert said in says("ask", sign, "What?", "--model", copy)


def test_a_config_that_is_no_json(says: Says, sign: Path, copy: Path) -> None:
    """The file is named."""
    (copy / "config.json").write_text("{")
    assert "config.json" in says("ask", sign, "What?", "--model", copy)


def test_a_truncated_weights_file(says: Says, sign: Path, copy: Path) -> None:
    """The file is named."""
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "model.safetensors" in says("ask", sign, "What?", "--model", copy)


def test_a_foreign_weights_file(says: Says, sign: Path, copy: Path) -> None:
    """A file of something else is no safetensors file."""
    (copy / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(1000))
    assert "model.safetensors" in says("ask", sign, "What?", "--model", copy)


def test_weights_that_do_not_fit(says: Says, sign: Path, copy: Path) -> None:
    """A tensor of another shape is named."""
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["intermediate_size"] += 16
    (copy / "config.json").write_text(json.dumps(config))
    assert "mlp" in says("ask", sign, "What?", "--model", copy)


def test_a_missing_tokenizer(says: Says, sign: Path, copy: Path) -> None:
    """The file is named."""
    (copy / "tokenizer.json").unlink()
    assert "tokenizer.json" in says("ask", sign, "What?", "--model", copy)


# --- the question ------------------------------------------------------------------------------------------


def test_more_positions_than_the_model_has(says: Says, sign: Path, copy: Path) -> None:
    """Both numbers are told."""
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 64
    (copy / "config.json").write_text(json.dumps(config))
    assert "64" in says("ask", sign, "What? " * 30, "--model", copy, "--max-new-tokens", "5")


def test_max_new_tokens_beyond_the_context_is_refused(says: Says, sign: Path, copy: Path) -> None:
    """What was asked for is not cut in silence."""
    limit = json.loads((copy / "config.json").read_text())["text_config"]["max_position_embeddings"]
    err = says("ask", sign, "What?", "--model", copy, "--max-new-tokens", str(limit))
    assert f"model's {limit} positions" in err and "max_new_tokens" in err


def test_an_id_beyond_the_vocabulary(says: Says, sign: Path, tmp_path: Path) -> None:
    """A tokenizer that knows more ids than the model has rows."""
    folder = tiny.write_checkpoint(tmp_path / "small", "mistral3", text_config={"vocab_size": 200})
    assert "200" in says("ask", sign, "Wörter, viele: Qualität?", "--model", folder)


def test_control_tokens_in_a_question_are_text(
    tiny_mistral3: Path, sign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A person may write [IMG] or [/INST]; it counts as characters and asks for no image."""
    question = "Is [IMG] or [/INST] written there?"
    assert main(["ask", str(sign), question, "--model", str(tiny_mistral3), "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
    ],
)
def test_lack_of_memory_is_told(says: Says, monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    def fail(words: list[str]) -> int:
        raise fault

    monkeypatch.setattr("vitrail.cli.main._invoke", fail)
    assert "not enough memory" in says("ask", "What?")


def test_other_faults_of_ours_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: list[str]) -> int:
        raise RuntimeError("a mistake in the program")

    monkeypatch.setattr("vitrail.cli.main._invoke", fail)
    with pytest.raises(RuntimeError, match="a mistake in the program"):
        main(["ask", "What?"])


@pytest.mark.parametrize(
    "words",
    [
        ["ask", "{sign}", "Hi", "--model", "{adapter}"],
        ["tokens", "{sign}", "--model", "{adapter}"],
        ["info", "{adapter}"],
        ["chat", "--model", "{adapter}"],
        ["convert", "{adapter}", "{adapter}/new", "--to", "mistral"],
        ["prompt", "{talks}", "--tokenizer", "{adapter}"],
        ["train", "{talks}", "--check", "--model", "{adapter}"],
    ],
    ids=lambda words: str(words[0]),
)
def test_adapter_as_a_model_names_its_base(says: Says, sign: Path, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "its/base", "peft_type": "LORA"}'
    )
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    talks = tmp_path / "talks.jsonl"
    talks.write_text('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]\n')
    said = says(*(word.format(sign=sign, adapter=tmp_path, talks=talks) for word in words))
    assert f"{tmp_path} holds an adapter, not a model: give its/base as the model" in said


@pytest.mark.parametrize(
    "words",
    [["ask", "", "What?"], ["ask", "a.png", "What?", "--model", ""], ["ask", "a.png", "What?", "--adapter", ""],
     ["ask", "What?", "--conversation", ""], ["ask", "a.png", "What?", "--tools", ""], ["chat", ""],
     ["chat", "--load", ""], ["convert", "a", "", "--to", "hf"], ["info", ""], ["prompt", ""],
     ["prompt", "a.json", "--tokenizer", ""], ["quantize", "a", "", "--format", "q8"], ["read", ""],
     ["read", "a.png", "--model", ""], ["tokens", ""], ["train", "", "--check"], ["train", "a", "--out", ""],
     ["train", "a", "--out", "b", "--eval", " "]],
    ids=" ".join,
)  # fmt: skip
def test_empty_name_is_refused(says: Says, words: list[str]) -> None:
    assert "name is empty" in says(*words)


def test_overlong_output_is_no_name(says: Says, tiny_llava: Path) -> None:
    said = says("convert", tiny_llava, "x" * 300, "--to", "mistral")
    assert "out is no name that a file can have" in said


def test_model_as_an_adapter_is_named(says: Says, sign: Path, tiny_llava: Path) -> None:
    said = says("ask", sign, "What?", "--model", tiny_llava, "--adapter", tiny_llava)
    assert "holds a model, not an adapter" in said
    said = says("ask", sign, "What?", "--model", tiny_llava, "--adapter", tiny_llava / "config.json")
    assert "is a file; an adapter is a folder with an adapter_config.json" in said


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/checkpoint-00000003", "merged"])
def test_killed_training_run_says_how_it_goes_on(
    says: Says, sign: Path, tiny_llava: Path, tmp_path: Path, place: str
) -> None:
    run = tmp_path / "run"
    for name in ("checkpoints/checkpoint-00000003", "merged"):
        (run / name).mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}\n")
    folder = run / place
    for words in (
        ["ask", sign, "What?", "--model", folder],
        ["ask", sign, "What?", "--model", tiny_llava, "--adapter", folder],
        ["info", folder],
        ["tokens", sign, "--model", folder],
        ["convert", folder, tmp_path / "out", "--to", "mistral"],
    ):
        said = says(*words)
        assert "training run that has not ended" in said
        assert "give the same `vitrail train` command again: it goes on from its newest checkpoint" in said


def test_checkpoint_of_an_ended_run_names_its_folder(says: Says, sign: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "adapter_config.json").write_text("{}")
    said = says("ask", sign, "What?", "--model", tmp_path / "checkpoints")
    assert f"goes on from, and no model; give {tmp_path}" in said
