"""Token grids: the sizes of docs/formats.md, the dialects, the clamp, and shrinking to a budget."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from vitrail import ImageError, InputError, image_grid, image_tokens
from vitrail.images.grid import DIALECTS

PIXTRAL: dict[str, Any] = {"patch_size": 16, "longest_edge": 1024}
SMALL: dict[str, Any] = {"patch_size": 14, "merge": 2, "longest_edge": 1540}

sides = st.integers(1, 6000)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((200, 311), (208, 320)),
        ((300, 212), (304, 224)),
        ((251, 1374), (192, 1024)),
        ((1475, 477), (1024, 336)),
        ((1344, 1544), (896, 1024)),
        ((2133, 3422), (640, 1024)),
    ],
)
def test_mistral_common_sizes(before: tuple[int, int], after: tuple[int, int]) -> None:
    """Worked sizes of docs/formats.md, "Resizing and normalising", as (width, height)."""
    grid = image_grid(before[1], before[0], dialect="mistral", **PIXTRAL)
    assert (grid.width, grid.height) == after


@pytest.mark.parametrize(
    ("settings", "size", "hf", "mistral"),
    [
        (PIXTRAL, (1199, 3191), (24, 64), (25, 64)),
        (PIXTRAL, (2035, 1750), (64, 55), (64, 56)),
        (PIXTRAL, (2979, 1910), (64, 41), (64, 42)),
        (SMALL, (1528, 2709), (31, 55), (32, 55)),
        (SMALL, (3904, 3196), (55, 45), (55, 46)),
        (SMALL, (742, 3131), (13, 55), (14, 55)),
    ],
)
def test_where_the_dialects_differ(
    settings: dict[str, Any], size: tuple[int, int], hf: tuple[int, int], mistral: tuple[int, int]
) -> None:
    """Roundings of docs/formats.md, "Resizing and normalising"; sizes and grids are width × height."""
    width, height = size
    for dialect, expected in (("hf", hf), ("mistral", mistral)):
        grid = image_grid(height, width, dialect=dialect, **settings)  # type: ignore[arg-type]
        assert (grid.cols, grid.rows) == expected


@pytest.mark.parametrize(
    ("settings", "size", "tokens"),
    [
        (PIXTRAL, (640, 480), 1230),
        (PIXTRAL, (1024, 768), 3120),
        (PIXTRAL, (1920, 1080), 2340),
        (PIXTRAL, (1080, 1920), 2368),
        (PIXTRAL, (1024, 1024), 4160),
        (PIXTRAL, (1, 1), 2),
        (SMALL, (640, 480), 432),
        (SMALL, (1024, 768), 1064),
        (SMALL, (1080, 675), 1000),
        (SMALL, (1920, 1080), 1736),
        (SMALL, (1080, 1920), 1760),
        (SMALL, (1540, 1540), 3080),
    ],
)
def test_what_an_image_costs(settings: dict[str, Any], size: tuple[int, int], tokens: int) -> None:
    width, height = size
    assert image_tokens(height, width, **settings) == tokens
    assert image_tokens(height, width, dialect="mistral", **settings) == tokens


def test_banker_rounding_takes_half_pixels_to_even() -> None:
    """2048 × 33 at 1024 is 16.5 → 16 → one row (docs/formats.md, "Resizing and normalising")."""
    assert image_grid(33, 2048, dialect="mistral", **PIXTRAL).rows == 1
    assert image_grid(57, 3080, dialect="mistral", **SMALL).rows == 1


def test_up_to_4_49_sides_were_rounded_up() -> None:
    assert image_grid(1025, 2050, dialect="hf-ceil", **PIXTRAL).rows == 32
    assert image_grid(33, 2048, dialect="hf-ceil", **PIXTRAL).rows == 2
    assert image_grid(33, 2048, dialect="hf", **PIXTRAL).rows == 1


@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_grid_is_empty(dialect: Any) -> None:
    """Pitfall 27: transformers computes zero rows here."""
    grid = image_grid(1, 3000, dialect=dialect, **PIXTRAL)
    assert (grid.rows, grid.cols, grid.height, grid.width) == (1, 64, 16, 1024)


def test_boxes_and_patches_need_not_be_square() -> None:
    grid = image_grid(400, 400, patch_size=(10, 20), merge=2, longest_edge=(100, 200))
    assert (grid.height, grid.width, grid.rows, grid.cols) == (100, 120, 5, 3)


@hypothesis_settings(deadline=None)
@given(sides, sides, st.sampled_from([PIXTRAL, SMALL]), st.sampled_from(DIALECTS))
def test_a_grid_is_what_its_size_says(
    height: int, width: int, settings: dict[str, Any], dialect: Any
) -> None:
    grid = image_grid(height, width, dialect=dialect, **settings)
    cell = settings["patch_size"] * settings.get("merge", 1)
    assert (grid.height, grid.width) == (grid.rows * cell, grid.cols * cell)
    assert grid.image_tokens == grid.rows * grid.cols
    assert grid.tokens == grid.image_tokens + grid.rows


@hypothesis_settings(deadline=None)
@given(sides, sides, st.integers(2, 5000), st.sampled_from([PIXTRAL, SMALL]), st.sampled_from(DIALECTS))
def test_a_budget_is_kept_and_used(
    height: int, width: int, budget: int, settings: dict[str, Any], dialect: Any
) -> None:
    """Within the budget, unchanged where nothing needs to change, and not needlessly small."""
    whole = image_grid(height, width, dialect=dialect, **settings)
    grid = image_grid(height, width, dialect=dialect, max_image_tokens=budget, **settings)
    assert grid.tokens <= budget
    if whole.tokens <= budget:
        assert grid == whole
    wider = image_grid(height, width, dialect=dialect, max_image_tokens=budget + 200, **settings)
    assert wider.tokens >= grid.tokens


def test_a_budget_of_a_thousand_uses_most_of_it() -> None:
    assert 900 < image_tokens(1080, 1920, max_image_tokens=1000) <= 1000


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_no_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="1×1"):
        image_tokens(*size)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"dialect": "exllama"}, "dialect"),
        ({"patch_size": 0}, "patch_size"),
        ({"patch_size": (16, 16, 16)}, "patch_size"),
        ({"merge": 1.5}, "merge"),
        ({"longest_edge": -1}, "longest_edge"),
        ({"max_image_tokens": 1}, "max_image_tokens"),
        ({"max_image_tokens": True}, "max_image_tokens"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(setting: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        image_tokens(10, 10, **setting)
