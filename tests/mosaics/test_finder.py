"""Pixelated areas are found: where they are, and which grid they have."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from depixelation.commands.depixelate import load_finder
from depixelation.engine.predictor import Predictor
from depixelation.images.synthetic import synthetic_colour_image
from depixelation.mosaics import finder as finding_areas
from depixelation.mosaics.area import Area, pixelate_area
from depixelation.mosaics.finder import (
    Finder,
    FlatFinder,
    MosaicNet,
    _without_doubles,
    find_cells,
    outline,
    predict_cells,
    to_luma,
)
from depixelation.mosaics.grid_fit import fit_area, fit_grid
from depixelation.mosaics.making import compress, log_distance
from depixelation.mosaics.photo import find_areas
from depixelation.mosaics.regions import find_regions, region_boxes
from depixelation.tasks.finding import Finding


def test_regions():
    mask = np.zeros((60, 70), dtype=bool)
    mask[5:20, 6:30] = mask[5:20, 40:64] = True  # two
    mask[30:55, 5:20] = mask[45:55, 5:60] = True  # an L
    mask[50, 68] = True  # a speck
    assert len(find_regions(mask)) == 4
    boxes = sorted(tuple(map(int, box)) for box in region_boxes(mask))
    assert boxes[0] == (5, 20, 6, 30) and boxes[1] == (5, 20, 40, 64) and len(boxes) == 4
    u = np.zeros((10, 11), dtype=bool)
    u[:, 1] = u[:, 8] = u[9, 1:9] = True  # joined in the last row only
    assert len(find_regions(u)) == 1 and find_regions(np.zeros((5, 5), dtype=bool)) == []


@pytest.mark.parametrize(
    "side, scale, quality", [(5, 1.0, 90), (9, 1.0, 70), (16, 0.7, 85), (24, 1.3, 80), (64, 1.0, 75)]
)
def test_grids_are_fitted(side, scale, quality):
    """With and without a guess; in JPEGs, scaled."""
    pixels = np.ascontiguousarray(np.tile(synthetic_colour_image(3, 8, 128), (3, 3, 1)))
    area = Area(20, 30, 5 * side + 3, 4 * side, float(side), float(side), 3.0, 0.0)
    pixelate_area(pixels, area)
    size = round(384 * scale)
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC) if scale != 1 else pixels
    area = area.scaled(scale, size, size)
    luma = to_luma(compress(np.asarray(image), quality, 2))
    box = area.y, area.y + area.height, area.x, area.x + area.width
    for guess in (None, (1.1 * area.block_width, 0.92 * area.block_height)):
        found = fit_area(luma, box, guess)
        assert found.block_width == pytest.approx(area.block_width, rel=0.06)
        assert found.block_height == pytest.approx(area.block_height, rel=0.06)
        assert found.overlap(area) > 0.85


def test_no_grid_is_no_area():
    assert fit_grid(np.zeros(30)) is None and fit_area(np.zeros((4, 4), np.uint8), (0, 4, 0, 4)) is None
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3)).astype(np.uint8)
    assert FlatFinder()(noise) == []
    area = Area(20, 30, 40, 40, 8.0, 8.0)
    pixelate_area(noise, area)
    (found,) = FlatFinder()(noise)
    assert found.overlap(area) > 0.9 and found.block_width == pytest.approx(8, rel=0.03)


def test_an_area_is_as_sure_as_its_weaker_axis():
    rng = np.random.default_rng(0)
    stripes = rng.integers(0, 128, (1, 12)).repeat(8, axis=1) + rng.integers(0, 128, (96, 1))  # blocks along x alone
    area = fit_area(stripes.astype(np.uint8), (0, 96, 0, 96), (8.0, 8.0))
    assert area is None or area.confidence < 0.5


def test_of_two_areas_that_are_one_the_surer_is_kept():
    sure, other = Area(0, 0, 40, 40, 8.0, 8.0, confidence=0.9), Area(2, 0, 40, 40, 8.0, 8.0, confidence=0.4)
    elsewhere = Area(60, 0, 40, 40, 8.0, 8.0, confidence=0.3)
    assert _without_doubles([other, elsewhere, sure]) == [sure, elsewhere]


def seen_cells(areas, side):
    """What a network that is always right says of a picture of side x side pixels with these (x, y, width, height)."""
    n = side // 4
    middles = np.arange(n) * 4 + 2
    cells = np.zeros((10, n, n))
    for x, y, width, height in areas:
        inside = np.ix_((middles > y) & (middles < y + height), (middles > x) & (middles < x + width))
        cells[0][inside], cells[5:7, *inside] = 1, 3
        for k, line in enumerate((x, y, x + width, y + height)):
            distance = log_distance(np.abs(middles - line))
            cells[1 + k][inside] = np.broadcast_to(distance if k % 2 == 0 else distance[:, None], (n, n))[inside]
    return cells.astype(np.float16)


@pytest.mark.parametrize(
    "areas",
    [
        [(9, 14, 23, 17), (60, 61, 13, 12)],
        [(20, 40, 50, 37), (70, 40, 30, 90)],  # touch, and are an L
        [(20, 20, 200, 60), (20, 80, 60, 80), (80, 80, 100, 99)],  # three that touch
        [(8, 8, 390, 380)],  # farther from the middle than REACH
    ],
)
def test_areas_are_outlined(areas):
    """Each from its own cells, to two pixels, touching or not."""
    found = [outline(cells) for cells in find_cells(seen_cells(areas, 400), 0.5)]
    boxes = sorted((left, top, right - left, bottom - top) for (top, bottom, left, right), *_ in found)
    assert len(boxes) == len(areas) and min(min(share, filled) for _, share, filled in found) > 0.85
    assert np.abs(np.array(boxes) - np.array(sorted(areas))).max() <= 2


def test_areas_that_touch_are_told_apart_by_their_blocks():
    """Where their cells do not see the edge between them, as those of small blocks often do not."""
    cells = seen_cells([(20, 40, 120, 60)], 200)
    for size, count in ((3.4, 2), (3.1, 1)):
        cells[5:7, :, 20:] = size  # from 80 on; in octaves, 3 before
        cells[5:7] += np.random.default_rng(0).normal(0, 0.05, cells[5:7].shape)
        found = find_cells(cells, 0.5)
        assert len(found) == count
        ends = [sorted(each.middles[0])[:: each.middles.shape[1] - 1] for each in found]
        assert sorted(ends) == ([[22, 78], [82, 138]] if count == 2 else [[22, 138]])


def test_hardly_visible_blocks_are_in_the_area_whose_other_cells_see_its_edge(monkeypatch):
    cells = seen_cells([(20, 40, 120, 100)], 200)
    cells[0, 15:20] = 0.2  # from 60 to 80: in two parts, which both see the whole area
    cells[0, 30:] = 0.2  # from 120 on
    monkeypatch.setattr(finding_areas, "predict_cells", lambda *_: cells)
    finder = Finder(None, fit=False)
    (area,) = finder(np.zeros((200, 200, 1), dtype=np.uint8))
    assert area.overlap(Area(20, 40, 120, 100, 8.0, 8.0)) > 0.95 and area.confidence > finder.least
    cells[3, :30] = np.random.default_rng(0).permutation(cells[3, :30])  # they do not agree where
    assert all(area.x + area.width < 150 for area in finder.candidates(np.zeros((200, 200, 1), np.uint8)))


def test_photos_in_tiles(monkeypatch):
    """Cut into tiles, a photo gets the same cells as at once."""
    torch.manual_seed(0)
    network = MosaicNet((8, 8), (1, 1)).eval()
    predictor = Predictor(network, torch.device("cpu"))
    torch.nn.init.normal_(network.unet.last.weight, std=0.1)
    luma = synthetic_colour_image(2, 2, 300)[:, :, 1]
    whole = predict_cells(predictor, luma)
    monkeypatch.setattr(finding_areas, "TILE", 128)
    monkeypatch.setattr(finding_areas, "MARGIN", 64)
    tiled = predict_cells(predictor, luma)
    assert np.abs(whole.astype(float) - tiled).max() < 4e-3


def test_more_sensitivity_finds_the_same_and_more():
    """What a network sees at every sensitivity, in a sweep over drawn chances."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((200, 200, 1), dtype=np.uint8)
    for trial in (1, 4):
        cells = seen_cells([(20, 40, 60, 60), (120, 20, 50, 90), (100, 140, 80, 40)], 200)
        cells[0] *= rng.uniform(0.2, 1, (3, 3)).repeat(17, axis=0).repeat(17, axis=1)[:50, :50]
        cells[0] = np.maximum(cells[0], rng.uniform(0, 0.2 * trial, (10, 10)).repeat(5, axis=0).repeat(5, axis=1))
        before = np.zeros((200, 200), dtype=bool)
        for sensitivity in np.linspace(0.02, 0.98, 6):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(finding_areas, "predict_cells", lambda *_: cells)
                found = np.zeros_like(before)
                for area in Finder(None, fit=False, sensitivity=sensitivity)(pixels):
                    found[area.box()] |= area.inside
            assert not (before & ~found).any()
            before = found
        assert before.any()


@pytest.mark.skipif(not os.path.exists(Finding.shipped), reason="needs the finder")
@pytest.mark.parametrize("quality", [None, 80])
def test_what_less_sensitivity_finds_more_finds_too(quality):
    finder, before = load_finder(0.5, torch.device("cpu"), torch.float32), None
    pixels = np.ascontiguousarray(np.tile(synthetic_colour_image(3, 8, 128), (2, 2, 1)))
    for area in (Area(20, 30, 70, 60, 7.0, 7.0), Area(120, 110, 120, 100, 12.0, 12.0), Area(20, 150, 60, 60, 5.0, 5.0)):
        pixelate_area(pixels, area)
    pixels = compress(pixels, quality, 2) if quality else pixels
    for finder.sensitivity in (0.1, 0.3, 0.5, 0.7, 0.9):
        found = np.zeros(pixels.shape[:2], dtype=bool)
        for area in find_areas(finder, pixels):
            found[area.box()] |= area.inside
        assert before is None or not (before & ~found).any()
        before = found
    assert before.any()
