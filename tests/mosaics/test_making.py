"""Pixelated areas of all kinds that the program makes: to train and to measure on."""

import numpy as np
import pytest
import torch
from conftest import Photos

from datasets import means_between, spread_between
from depixelation.images.synthetic import synthetic_colour_image
from depixelation.mosaics.area import Area, from_light, grid_lines, pixelate_area, to_light
from depixelation.mosaics.making import FORMATS, MosaicCrops, MosaicPhotos, draw_areas, is_visible


def test_grids():
    assert grid_lines(10, 4, 0).tolist() == [0, 4, 8, 10]
    assert grid_lines(10, 4, 2).tolist() == [0, 2, 6, 10]
    assert grid_lines(10, 3.4, 0).tolist() == [0, 3, 7, 10]
    values = np.arange(24.0).reshape(4, 6, 1)
    rows, columns = np.array([0, 1, 4]), np.array([0, 2, 6])
    means = means_between(values, rows, columns)
    assert means[0, 0, 0] == 0.5 and means[1, 1, 0] == values[1:, 2:].mean()
    assert np.array_equal(means_between(spread_between(means, rows, columns), rows, columns), means)
    a = Area(10, 10, 20, 20, 4.0, 4.0)
    assert a.overlap(a) == 1 and a.overlap(Area(30, 10, 20, 20, 4.0, 4.0)) == 0
    assert a.overlap(Area(20, 10, 20, 20, 4.0, 4.0)) == pytest.approx(1 / 3)
    b = a.scaled(0.5, 100, 100)
    assert (b.x, b.y, b.width, b.height, b.block_width) == (5, 5, 10, 10, 2)


def test_light():
    assert np.allclose(from_light(to_light(np.arange(256))), np.arange(256))
    assert to_light(188) == pytest.approx(255 / 2, abs=1)  # half the light


def test_drawn_areas_do_not_overlap_and_can_be_seen():
    rng = np.random.default_rng(0)
    for i in range(30):
        before = np.ascontiguousarray(np.tile(synthetic_colour_image(3, i, 128), (2, 2, 1)))
        pixels = before.copy()
        areas = draw_areas(rng, pixels, 3)
        assert all(0 <= a.x and a.x + a.width <= 256 and a.y + a.height <= 256 for a in areas)
        assert not any(a.overlap(b) for i, a in enumerate(areas) for b in areas[:i])
        assert all(is_visible(before[a.box()], pixels[a.box()], int(a.block_width)) for a in areas)
        again = before.copy()
        for area in areas:
            pixelate_area(again, area)
        assert np.array_equal(again, pixels)
    before, after = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    after[8:] = 50  # but its first blocks
    assert is_visible(before, before + 50, 8) and not is_visible(before, after, 8)
    flat = np.full((64, 64, 3), 100, dtype=np.uint8)
    assert draw_areas(rng, flat, 2) == [] and (flat == 100).all()


def test_samples_follow_their_key():
    crops = MosaicCrops(Photos(), [0, 1, 2], 5, 10)
    for i in range(6):
        one, two = crops[(1, i)], crops[(1, i)]
        assert all(map(torch.equal, one, two)) and not torch.equal(one[0], crops[(2, i)][0])
        luma, covered, grids, averages, weights = one
        assert luma.shape == (1, 256, 256) and grids.shape == (6, 64, 64)
        assert covered.shape == weights.shape == (1, 64, 64) and 0 <= covered.min() <= covered.max() <= 1
        assert ((grids != 0).any(0) == (averages >= 0)).all() and ((covered[0] >= 0.5) == (averages >= 0)).all()
        assert weights.min() == 1 and weights.max() <= 8
    pictures = MosaicPhotos(Photos(), [0, 1, 2], 20)
    kinds = [pictures[i] for i in range(20)]
    assert [file for _, _, file in kinds[:4]] == list(FORMATS)
    assert not any(areas for _, areas, _ in kinds[16:]) and sum(bool(areas) for _, areas, _ in kinds) >= 12
    pixels, areas, _ = kinds[0]
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    for area in areas:
        inside[area.box()] = True
    assert np.array_equal(pictures.truth(0)[~inside], pixels[~inside])
