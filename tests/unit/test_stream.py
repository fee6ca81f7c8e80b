"""Streams of text: pieces join to the whole text, and none ends inside a character."""

from __future__ import annotations

import queue
import random
import threading
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.toy import Letters, ToyModel
from vitrail.errors import InputError
from vitrail.generate.loop import generate, stream_text
from vitrail.generate.stream import TextIteratorStreamer, TextStreamer
from vitrail.responses.text_pieces import TextPieces

TEXTS = [
    "Hello world, how are you?",
    "Größe: 3 €, naïve café – “quoted”…",
    "日本語のテキストと漢字。",
    "😀👩‍👩‍👧‍👦🇫🇷 flags and families é",
    "tabs\tand\nlines\r\n  and   spaces ",
    "العربية עברית हिन्दी ไทย",
    "a � genuine replacement character",
]


class Wrapped:
    """A `tokenizers` tokenizer with the calls that streams use."""

    def __init__(self, backend: Tokenizer, *, clean: bool = False) -> None:
        self.backend = backend
        self.clean = clean

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=None, **kwargs) -> str:
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        text = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if self.clean if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces:
            for pattern in (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're"):
                text = text.replace(pattern, pattern[1:])
            text = text.replace(" ' ", "'")
        return text

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self.backend.id_to_token(token)


def byte_level() -> Wrapped:
    """One id per byte, and a few that hold part of a character together with its neighbours."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: n for n, letter in enumerate(alphabet)}
    # " " + the first byte of é, and its second byte + "a": ids that cut characters on both sides
    merges = [("Ġ", "Ã"), ("©", "a"), ("h", "e"), ("Ġ", "w")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    return Wrapped(backend)


def byte_fallback() -> Wrapped:
    """Words with ▁ for spaces, and <0xNN> for all that has no id: like SentencePiece."""
    vocabulary = {f"<0x{n:02X}>": n for n in range(256)}
    for piece in ["▁", "▁Hello", "▁world", "▁a", "▁the", *"abcdefghijklmnopqrstuvwxyz.,?!'"]:
        vocabulary.setdefault(piece, len(vocabulary))
    vocabulary["<unk>"] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["</s>"])
    return Wrapped(backend)


TOKENIZERS = {"byte level": byte_level, "byte fallback": byte_fallback}


def _pieces(tokenizer, ids, **kwargs) -> list[str]:
    pieces = TextPieces(tokenizer, **kwargs)
    return [*(pieces.add([token]) for token in ids), pieces.end()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_never_split_a_character(kind, text):
    tokenizer = TOKENIZERS[kind]()
    ids = tokenizer.encode(text)
    pieces = _pieces(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    if kind == "byte level":
        assert "".join(pieces) == text
        assert sum(bool(piece) for piece in pieces) > len(text) // 3  # it streams, it does not hoard


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("skip", [True, False])
def test_any_ids_join_to_what_decoding_them_at_once_gives(kind, skip):
    tokenizer = TOKENIZERS[kind]()
    drawn = random.Random(5)
    size = tokenizer.backend.get_vocab_size()
    for _ in range(300):
        ids = [drawn.randrange(size) for _ in range(drawn.randrange(1, 12))]
        if drawn.random() < 0.5:  # control tokens at any place
            ids.insert(drawn.randrange(len(ids) + 1), size - 1)
        found = "".join(_pieces(tokenizer, ids, skip_special_tokens=skip))
        assert found == tokenizer.decode(ids, skip_special_tokens=skip), ids


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tekken_240911.json", "mistral_instruct_tokenizer_240323.model.v3"])
@pytest.mark.parametrize("skip", [True, False])
def test_the_tokenizers_of_published_models_join_too(name, skip):
    mistral_common = pytest.importorskip("mistral_common")
    from vitrail import MistralCommonTokenizer

    tokenizer = MistralCommonTokenizer(Path(mistral_common.__file__).parent / "data" / name)
    drawn = random.Random(7)
    cases = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    for limit in (1300, len(tokenizer)):  # control and byte ids lie at the beginning
        cases += [[drawn.randrange(limit) for _ in range(drawn.randrange(1, 12))] for _ in range(60)]
    for ids in cases:
        found = "".join(_pieces(tokenizer, ids, skip_special_tokens=skip))
        assert found == tokenizer.decode(ids, skip_special_tokens=skip), ids


def test_a_processor_is_as_good_as_its_tokenizer():
    class Processor:
        def __init__(self, tokenizer: Wrapped) -> None:
            self.tokenizer = tokenizer

        def decode(self, *args, **kwargs) -> str:
            return self.tokenizer.decode(*args, **kwargs)

    tokenizer = byte_fallback()
    ids = tokenizer.encode("é")
    assert _pieces(Processor(tokenizer), ids) == _pieces(tokenizer, ids)
    broken = [*ids, ids[-1]]
    assert "".join(_pieces(Processor(tokenizer), broken)) == tokenizer.decode(broken)


def test_cleaned_up_spaces_join_too():
    tokenizer = byte_level()
    ids = tokenizer.encode("it is n't so , is it ? ' well ' 's a world !")
    pieces = _pieces(tokenizer, ids, clean_up_tokenization_spaces=True)
    assert "".join(pieces) == tokenizer.decode(ids, clean_up_tokenization_spaces=True)
    assert any(pieces[:-1])


def test_a_piece_comes_as_soon_as_its_character_is_whole():
    tokenizer = byte_level()
    ids = tokenizer.encode("é€")
    pieces = _pieces(tokenizer, ids)
    assert len(ids) == 5
    assert pieces == ["", "é", "", "", "€", ""]


def test_old_ids_are_not_decoded_again_and_again():
    tokenizer = byte_level()
    longest = 0

    class Counting(Wrapped):
        def decode(self, ids, **kwargs):
            nonlocal longest
            longest = max(longest, len(ids))
            return super().decode(ids, **kwargs)

    _pieces(Counting(tokenizer.backend), tokenizer.encode("a long text " * 50))
    assert longest < 8


def test_text_streamer_writes_the_whole_text(capsys):
    tokenizer = byte_level()
    text = TEXTS[1]
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    streamer.put(torch.tensor([tokenizer.encode("the prompt")]))
    for token in tokenizer.encode(text):
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert capsys.readouterr().out == text + "\n"
    streamer.put(torch.tensor([tokenizer.encode("again a prompt")]))
    streamer.end()
    assert capsys.readouterr().out == "\n"


def test_text_streamer_shows_the_prompt_unless_told_otherwise(capsys):
    tokenizer = byte_level()
    streamer = TextStreamer(tokenizer)
    streamer.put(torch.tensor([tokenizer.encode("ask: ")]))
    streamer.put(torch.tensor(tokenizer.encode("a")))
    streamer.end()
    assert capsys.readouterr().out == "ask: a\n"


def test_text_streamers_refuse_batches():
    with pytest.raises(InputError, match=r"one row.*\(2, 3\)"):
        TextStreamer(byte_level()).put(torch.zeros(2, 3, dtype=torch.long))


def test_iterator_streamer_beside_a_thread():
    model, tokenizer = ToyModel(), Letters()
    inputs = torch.tensor([[1, 9, 14]])
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20, skip_special_tokens=True)
    thread = threading.Thread(target=generate, args=(model, inputs), kwargs={"streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    ids = generate(model, inputs)[0, 3:]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert len([piece for piece in pieces if piece]) > 3


def test_iterator_streamer_hands_on_an_error():
    streamer = TextIteratorStreamer(Letters(), timeout=20)

    def run() -> None:
        with pytest.raises(InputError):
            generate(ToyModel(), torch.tensor([[1, 4]]), streamer=streamer, max_new_token=3)

    thread = threading.Thread(target=run)
    thread.start()
    with pytest.raises(InputError, match="max_new_token"):
        list(streamer)
    thread.join()


def test_iterator_streamer_waits_no_longer_than_told():
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(Letters(), timeout=0.01))


def test_stream_text_is_generate_in_pieces():
    model, tokenizer = ToyModel(), Letters()
    inputs = {"input_ids": torch.tensor([[1, 9, 14]]), "attention_mask": torch.ones(1, 3)}
    pieces = list(stream_text(model, tokenizer, inputs, max_new_tokens=9))
    ids = generate(model, **inputs, max_new_tokens=9)[0, 3:]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert model.open_sequences == 0


def test_a_stream_that_is_left_early_frees_its_cache():
    model = ToyModel()
    stream = stream_text(model, Letters(), {"input_ids": torch.tensor([[1, 9, 14]])}, max_new_tokens=50)
    next(stream)
    assert model.open_sequences == 1
    assert torch.is_grad_enabled()  # between the pieces the caller's own state is in force
    stream.close()
    assert model.open_sequences == 0


def test_stream_text_refuses_batches():
    with pytest.raises(InputError, match="one row, got 2"):
        list(stream_text(ToyModel(), Letters(), {"input_ids": torch.tensor([[1, 9], [1, 8]])}))


class Counted:
    """A decoder of bytes that counts the ids which it is given; ids from 256 on are control ids."""

    all_special_ids = (256,)

    def __init__(self, fallback: bool) -> None:
        self.fallback, self.count = fallback, 0

    def decode(self, ids: list[int], **kwargs: object) -> str:
        self.count += len(ids)
        return bytes(index for index in ids if index < 256).decode("utf-8", errors="replace")

    def convert_ids_to_tokens(self, token: int) -> str:
        return f"<0x{token:02X}>" if self.fallback and token < 256 else "x"


FLOODS = {
    "continuation bytes": [0x80],
    "beginnings": [0xE2, 0x82],
    "characters": list("a€".encode()),
    "control ids": [256],
    "text and control ids": [0x61, 256, 256],
    "the replacement character": list("\ufffd".encode()),
}


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("flood", FLOODS)
def test_pieces_decode_ids_in_proportion(flood: str, fallback: bool) -> None:
    """Four times the ids are decoded about four times as often; the pieces are the text of all ids."""
    counts = []
    for size in (2_000, 8_000):
        tokenizer = Counted(fallback)
        pieces = TextPieces(tokenizer, skip_special_tokens=True)
        ids = FLOODS[flood] * (size // len(FLOODS[flood]))
        text = "".join([pieces.add([index]) for index in ids]) + pieces.end()
        counts.append(tokenizer.count)
        assert text == tokenizer.decode(ids)
    assert counts[1] < 5 * counts[0] + 1000


@pytest.mark.parametrize("clean", [False, True])
def test_pieces_of_random_bytes_join_to_the_whole(clean: bool) -> None:
    generator = random.Random(5)
    for _ in range(30):
        ids = [generator.choice([0x80, 0xE2, 0x82, 0xAC, 0x61, 0x20, 0xF0, 0x9F, 256]) for _ in range(400)]
        pieces = TextPieces(Counted(False), skip_special_tokens=True, clean_up_tokenization_spaces=clean)
        assert "".join([pieces.add([index]) for index in ids]) + pieces.end() == Counted(False).decode(ids)
