"""Where areas end, to a few pixels: soft edges of exact ones, and those that blocks of others are cut by."""

from dataclasses import replace

import numpy as np

from datasets import means_between, spread_between
from depixelation.mosaics.grid_fit import CAP
from depixelation.mosaics.shapes import touching, wider

PARTS = 3  # times as many, a side, are the parts of blocks that may be left out
OFF, TIMES = 4.0, 4.0  # grey levels, and times the usual, by which these differ from their block, or within themselves
DRAWN = 16.0  # grey levels, and times the largest step to a neighbour, by which what is drawn over a block differs
CUT = 0.06  # share of outer blocks' parts that must be unlike them if the mosaic's edge cuts blocks
RINGS = 16  # around an exact area, of 2 pixels each, in which its edge may fade
FADES = 2  # rings over which a soft edge fades at least
LARGE = 2**24  # values; larger areas keep the edges that they have, as this takes memory and time
MOSTLY = 0.7  # share of the mosaic in the pixels that belong to it


def followed(pixels, area):
    """The area without the parts of blocks that do not have their block's value, and so are no mosaic.

    Those of outer blocks, which the mosaic's edge may cut, and of others where something is drawn over them.
    """
    if pixels[area.box()].size > LARGE:
        return area
    values = pixels[area.box()].astype(np.float64).mean(axis=2)
    lines = [  # blocks of which a pixel or two are left are joined to the next ones
        np.concatenate([[0], each[(each >= PARTS) & (each <= each[-1] - PARTS)], each[-1:]]) for each in area.lines()
    ]
    blocks = means_between(area.inside, *lines) > 0
    inner = _inner(blocks)
    if not inner.any() or min(area.block_width, area.block_height) < 2 * PARTS:
        return area
    thirds = [
        np.rint(np.interp(np.arange(PARTS * (len(each) - 1) + 1) / PARTS, np.arange(len(each)), each)).astype(np.int64)
        for each in lines
    ]
    means = means_between(values, *thirds)
    rough = np.sqrt((means_between(values**2, *thirds) - means**2).clip(0))
    parts = means.reshape(len(blocks), PARTS, -1, PARTS)
    cells = np.median(parts, axis=(1, 3), keepdims=True)
    off = np.abs(parts - cells).reshape(means.shape)
    steps = _largest_steps(cells[:, 0, :, 0])
    inner, blocks, steps = (each.repeat(PARTS, axis=0).repeat(PARTS, axis=1) for each in (inner, blocks, steps))
    drawn_over = off > np.maximum(DRAWN, steps)
    unlike = [each > max(OFF, TIMES * np.median(each[inner])) for each in (off, rough)]
    outer = blocks & ~inner
    gone = outer & (unlike[0] | unlike[1])
    if gone.sum() < CUT * outer.sum():  # blocks end where the area does
        gone[:] = False
    gone |= blocks & drawn_over
    mask = area.inside & ~spread_between(gone, *thirds)
    return replace(area, mask=mask) if mask.any() and not mask.all() else area


def _largest_steps(cells):
    """By how much each of (rows, columns) values differs at most from its eight neighbours."""
    padded, (rows, columns) = np.pad(cells, 1, "edge"), cells.shape
    around = [padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    return np.abs(np.array(around) - cells).max(axis=0)


def _inner(blocks):
    """Which blocks of a (rows, columns) bool array have all their eight neighbours in it, too."""
    return ~wider(~np.pad(blocks, 1))[1:-1, 1:-1]


def softened(pixels, area):
    """An exact area, and what is mostly mosaic around it where its edge is soft.

    There, the steps on the lines of the grid fade from the area's to the photo's, which are the same everywhere.
    """
    reach = 2 * RINGS
    left, top = max(0, area.x - reach), max(0, area.y - reach)
    box = slice(top, area.y + area.height + reach), slice(left, area.x + area.width + reach)
    if pixels[box].size > LARGE:
        return area
    values = pixels[box].astype(np.float64).mean(axis=2)
    inside = np.zeros(values.shape, dtype=bool)
    place = area.y - top, area.x - left
    inside[place[0] : place[0] + area.height, place[1] : place[1] + area.width] = area.inside
    phases = (place[1] + area.phase_x) % area.block_width, (place[0] + area.phase_y) % area.block_height
    wide = replace(area, x=left, y=top, width=inside.shape[1], height=inside.shape[0], phase_x=phases[0],
                   phase_y=phases[1], mask=None)
    rings, reached = np.where(inside, 0, RINGS + 1), inside
    for ring in range(1, RINGS + 1):
        reached = touching(wider(reached))
        rings[reached & (rings > ring)] = ring
    sums, counts = np.zeros((2, 2, RINGS + 2))  # of steps on the grid's lines and elsewhere; the last tell of nothing
    for axis, lines in enumerate(wide.lines()):
        first, second = (np.take(rings, range(a, rings.shape[axis] - 1 + a), axis) for a in (0, 1))
        ring = np.where((first > 0) == (second > 0), np.maximum(first, second), RINGS + 1)
        steps = np.abs(np.diff(values, axis=axis)).clip(max=CAP)
        on = np.isin(np.arange(1, rings.shape[axis]), lines)
        for k, chosen in enumerate((on, ~on)):
            at = np.compress(chosen, ring, axis).ravel()
            sums[k] += np.bincount(at, np.compress(chosen, steps, axis).ravel(), RINGS + 2)
            counts[k] += np.bincount(at, minlength=RINGS + 2)
    on, off = sums / counts.clip(min=1) + 0.5
    far = slice(RINGS * 3 // 4, RINGS + 1)
    usual = on[0] / (sums[1, far].sum() / max(1, counts[1, far].sum()) + 0.5)
    share = (on - off) / ((on - off).clip(min=0) + usual * off)
    ends = int(np.argmax(share[1 : RINGS + 1] < MOSTLY))  # after so many rings; 0 if none has less: that is no edge
    if ends < FADES:
        return area
    mask = rings <= ends
    y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return replace(wide, mask=mask).cropped(int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1)
