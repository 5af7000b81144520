"""The areas of a photo are restored together."""

from dataclasses import replace

import numpy as np
import torch
from conftest import drawn_photo, pixelated

from architectures import ResidualUNet
from datasets import block_means
from depixelation.engine.predictor import Predictor
from depixelation.mosaics import photo, restoring
from depixelation.mosaics.area import Area
from depixelation.mosaics.exact import square_area
from depixelation.mosaics.photo import restore_areas, restore_photo


def test_areas_may_overlap():
    """An L of blocks, as two rectangles: the blocks in both keep the values that the file has."""
    pixels, network = drawn_photo(120, 110), ResidualUNet((8, 8), (1, 1)).eval()
    sides = [(8, 8, 96, 32), (8, 8, 32, 96)]
    for area in sides:
        pixels = pixelated(pixels, *area, 8)
    predictor = Predictor(network, torch.device("cpu"))
    result, *_ = restore_areas(predictor, pixels, [square_area(pixels, area) for area in sides])
    for x, y, width, height in sides:
        inside = slice(y, y + height), slice(x, x + width)
        assert np.abs(block_means(result[inside], 8) - pixels[inside]).max() <= 1
        assert not np.array_equal(result[inside], pixels[inside])


def test_the_first_part_of_a_large_area_says_how_all_of_it_was_averaged(monkeypatch):
    monkeypatch.setattr(restoring, "LARGEST", 64)
    pixels, seen = drawn_photo(160, 160), []

    def restore(predictor, pixels, area, blocks):
        seen.append(area.average)
        return pixels, area.average or ("linear" if seen[1:] else "center"), len(seen) == 1

    monkeypatch.setattr(photo, "restore_area", restore)
    areas = [Area(8, 8, 128, 96, 12.0, 12.0), Area(8, 112, 40, 40, 16.0, 16.0)]
    _, likely, sure = restore_areas(None, pixels, areas)
    assert seen == [None, *["center"] * (len(seen) - 2), None] and len(seen) > 3
    assert [area.average for area in likely] == ["center", "linear"] and sure == [True, False]
    assert [replace(area, average=None) for area in likely] == areas


def test_what_looks_real_has_the_average_that_the_accurate_network_detected(monkeypatch):
    seen = []

    def restore(predictor, pixels, area, blocks):
        seen.append((predictor, area.average))
        return pixels, area.average or "linear", True

    monkeypatch.setattr(photo, "restore_area", restore)
    restore_photo(drawn_photo(60, 60), [Area(8, 8, 40, 40, 8.0, 8.0)], "accurate", "realistic")
    assert seen == [("accurate", None), ("realistic", "linear")]


def test_what_lies_far_from_an_area_does_not_matter():
    """A part of the photo is enough to restore an area, so memory and time do not grow with the photo."""
    pixels = drawn_photo(500, 420)
    places = [(0, 0, 60, 48, 6.0, 6.0), (300, 250, 70, 90, 9.5, 9.5), (430, 340, 70, 80, 20.0, 16.0)]
    places += [(200, 100, 45, 40, 3.0, 3.0, 1.0, 2.0), (7, 200, 90, 80, 10.0, 10.0, 4.0, 3.0)]
    for place in places:
        area = Area(*place, average="srgb")
        window = photo.surroundings(area)
        assert pixels[window].size < pixels.size / 2
        blocks = restoring.block_values(pixels, area)
        whole, *_ = restoring.restore_area(lambda inputs: inputs[:, :1], pixels, area, blocks)
        seen, *_ = photo.restore_areas(lambda inputs: inputs[:, :1], pixels, [area])
        assert np.abs(whole.astype(int) - seen).max() <= 1 and (whole != seen).mean() < 1e-3
