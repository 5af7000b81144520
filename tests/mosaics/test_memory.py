"""Memory is bounded: large pictures and areas are computed with in parts, and what small ones get stays the same."""

import os
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import drawn_photo

from depixelation.commands.depixelate import load_finder
from depixelation.mosaics import area as areas
from depixelation.mosaics import exact, grid_fit, regions, restoring
from depixelation.mosaics.area import Area, bands, pixelate_area
from depixelation.mosaics.given import given_areas
from depixelation.mosaics.making import compress
from depixelation.mosaics.photo import find_areas
from depixelation.mosaics.restoring import parts_of
from depixelation.tasks.finding import Finding


def small_parts(monkeypatch, pixels):
    """Have pictures of more pixels computed with in parts."""
    for module in (exact, grid_fit, regions):
        monkeypatch.setattr(module, "BAND", 7)
    monkeypatch.setattr(areas, "FEW", pixels)
    monkeypatch.setattr(areas, "MOST", pixels)


def picture():
    """A drawn photo with a rectangle and an ellipse of blocks, and a mask of both."""
    pixels = np.ascontiguousarray(np.tile(drawn_photo(200, 180), (2, 2, 1)))
    rows, columns = np.mgrid[: len(pixels), : pixels.shape[1]]
    mask = ((columns - 280) / 90) ** 2 + ((rows - 120) / 100) ** 2 < 1
    round_area = Area(0, 0, *pixels.shape[1::-1], 9.0, 9.0, 4.0, 2.0, "srgb", mask=mask)
    for area in (Area(20, 190, 120, 110, 8.0, 8.0), round_area):
        pixelate_area(pixels, area)
        mask[area.box()] |= area.inside
    return pixels, mask


def same(some, others):
    return len(some) == len(others) and all(
        a == b and np.array_equal(a.inside, b.inside) for a, b in zip(some, others)
    )


@pytest.mark.parametrize("quality", [None, 85])
def test_areas_in_parts_are_the_same(monkeypatch, quality):
    pixels, mask = picture()
    pixels = compress(pixels, quality, 2) if quality else pixels
    finder = load_finder(0.5, torch.device("cpu"), torch.float32) if os.path.exists(Finding.shipped) else None

    def measured():
        yield find_areas(finder, pixels)
        yield given_areas(pixels, [(20, 190, 120, 110), (0, 0, 400, 360)])
        yield given_areas(pixels, mask=mask)
        yield given_areas(pixels, [(23, 193, 120, 110)], block=(8, 8))

    whole = list(measured())
    assert all(whole[1:]) and (whole[0] or quality)
    small_parts(monkeypatch, 2000)
    for found, before in zip(measured(), whole):
        assert same(found, before)


def test_rows_of_blocks_in_parts():
    rows = np.array([0, 3, 13, 23, 33, 40])
    assert list(bands(rows, 10)) == [(0, 5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(areas, "FEW", 240)
        assert list(bands(rows, 10)) == [(0, 3), (3, 5)]
        patch.setattr(areas, "FEW", 1)
        assert list(bands(rows, 10)) == [(i, i + 1) for i in range(5)]


def test_large_areas_are_restored_in_parts(monkeypatch):
    """Of large blocks too, which the network sees at a fraction of their size."""
    area = Area(5, 7, 700, 500, 40.0, 40.0, 13.0, 6.0)
    assert len(list(parts_of(area))) == 1
    monkeypatch.setattr(restoring, "MOST", 300 * 300)
    monkeypatch.setattr(restoring, "WIDEST", 200)
    parts = list(parts_of(area))
    covered = np.zeros((600, 800), dtype=int)
    for part in parts:
        covered[part.box()] += 1
        assert max(part.width, part.height) <= 200 + 40
    assert covered[area.box()].min() == covered.max() == 1


def bytes_a_pixel(work, pixels):
    """How much memory it takes beside what it is given, of NumPy and Python."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return (tracemalloc.get_traced_memory()[1] - before) / (pixels.shape[0] * pixels.shape[1])
    finally:
        tracemalloc.stop()


def test_memory_of_a_large_picture(monkeypatch):
    """All of it is pixelated, hardly any is, in a PNG and a JPEG: far less than a few numbers for each pixel."""
    small_parts(monkeypatch, 2**16)
    monkeypatch.setattr(exact, "MEASURED", 256)
    for module in (exact, grid_fit, regions):
        monkeypatch.setattr(module, "BAND", 64)
    photo = np.ascontiguousarray(np.tile(drawn_photo(360, 300), (5, 5, 1)))
    whole = photo.copy()
    pixelate_area(whole, Area(0, 0, 1800, 1500, 12.0, 12.0))
    pixelate_area(photo, Area(300, 200, 400, 300, 12.0, 12.0))
    for pixels in (photo, compress(whole, 85, 2)):
        assert bytes_a_pixel(lambda: find_areas(None, pixels), pixels) < 12
        assert bytes_a_pixel(lambda: given_areas(pixels, [(0, 0, 1800, 1500)]), pixels) < 12
    assert bytes_a_pixel(lambda: given_areas(whole, [(0, 0, 1800, 1500)]), whole) < 12
