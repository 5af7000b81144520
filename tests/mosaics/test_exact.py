"""Areas are found that a file has kept to the bit."""

import time

import numpy as np
import pytest
from conftest import RECTANGLES, drawn_photo, pixelated

from datasets import block_means
from depixelation.mosaics.area import Area, pixelate_area
from depixelation.mosaics.exact import enlarged_by, estimate_block_size, find_exact, square_area
from depixelation.mosaics.photo import find_areas


@pytest.mark.parametrize("width, height, rectangle", RECTANGLES)
def test_rectangle_and_block_size_are_found(width, height, rectangle):
    pixels = pixelated(drawn_photo(width, height), *rectangle)
    x, y, w, h, size = rectangle
    found = [area for values in (pixels, pixels[:, :, :1]) for area in find_exact(values)]
    assert [(area.box(), area.block_width) for area in found] == 2 * [((slice(y, y + h), slice(x, x + w)), size)]
    assert estimate_block_size(pixels[y : y + h, x : x + w]) == size
    assert find_exact(drawn_photo(width, height)) == []
    dark = pixelated(drawn_photo(width, height) // 8 + 4, *rectangle)
    assert estimate_block_size(dark[y : y + h, x : x + w]) == size


def test_an_area_may_begin_within_a_block():
    """Whether it is named or found, and at the photo's edge."""
    for x, y in ((50, 30), (0, 0)):
        pixels = drawn_photo(160, 140)
        area = Area(x, y, 77, 83, 16.0, 16.0, 13.0, 2.0)
        pixelate_area(pixels, area)
        assert square_area(pixels, (x, y, 77, 83)) == area
        assert find_exact(pixels) == [area]


def test_a_flat_area_is_no_pixelation():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    pixels[:, :60] = 255  # a margin
    pixels[:70, 70:] = 250  # a sky
    area = slice(90, 130), slice(100, 140)
    pixels[area] = np.floor(block_means(pixels[area], 8))
    assert [area.box() for area in find_exact(pixels)] == [area]
    assert find_exact(np.full((50, 50, 1), 7, np.uint8)) == []


def test_enlarged_pictures_are_no_mosaic():
    """Pixel art of any size, photos by so little that nothing is hidden; not a photo in larger blocks, nor a part."""
    photo = drawn_photo(160, 140)
    for factor in (2, 3, 4, 8):
        enlarged = photo.repeat(factor, axis=0).repeat(factor, axis=1)
        assert enlarged_by(enlarged) == (factor if factor <= 4 else 1)
        assert (find_areas(None, enlarged) == []) == (factor <= 4)
        if factor <= 4:
            assert enlarged_by(enlarged[:-1]) == enlarged_by(enlarged[:, 1:]) == 1  # cut, as a mosaic may be
    whole = photo[:138].repeat(2, axis=0).repeat(2, axis=1)  # 276 x 320, of which 20 is no divisor
    pixelate_area(whole, Area(0, 0, 320, 276, 20.0, 20.0))
    assert enlarged_by(whole) == 1 and len(find_areas(None, whole)) == 1
    art = (photo // 128 * 120).repeat(8, axis=0).repeat(8, axis=1)
    assert enlarged_by(art) == 8 and find_areas(None, art) == []
    assert enlarged_by(pixelated(photo, 40, 32, 64, 60, 4)) == enlarged_by(np.full((50, 60, 1), 7, np.uint8)) == 1
    margin = np.full((1200, 1200, 3), 255, np.uint8)  # all that the corner shows
    margin[600:, 600:] = drawn_photo(200, 200).repeat(3, axis=0).repeat(3, axis=1)
    assert enlarged_by(margin) == 3 and enlarged_by(np.roll(margin, 1, axis=1)) == 1


def test_block_sizes_of_large_rectangles():
    blocks = np.random.default_rng(0).integers(0, 256, (400, 400, 1))
    for size in (2, 7, 64):
        values = blocks.repeat(size, axis=0)[:900].repeat(size, axis=1)[:, :800]
        started = time.process_time()
        assert estimate_block_size(values) == size
        assert time.process_time() - started < 5  # it took 20 s when each size meant a pass over the pixels
