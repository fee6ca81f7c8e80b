"""What the images of one request may cost, in this process and in the one that decodes, and what they may be opened from."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrail
from tests import hostile_images as hostile, pdfs, tiny
from vitrail import FetchPolicy, ImageError, ImageLimits, PdfLimits, image_request, load_image, load_pages
from vitrail.images.decode_worker import serve
from vitrail.images.isolated import HEAD, PIXELS, SIZE
from vitrail.images.load import to_rgb
from vitrail.images.preflight import exif_is_sound
from vitrail.images.request import ImageRequest, set_image_defaults
from vitrail.images.worker_process import WorkerProcess

SMALL = replace(ImageLimits(), max_images=3, max_total_pixels=1_000, max_total_bytes=2_000)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PNG = encoded(tiny.picture(10, 12))


# What a file repeats


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: hostile.jpeg(64, 200), "a JPEG with more than 100 scans"),
        (
            lambda: hostile.jpeg(8_000, 60),
            r"a JPEG with more than 39 scans, each of which decodes its 64\.0 million",
        ),
        (lambda: hostile.tiff(46_336), "in tiles of 46336×46336; at most 4 million"),
        (lambda: hostile.tiff(16, tags=2_000, count=100_000), "tags repeat its data"),
        (lambda: hostile.tiff(16, tags=5_000, count=4), "a directory of 5,010 tags"),
        (lambda: hostile.gif(comments=50_000), "a GIF with too many extensions"),
        (lambda: hostile.png(8, chunks=200_000), "a PNG with too many chunks"),
        (lambda: hostile.webp(1 << 24, 255), "at most 100 million are decoded"),
        (lambda: hostile.bmp_of_runs(5 << 20), "a BMP with run-length coding of 5 MiB"),
    ],
    ids=[
        "scans",
        "scans of many pixels",
        "tile",
        "tags' data",
        "tags",
        "comments",
        "chunks",
        "canvas",
        "runs",
    ],
)
def test_file_that_repeats_itself_is_refused_in_no_time(make: Callable[[], bytes], says: str) -> None:
    """Each takes seconds or gigabytes in a decoder."""
    data = make()
    began = time.process_time()
    with pytest.raises(ImageError, match=says):
        load_image(data)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("tile", [16, 256, 1024])
def test_small_image_in_a_usual_tile_is_read(tile: int) -> None:
    assert load_image(hostile.tiff(tile)).size == (8, 8)


def test_usual_files_pass() -> None:
    """Encoders write about ten scans, and tiles of 256."""
    large = Image.effect_noise((1_600, 1_200), 60).convert("RGB")
    for data in (
        encoded(large, "JPEG", progressive=True),
        encoded(large, "TIFF", compression="tiff_lzw"),
        encoded(large, "TIFF"),
        hostile.jpeg(64, 20),
        hostile.gif(comments=1_000),
        hostile.png(8, chunks=1_000),
    ):
        assert min(load_image(data).size) >= 1


def test_exif_that_names_the_same_bytes_again_and_again_is_not_read() -> None:
    """Earlier versions of Pillow keep a copy for each tag: here 200 MB, and any amount in a longer block."""
    block = hostile.exif(4_000, 50_000)
    assert not exif_is_sound(block)
    assert load_image(encoded(Image.new("RGB", (8, 8)), "WEBP", exif=block)).size == (8, 8)
    with pytest.raises(ImageError, match="too much EXIF data"):
        load_image(encoded(Image.new("RGB", (8, 8)), "JPEG", exif=block))


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (hostile.gif(frames=30), 20),
        (hostile.png(8, frames=30), 20),
        (
            encoded(
                Image.new("L", (4, 4)),
                "WEBP",
                save_all=True,
                append_images=[Image.new("L", (4, 4), 25 * n) for n in range(9)],
            ),
            5,
        ),
        (hostile.tiff(16, directories=30), 20),
    ],
    ids=["GIF", "PNG", "WebP", "TIFF"],
)
def test_frames_are_counted_without_being_decoded(data: bytes, limit: int) -> None:
    with pytest.raises(ImageError, match=f"more than {limit} frames"):
        load_image(data, limits=ImageLimits(max_frames=limit))
    assert min(load_image(data).size) >= 1


def test_escapes_of_a_data_url_take_little_memory() -> None:
    """`unquote_to_bytes` makes 77 bytes of memory of each byte of %41."""
    import tracemalloc

    text = "data:image/png," + "%41" * 300_000
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="no picture"):
            load_image(text)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [65_534, 65_535, 65_536, 65_537, 65_538])
def test_escapes_are_read_across_pieces(length: int) -> None:
    """An escape that lies where the text is cut."""
    from vitrail.images.sources import data_url

    for text, data in (("a" * length + "%41%42", b"a" * length + b"AB"), ("%" * length, b"%" * length)):
        assert data_url("data:image/png," + text, ImageLimits()) == data


# What is converted in strips


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_strips_give_the_pixels_of_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image goes over RGBA strip by strip; the way of transformers takes it at once."""
    noise = np.random.default_rng(7).integers(0, 256, (50, 40, 4), dtype=np.uint8)
    whole = (
        Image.fromarray(noise).convert(mode)
        if mode != "I;16"
        else Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    )
    kept = np.asarray(to_rgb(whole.copy()))
    if mode != "I;16":
        rgba = whole.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, "WHITE")
        ground.paste(rgba, (0, 0), rgba)
        assert np.array_equal(kept, np.asarray(ground.convert("RGB")))
    monkeypatch.setattr("vitrail.images.load._STRIP", 130)
    assert np.array_equal(kept, np.asarray(to_rgb(whole)))


# A request's count


def test_request_counts_images_pixels_and_bytes_together() -> None:
    with image_request(limits=SMALL):
        for _ in range(3):
            load_image(PNG)
        load_image(tiny.picture(500, 500))  # the caller's own
        with pytest.raises(ImageError, match="opens at most 3 images, pages of PDFs included"):
            load_image(PNG)
    for limits, data, says in (
        (SMALL, encoded(Image.new("1", (25, 25))), "more than 0 million pixels together"),
        (replace(SMALL, max_total_bytes=len(PNG)), PNG, "MiB together"),
        (replace(SMALL, max_seconds=1e-4), PNG, r"took longer than 0\.0001 s"),
    ):
        with image_request(limits=limits):
            load_image(data)
            with pytest.raises(ImageError, match=says):
                load_image(data)


def test_nested_blocks_count_for_the_outer_one() -> None:
    """With limits of its own a block is another request."""
    with image_request(limits=SMALL):
        for _ in range(3):
            with image_request(policy=FetchPolicy.untrusted()), image_request():
                load_image(PNG)
        with image_request(limits=ImageLimits()):
            load_image(PNG)
        with pytest.raises(ImageError, match="at most 3 images"):
            load_image(PNG)
    load_image(PNG)


def test_pages_of_pdfs_count_and_share_their_pixels() -> None:
    """Many large pages are rendered coarser; those of several files together have a bound."""
    pytest.importorskip("pypdfium2")
    sheet = (2384.0, 3370.0, pdfs.RED)
    pages = load_pages(pdfs.pdf(*[sheet] * 4), limits=PdfLimits(max_total_pixels=200_000))
    assert all(45_000 < page.width * page.height <= 50_000 for page in pages)
    data = pdfs.pdf((72, 72, pdfs.RED), (72, 72, pdfs.BLUE))  # 22,500 pixels, 90 kB a page
    with image_request(limits=ImageLimits(max_memory=1_200_000)):
        load_pages(data)
        with pytest.raises(ImageError, match=r"pages of this request's PDFs take more than .* GiB"):
            load_pages(data)
    with (
        image_request(limits=ImageLimits(max_images=1)),
        pytest.raises(ImageError, match="pages of PDFs included"),
    ):
        load_pages(data)
    with image_request(limits=ImageLimits(max_pixels=5_000)):
        assert {page.size for page in load_pages(data)} == {(70, 70)}


@pytest.mark.parametrize("fast", [False, True])
def test_images_are_decoded_one_by_one(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image that was opened for a call is alive when the next one is opened; the batch is what it was."""
    import weakref

    made = vitrail.PixtralImageProcessorFast() if fast else vitrail.PixtralImageProcessor()
    images = [tiny.picture(40 + 8 * n, 64) for n in range(4)]
    alive: list[Any] = []

    def load(source: Any, *args: Any, **options: Any) -> Image.Image:
        assert [image for image in alive if image() is not None] == []
        found = load_image(source, *args, **options)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr("vitrail.images.load.load_image", load)
    found = made([encoded(image) for image in images], return_tensors="np")
    wanted = made(images, return_tensors="np")
    assert len(alive) == 4
    assert np.array_equal(found["pixel_values"], wanted["pixel_values"])
    assert np.array_equal(found["image_sizes"], wanted["image_sizes"])


@pytest.mark.parametrize("fast", [False, True])
def test_padding_to_the_largest_is_bounded(fast: bool) -> None:
    """Nine images of 64 pixels beside one of a million would be padded to ten million pixels."""
    made = vitrail.PixtralImageProcessorFast() if fast else vitrail.PixtralImageProcessor()
    images = [Image.new("RGB", (1024, 1024)), *[Image.new("RGB", (8, 8))] * 9]
    with image_request(limits=ImageLimits(max_memory=100 << 20)):
        with pytest.raises(
            ImageError, match=r"9 images padded to the largest, 1024×1024 pixels, take 0\.1 GiB"
        ):
            made(images)
        assert len(made(images[:8])["image_sizes"]) == 8


# The process that decodes


@pytest.fixture(scope="module")
def stranger() -> Iterator[ImageRequest]:
    """A request whose images come from strangers; its process is started once for this file."""
    request = ImageRequest(ImageLimits.untrusted(), FetchPolicy.untrusted(), PdfLimits.untrusted())
    yield request
    request.close()


@contextmanager
def asking(request: ImageRequest) -> Iterator[ImageRequest]:
    """The block of a request that is already begun."""
    from vitrail.images.request import _current

    token = _current.set(request)
    try:
        yield request
    finally:
        _current.reset(token)


def test_isolated_decoding_gives_the_same_pixels(stranger: ImageRequest) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = tiny.picture(30, 50)
    files = [
        encoded(image),
        encoded(image, "JPEG", exif=exif),
        encoded(image.convert("RGBA"), "WEBP"),
        hostile.gif(),
    ]
    with asking(stranger):
        for data in files:
            assert np.array_equal(
                np.asarray(load_image(data)), np.asarray(load_image(data, limits=ImageLimits()))
            )


def test_isolated_decoding_refuses_as_this_process_does(stranger: ImageRequest) -> None:
    with asking(stranger):
        for data, says in (
            (PNG[:60], "damaged or truncated"),
            (b"text, no picture", r"format that is read \(PNG, JPEG, WEBP, GIF\)"),
            (encoded(tiny.picture(8, 8), "BMP"), "format that is read"),
            (encoded(tiny.picture(8, 8), "TIFF"), "format that is read"),
            (encoded(Image.new("1", (8_000, 8_000))), "at most 40 million are decoded"),
            (hostile.jpeg(64, 200), "100 scans"),
        ):
            with pytest.raises(ImageError, match=says):
                load_image(data)
        assert load_image(PNG).size == (12, 10)


def test_decoding_process_ends_at_its_limits() -> None:
    """Time and memory: one sentence each, and the next request has a new process."""
    pytest.importorskip("resource")
    hurried = replace(ImageLimits.untrusted(), max_seconds=0.01)
    with image_request(hurried), pytest.raises(ImageError, match=r"not decoded within 0\.01 s"):
        load_image(PNG)
    with image_request(replace(ImageLimits.untrusted(), max_memory=16 << 20)) as request:
        with pytest.raises(ImageError, match="cannot be decoded with 16 MiB"):
            load_image(encoded(Image.new("1", (6_000, 6_000))))
        assert load_image(PNG).size == (12, 10)
        (used,) = (request._used.decoder,)
    assert used is not None and not used.alive


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [b"x"],
        [HEAD.pack(b"????", 4, 4)],
        [HEAD.pack(SIZE, 0, 4)],
        [HEAD.pack(SIZE, 1 << 31, 1 << 31)],
        [HEAD.pack(SIZE, 4, 4), HEAD.pack(PIXELS, 5, 4), bytes(60)],
        [HEAD.pack(SIZE, 4, 4), HEAD.pack(PIXELS, 4, 4), bytes(47)],
        [HEAD.pack(SIZE, 4, 4), HEAD.pack(PIXELS, 4, 4), bytes(49)],
        [HEAD.pack(SIZE, 4, 4) + bytes(4_000)],
    ],
)
def test_answer_that_is_not_what_was_asked_is_refused(
    answers: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads, sizes and lengths are checked before there is room for pixels."""

    class Taken:
        alive, expired = True, False

        def __init__(self, *_: Any, **__: Any) -> None:
            self.frames = list(answers)

        @contextmanager
        def until(self, seconds: float) -> Iterator[None]:
            yield

        def send(self, frame: bytes) -> None: ...

        def receive(self, most: int) -> bytes:
            if not self.frames or len(self.frames[0]) > most:
                raise EOFError
            return self.frames.pop(0)

        def close(self) -> None: ...

    monkeypatch.setattr("vitrail.images.request.WorkerProcess", Taken)
    with image_request(ImageLimits.untrusted()), pytest.raises(ImageError, match="its decoder ended"):
        load_image(PNG)


def test_fault_of_the_process_is_shown_as_plain_text() -> None:
    """Whatever it sends, no sequence that steers a terminal passes."""
    from vitrail.images.isolated import FAULT, _read_head

    with pytest.raises(ImageError) as caught:
        _read_head(HEAD.pack(FAULT, 0, 0) + "no \x1b[2Jimage\n\xff".encode("latin-1"), SIZE, ImageLimits())
    assert str(caught.value).isprintable()


def test_process_serves_in_frames() -> None:
    """The child's side alone."""
    import json
    from dataclasses import asdict

    frames = [json.dumps({"subject": "It is", "limits": asdict(ImageLimits())}).encode(), PNG]
    sent: list[bytes] = []

    def receive() -> bytes:
        if not frames:
            raise EOFError
        return frames.pop(0)

    with pytest.raises(EOFError):
        serve(receive, sent.append)
    assert sent == [HEAD.pack(SIZE, 12, 10), HEAD.pack(PIXELS, 12, 10), tiny.picture(10, 12).tobytes()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_dies_with_its_parent() -> None:
    """The parent is killed while the process waits, and while it sleeps in a call."""
    code = (
        "from vitrail.images.worker_process import WorkerProcess; import time\n"
        "worker = WorkerProcess('vitrail.images.decode_worker', memory=1 << 30, seconds=60)\n"
        "print(worker._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running(worker)


def running(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_process_ends_when_the_pipe_is_closed() -> None:
    """On every system, whatever it does."""
    worker = WorkerProcess("vitrail.images.decode_worker", memory=1 << 30, seconds=60)
    assert worker._process.stdin is not None
    worker._process.stdin.close()
    assert worker._process.wait(20) == 0
    worker.close()


# What may be opened


@pytest.fixture(scope="module")
def assistant(tiny_mistral3: Path) -> vitrail.Assistant:
    return vitrail.load(tiny_mistral3)


def _messages(**source: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [source, {"type": "text", "text": "Read."}]}]


def _template(assistant: vitrail.Assistant, messages: Any) -> Any:
    return assistant.processor.apply_chat_template(messages, tokenize=True, return_dict=True)


WAYS: dict[str, Callable[[vitrail.Assistant, str], Any]] = {
    "load_image": lambda a, name: load_image(name),
    "load_pages": lambda a, name: load_pages(name),
    "processor": lambda a, name: a.processor(images=[name], text="[IMG]"),
    "image processor": lambda a, name: a.processor.image_processor([name]),
    "fast image processor": lambda a, name: vitrail.PixtralImageProcessorFast()([name]),
    "image": lambda a, name: _template(a, _messages(type="image", image=name)),
    "path": lambda a, name: _template(a, _messages(type="image", path=name)),
    "url": lambda a, name: _template(a, _messages(type="image", url=name)),
    "image_url": lambda a, name: _template(a, _messages(type="image_url", image_url={"url": name})),
    "input_image": lambda a, name: _template(a, _messages(type="input_image", image_url=name)),
    "file": lambda a, name: _template(a, _messages(type="file", path=name)),
    "document_url": lambda a, name: _template(a, _messages(type="document_url", document_url=name)),
    "text alone": lambda a, name: a.processor.apply_chat_template(_messages(type="file", path=name)),
    "ask": lambda a, name: a.ask(name, "Read.", max_new_tokens=1),
    "stream": lambda a, name: list(a.stream(name, "Read.", max_new_tokens=1)),
    "chat": lambda a, name: a.chat(_messages(type="image", image=name)),
    "attach": lambda a, name: a.chat().attach({"type": "file", "path": name}),
    "read": lambda a, name: list(a.read(name)),
    "pipeline": lambda a, name: vitrail.pipeline(model=a.model, processor=a.processor)(
        text=_messages(type="image", image=name), max_new_tokens=1
    ),
    "pipeline's images": lambda a, name: vitrail.pipeline(model=a.model, processor=a.processor)(
        images=name, text="[IMG]", max_new_tokens=1
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_honours_the_policy(way: str, assistant: vitrail.Assistant, tmp_path: Path) -> None:
    """Files and addresses, for each spelling of a message and each name of an image."""
    file = tmp_path / "sign.png"
    file.write_bytes(PNG)
    names = [str(file), file.as_uri(), "http://127.0.0.1:9/a.png", "https://169.254.169.254/latest/a.png"]
    for name in names:
        with (
            image_request(policy=FetchPolicy.untrusted()),
            pytest.raises(ImageError, match=r"not opened|not fetched"),
        ):
            WAYS[way](assistant, name)
    public = FetchPolicy(allow_files=False, allow_private=False)
    with image_request(policy=public), pytest.raises(ImageError, match=r"not opened here|not public"):
        WAYS[way](assistant, "http://127.0.0.1:9/a.png")


def test_stream_that_is_read_outside_its_block_honours_the_policy(
    assistant: vitrail.Assistant, tmp_path: Path
) -> None:
    (tmp_path / "sign.png").write_bytes(PNG)
    with image_request(policy=FetchPolicy.untrusted()):
        stream = assistant.stream(tmp_path / "sign.png", "Read.", max_new_tokens=1)
    with pytest.raises(ImageError, match="Local files are not opened"):
        next(stream)


def test_defaults_hold_in_every_thread(tmp_path: Path) -> None:
    (tmp_path / "sign.png").write_bytes(PNG)
    found: list[str] = []

    def work() -> None:
        try:
            load_image(tmp_path / "sign.png")
        except ImageError as error:
            found.append(str(error))

    set_image_defaults(policy=FetchPolicy.untrusted())
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        set_image_defaults()
    assert found == ["Local files are not opened here; send the picture as a data URL."]
    work()
    assert len(found) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_asking_about_a_pipe_does_not_wait(assistant: vitrail.Assistant, tmp_path: Path) -> None:
    """What a file holds is looked at before it is opened as an image."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="no regular file"):
        assistant.ask(tmp_path / "pipe", "Read.")
