"""Areas that the user names, as rectangles or as a mask. Their blocks are measured, unless these are named too."""

from dataclasses import replace

import numpy as np

from depixelation.mosaics.area import Area, bands
from depixelation.mosaics.exact import alike, exact_grids, find_constant, square_area
from depixelation.mosaics.finder import to_luma
from depixelation.mosaics.grid_fit import CAP, fit_area
from depixelation.mosaics.lossy import explained
from depixelation.mosaics.regions import as_mask, find_regions
from depixelation.mosaics.shapes import line_grids

LEAST = 4  # pixels of an area
ALIKE = 0.97  # larger blocks win if they explain this share of the best grid's pixels
FIRST = 0.97  # a grid from the area's corner wins if its lines change this share of what the best lines change


def given_areas(pixels, rectangles=(), mask=None, block=None):
    """The Areas of rectangles (x, y, width, height), or of the connected regions of a mask, (H, W) bool.

    block: (width, height) of all blocks, in pixels; None: measured in each area. The areas' confidence is None.
    """
    areas = [_measured(pixels, Area(*each, 1.0, 1.0), block) for each in rectangles]
    for rows, starts, ends in find_regions(mask) if mask is not None else ():
        top, left = int(rows[0]), int(starts.min())
        width, height = int(ends.max()) - left, int(rows[-1]) + 1 - top
        region = as_mask((rows - top, starts - left, ends - left), (height, width))
        if region.sum() >= LEAST and min(width, height) >= 2:
            area = Area(left, top, width, height, 1.0, 1.0, mask=None if region.all() else region)
            areas.append(_measured(pixels, area, block))
    return [replace(area, confidence=None) for area in areas]


def _measured(pixels, area, block):
    """The area on a grid of blocks of this (width, height). None: as measured."""
    if block:
        return _with_grid(area, (*map(float, block), *(_phase(pixels, area, axis, block[axis]) for axis in (0, 1))))
    if area.mask is None:
        square = square_area(pixels, (area.x, area.y, area.width, area.height))
        if _is_exact(pixels, square):
            return square
    else:
        square = _with_grid(area, _square_grid(pixels, area))
    box = area.box()
    same = alike(pixels[box])
    constant = find_constant(*same) & area.inside
    trials = [_with_grid(area, grid) for grid in [*exact_grids(*same), *line_grids(*same, constant)]]
    exact = [each for each in trials if _is_exact(pixels, each)]
    if exact:
        return max(exact, key=lambda each: each.block_width * each.block_height)
    y, x = box
    fitted = fit_area(to_luma(pixels), (y.start, y.stop, x.start, x.stop))
    trials = [square]
    if fitted:  # it may have moved the edges
        phases = (fitted.x + fitted.phase_x - area.x), (fitted.y + fitted.phase_y - area.y)
        trials.append(_with_grid(area, (fitted.block_width, fitted.block_height, *phases)))
    told = [explained(pixels, each) for each in trials]
    good = [each for each, pixels_told in zip(trials, told) if pixels_told >= ALIKE * max(told)]
    return max(good, key=lambda each: each.block_width * each.block_height)


def _with_grid(area, grid):
    width, height, phase_x, phase_y = grid
    phases = float(phase_x % width), float(phase_y % height)
    return replace(area, block_width=width, block_height=height, phase_x=phases[0], phase_y=phases[1])


def _square_grid(pixels, area):
    """(width, height, phase_x, phase_y) of square blocks in the area's box, see square_area."""
    square = square_area(pixels, (area.x, area.y, area.width, area.height))
    return square.block_width, square.block_height, square.phase_x, square.phase_y


def _is_exact(pixels, area):
    """Whether the area has several blocks along x and y, all constant within its mask."""
    across, down = alike(pixels[area.box()])
    rows, columns = area.lines()
    across[:, columns[:-1]] = down[rows[:-1]] = True
    inside = area.inside
    across[:, 1:] |= ~inside[:, :-1]
    down[1:] |= ~inside[:-1]
    return min(len(rows), len(columns)) > 2 and bool((across & down)[inside].all())


def _changes(values, inside, axis):
    """(changes, counts) of pixels, (H, W, C), in a mask from one to the next along x (axis 0) or y, at each place."""
    if axis == 0:
        values, inside = values.swapaxes(0, 1), inside.T
    both = inside[1:] & inside[:-1]
    changes = []
    for a, b in bands(np.arange(len(values)), values.shape[1], sums=True):
        part = np.minimum(np.abs(np.diff(values[a : b + 1].astype(np.float64).mean(axis=2), axis=0)), CAP)
        changes.append((part * both[a:b]).sum(axis=1))
    return np.concatenate(changes), both.sum(axis=1)


def _phase(pixels, area, axis, side):
    """The phase of blocks of this side along an axis (0: x): where pixels change most; 0 if that is nearly as good."""
    changes, counts = (np.append(0, each) for each in _changes(pixels[area.box()], area.inside, axis))
    scores = []
    for phase in range(int(np.ceil(side))):
        lines = np.rint(np.arange(phase, len(changes), side)).astype(np.int64)
        lines = lines[(lines > 0) & (lines < len(changes))]
        scores.append(changes[lines].sum() / max(1, counts[lines].sum()))
    return 0.0 if scores[0] >= FIRST * max(scores) else float(np.argmax(scores))
