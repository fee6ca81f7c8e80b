"""`vitrail ask` and `vitrail tokens` from outside: what is printed where, and with which exit status."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from vitrail.cli.main import main
from vitrail.cli.output import one_line

QUESTION = "What does it say?"


@pytest.fixture(scope="module")
def sign(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image file of 60×90 pixels (height×width)."""
    path = tmp_path_factory.mktemp("images") / "sign.png"
    tiny.image(60, 90).save(path)
    return str(path)


def ask(*words: str, model: Path, more: tuple[str, ...] = ()) -> int:
    """Run `vitrail ask` in this process and give its exit status."""
    return main(["ask", *words, "--model", str(model), "--max-new-tokens", "6", *more])


def expected(model: Path, images: list[Any], text: str = QUESTION, **kwargs: Any) -> str:
    """The answer through the Python API."""
    import vitrail

    processor = vitrail.AutoProcessor.from_pretrained(model)
    network = vitrail.AutoModelForImageTextToText.from_pretrained(model)
    parts = [{"type": "image", "image": p} for p in images] + [{"type": "text", "text": text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = network.generate(**inputs, max_new_tokens=6, do_sample=False, **kwargs)
    answer: str = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer


def test_the_answer_is_that_of_the_api(
    tiny_mistral3: Path, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """stdout holds the text and nothing else; stderr stays empty without a terminal."""
    assert ask(sign, QUESTION, model=tiny_mistral3) == 0
    out, err = capsys.readouterr()
    assert out == expected(tiny_mistral3, [tiny.image(60, 90)]) + "\n"
    assert err == ""


def test_several_images_come_in_order(
    tiny_llava: Path, sign: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first image on the line is the first one in the prompt."""
    other = tmp_path / "other.png"
    tiny.image(40, 72, seed=3).save(other)
    assert ask(str(other), sign, QUESTION, model=tiny_llava) == 0
    images = [tiny.image(40, 72, seed=3), tiny.image(60, 90)]
    assert capsys.readouterr().out == expected(tiny_llava, images) + "\n"


def test_json_tells_text_tokens_and_seconds(
    tiny_mistral3: Path, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One JSON object on one line."""
    assert ask(sign, QUESTION, model=tiny_mistral3, more=("--json",)) == 0
    out = capsys.readouterr().out
    record = json.loads(out)
    assert out.count("\n") == 1
    assert record["text"] == expected(tiny_mistral3, [tiny.image(60, 90)])
    assert record["model"] == str(tiny_mistral3)
    # 60×90 at patch 7, merge 2 → 5 rows of 7 [IMG] and a break (or the end) each
    assert record["tokens"]["images"] == [5 * 8]
    assert record["tokens"]["prompt"] > 40
    assert 1 <= record["tokens"]["completion"] <= 6
    assert set(record["seconds"]) == {"load", "prepare", "first_token", "generate", "total"}
    assert all(seconds >= 0 for seconds in record["seconds"].values())
    assert record["stopped_by"] == ("length" if record["tokens"]["completion"] == 6 else "stop")


def test_max_image_tokens_shrinks_the_image(
    tiny_mistral3: Path, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The budget holds, and `vitrail tokens` foretells it."""
    assert ask(sign, QUESTION, model=tiny_mistral3, more=("--json", "--max-image-tokens", "20")) == 0
    (cost,) = json.loads(capsys.readouterr().out)["tokens"]["images"]
    assert cost <= 20
    assert main(["tokens", sign, "--model", str(tiny_mistral3), "--max-image-tokens", "20"]) == 0
    assert int(capsys.readouterr().out.split()[0]) == cost
    assert main(["tokens", sign, "--model", str(tiny_mistral3)]) == 0
    assert capsys.readouterr().out.split()[0] == "40"


def test_a_seed_repeats_a_draw(tiny_llava: Path, sign: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Same seed, same text; other seeds give others."""
    texts = []
    for seed in ("1", "1", "2", "3"):
        assert ask(sign, QUESTION, model=tiny_llava, more=("--temperature", "1.5", "--seed", seed)) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_a_system_prompt_is_put_before(
    tiny_llava: Path, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It costs tokens."""
    counts = []
    for more in ((), ("--system", "Be brief.")):
        assert ask(sign, QUESTION, model=tiny_llava, more=("--json", *more)) == 0
        counts.append(json.loads(capsys.readouterr().out)["tokens"]["prompt"])
    assert counts[1] > counts[0]


def test_an_image_comes_through_standard_input(
    tiny_mistral3: Path, monkeypatch: pytest.MonkeyPatch, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """'-' is an image of its own."""

    class Pipe:
        buffer = BytesIO(Path(sign).read_bytes())

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Pipe())
    assert ask("-", QUESTION, model=tiny_mistral3) == 0
    assert capsys.readouterr().out == expected(tiny_mistral3, [tiny.image(60, 90)]) + "\n"


def test_text_alone_is_a_question_too(tiny_llava: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a checkpoint that was named; the embedded one reads images."""
    assert ask("How are you?", model=tiny_llava) == 0
    assert capsys.readouterr().out == expected(tiny_llava, [], "How are you?") + "\n"
    assert main(["ask", "How are you?"]) == 2
    assert "needs an image" in capsys.readouterr().err


@pytest.mark.slow
def test_text_is_streamed_while_it_is_made(tiny_llava: Path, sign: str) -> None:
    """The first piece is there before the last one is made: stdout is flushed piece by piece."""
    code = f"""
import sys, time
import vitrail.responses.streamer as answer
whole = answer.ResponseStream.put
def slowly(self, value):
    whole(self, value)
    print("put", file=sys.stderr, flush=True)
    sys.stdin.readline()
answer.ResponseStream.put = slowly
from vitrail.cli.main import main
main(["ask", {sign!r}, "Read.", "--model", {str(tiny_llava)!r}, "--max-new-tokens", "8"])
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        os.set_blocking(process.stdout.fileno(), False)
        seen = b""
        for _ in range(6):  # the prompt and five ids; generation waits for us after each of them
            assert process.stderr.readline() == b"put\n"
            seen += process.stdout.read() or b""
            process.stdin.write(b"\n")
            process.stdin.flush()
        assert seen
        os.set_blocking(process.stdout.fileno(), True)
        rest, _ = process.communicate(b"\n" * 20, timeout=60)
        assert rest


@pytest.mark.slow
def test_waiting_is_shown_on_a_terminal_only(tiny_llava: Path, sign: str) -> None:
    """With stderr on a terminal loading and reading are shown there, and stdout stays clean."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "vitrail", "ask", sign, "Read.", "--model", str(tiny_llava)]
    with subprocess.Popen(
        [*command, "--max-new-tokens", "4"], stdout=subprocess.PIPE, stderr=follower
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # the terminal is closed when the process ends
                break
            if not piece:
                break
            shown += piece
        out, _ = process.communicate(timeout=60)
    os.close(leader)
    assert process.returncode == 0
    assert b"loading" in shown
    assert b"1 image" in shown
    assert b"\x1b" not in out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interrupting_ends_cleanly(tiny_llava: Path, sign: str) -> None:
    """Ctrl-C while the answer is made: status 130, no traceback, the line ended."""
    command = [sys.executable, "-m", "vitrail", "ask", sign, "Read.", "--model", str(tiny_llava)]
    more = ["--max-new-tokens", "3500", "--temperature", "1"]
    with subprocess.Popen(
        [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_interruptible
    ) as process:
        assert process.stdout
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    assert first
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert rest.endswith(b"\n")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interrupting_the_start_ends_cleanly(tiny_llava: Path, sign: str) -> None:
    """Ctrl-C while torch is imported."""
    code = f"""
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["vitrail", "ask", {sign!r}, "Read.", "--model", {str(tiny_llava)!r}]
from vitrail.cli import run
run()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, preexec_fn=_interruptible, check=False, timeout=120
    )
    assert done.returncode == 130
    assert (done.stdout, done.stderr.strip()) == (b"", b"")


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(tiny_llava: Path, sign: str) -> None:
    """`vitrail ask … | head -c 1` says nothing on stderr."""
    command = [sys.executable, "-m", "vitrail", "ask", sign, "Read.", "--model", str(tiny_llava)]
    more = ["--max-new-tokens", "200", "--temperature", "1", "--seed", "1"]
    with subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_messages_are_one_harmless_line() -> None:
    """Line breaks and escape sequences in a file's name or a tensor's cannot reach the terminal."""
    assert one_line("a\nb\t\x1b[31mc  d\r\n") == "a b [31mc d"


def test_dtype_and_device_are_obeyed(tiny_llava: Path, sign: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--dtype bfloat16 computes in bfloat16; a device that is not there is a one-line mistake."""
    assert ask(sign, QUESTION, model=tiny_llava, more=("--dtype", "bfloat16", "--device", "cpu")) == 0
    assert capsys.readouterr().out
    if not torch.cuda.is_available():
        assert ask(sign, QUESTION, model=tiny_llava, more=("--device", "cuda")) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_cache_is_as_small_as_asked_for(
    tiny_llava: Path, sign: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--cache q8 reaches the cache; a name that nobody knows is a one-line mistake."""
    from vitrail.kv.cache import KVCache

    made: list[torch.dtype] = []
    begin = KVCache.__init__

    def noted(self: KVCache, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        made.append(self.dtype)

    monkeypatch.setattr(KVCache, "__init__", noted)
    for name, dtype in (("q8", torch.int8), ("bf16", torch.bfloat16), ("f32", torch.float32)):
        assert ask(sign, QUESTION, model=tiny_llava, more=("--cache", name)) == 0
        assert capsys.readouterr().out
        assert made.pop() == dtype and not made
    assert ask(sign, QUESTION, model=tiny_llava, more=("--cache", "q3")) == 2
    assert "--cache" in capsys.readouterr().err


def test_a_model_that_reads_text_only_answers_text(
    tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MistralForCausalLM with its tokenizer, and no processor."""
    import vitrail

    config = vitrail.AutoConfig.from_pretrained(tiny_llava).text_config
    tiny.randomize(vitrail.MistralForCausalLM(config)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_llava / name, tmp_path)
    assert ask("How are you?", model=tmp_path, more=("--json",)) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["text"]
    assert record["tokens"]["images"] == []
