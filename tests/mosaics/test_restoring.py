"""Areas are restored with the values of their blocks that the file has."""

import numpy as np
import pytest
import torch
from conftest import RECTANGLES, drawn_photo, pixelated

from architectures import ResidualUNet
from datasets import block_means, means_between, spread_between
from depixelation.engine.predictor import Predictor
from depixelation.images.synthetic import synthetic_colour_image
from depixelation.mosaics.area import Area, averaged, from_light, pixelate_area, to_light
from depixelation.mosaics.exact import square_area
from depixelation.mosaics.making import compress
from depixelation.mosaics.restoring import (
    LARGEST,
    block_values,
    detect_average,
    keep_values,
    parts_of,
    restore_area,
    view_area,
    working_side,
)


@pytest.mark.parametrize("average", ["srgb", "linear", "center"])
def test_pixelated_areas(average):
    pixels = synthetic_colour_image(1, 2, 64)
    result, area = pixels.copy(), Area(5, 7, 30, 22, 8.0, 8.0, 3.0, 1.0, average)
    pixelate_area(result, area)
    block = result[8:16, 8:16]  # of the grid of the picture, from (5 + 3, 7 + 1) on
    assert (block == block[0, 0]).all() and (result[7, 5:8] == result[7, 5]).all()
    outside = np.ones(pixels.shape[:2], dtype=bool)
    outside[area.box()] = False
    assert np.array_equal(result[outside], pixels[outside])
    truth = pixels[8:16, 8:16].astype(float)
    expected = {"srgb": truth.mean((0, 1)), "linear": from_light(to_light(truth).mean((0, 1))), "center": truth[4, 4]}
    whole = {"srgb": np.floor, "linear": np.rint, "center": np.asarray}[average]  # as the challenge, and as GIMP
    assert np.array_equal(block[0, 0], whole(expected[average]))
    values, tolerance = block_values(result, area)
    assert tolerance == 0 and np.array_equal(spread_between(values, *area.lines()), result[area.box()])
    lossy, rough = block_values(compress(result, 70, 2), area)
    assert 0 < rough < 12 and np.abs(lossy - values).mean() < 8
    assert detect_average(truth_of(pixels, area) + 1, values, area) == (average, True)
    kept = keep_values(truth_of(pixels, area), values, 0.0, area)
    if average != "center":
        means = means_between(to_light(kept) if average == "linear" else kept, *area.lines())
        means = from_light(means) if average == "linear" else means
        assert np.abs(means - values).max() < 0.5
    loose = keep_values(truth_of(pixels, area), values, 300.0, area)
    assert np.allclose(loose, truth_of(pixels, area))  # a tolerance that allows everything changes nothing


@pytest.mark.parametrize("average", ["srgb", "linear"])
def test_block_means_are_kept_without_steps(average):
    area = Area(0, 0, 61, 40, 8.0, 8.0, 5.0, 0.0, average)
    cells = np.tile(100 + 10.0 * np.arange(8)[:, None], (5, 1, 1))
    kept = keep_values(np.full((40, 61, 1), 120.0), cells, 0.0, area)
    assert np.allclose(averaged(kept, area.lines(), average), cells, atol=1e-3)
    assert np.abs(np.diff(kept, axis=1)).max() < 4 and np.abs(np.diff(kept, axis=0)).max() < 1e-6


def truth_of(pixels, area):
    return pixels[area.box()].astype(float)


@pytest.mark.parametrize("width, height, rectangle", RECTANGLES)
def test_restored_channels_keep_their_block_means_and_the_rest(width, height, rectangle):
    """With a network that has learned nothing, which is the interpolation: already better than the blocks."""
    truth = drawn_photo(width, height)
    pixels = pixelated(truth, *rectangle)
    x, y, w, h, size = rectangle
    inside = slice(y, y + h), slice(x, x + w)
    network = ResidualUNet((8, 8), (1, 1)).eval()
    area = square_area(pixels, rectangle[:4])
    blocks = block_values(pixels, area)
    restored, average, _ = restore_area(Predictor(network, torch.device("cpu")), pixels, area, blocks)
    assert average == "srgb"
    outside = np.ones(pixels.shape[:2], dtype=bool)
    outside[inside] = False
    assert restored.dtype == np.uint8 and np.array_equal(restored[outside], pixels[outside])
    assert np.abs(block_means(restored[inside], size) - pixels[inside]).max() <= 1  # the floor and the rounding
    errors = [np.sqrt(np.mean((image[inside].astype(float) - truth[inside]) ** 2)) for image in (restored, pixels)]
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("phases", [(0.0, 4.0), (4.0, 0.0), (4.0, 12.0), (0.0, 0.0)])
def test_blocks_beyond_the_photo_are_not_known(phases):
    """In the corner of a photo, with first blocks that were cut off: their copies complete them, and no more."""
    area = Area(0, 0, 60, 60, 16.0, 16.0, *phases)
    pixels = drawn_photo(100, 100)
    pixelate_area(pixels, area)
    view = view_area(pixels, area, block_values(pixels, area)[0])
    assert not view.known[0, 0, 0, 0] and view.known[0, 0, :, -1].all() and view.known[0, 0, -1].all()


@pytest.mark.parametrize("side, phase", [(2.0, 1.0), (7.0, 3.0), (10.4, 0.0), (60.0, 20.0)])
def test_huge_areas_are_cut_along_their_grid(side, phase):
    area = Area(5, 9, 4000, 900, side, side, phase, phase)
    parts = list(parts_of(area))
    assert sum(part.width * part.height for part in parts) == 4000 * 900
    assert len(parts) == {2.0: 16 * 4, 7.0: 3, 10.4: 3, 60.0: 1}[side]  # blocks of 2 are restored as blocks of 12
    scale = working_side(side) / side
    assert max(max(part.width, part.height) for part in parts) * scale <= LARGEST + 12
    lines = {line + part.x - area.x for part in parts for line in part.lines()[1].tolist()}
    assert lines == set(area.lines()[1].tolist())
