"""The picture of before and after: captions, outlines, at most 2,000 pixels wide, a zoom where it was made smaller."""

import numpy as np
import pytest
from conftest import drawn_photo, pixelated

from depixelation.figures.before_after import RED, WIDEST, before_after
from depixelation.mosaics.area import Area


def red(picture):
    return (picture == RED).all(axis=2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 90), (9, 7), (160, 120), (700, 300)])
def test_small_photos_are_shown_as_they_are(size, channels):
    width, height = size
    before = drawn_photo(width, height)[:, :, :channels]
    area = Area(width // 4, height // 4, max(1, width // 2), max(1, height // 2), 4, 4)
    sheet = before_after(before, 255 - before, [area])
    middle, strip = sheet.shape[1] // 2, len(sheet) - height
    assert sheet.shape[2] == 3 and sheet.shape[1] <= WIDEST and 8 < strip < 60
    assert (sheet[:strip, :middle] < 100).any() and (sheet[:strip, middle:] < 100).any()  # captions
    assert red(sheet[strip:, :middle]).any() and not red(sheet[strip:, middle:]).any()
    if size == (160, 120):
        shown = sheet[strip:, -width:]
        assert np.array_equal(shown, np.broadcast_to(255 - before, shown.shape))
        left = sheet[strip:, :width]
        assert np.array_equal(left[area.box()], np.broadcast_to(before[area.box()], left[area.box()].shape))
        assert red(left).sum() == 2 * (area.width + area.height)


def test_a_mask_is_outlined_as_it_is():
    y, x = np.mgrid[:60, :60]
    area = Area(40, 30, 60, 60, 6, 6, mask=(y - 30) ** 2 + (x - 30) ** 2 < 25**2)
    before = np.full((120, 160, 3), 90, dtype=np.uint8)
    sheet = before_after(before, before, [area])
    rows, columns = np.nonzero(red(sheet[-120:, :160]))
    away = np.hypot(rows - 60, columns - 70)
    assert len(rows) > 100 and away.min() > 23 and away.max() < 28


def test_large_photos_get_a_zoom_on_the_first_area():
    pixels = np.repeat(np.repeat(drawn_photo(300, 200), 10, axis=0), 10, axis=1)
    before = pixelated(pixels, 1200, 700, 200, 160, 20)
    areas = [Area(1200, 700, 200, 160, 20, 20), Area(10, 10, 60, 60, 6, 6)]
    sheet = before_after(before, pixels, areas)
    small = before_after(before, pixels, [])
    assert small.shape[1] <= sheet.shape[1] == WIDEST
    zoom = sheet[len(small) :]
    assert len(zoom) > 2 * 160 and not red(zoom).any()  # twice its size at least
    halves = zoom[10:, : WIDEST // 2], zoom[10:, WIDEST // 2 :]
    assert (np.diff(halves[0].astype(int), axis=1) != 0).sum() != (np.diff(halves[1].astype(int), axis=1) != 0).sum()
