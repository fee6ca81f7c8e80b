"""`vitrail read`: text, JSON lines, folders and patterns, images that cannot be read; batches read as single images."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from vitrail.cli.main import main
from vitrail.cli.read import _in_order
from vitrail.images.load import load_image
from vitrail.reader.files import FileReading, Reading, find_images
from vitrail.reader.reading import BatchReader
from vitrail.reader.testset import make_testset

SIGN = Path(__file__).parents[2] / "examples" / "sign.png"
TEXT = "Reading Room\nSecond Floor"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two signs, one half as large, in a folder with another below it, and a file that is no image."""
    (tmp_path / "scans" / "more").mkdir(parents=True)
    shutil.copy(SIGN, tmp_path / "scans" / "b.png")
    with Image.open(SIGN) as image:
        image.convert("RGB").save(tmp_path / "scans" / "more" / "a.JPG", quality=95)
    (tmp_path / "scans" / "notes.txt").write_text("no image")
    return tmp_path / "scans"


def test_one_image_gives_its_text_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", str(SIGN)]) == 0
    told = capsys.readouterr()
    assert told.out == TEXT + "\n"
    assert told.err == ""


def test_several_images_are_named_on_every_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{folder / 'b.png'}: Reading Room", f"{folder / 'b.png'}: Second Floor"]
    assert lines[2].startswith(f"{folder / 'more' / 'a.JPG'}: ")


def test_json_is_one_object_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", str(folder / "*.png"), str(folder / "more"), "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["file"] for record in records] == [str(folder / "b.png"), str(folder / "more" / "a.JPG")]
    assert all(set(record) == {"file", "text", "confidence", "seconds"} for record in records)
    assert records[0]["text"] == TEXT
    assert 0.2 < records[0]["confidence"] <= 1
    assert records[0]["seconds"] > 0


def test_a_broken_image_does_not_stop_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.png").write_bytes(SIGN.read_bytes()[:200])
    assert main(["read", str(folder / "a.png"), str(folder / "b.png")]) == 2
    told = capsys.readouterr()
    assert told.out.splitlines()[0] == f"{folder / 'b.png'}: Reading Room"
    assert "1 of 2 images could not be read" in told.err
    assert main(["read", str(folder), "--json"]) == 2
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {Path(record["file"]).name for record in records if "error" in record} == {"a.png"}
    assert sum("text" in record for record in records) == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [("nothing*.png", "no file fits"), ("empty", "has no images"), ("missing.png", "missing.png")],
)
def test_names_that_stand_for_nothing(
    tmp_path: Path, name: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["read", str(tmp_path / name)]) == 2
    assert says in capsys.readouterr().err


def test_a_file_that_is_named_twice_is_read_once(folder: Path) -> None:
    found = find_images([str(folder / "b.png"), str(folder)])
    assert found == [str(folder / "b.png"), str(folder / "more" / "a.JPG")]


@pytest.mark.slow
def test_batches_of_any_size_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with Image.open(SIGN) as image:
        sign = image.convert("RGB")
    images = [sign, sign.crop((0, 0, sign.width, sign.height // 2)), sign.resize((200, 80))]
    reader = BatchReader()
    together = list(reader.read(images))
    alone = [next(reader.read([image])) for image in images]
    assert [reading.text for reading in together] == [reading.text for reading in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-3)
    monkeypatch.setattr("vitrail.reader.reading.WINDOW", 2)
    assert [reading.text for reading in reader.read(iter(images))] == [reading.text for reading in together]


@pytest.mark.slow
def test_processes_read_the_same_in_the_same_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open(SIGN) as image:
        for number in range(5):
            image.crop((0, 0, image.width - 20 * number, image.height)).save(folder / f"c{number}.png")
    (folder / "broken.png").write_bytes(SIGN.read_bytes()[:200])
    records = []
    for processes in ("1", "3"):
        assert main(["read", str(folder), "--json", "--processes", processes]) == 2
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        records.append([(line["file"], line.get("text"), line.get("error")) for line in lines])
    assert records[0] == records[1]
    assert [record[0] for record in records[0]] == find_images([str(folder)])
    assert sum(record[2] is not None for record in records[0]) == 1


def test_pages_of_a_pdf_are_read_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pypdfium2")
    with Image.open(SIGN) as image:
        sign = image.convert("RGB")
    upper = sign.crop((0, 0, sign.width, sign.height // 2))
    sign.save(tmp_path / "signs.pdf", save_all=True, append_images=[upper], resolution=150)
    assert main(["read", str(tmp_path / "signs.pdf"), str(SIGN), "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["file"], record.get("page")) for record in records] == [
        (str(tmp_path / "signs.pdf"), 1),
        (str(tmp_path / "signs.pdf"), 2),
        (str(SIGN), None),
    ]
    assert records[0]["text"] == TEXT
    assert records[1]["text"] == "Reading Room"


def test_progress_of_files_is_kept_in_order() -> None:
    files = [FileReading((Reading(str(n), 1.0, 0.0),)) for n in range(4)]
    seen: list[int] = []
    found = _in_order([(n, files[n]) for n in (2, 0, 3, 1)], seen.append)
    assert list(found) == list(enumerate(files))
    assert len(seen) == 4


def test_read_several_files_on_a_terminal_shows_one_bar_from_the_start(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["read", str(folder)]) == 0
    shown = capsys.readouterr().err
    assert "0/2" in shown and "2/2" in shown
    assert "starting" not in shown  # two displays at once would overwrite each other


@pytest.mark.slow
def test_generated_images_read_the_same_together_and_alone(tmp_path: Path) -> None:
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    (tmp_path / "plain.otf").write_bytes(font.font_bytes)
    make_testset(tmp_path / "set", [tmp_path], count=20, seed=7)
    images = [load_image(path) for path in sorted((tmp_path / "set").glob("*.png"))]
    reader = BatchReader()
    together = list(reader.read(images))
    alone = [next(reader.read([image])) for image in images]
    assert [reading.text for reading in together] == [reading.text for reading in alone]
    assert max(len(reading.text) for reading in together) > 10
