"""Restores a pixelated area of a photo: as a network sees it, and back, with the block values that the file has."""

from dataclasses import replace
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from datasets import SIZE_RANGE, means_between, spread_between
from depixelation.engine.restoration import to_inputs
from depixelation.mosaics.area import AVERAGES, INNER, LIGHT, MOST, averaged, from_light, to_light
from depixelation.mosaics.exact import BY_CHANCE

WORKING_SIZE = 12  # of larger blocks at the scale at which they are restored
LARGEST = 1536  # pixels a side, at that scale, of what is restored at once
WIDEST = 2048  # pixels a side of the photo of what is restored at once of an area of more than MOST pixels
CONTEXT = 24  # pixels around the area that a network sees, at that scale
AT_ONCE = 2**19  # pixels at that scale up to which all channels are restored together
SURE = 0.6  # an average is detected if its error is at most this share of the second smallest
TOLD = 0.3  # share of a block in the mask from which on the rest of it tells of it
FAR = 3.0  # times the mean step between blocks: farther off, something is drawn over the block
USUAL = 0.8  # times the mean step between blocks: how far pixels in the mask may be from their block's value


def masked_means(values, lines, mask):
    """As means_between, but of the pixels in a mask alone, (H, W) bool or None; of all where a block has none there."""
    if mask is None:
        return means_between(values, *lines)
    share = means_between(mask, *lines)[:, :, None]
    inside = means_between(values * mask[:, :, None], *lines)
    return np.where(share > 0, inside / np.where(share > 0, share, 1), means_between(values, *lines))


def block_values(pixels, area):
    """(values, tolerance): of the area's blocks, (rows, columns, C) float64; how far off they may be, grey levels.

    The mean of each block's inner part, and the deviation of single pixels from it, which is 0 where the file has kept
    the blocks as they were.
    """
    values, (rows, columns), mask = pixels[area.box()], area.lines(), area.mask
    whole, inside = masked_means(values, (rows, columns), mask), area.inside
    if np.array_equal(spread_between(whole, rows, columns)[inside], values[inside]):
        return whole, 0.0
    used, edges = [], []
    for lines in (rows, columns):
        margins = np.floor(np.diff(lines) * (1 - INNER) / 2).astype(np.int64)
        starts, ends = lines[:-1] + margins, lines[1:] - margins
        used.append(np.concatenate([np.arange(a, b) for a, b in zip(starts, ends)]))
        edges.append(np.concatenate([[0], np.cumsum(ends - starts)]))
    middle, inner = values[np.ix_(*used)], inside[np.ix_(*used)]
    means = masked_means(middle, edges, inner)
    off = (middle - spread_between(means, *edges))[inner]
    means = np.where(means_between(inner, *edges)[:, :, None] > 0, means, whole)  # nothing of its middle is inside
    return means, float(np.sqrt(np.mean(off**2))) if off.size else 0.0


def unknown_values(pixels, area, cells, tolerance):
    """(area, values, tolerances): what is unknown, and its mean in each block, (rows, columns, C).

    Blocks that the mask cuts may have been averaged as a whole, before: then the pixels outside, which are known, tell
    more of those inside. That is so where it makes those differ from the block's value no more than blocks do. Else
    something is drawn over them, and all of the block is unknown.
    """
    loose = np.full((*cells.shape[:2], 1), tolerance)
    if area.mask is None:
        return area, cells, loose
    lines, grid = area.lines(), []
    for edges, side, phase, start, total in zip(
        lines, (area.block_height, area.block_width), (area.phase_y, area.phase_x), (area.y, area.x), pixels.shape
    ):  # blocks that the box cuts go on beyond it
        first = start + phase - side if np.rint(phase) > 0 else start + phase
        ends = np.rint(first + side * np.arange(len(edges))).astype(np.int64)
        grid.append(ends.clip(0, total))
    top, left = grid[0][0], grid[1][0]
    mask = np.zeros((grid[0][-1] - top, grid[1][-1] - left), dtype=bool)
    inner = slice(area.y - top, area.y - top + area.height), slice(area.x - left, area.x - left + area.width)
    cut = mask[inner].shape
    mask[inner] = area.mask[: cut[0], : cut[1]]
    lines = [ends - ends[0] for ends in grid]
    if not all((np.diff(edges) > 0).all() for edges in lines):
        return area, cells, loose
    share = means_between(mask, *lines)[:, :, None]
    average = area.average
    light = to_light if average == "linear" else np.asarray
    whole = pixels[top : top + mask.shape[0], left : left + mask.shape[1]]
    known = means_between(light(whole.astype(np.float64)) * ~mask[:, :, None], *lines)
    implied = (light(cells) - known) / np.where(share > 0, share, 1)
    partly = (share > 0) & (share < 1)
    told = partly & (share >= TOLD)
    inside = from_light(implied) if average == "linear" else implied
    steps = max(1.0, *(np.abs(np.diff(cells, axis=axis)).mean() if cells.shape[axis] > 1 else 0 for axis in (0, 1)))
    off = np.abs(inside - cells)
    if average == "center" or not told.any() or np.median(off[told[:, :, 0]]) > USUAL * steps:
        sure = np.zeros_like(told)
    else:
        sure = told & (off.max(axis=2, keepdims=True) <= FAR * steps)
    drawn_over = spread_between((told & ~sure)[:, :, 0], *area.lines())
    values = np.where(sure, inside.clip(0, 255), cells)
    tolerances = np.where(sure, (tolerance + 0.5) / share.clip(TOLD), np.where(partly & ~told, np.inf, loose))
    return replace(area, mask=area.mask | drawn_over), values, tolerances


def parts_of(area):
    """The area, cut along lines of its grid into Areas of at most LARGEST pixels a side when they are restored.

    Those of a large one also have at most WIDEST pixels a side in the photo, as far as its blocks have.
    """
    cuts, working = [], working_side((area.block_width + area.block_height) / 2)
    large = area.width * area.height > MOST
    for lines, side, phase in zip(area.lines(), (area.block_height, area.block_width), (area.phase_y, area.phase_x)):
        count = ceil(lines[-1] * working / side / LARGEST)
        count = max(count, ceil(lines[-1] / WIDEST)) if large else count
        wanted = np.arange(1, count) * lines[-1] / count
        starts = np.unique([0, *(lines[np.abs(lines - place).argmin()] for place in wanted)])
        # from a start to the next line of the grid: there, but for what was rounded
        phases = [phase if start == 0 else (phase - start + side / 2) % side - side / 2 for start in starts]
        cuts.append(list(zip(starts.tolist(), np.append(starts[1:], lines[-1]).tolist(), phases)))
    for top, bottom, phase_y in cuts[0]:
        for left, right, phase_x in cuts[1]:
            part = area.cropped(left, top, right, bottom)
            if part.mask is None or part.mask.any():
                yield replace(part, phase_x=phase_x, phase_y=phase_y)


class View(NamedTuple):
    """A photo around one of its areas, at the scale at which a network restores it, C channels."""

    inputs: np.ndarray  # (C, 1, h, w) float32, 0 to 255, blocks as the challenge makes them
    known: np.ndarray  # (C, 1, h, w) bool
    around: tuple  # (left, upper, right, lower) of it in the photo, pixels, fractional
    inside: tuple  # the same of the area in the view
    pad: tuple  # (to the left, above): pixels that the photo gets there, which `around` counts

    def of(self, pixels):
        """Another photo of the same size, (H, W, C) uint8, seen alike: (C, 1, h, w) float32, 0 to 255."""
        padded = np.pad(pixels, ((self.pad[1], 0), (self.pad[0], 0), (0, 0)), "edge")
        sides = self.known.shape[:1:-1]
        return np.stack([_resize(channel, sides, self.around) for channel in np.moveaxis(padded, 2, 0)])[:, None]


def view_area(pixels, area, cells):
    """The View of an Area with these values of its blocks, (rows, columns, C).

    Blocks of a size that the network does not know, or not square, are seen at a scale at which it knows them.
    """
    sides = np.array([area.block_width, area.block_height])
    working = working_side(float(sides.mean()))
    scale = working / sides
    # a grid that begins outside of the area: its first blocks are completed, with pixels that are known
    before_area = [s - p if np.rint(p) > 0 else 0.0 for s, p in zip(sides, (area.phase_x, area.phase_y))]
    pad = tuple(ceil(max(0, before - at)) for before, at in zip(before_area, (area.x, area.y)))
    start = np.array([area.x, area.y]) - before_area + pad
    length = np.array([area.width + before_area[0], area.height + before_area[1]])
    total = np.add(pixels.shape[1::-1], pad)
    extent = np.maximum(2, np.rint(length * scale).astype(int))
    before = np.where(pad, 0, np.minimum(CONTEXT, (start * scale).astype(int)))  # copies of blocks are not known
    after = np.minimum(CONTEXT, ((total - start - length) * scale).astype(int))
    around = (*np.maximum(start - before / scale, 0), *np.minimum(start + length + after / scale, total))
    known = np.ones((pixels.shape[2], 1, *(before + extent + after)[::-1]), dtype=bool)
    hidden = (slice(None), 0, slice(before[1], before[1] + extent[1]), slice(before[0], before[0] + extent[0]))
    unknown = _seen_mask(area, extent, before_area, pad, scale)
    known[hidden] = ~unknown
    offset = [before[i] + before_area[i] * scale[i] for i in (0, 1)]
    view = View(None, known, around, (*offset, *(before + extent)), pad)
    filled = pixels.copy()
    area.put(filled, spread_between(cells.round(), *area.lines()))
    inputs = view.of(filled)
    at = [np.minimum(np.arange(n) // working, count - 1) for n, count in zip(extent, cells.shape[1::-1])]
    blocks = np.moveaxis(np.floor(cells)[np.ix_(at[1], at[0])], 2, 0)  # as the challenge pixelates
    inputs[hidden] = np.where(unknown, blocks, inputs[hidden])
    return view._replace(inputs=inputs)


def _seen_mask(area, extent, before, pad, scale):
    """Which pixels of a View's grid of blocks are unknown, (h, w) bool: the area's, and what completes blocks at the
    photo's edge; without a mask all."""
    if area.mask is None:
        return np.ones(extent[::-1], dtype=bool)
    at, beyond = [], []
    for n, side, length, edge, factor in zip(extent, before, (area.width, area.height), pad, scale):
        place = np.floor((np.arange(n) + 0.5) / factor - side).astype(np.int64)
        at.append(place.clip(0, length - 1))
        beyond.append((place < 0) & (not edge) | (place >= length))
    mask = area.mask[np.ix_(at[1], at[0])] & ~beyond[0] & ~beyond[1][:, None]
    mask[0, 0] = True  # networks take the first unknown row and column for lines of the grid
    return mask


def working_side(side):
    """The side, in whole pixels, at which blocks of a side in pixels are restored."""
    return round(side) if SIZE_RANGE[0] <= round(side) <= SIZE_RANGE[1] else WORKING_SIZE


def restore_area(predictor, pixels, area, blocks):
    """(the photo, (H, W, C) uint8, with one Area restored; how its blocks most likely were averaged; whether that is
    sure).

    Where they seem to be means, each channel keeps them, as well as the file has. blocks: the block_values of the area
    in the file.
    """
    cells, tolerance = blocks
    unknown, wanted, loose = unknown_values(pixels, area, cells, tolerance)
    view = view_area(pixels, unknown, wanted)
    inputs = to_inputs(torch.from_numpy(view.inputs.astype(np.uint8)), torch.from_numpy(view.known))
    together = len(inputs) if view.inputs[0].size <= AT_ONCE else 1
    restored = torch.cat([predictor(part) for part in inputs.split(together)]).cpu().numpy()[:, 0] * 255
    restored = [_resize(channel, (area.width, area.height), view.inside) for channel in restored]
    restored = np.stack(restored, axis=2).astype(np.float64)
    average, sure = (area.average, True) if area.average else detect_average(restored, cells, area)
    known = replace(area, average=average)
    if average != area.average:
        unknown, wanted, loose = unknown_values(pixels, known, cells, tolerance)
    result = pixels.copy()
    area.put(result, keep_values(restored, wanted, loose, replace(unknown, average=average)).round())
    return result, average, sure


def detect_average(restored, cells, area):
    """(the average, of AVERAGES, under which these pixels, (h, w, C) float64, come nearest to cells; whether that is
    sure)."""
    whole = means_between(area.inside, *area.lines()) == 1  # not cut by the mask
    if whole.sum() < BY_CHANCE:
        return AVERAGES[0], False
    off = {
        average: np.sqrt(np.mean((averaged(restored, area.lines(), average) - cells)[whole] ** 2))
        for average in AVERAGES
    }
    nearest, second, _ = sorted(AVERAGES, key=off.get)
    return nearest, bool(off[nearest] < SURE * off[second])


def keep_values(restored, cells, tolerance, area):
    """An area's pixels, (h, w, C) float64, as near to these as the blocks' values allow, within [0, 255].

    Blocks' means, of light where these were averaged, may differ from cells by the tolerance, in grey levels. Of the
    middle pixel's value no mean follows.
    """
    lines = area.lines()
    if area.average == "center":
        return restored.clip(0, 255)
    # Alternate between what has these means and what is within [0, 255]. First smoothly, so that no steps are seen
    # between blocks; then exactly.
    for spread in [_spread_smoothly] * 5 + [spread_between] * 5:
        if area.average == "linear":
            light = to_light(restored.clip(0, 255))
            means = from_light(masked_means(light, lines, area.mask))
            wanted = np.clip(means, cells - tolerance, cells + tolerance)
            change = to_light(wanted.clip(0, 255)) - to_light(means)
            restored = from_light(np.clip(light + spread(change, *lines), 0, LIGHT[-1]))
        else:
            means = masked_means(restored, lines, area.mask)
            change = np.clip(means, cells - tolerance, cells + tolerance) - means
            restored = np.clip(restored + spread(change, *lines), 0, 255)
    return restored


def _spread_smoothly(cells, rows, columns):
    """As spread_between, but linear between the cells' middles."""
    for axis, lines in enumerate((rows, columns)):
        middles = (lines[:-1] + lines[1:] - 1) / 2
        weights = [np.interp(np.arange(lines[-1]), middles, one) for one in np.eye(len(middles))]
        cells = np.moveaxis(np.tensordot(np.transpose(weights), cells, (1, axis)), 0, axis)
    return cells


def _resize(channel, sides, box):
    return np.asarray(
        Image.fromarray(channel.astype(np.float32)).resize(tuple(sides), Image.Resampling.BICUBIC, box)
    ).clip(0, 255)
