"""PDFs: their pages in order, the limits, and one clear sentence for each kind of file that cannot be read."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import pdfs, tiny
from tests.pdfs import BLUE, GREEN, RED
from vitrail.errors import ImageError, MissingPackageError, PromptError
from vitrail.files.worker_process import WorkerEndedError
from vitrail.images.fetch import FetchPolicy
from vitrail.images.load import load_image
from vitrail.images.pdf import PDF_LIMITS, file_holds_pdf, load_pages, names_pdf
from vitrail.images.pdf_worker import COUNT, HEAD, PAGE
from vitrail.images.request import image_request
from vitrail.prompts.messages import images, normalize

THREE = pdfs.pdf((72, 144, RED), (144, 72, GREEN), (72, 72, BLUE))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A file with three pages: red and tall, green and wide, blue and square."""
    path = tmp_path / "three.pdf"
    path.write_bytes(THREE)
    return path


def colours(pages: list[Any]) -> list[Any]:
    """The colour in the middle of each image."""
    return [page.getpixel((page.width // 2, page.height // 2)) for page in pages]


def test_pages_come_in_order_at_the_resolution(three: Path) -> None:
    """150 pixels per inch: a point is 1/72 inch."""
    told: list[tuple[int, int]] = []
    pages = load_pages(three, progress=lambda done, total: told.append((done, total)))
    assert [page.size for page in pages] == [(150, 300), (300, 150), (150, 150)]
    assert colours(pages) == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert {page.mode for page in pages} == {"RGB"}
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering is left out (it starts a process): the file with three pages gives three colours."""

    def render(data: bytes, *_: Any) -> list[Any]:
        assert data == THREE
        return [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]

    monkeypatch.setattr("vitrail.images.pdf._render", render)


@pytest.mark.usefixtures("painted")
def test_every_form_of_source_is_read_and_its_content_decides(three: Path, tmp_path: Path) -> None:
    """Bytes, a data: URL, a binary file, a name that says nothing; an image stays one image."""
    nameless = tmp_path / "scan"
    nameless.write_bytes(THREE)
    url = "data:application/pdf;base64," + base64.b64encode(THREE).decode()
    for source in (THREE, url, BytesIO(THREE), str(nameless), three.as_uri()):
        assert len(load_pages(source)) == 3
    tiny.image(20, 30).save(tmp_path / "sign.png")
    (sign,) = load_pages(tmp_path / "sign.png")
    assert sign.size == (30, 20)
    assert load_pages(sign)[0] is sign
    assert len(load_pages((tmp_path / "sign.png").read_bytes())) == 1


def test_names_of_pdfs() -> None:
    """A message's source is opened as a PDF by its name or its first bytes, without being read."""
    for source in (
        "a.PDF",
        Path("x/b.pdf"),
        "https://x.org/a.pdf?v=1",
        "data:application/pdf;base64,",
        THREE,
    ):
        assert names_pdf(source)
    for other in ("a.png", "https://x.org/a.png?b=.pdf", "pdf", b"\x89PNG", None, 3, "http://[bad.pdf"):
        assert not names_pdf(other)


def test_a_large_page_is_rendered_coarser_before_it_is_rendered() -> None:
    """An A0 sheet and a page of 200 inches stay within the pixels of one page."""
    limits = replace(PDF_LIMITS, max_pixels=100_000)
    large, huge = load_pages(pdfs.pdf((2384, 3370, RED), (14400, 14400, BLUE)), limits=limits)
    for page, ratio in ((large, 3370 / 2384), (huge, 1.0)):
        assert 90_000 < page.width * page.height <= 100_000
        assert page.height / page.width == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize(
    ("data", "limits", "words"),
    [
        (pdfs.pdf((72, 72, RED), encrypted=True), {}, ["encrypted", "password"]),
        (THREE[:90], {}, ["damaged"]),
        (b"no PDF at all", {}, ["does not begin with %PDF-"]),
        (b"", {}, ["is empty"]),
        (pdfs.pdf(), {}, ["PDF without pages"]),
        (
            pdfs.pdf(*[(9, 9, RED)] * 10_000),
            {},
            ["10,000 pages", "at most 50", "raise max_pages (--pdf-pages)"],
        ),
        (THREE, {"max_pages": 2}, ["3 pages", "at most 2"]),
        (pdfs.pdf((72, 72, RED), (5000, 2, RED)), {}, ["page 2", "5000.0 × 2.0 points", "200 times"]),
        (THREE + b" " * 2_000_000, {"max_bytes": 1 << 20}, ["has 1 MiB", "at most 1 MiB"]),
    ],
    ids=[
        "encrypted",
        "truncated",
        "foreign",
        "without a byte",
        "empty",
        "ten thousand pages",
        "too long",
        "too narrow",
        "too large",
    ],
)
def test_a_file_that_cannot_be_read(data: bytes, limits: Any, words: list[str], tmp_path: Path) -> None:
    """One sentence, with the file's name and the limit."""
    path = tmp_path / "scan.pdf"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        load_pages(path, limits=replace(PDF_LIMITS, **limits))
    text = str(caught.value)
    assert "scan.pdf" in text and "\n" not in text
    assert [word for word in words if word not in text] == []


def test_a_file_that_would_never_end_is_stopped(tmp_path: Path) -> None:
    """A page of two kilobytes that asks for 10 ** 12 drawings: PDFium is busy in one call, and is killed."""
    path = tmp_path / "bomb.pdf"
    path.write_bytes(pdfs.endless())
    began = time.monotonic()
    with pytest.raises(
        ImageError, match=r"bomb\.pdf.* after 1\.5 s, the limit; 0 of its pages are\. Raise max_seconds"
    ):
        load_pages(path, limits=replace(PDF_LIMITS, max_seconds=1.5))
    assert time.monotonic() - began < 30


def test_memory_is_bounded() -> None:
    """The rendering process gets no more than it may have, and its end is told as what it may be."""
    pytest.importorskip("resource")
    limits = replace(PDF_LIMITS, max_memory=128 << 20, max_pixels=90_000_000)
    with pytest.raises(ImageError, match=r"needs more than 128 MiB .* page 1"):
        load_pages(pdfs.pdf((14400, 14400, RED)), limits=limits)


def test_the_missing_package_is_named_with_its_extra(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are read without it; PDFs say what to install."""
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(MissingPackageError, match=r"three\.pdf.*pip install 'vitrail\[pdf\]'"):
        load_pages(three)
    assert len(load_pages(tiny.image(9, 9))) == 1


@pytest.mark.usefixtures("painted")
def test_a_pdf_in_a_message_stands_for_its_pages(three: Path) -> None:
    """In every spelling, between what stands before and after it."""
    data = base64.b64encode(THREE).decode()
    spellings: list[dict[str, Any]] = [
        {"type": "image", "path": str(three)},
        {"type": "image", "image": THREE},
        {"type": "image_url", "image_url": {"url": "data:application/pdf;base64," + data}},
        {
            "type": "file",
            "file": {"filename": "three.pdf", "file_data": "data:application/pdf;base64," + data},
        },
        {"type": "input_file", "file_data": data},
        {"type": "document_url", "document_url": three.as_uri()},
        {"type": "file", "path": three},
    ]
    sign = tiny.image(8, 8)
    for part in spellings:
        content = [{"type": "image", "image": sign}, part, {"type": "text", "text": "Read."}]
        messages = normalize([{"role": "user", "content": content}])
        found = [image.source for image in images(messages)]
        assert found[0] is sign
        assert colours(found[1:]) == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
        assert len(messages[0].content or ()) == 5


def test_an_image_may_come_as_a_file(tmp_path: Path) -> None:
    """What a file holds decides; a file that names nothing is refused with its place."""
    tiny.image(20, 30).save(tmp_path / "sign.png")
    part = {"type": "file", "path": str(tmp_path / "sign.png")}
    ((image,),) = ([p.source for p in m.images] for m in normalize([{"role": "user", "content": [part]}]))
    assert image.size == (30, 20)
    with pytest.raises(PromptError, match=r"messages\[0\]\.content\[0\]: a file needs one of .*file_id"):
        normalize([{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}])


def test_where_one_image_is_wanted_a_pdf_says_what_to_do(three: Path) -> None:
    """`load_image` opens one image."""
    for source in (three, THREE, str(three)):
        with pytest.raises(ImageError, match="load_pages"):
            load_image(source)


def test_fifty_pages_share_the_pixels_of_sixteen() -> None:
    """50 sheets of A4 at 150 dots per inch fit; 50 pages of 8 million pixels each took 1.6 GB."""
    assert PDF_LIMITS.page_pixels(1) == PDF_LIMITS.page_pixels(16) == PDF_LIMITS.max_pixels
    assert 1240 * 1755 < PDF_LIMITS.page_pixels(50) < 2_700_000


class Answers:
    """A rendering process with the given answers, and the pool that it is from."""

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


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [b"{}"],
        [HEAD.pack(b"????", 1, 0, 0)],
        [HEAD.pack(COUNT, 0, 0, 0)],
        [HEAD.pack(COUNT, 1, 0, 0), HEAD.pack(PAGE, 2, 4, 4) + bytes(48)],
        [HEAD.pack(COUNT, 1, 0, 0), HEAD.pack(PAGE, 1, 4, 4) + bytes(47)],
        [HEAD.pack(COUNT, 1, 0, 0), HEAD.pack(PAGE, 1, 1e300, 1e300)],
        [HEAD.pack(COUNT, 1, 0, 0), HEAD.pack(PAGE, 1, float("nan"), 4)],
        [HEAD.pack(COUNT, 1, 0, 0), HEAD.pack(PAGE, 1, -4, -4)],
        [HEAD.pack(COUNT, 1, 0, 0), HEAD.pack(PAGE, 1, 4000, 4000)],
    ],
)
def test_an_answer_that_is_not_what_was_asked_is_refused(
    answers: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes are checked before there is room for the pixels."""
    monkeypatch.setattr("vitrail.images.pdf._renderers", Answers(answers))
    with pytest.raises(ImageError, match="PDFium ended at page 1"):
        load_pages(THREE)


def test_more_pages_than_were_asked_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.images.pdf._renderers", Answers([HEAD.pack(COUNT, 51, 0, 0)]))
    with pytest.raises(ImageError, match="51 pages; at most 50"):
        load_pages(THREE)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_that_renders_dies_with_its_parent(tmp_path: Path) -> None:
    """PDFium is busy in one call, and nobody is left to count its seconds."""
    path = tmp_path / "bomb.pdf"
    path.write_bytes(pdfs.endless())
    asking = subprocess.Popen(
        [sys.executable, "-c", f"from vitrail import load_pages; load_pages({str(path)!r})"],
        stderr=subprocess.DEVNULL,
    )
    children = Path(f"/proc/{asking.pid}/task/{asking.pid}/children")
    deadline = time.monotonic() + 20
    while not (workers := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    asking.kill()
    asking.wait()
    assert workers
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_runs(pid) for pid in workers)


def _runs(pid: str) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_file_is_not_looked_into_where_files_may_not_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    path.write_bytes(THREE)
    assert file_holds_pdf(path)
    with image_request(policy=FetchPolicy.untrusted()):
        assert not file_holds_pdf(path)
        assert file_holds_pdf(tmp_path / "a.pdf")
