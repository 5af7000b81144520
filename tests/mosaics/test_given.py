"""Areas that the user points out: their grids are measured inside them, or given."""

import numpy as np
import pytest
from conftest import drawn_photo

from depixelation.mosaics.area import Area, parse_block_size, pixelate_area
from depixelation.mosaics.given import given_areas
from depixelation.mosaics.making import compress

SIZE = WIDTH, HEIGHT = 220, 180


def ellipse(x, y, a, b):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 <= 1


def pixelated(mask, width, height, phases=(0.0, 0.0)):
    pixels = drawn_photo(WIDTH, HEIGHT)
    result = pixels.copy()
    pixelate_area(result, Area(0, 0, WIDTH, HEIGHT, width, height, *phases, "srgb"))
    return np.where(mask[:, :, None], result, pixels)


def grid_of(area):
    """(width, height, first line's x, y)"""
    phases = (area.x + area.phase_x) % area.block_width, (area.y + area.phase_y) % area.block_height
    return area.block_width, area.block_height, *phases


@pytest.mark.parametrize("sides", [(11.0, 11.0), (12.0, 8.0)])
@pytest.mark.parametrize("quality", [None, 90])
def test_grids_are_measured_inside_a_mask(sides, quality):
    mask = ellipse(70, 80, 55, 60) | ellipse(180, 90, 30, 70)
    pixels = pixelated(mask, *sides, (3.0, 5.0))
    pixels = compress(pixels, quality, 0) if quality else pixels
    areas = given_areas(pixels, mask=mask)
    assert len(areas) == 2 and all(area.confidence is None for area in areas)
    found = np.zeros_like(mask)
    for area in areas:
        found[area.box()] |= area.inside
        assert grid_of(area) == pytest.approx((*sides, 3.0, 5.0), abs=0.1 if quality else 0)
    assert np.array_equal(found, mask)


@pytest.mark.parametrize("quality", [None, 90])
def test_a_rectangle_within_blocks(quality):
    """It was taken to hold blocks of 6 for 11."""
    pixels = pixelated(np.ones((HEIGHT, WIDTH), dtype=bool), 11.0, 11.0, (3.0, 5.0))
    pixels = compress(pixels, quality, 0) if quality else pixels
    (area,) = given_areas(pixels, [(40, 30, 100, 90)])
    assert grid_of(area) == pytest.approx((11, 11, 3, 5), abs=0.1) and area.mask is None


def test_block_sizes_that_are_given():
    """The grid begins where most changes, or else at the corner."""
    pixels = pixelated(np.ones((HEIGHT, WIDTH), dtype=bool), 11.0, 9.0, (3.0, 5.0))
    (area,) = given_areas(pixels, [(40, 30, 100, 90)], block=(11, 9))
    assert grid_of(area) == (11, 9, 3, 5)
    (area,) = given_areas(np.full((HEIGHT, WIDTH, 3), 9, np.uint8), [(40, 30, 100, 90)], block=(7.5, 9))
    assert (area.block_width, area.block_height, area.phase_x, area.phase_y) == (7.5, 9, 0, 0)
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[5, 5] = True  # a speck
    assert given_areas(pixels, mask=mask) == []
    words = {"8": (8, 8), "8x12": (8, 12), "7.5X9": (7.5, 9)}
    assert {word: parse_block_size(word) for word in words} == words
    assert [parse_block_size(word) for word in ("", "x", "1", "8x", "8x9x7", "nan", "inf", "-8")] == [None] * 8
