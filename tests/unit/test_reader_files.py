"""Files, shares and processes of `vitrail read`, without a model: order, pages, errors, processes that die or hang on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests import pdfs
from vitrail import FetchPolicy, ImageLimits, PdfLimits, image_request, set_image_defaults
from vitrail.errors import CheckpointError, ImageError, VitrailError
from vitrail.reader import worker, worker_pool
from vitrail.reader.files import PAGE_PIXELS, FileReading, Reading, open_file, read_files
from vitrail.reader.worker_pool import read_apart, useful_processes

STAND_IN = """
import json, os, sys, time
for line in sys.stdin.buffer:
    names = json.loads(line)
    if "die" in names:
        os._exit(9)
    if "wait" in names:
        open(sys.argv[1], "w").write(str(os.getpid()))
        time.sleep(600)
    if "fault" in names:
        print(json.dumps({"fault": "no such reader"}), flush=True)
        break
    print(json.dumps({"files": [[[[name, 0.5, 0.1]], False, None] for name in names]}), flush=True)
"""


class Echo:
    """Reads an image's width; holds three images at once, as BatchReader holds a window."""

    def read(self, images: Iterable[Image.Image]) -> Iterator[Reading]:
        held = []
        for image in images:
            held.append(Reading(str(image.width), 1.0, 0.0))
            if len(held) == 3:
                yield from held
                held = []
        yield from held


def open_widths(name: str) -> list[Image.Image]:
    """ "3,5": two pages 3 and 5 pixels wide; "bad": an error."""
    if name == "bad":
        raise ImageError("bad is no image")
    return [Image.new("RGB", (int(width), 1)) for width in name.split(",") if width]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["bad"],
        ["bad", "bad", "7"],
        ["1", "2", "bad"],
        ["1,2,3,4,5", "bad", "6", "7,8", "bad"],
        ["1", "", "2"],
    ],
)
def test_every_file_comes_once_in_order_with_its_pages(names: list[str]) -> None:
    found = list(read_files(Echo(), names, open_widths))
    expected = [[] if name in ("bad", "") else name.split(",") for name in names]
    assert [[page.text for page in file.pages] for file in found] == expected
    assert [file.error for file in found] == ["bad is no image" if n == "bad" else None for n in names]


@pytest.mark.parametrize(
    ("files", "threads", "count"),
    [(1, 8, 1), (79, 8, 1), (80, 8, 2), (200, 2, 2), (9999, 4, 4), (9999, 99, worker_pool.MOST), (200, 1, 1)],
)
def test_processes_are_started_where_they_are_worth_it(
    files: int, threads: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    assert useful_processes(files) == count


@pytest.mark.parametrize(("files", "processes"), [(1, 3), (7, 2), (128, 1), (300, 2), (1000, 3)])
def test_shares_are_equal_and_hold_every_file_once(files: int, processes: int) -> None:
    shares = worker_pool._shares([f"{n}.png" for n in range(files)], processes)
    assert sorted(index for share in shares for index in share) == list(range(files))
    sizes = [len(share) for share in shares]
    assert max(sizes) <= worker_pool.SHARE
    assert max(sizes) - min(sizes) <= 1 or files > processes * worker_pool.SHARE


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Processes that answer with names; the file that tells the number of one that waits."""
    monkeypatch.setattr(worker_pool, "_START", STAND_IN)
    return tmp_path / "waiting"


def names_of(found: Iterable[tuple[int, FileReading]]) -> dict[int, str]:
    return {index: file.pages[0].text for index, file in found}


def test_processes_share_all_files(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "SHARE", 2)
    names = [f"{n}é\udcff.png" for n in range(11)]
    assert names_of(read_apart(names, 3)) == dict(enumerate(names))


def test_a_process_that_dies_is_an_error(stand_in: Path) -> None:
    with pytest.raises(VitrailError, match=r"ended before its images were read \(status 9\)"):
        list(read_apart(["a", "die"], 2))


def test_what_is_wrong_with_the_reader_is_told(stand_in: Path) -> None:
    with pytest.raises(CheckpointError, match="no such reader"):
        list(read_apart(["a", "fault"], 2))


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="asks for a process by its number")
def test_closing_ends_the_processes(stand_in: Path) -> None:
    found = read_apart(["a", "wait"], 2, stand_in)
    assert next(found)[1].pages[0].text == "a"
    deadline = time.monotonic() + 60
    while not (stand_in.exists() and stand_in.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    number = int(stand_in.read_text())
    found.close()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


# Limits of requests


@pytest.fixture
def defaults() -> Iterator[None]:
    yield
    set_image_defaults()


def test_each_file_counts_for_itself_outside_a_block(tmp_path: Path, defaults: None) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    name = str(tmp_path / "a.png")
    set_image_defaults(ImageLimits(max_images=1))
    for _ in range(3):
        assert open_file(name)[0].size == (4, 4)
    set_image_defaults(ImageLimits(max_pixels=15))
    with pytest.raises(ImageError, match="4×4 pixels"):
        open_file(name)
    with image_request(ImageLimits(max_images=1)):
        open_file(name)
        with pytest.raises(ImageError, match="at most 1 images"):
            open_file(name)
    (file,) = read_files(Echo(), [name])
    assert file.error is not None and not file.pages


def test_pdfs_keep_the_limits_around(tmp_path: Path) -> None:
    """Pages are read small, and no other limit is widened for it."""
    pytest.importorskip("pypdfium2")
    path = tmp_path / "two.pdf"
    path.write_bytes(pdfs.pdf((2384, 3370, pdfs.RED), (72, 72, pdfs.BLUE)))
    assert PAGE_PIXELS // 2 < open_file(str(path))[0].width * open_file(str(path))[0].height <= PAGE_PIXELS
    with image_request(pdf_limits=PdfLimits(max_pixels=5_000)):
        assert all(page.width * page.height <= 5_000 for page in open_file(str(path)))
    with image_request(pdf_limits=PdfLimits(max_pages=1)), pytest.raises(ImageError, match="at most 1 are"):
        open_file(str(path))


def test_processes_take_limits_and_policy_along(defaults: None) -> None:
    given = (
        ImageLimits(max_images=7, formats=("PNG",)),
        FetchPolicy.untrusted(("images.example",)),
        PdfLimits(max_pages=3),
    )
    with image_request(*given):
        written = worker.written_limits()
    worker._take_limits(written)
    with image_request() as request:
        assert (request.limits, request.policy, request.pdf_limits) == given


BUSY = """
import sys, time, types
from vitrail.reader import worker
reading = types.ModuleType("vitrail.reader.reading")
reading.BatchReader = lambda model: None
sys.modules["vitrail.reader.reading"] = reading
def read_files(reader, names):
    print("busy", file=sys.stderr, flush=True)
    time.sleep(60)
worker.read_files = read_files
worker.main("", worker.written_limits())
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_reading_process_ends_with_its_parent() -> None:
    """In the middle of its files: the pipes are closed when the parent dies."""
    with subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(b'["a.png"]\n')
        assert process.stderr.readline() == b"busy\n"
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        assert process.wait(20) < 0
