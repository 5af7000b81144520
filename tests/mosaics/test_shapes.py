"""Areas of any shape, on any grid: what is not mosaic is never changed, not by one level."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import drawn_photo
from PIL import Image, ImageFilter

from architectures import ResidualUNet
from datasets import means_between, spread_between
from depixelation.engine.predictor import Predictor
from depixelation.mosaics.area import CELL, Area, pixelate_area
from depixelation.mosaics.edges import followed, softened
from depixelation.mosaics.exact import find_exact
from depixelation.mosaics.lossy import trimmed
from depixelation.mosaics.making import compress
from depixelation.mosaics.photo import explained, find_areas, restore_areas
from depixelation.mosaics.restoring import unknown_values
from depixelation.mosaics.shapes import fit_lines

SIZE = HEIGHT, WIDTH = 200, 240
Y, X = np.mgrid[:HEIGHT, :WIDTH]


def textured(seed=0):
    """A drawn photo with noise, as photos have: no pixel equals the next by chance alone for long."""
    noise = np.random.default_rng(seed).normal(0, 6, (HEIGHT, WIDTH, 3))
    return (drawn_photo(WIDTH, HEIGHT, seed) * 0.8 + 25 + noise).clip(0, 255).astype(np.uint8)


def all_blocks(pixels, width, height=None, phases=(0.0, 0.0)):
    result = pixels.copy()
    pixelate_area(result, Area(0, 0, WIDTH, HEIGHT, float(width), float(height or width), *phases, "srgb"))
    return result


def brush(radius, *points):
    mask = np.zeros(SIZE, dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        for t in np.linspace(0, 1, 80):
            mask |= (X - x0 - t * (x1 - x0)) ** 2 + (Y - y0 - t * (y1 - y0)) ** 2 <= radius**2
    return mask


def box(x, y, width, height):
    return (x <= X) & (x + width > X) & (y <= Y) & (y + height > Y)


ELLIPSE = ((X - 120) / 80) ** 2 + ((Y - 100) / 60) ** 2 <= 1
SHAPES = {
    "ellipse": ELLIPSE,
    "brush": brush(20, (40, 40), (110, 150), (200, 60)),
    "L": box(32, 24, 40, 140) | box(32, 124, 150, 40),
    "ring": ELLIPSE & ~(((X - 120) / 40) ** 2 + ((Y - 100) / 28) ** 2 <= 1),
}


def covered(areas):
    mask = np.zeros(SIZE, dtype=bool)
    for area in areas:
        mask[area.box()] |= area.inside
    return mask


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    return Predictor(ResidualUNet((8, 8), (1, 1)).eval(), torch.device("cpu"))


@pytest.mark.parametrize("side", [7, 12])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_found_and_nothing_else_is_changed(shape, side, predictor):
    mask, truth = SHAPES[shape], textured()
    pixels = np.where(mask[:, :, None], all_blocks(truth, side, phases=(2.0, 3.0)), truth)
    areas = find_exact(pixels)
    found = covered(areas)
    assert {(area.block_width, area.block_height) for area in areas} == {(side, side)}
    assert (found & mask).sum() > 0.97 * mask.sum() and not (found & ~mask & (pixels != truth).any(axis=2)).any()
    assert (found & ~mask).sum() <= 3  # which have the next block's value by chance
    restored, *_ = restore_areas(predictor, pixels, areas)
    assert np.array_equal(restored[~found], pixels[~found]) and (restored != pixels)[found].any()
    assert np.abs(restored.astype(float) - truth)[mask].mean() < np.abs(pixels.astype(float) - truth)[mask].mean()


@pytest.mark.parametrize("phase", [0.0, 5.0])
def test_only_masked_pixels_are_written(phase, predictor):
    """Touching rectangles, single blocks and single pixels; in a large area, in parts; in a JPEG."""
    mask = box(20, 20, 60, 30) | box(80, 20, 20, 90) | box(140, 120, 10, 10) | box(30, 90, 10, 10)
    mask[150, 40] = True
    for pixels in (all_blocks(textured(1), 10), compress(all_blocks(textured(1), 10), 80, 2)):
        for average in (None, "linear", "center"):
            area = Area(5, 10, 200, 160, 10.0, 10.0, phase, phase, average, mask=mask[10:170, 5:205])
            restored, *_ = restore_areas(predictor, pixels, [area])
            assert np.array_equal(restored[~mask], pixels[~mask]) and not np.array_equal(restored, pixels)


def test_what_a_cut_blocks_rest_tells(predictor):
    """A block's mean less the pixels outside of the mask is the mean of those inside; not under what is drawn over."""
    truth = textured(2)
    pixels = np.where(ELLIPSE[:, :, None], all_blocks(truth, 10), truth)
    area = Area(40, 40, 160, 120, 10.0, 10.0, mask=ELLIPSE[40:160, 40:200])
    cells = all_blocks(truth, 10)[40:160:10, 40:200:10].astype(float)
    _, values, _ = unknown_values(pixels, area, cells, 0.0)
    cut, true = np.argwhere(np.abs(values - cells).max(axis=2) > 0), []
    for row, column in cut:
        block = slice(40 + 10 * row, 50 + 10 * row), slice(40 + 10 * column, 50 + 10 * column)
        true.append(truth[block][ELLIPSE[block]].mean(axis=0))
    off = [np.abs(each[cut[:, 0], cut[:, 1]] - true).mean() for each in (values, cells)]
    assert len(cut) > 10 and off[0] < 0.5 * off[1]
    line = ~box(0, 103, WIDTH, 3)
    pixels = np.where(line[:, :, None], all_blocks(truth, 10), 255).astype(np.uint8)
    unknown, values, _ = unknown_values(pixels, Area(0, 0, WIDTH, HEIGHT, 10.0, 10.0, mask=line), cells_of(truth), 0.0)
    assert np.array_equal(values, cells_of(truth)) and unknown.mask.all()
    restored, *_ = restore_areas(predictor, pixels, find_exact(pixels))
    assert (restored[~line] == 255).all() and np.abs(restored[line].astype(float) - truth[line]).mean() < 25


def cells_of(truth):
    return all_blocks(truth, 10)[::10, ::10].astype(float)


@pytest.mark.parametrize("place", [(20, 30, 200, 150, 13, 11), (31, 17, 171, 113, 26, 21)])
def test_fractional_blocks(place):
    """A region that was resized down and up again: sides of 15 and 16 pixels alternate, and more."""
    x, y, width, height, columns, rows = place
    truth = textured(3)
    pixels = truth.copy()
    small = Image.fromarray(truth[y : y + height, x : x + width]).resize((columns, rows), Image.Resampling.BOX)
    pixels[y : y + height, x : x + width] = np.asarray(small.resize((width, height), Image.Resampling.NEAREST))
    (area,) = find_exact(pixels)
    assert (area.x, area.y, area.width, area.height, area.mask) == (x, y, width, height, None)
    assert [len(lines) - 1 for lines in area.lines()] == [rows, columns]
    assert area.block_width == pytest.approx(width / columns, rel=0.01)
    assert find_areas(None, pixels) == [area]


def test_blocks_that_are_not_square_and_the_whole_picture():
    for mask in (ELLIPSE, np.ones(SIZE, dtype=bool)):
        pixels = np.where(mask[:, :, None], all_blocks(textured(), 12, 8), textured())
        (area,) = find_exact(pixels)
        assert (area.block_width, area.block_height) == (12, 8)
        assert (covered([area]) & mask).sum() > 0.97 * mask.sum()


def test_lines_of_a_grid():
    changes = np.zeros(200, dtype=int)
    changes[np.rint(np.arange(4.27, 200, 7.4)).astype(int)] = 40
    changes[[20, 90, 133]] = 3  # by chance
    side, phase = fit_lines(changes)
    assert side == pytest.approx(7.4, abs=0.05) and phase == pytest.approx(4.27, abs=0.6)
    assert fit_lines(np.zeros(50, dtype=int)) is None and fit_lines(np.ones(50, dtype=int)) is None


def test_drawn_blocks_and_jpeg_blocks_are_no_mosaic():
    rng, tile = np.random.default_rng(0), np.ones((8, 8, 1), dtype=np.uint8)
    palette = rng.integers(0, 256, (12, 3)).astype(np.uint8)
    y, x = np.mgrid[:24, :30]
    art = palette[((np.sin(x / 4) + np.cos(y / 3) + 2) * 2.9).astype(int)]
    code = np.where(rng.random((24, 30, 1)) < 0.5, 0, 255).astype(np.uint8)
    chart = np.stack([np.arange(256), np.arange(256)[::-1], np.full(256, 90)], axis=1).astype(np.uint8)
    chart = chart[rng.integers(0, 256, (24, 30))]
    for blocks in (art, code, chart):
        assert find_exact(np.kron(blocks, tile)) == []
    for quality in (8, 12, 18):
        assert find_exact(compress(drawn_photo(WIDTH, HEIGHT), quality, 2)) == []
    sky = np.repeat(Y[:, :, None] // 3 + 60, 3, axis=2).astype(np.uint8)
    assert find_exact(sky) == []


def test_a_mosaic_ends_where_a_flat_sky_begins():
    truth = textured()
    truth[:90] = 200 - Y[:90, :, None] // 30
    mask = box(60, 40, 96, 104)
    pixels = np.where(mask[:, :, None], all_blocks(truth, 8), truth)
    assert not (covered(find_exact(pixels)) & ~mask & (truth != 199).any(axis=2)).any()


def test_parts_of_a_lossy_area_that_do_not_follow_its_grid():
    truth = textured(4)
    pixels = compress(np.where(ELLIPSE[:, :, None], all_blocks(truth, 10), truth), 85, 2)
    area = trimmed(pixels, Area(40, 40, 160, 120, 10.0, 10.0), ELLIPSE[::CELL, ::CELL].astype(np.float32))
    assert (covered([area]) & ~ELLIPSE).sum() < 0.05 * ELLIPSE.sum()
    assert (covered([area]) & ELLIPSE).sum() > 0.9 * ELLIPSE.sum()
    whole = Area(80, 70, 80, 60, 10.0, 10.0)
    assert trimmed(pixels, whole, np.ones(SIZE)).mask is None
    assert explained(pixels, whole) > 0.8 * whole.size > 0.2 * whole.size > explained(truth, whole)


def test_soft_edges():
    """An exact area reaches to where half of the mosaic shows; no farther where its edge is sharp."""
    share = np.asarray(Image.fromarray(ELLIPSE.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(4))) / 255
    for seed, side in ((6, 7), (7, 12)):
        truth = textured(seed)
        mixed = share[:, :, None] * all_blocks(truth, side) + (1 - share[:, :, None]) * truth
        pixels = mixed.round().astype(np.uint8)
        (core,) = find_exact(pixels)
        found = covered([softened(pixels, core)])
        mosaic = share > 0.5
        assert (found & mosaic).sum() > 0.85 * mosaic.sum() > (covered([core]) & mosaic).sum()
        assert (found & ~mosaic).sum() < 0.03 * mosaic.sum()
        sharp = np.where(ELLIPSE[:, :, None], all_blocks(truth, side), truth)
        (core,) = find_exact(sharp)
        assert softened(sharp, core) is core


def test_what_does_not_follow_the_grid_of_a_jpeg():
    """Parts of an area's outer blocks; nothing of a rectangle that ends with its blocks."""
    truth = textured(4)
    for shape, least in ((ELLIPSE, 0.9), (box(36, 33, 144, 120), 1)):
        pixels = compress(np.where(shape[:, :, None], all_blocks(truth, 12, phases=(0.0, 9.0)), truth), 85, 2)
        touched = means_between(shape, *Area(0, 0, WIDTH, HEIGHT, 12.0, 12.0, 0.0, 9.0).lines()) > 0
        wide = spread_between(touched, *Area(0, 0, WIDTH, HEIGHT, 12.0, 12.0, 0.0, 9.0).lines())
        area = Area(0, 0, WIDTH, HEIGHT, 12.0, 12.0, 0.0, 9.0, mask=wide)
        found = covered([followed(pixels, area)])
        assert (found & shape).sum() >= least * shape.sum()
        assert (found & ~shape).sum() <= 0.45 * (wide & ~shape).sum()


class Seen:
    """Stands for a Finder that sees these areas."""

    least = 0.6

    def __init__(self, *areas):
        self.areas = areas

    def candidates(self, pixels):
        return list(self.areas)


def test_a_small_exact_area_does_not_displace_the_large_one_around_it():
    """Part of a rough area is constant: what explains the most pixels counts. A false large area explains none."""
    truth = textured(5)
    rough = compress(all_blocks(truth, 10), 90, 2)
    pixels = np.where(ELLIPSE[:, :, None], rough, truth)
    pixels = np.where(box(60, 60, 50, 40)[:, :, None], all_blocks(truth, 10), pixels)
    large = Area(60, 60, 120, 80, 10.0, 10.0, confidence=0.9)
    assert [area.size for area in find_areas(None, pixels)] == [50 * 40]
    assert find_areas(Seen(large), pixels) == [large]
    alone = np.where(box(60, 60, 50, 40)[:, :, None], all_blocks(truth, 10), truth)
    assert [area.size for area in find_areas(Seen(large), alone)] == [50 * 40]


def test_what_a_network_takes_for_a_mosaic():
    """Pixel art in a JPEG is none, nor are the blocks of strong compression, nor a strip of hardly two blocks."""
    truth, whole = textured(4), Area(0, 0, WIDTH, HEIGHT, 10.0, 10.0, confidence=0.9)
    art = np.asarray(Image.fromarray(all_blocks(truth, 10)).quantize(12).convert("RGB"))
    assert find_areas(Seen(whole), compress(art, 85, 2)) == []
    mosaic = compress(all_blocks(truth, 10), 85, 2)
    assert find_areas(Seen(whole), mosaic) == [whole]
    round_chance = ELLIPSE[::CELL, ::CELL].astype(np.float32)  # but what fills the picture is no ellipse
    assert trimmed(mosaic, whole, round_chance).mask is None
    assert find_areas(Seen(replace(whole, height=18)), mosaic) == []
    part = Area(80, 56, 72, 88, 8.0, 11.0, confidence=0.9)
    assert find_areas(Seen(part), compress(truth, 12, 2)) == []
