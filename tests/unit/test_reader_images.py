"""The reader's synthetic images: boxes cover ink, reserved fonts are refused, the same seed draws the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFont

from vitrail.errors import InputError
from vitrail.reader import batches, charset, fonts, render_text, text


def _font_bytes() -> bytes:
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.font_bytes


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> fonts.Face:
    """The font that Pillow carries, as a file."""
    path = tmp_path_factory.mktemp("fonts") / "plain.otf"
    path.write_bytes(_font_bytes())
    return fonts.training_face(path)


def _renamed(path: Path, family: bytes) -> Path:
    """Pillow's font under another family name of equal length."""
    old = b"Aileron"
    assert len(family) == len(old)
    wide = family.decode().encode("utf-16-be")
    path.write_bytes(_font_bytes().replace(old, family).replace(old.decode().encode("utf-16-be"), wide))
    return path


def test_each_character_box_covers_its_own_ink(face: fonts.Face) -> None:
    lines = ["Harbour 27", "nine o'clock"]
    block = render_text.lay_out(lines, face, 32, 1.2, 0.0)
    canvas = (block.width + 20, block.height + 16)
    drawing = render_text.render(block, canvas, canvas, np.random.default_rng(3), wear=0.0)
    ink = drawing.pixels.min(axis=2) < 128
    ys, xs = np.nonzero(ink)
    found = drawing.character_at(xs + 0.5, ys + 0.5)
    assert (found >= 0).mean() > 0.99, "ink lies outside every box"
    # Rubbing one character out leaves exactly the others' ink.
    for index, character in enumerate(block.text):
        if character in " \n":
            assert (found == index).mean() < 0.01
        else:
            assert (found == index).any(), f"no ink under {character!r} ({index})"


def test_boxes_follow_turning_and_stretching(face: fonts.Face) -> None:
    block = render_text.lay_out(["MMMM WWWW"], face, 36, 1.0, 0.0)
    canvas = (block.width + 40, block.height + 30)
    turned = 0
    for seed in range(40):
        drawing = render_text.render(block, canvas, (320, 80), np.random.default_rng(seed), wear=1.0)
        turned += abs(drawing.angle) > 0.005
        y, x = np.mgrid[0:80, 0:320] + 0.5
        index = drawing.character_at(x.ravel(), y.ravel(), slack=0).reshape(80, 320)
        values = drawing.pixels.astype(float).mean(axis=2)
        inside, outside = values[(index >= 0) & (index != 4)], values[index < 0]
        assert abs(np.median(outside) - inside.mean()) > 10, f"seed {seed}: boxes miss the letters"
    assert turned >= 5


def test_centres_lie_in_their_own_boxes_however_the_image_is_turned(face: fonts.Face) -> None:
    block = render_text.lay_out(["Wide and", "narrow: ill"], face, 30, 1.1, 0.5)
    canvas = (block.width + 40, block.height + 30)
    for seed in range(30):
        drawing = render_text.render(block, canvas, (352, 112), np.random.default_rng(seed), wear=1.0)
        centres = drawing.centres()
        assert centres.shape == (len(block.text), 2)
        newline = block.text.index("\n")
        assert np.isnan(centres[newline]).all()
        rest = np.delete(np.arange(len(block.text)), newline)
        assert drawing.character_at(centres[rest, 0], centres[rest, 1]).tolist() == rest.tolist()


def test_large_images_are_rare(face: fonts.Face) -> None:
    def area(patches: float) -> float:
        look = batches.Look(characters=(3, 34), patches=patches)
        batch = batches.Images({"x": [face]}, text.Words(), look, count=60, seed=3, group=1)[0]
        return float(batch.image_sizes.prod(dim=1).float().mean()) / batches.PATCH**2

    assert area(60) < 0.7 * area(1e9)


def test_patch_labels_name_neighbours_in_reading_order(face: fonts.Face) -> None:
    block = render_text.lay_out(["AB", "C"], face, 40, 1.1, 0.0)
    canvas = (block.width + 32, block.height + 32)
    target = (-(-canvas[0] // 16) * 16, -(-canvas[1] // 16) * 16)
    drawing = render_text.render(block, canvas, target, np.random.default_rng(0), wear=0.0)
    labels = batches.patch_characters(drawing)
    a, b, c, newline = (charset.encode(letter)[0] for letter in "ABC\n")
    rows = {tuple(row) for row in labels.tolist()}
    assert (charset.BOS, charset.BOS, a, b) in rows
    assert (charset.BOS, a, b, newline) in rows
    assert (b, newline, c, charset.EOS) in rows
    assert (-100, -100, charset.PAD, -100) in rows


def test_same_seed_and_step_give_the_same_batch(face: fonts.Face) -> None:
    def make(seed: int) -> batches.Images:
        return batches.Images({"x": [face]}, text.Words(), batches.Look(), count=6, seed=seed)

    first, again, other = make(1)[5], make(1)[5], make(2)[5]
    assert first.texts == again.texts
    assert torch.equal(first.pixel_values, again.pixel_values)
    assert torch.equal(first.characters, again.characters)
    assert first.texts != other.texts
    assert first.texts != make(1)[6].texts


def test_batches_have_the_sizes_that_the_processor_would_give(face: fonts.Face) -> None:
    batch = batches.Images({"x": [face]}, text.Words(), batches.Look(), count=12, seed=3, group=4)[0]
    assert (batch.image_sizes % batches.UNIT == 0).all()
    assert int(batch.image_sizes.max()) <= batches.LONGEST_EDGE
    assert len(batch.characters) == int((batch.image_sizes // batches.PATCH).prod(dim=1).sum())
    assert len({tuple(size) for size in batch.image_sizes.tolist()}) <= 3


def test_images_without_text_have_nothing_to_answer(face: fonts.Face) -> None:
    look = batches.Look(blank=1.0, other=0.0)
    batch = batches.Images({"x": [face]}, text.Words(), look, count=4, seed=3)[0]
    assert batch.texts == ("",) * 4
    assert all(answer.first.tolist() == [charset.EOS] for answer in batch.answers)
    assert (batch.places == -1).all()
    middle = batch.characters[:, batches.OFFSETS.index(0)]
    assert (middle == charset.PAD).all()


@pytest.mark.parametrize(
    "family",
    [
        "Lato",
        "Lato Heavy",
        "Carlito",
        "Roboto Slab",
        "Liberation Mono",
        "Linux Libertine O",
        "Linux Biolinum",
        "Inconsolata",
        "Cabin Condensed",
        "Comfortaa",
        "Junicode",
        "OldStandardTT",
        "Old Standard TT",
        "Quattrocento Sans",
        "Courier Prime",
        "Arimo",
        "Tinos",
    ],
)
def test_reserved_families_are_known(family: str) -> None:
    assert fonts.is_reserved(family)


@pytest.mark.parametrize(
    "family", ["Latin Modern Roman", "DejaVu Sans", "Courier 10 Pitch", "Libris ADF Std"]
)
def test_other_families_are_not_reserved(family: str) -> None:
    assert not fonts.is_reserved(family)


def test_reserved_font_file_is_refused_by_the_name_inside(tmp_path: Path) -> None:
    path = _renamed(tmp_path / "harmless.otf", b"Carlito")
    assert fonts.read_face(path).family == "Carlito"
    with pytest.raises(InputError, match="reserved"):
        fonts.training_face(path)
    with pytest.raises(InputError, match="no usable"):
        fonts.find_faces([tmp_path])
    _renamed(tmp_path / "other.otf", b"Harmony")
    assert [face.family for face in fonts.find_faces([tmp_path])] == ["Harmony"]


def test_held_out_families_stay_out_of_training(tmp_path: Path) -> None:
    faces = [fonts.Face(tmp_path / name, name, "Regular") for name in ("Vollkorn", "B612 Mono", "Hack")]
    train, held = fonts.split_families(faces)
    assert list(train) == ["Hack"]
    assert sorted(held) == ["B612", "Vollkorn"]


def test_damaged_font_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.ttf"
    path.write_bytes(b"not a font")
    with pytest.raises(InputError, match="not a readable font"):
        fonts.read_face(path)


def test_words_come_from_the_lists_or_are_made_up(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("harbour\nnaïve\nx\ncan't\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    words = text.Words([path])
    drawn = {words.draw(rng, 0.5) for _ in range(200)}
    assert {"harbour", "naïve", "can't"} <= drawn
    assert all(text.Words().draw(rng, 0.5).isalpha() for _ in range(50))
    with pytest.raises(InputError, match="word list"):
        text.Words([tmp_path / "missing"])


def test_lines_are_short_clean_and_in_the_alphabet() -> None:
    rng = np.random.default_rng(1)
    known = set(charset.alphabet())
    for _ in range(500):
        line = text.line(rng, text.Words(), 12)
        assert 0 < len(line) <= 12
        assert line == line.strip()
        assert set(line) <= known
