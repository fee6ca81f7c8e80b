"""What the images of one request may cost together, and the process that decodes those of strangers."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
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
from vitrail.files.worker_pool import WorkerPool
from vitrail.files.worker_process import WorkerEndedError
from vitrail.images.decode_worker import Decoder
from vitrail.images.isolated import HEAD, LENGTH, PIXELS, SIZE
from vitrail.images.request import ImageRequest

SMALL = replace(ImageLimits(), max_images=3, max_total_pixels=1_000, max_total_bytes=2_000)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PNG = encoded(tiny.image(10, 12))


# A request's count


class Slow:
    """A file object that takes its time."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, most: int) -> bytes:
        time.sleep(0.03)
        return self.data


def test_request_counts_images_pixels_and_bytes_together() -> None:
    with image_request(limits=SMALL):
        for _ in range(3):
            load_image(PNG)
        load_image(tiny.image(500, 500))  # the caller's own
        with pytest.raises(ImageError, match="opens at most 3 images, pages of PDFs included"):
            load_image(PNG)
    for limits, data, says in (
        (SMALL, encoded(Image.new("1", (25, 25))), "more than 0 million pixels together"),
        (replace(SMALL, max_total_bytes=len(PNG)), PNG, "MiB together"),
        (replace(SMALL, max_seconds=0.01), Slow(PNG), r"took longer than 0\.01 s"),
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
    images = [tiny.image(40 + 8 * n, 64) for n in range(4)]
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


@pytest.fixture
def stranger() -> Iterator[ImageRequest]:
    """A request whose images come from strangers."""
    with image_request(ImageLimits.untrusted(), FetchPolicy.untrusted(), PdfLimits.untrusted()) as request:
        yield request


def test_isolated_decoding_gives_the_same_pixels(stranger: ImageRequest) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = tiny.image(30, 50)
    files = [
        encoded(image),
        encoded(image, "JPEG", exif=exif),
        encoded(image.convert("RGBA"), "WEBP"),
        hostile.gif(),
    ]
    assert stranger.limits.isolated
    for data in files:
        assert np.array_equal(
            np.asarray(load_image(data)), np.asarray(load_image(data, limits=ImageLimits()))
        )


def test_isolated_decoding_refuses_as_this_process_does(stranger: ImageRequest) -> None:
    assert stranger.limits.isolated
    for data, says in (
        (PNG[:60], "damaged or truncated"),
        (b"text, no image", r"format that is read \(PNG, JPEG, WEBP, GIF\)"),
        (encoded(tiny.image(8, 8), "BMP"), "format that is read"),
        (encoded(tiny.image(8, 8), "TIFF"), "format that is read"),
        (encoded(Image.new("1", (8_000, 8_000))), "at most 40 million are decoded"),
        (hostile.jpeg(64, 200), "100 scans"),
    ):
        with pytest.raises(ImageError, match=says):
            load_image(data)
    assert load_image(PNG).size == (12, 10)


def test_decoding_process_ends_at_its_limits() -> None:
    """Time and memory: one sentence each, and the next request has a new process."""
    pytest.importorskip("resource")
    large = encoded(Image.new("1", (6_000, 6_000)))
    hurried = replace(ImageLimits.untrusted(), max_seconds=0.01)
    with image_request(hurried), pytest.raises(ImageError, match=r"not decoded within 0\.01 s"):
        load_image(large)
    with image_request(replace(ImageLimits.untrusted(), max_memory=16 << 20)):
        with pytest.raises(ImageError, match="cannot be decoded with 16 MiB"):
            load_image(large)
        assert load_image(PNG).size == (12, 10)


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [b"x"],
        [HEAD.pack(b"????", 4, 4)],
        [HEAD.pack(SIZE, 0, 4)],
        [HEAD.pack(SIZE, 1 << 31, 1 << 31)],
        [HEAD.pack(SIZE, 4, 4), HEAD.pack(PIXELS, 5, 4) + bytes(60)],
        [HEAD.pack(SIZE, 4, 4), HEAD.pack(PIXELS, 4, 4) + bytes(47)],
        [HEAD.pack(SIZE, 4, 4), HEAD.pack(PIXELS, 4, 4) + bytes(49)],
        [HEAD.pack(SIZE, 4, 4) + bytes(4_000)],
    ],
)
def test_answer_that_is_not_what_was_asked_is_refused(
    answers: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads, sizes and lengths are checked before there is room for pixels."""

    class Taken:
        def __init__(self, answers: list[bytes]) -> None:
            self.answers = answers

        @contextmanager
        def worker(self) -> Iterator[Any]:
            yield self

        def ask(self, request: bytes, seconds: float, *, memory: int, answer_bytes: int) -> bytes:
            if not self.answers or len(self.answers[0]) > answer_bytes:
                raise WorkerEndedError(False, 0)
            return self.answers.pop(0)

        def stop(self) -> None: ...

    monkeypatch.setattr("vitrail.images.isolated._decoders", Taken(answers))
    with image_request(ImageLimits.untrusted()), pytest.raises(ImageError, match="its decoder ended"):
        load_image(PNG)


def test_fault_of_the_process_is_shown_as_plain_text() -> None:
    """Whatever it sends, no sequence that steers a terminal passes."""
    from vitrail.images.isolated import FAULT, _read_head

    with pytest.raises(ImageError) as caught:
        _read_head(HEAD.pack(FAULT, 0, 0) + "no \x1b[2Jimage\n\xff".encode("latin-1"), SIZE, 0, ImageLimits())
    assert str(caught.value).isprintable()


def test_process_answers_size_then_pixels() -> None:
    """The child's side alone."""
    import json
    from dataclasses import asdict

    asked = json.dumps({"subject": "It is", "limits": asdict(ImageLimits())}).encode()
    decoder = Decoder()
    assert decoder.answer(LENGTH.pack(len(asked)) + asked + PNG) == HEAD.pack(SIZE, 12, 10)
    assert decoder.answer(b"") == HEAD.pack(PIXELS, 12, 10) + tiny.image(10, 12).tobytes()
    with pytest.raises(EOFError):
        decoder.answer(b"")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_dies_with_its_parent() -> None:
    """The parent is killed while the process waits; while it is busy: test_worker_process.py and test_pdf.py."""
    code = (
        "from vitrail.images.isolated import _decoders; import time\n"
        "with _decoders.worker() as worker: print(worker._process.pid, flush=True)\n"
        "time.sleep(60)"
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


def test_process_is_kept_for_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any thread, also after that which started it has ended; one that failed is replaced."""
    pool = WorkerPool("vitrail.images.decode_worker", ("PIL", "numpy"), answer_bytes=99, work="", advice="")
    monkeypatch.setattr("vitrail.images.isolated._decoders", pool)
    found: list[int] = []

    def read(data: bytes = PNG) -> None:
        with image_request(ImageLimits.untrusted(), FetchPolicy.untrusted()):
            try:
                load_image(data)
            finally:
                (worker,) = pool._idle
                found.append(worker._process.pid if worker._process else 0)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    read()
    with pytest.raises(ImageError, match="damaged"):
        read(PNG[:60])
    assert found[0] and len(set(found)) == 1
    pool._idle[0].stop()
    read()
    assert found[-1] not in (0, found[0])
    pool._idle[0].stop()


@pytest.mark.parametrize(
    "limits",
    [
        replace(ImageLimits.untrusted(), max_seconds=float("inf"), max_memory=10**30),
        replace(ImageLimits.untrusted(), max_pixels=10**30),
    ],
)
def test_limits_without_end_are_none(limits: ImageLimits) -> None:
    with image_request(limits, FetchPolicy.untrusted()):
        assert load_image(PNG).size == (12, 10)


def test_requests_that_decode_side_by_side_have_a_process_each() -> None:
    """As many as there are threads; each gets its own pixels."""
    images = [tiny.image(8 + n, 9, seed=n) for n in range(2)]
    found: dict[int, Any] = {}

    def read(number: int) -> None:
        with image_request(ImageLimits.untrusted(), FetchPolicy.untrusted()):
            for _ in range(5):
                found[number] = load_image(encoded(images[number]))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, image in enumerate(images):
        assert found[number].tobytes() == image.tobytes()
