"""Pixelated areas of a photo of any size and colour: found where they are exact, and restored."""

from dataclasses import replace
from functools import reduce
from itertools import islice
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from datasets import SIZE_RANGE, means_between, spread_between
from tasks.finder import SMALLEST, region_boxes
from tasks.mosaics import AVERAGES, LIGHT, Area, averaged, from_light, to_light
from tasks.restoration import restore_float

WORKING_SIZE = 12  # of larger blocks at the scale at which they are restored
MOST = 200  # boxes of a photo, the largest, that are looked at for exact blocks
GRIDS_TRIED = 3  # in each
SMALLEST_STEP = 2.5  # grey levels from a block to the next, on average, twice that where chance is near; in gradients 1
BY_CHANCE = 12  # constant blocks from which on, small or on the grid of JPEG, they are not thought to come by chance
AROUND = 16  # pixels around a found area in which its exact edges are looked for
WHOLE_SIDE = 0.1  # pixels by which the fit of a whole number may be off
SAME = 0.5  # share of an area from which on it is the same as another
LARGEST = 1536  # pixels a side, at that scale, of what is restored at once
CONTEXT = 24  # pixels around the area that a network sees, at that scale
AT_ONCE = 2**19  # pixels at that scale up to which all channels are restored together
ROUNDING = 0.01  # grey levels by which blocks that are constant seem not to be, in floating point
SURE = 0.6  # an average is told if its error is at most this share of the second smallest
INNER = 0.6  # share of a block's side, in its middle, that files and scaling hardly blur


def estimate_block_size(values):
    """The size of the blocks in a pixelated rectangle, (H, W, C), also where a JPEG has blurred them a little.

    It is the largest for which the blocks are as constant as for the best one: exactly, or else up to 2 grey levels.
    """
    height, width = values.shape[:2]
    values = values.astype(np.int64)
    square = (values**2).sum()
    sums = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0), (0, 0)))  # of all above and to the left
    sizes, spreads = range(2, max(height, width) + 1), []
    for size in sizes:  # the mean square about the means of blocks is that about 0 less that of the means
        rows, columns = (np.append(np.arange(0, length, size), length) for length in (height, width))
        blocks = np.diff(np.diff(sums[np.ix_(rows, columns)], axis=0), axis=1)
        counts = np.diff(rows)[:, None, None] * np.diff(columns)[:, None]
        spreads.append(np.sqrt(max(0, square - (blocks.astype(np.float64) ** 2 / counts).sum()) / values.size))
    least = min(spreads)
    limit = 2 * least + 2 if least > ROUNDING else ROUNDING
    return max(size for size, spread in zip(sizes, spreads) if spread <= limit)


def alike(pixels):
    """(across, down): which pixels of a photo, (H, W, C), equal the one to their left, and above: (H, W) bool each.

    Those at the photo's edge do.
    """
    across, down = np.ones((2, *pixels.shape[:2]), dtype=bool)
    for channel in np.moveaxis(pixels, 2, 0):
        across[:, 1:] &= channel[:, 1:] == channel[:, :-1]
        down[1:] &= channel[1:] == channel[:-1]
    return across, down


def find_constant(across, down):
    """Which pixels belong to a constant 2x2 square, (H, W) bool, by what `alike` returns."""
    return _covered(across[:-1, 1:] & across[1:, 1:] & down[1:, 1:], 2, 2)


def opened(mask, height, width):
    """The opening of a mask, (H, W) bool: its pixels that lie in a rectangle of this size that is True everywhere."""
    if mask.shape[0] < height or mask.shape[1] < width:
        return np.zeros_like(mask)
    return _covered(_all_true(mask, height, width), height, width)


def _all_true(mask, height, width):
    """Whether the rectangle of this size at each place is True everywhere: (H - height + 1, W - width + 1) bool."""
    for side in (height, width):
        length = 1
        while length < side:
            step = min(length, side - length)
            mask, length = mask[:-step] & mask[step:], length + step
        mask = mask.T
    return mask


def _covered(starts, height, width):
    """Which pixels lie in one of the rectangles of this size that begin where starts is True."""
    return ~_all_true(~np.pad(starts, ((height - 1,) * 2, (width - 1,) * 2)), height, width)


def _largest_rectangle(covered):
    """(x, y, width, height) of the largest rectangle that is True everywhere; 0 each where there is none."""
    best, rows = (0, 0, 0, 0, 0), np.arange(len(covered), dtype=np.int32)
    gaps = np.maximum.accumulate(np.where(covered, np.int32(-1), rows[:, None]))  # the last row that is False
    ending = covered.copy()  # what is True in the next row too makes a larger rectangle there
    ending[:-1] &= ~covered[1:]
    for bottom in np.flatnonzero(ending.any(axis=1)):  # the largest rectangle under a histogram, row by row
        heights = bottom - gaps[bottom]
        edges = np.flatnonzero(np.diff(covered[bottom], prepend=False, append=False))
        starts, ends = edges[::2], edges[1::2]  # of what is True in this row
        hopeful = np.maximum.reduceat(heights, starts) * (ends - starts) >= best[0]
        hopeful &= np.logical_or.reduceat(ending[bottom], starts)
        for left, right in zip(starts[hopeful], ends[hopeful]):
            best = max(best, _largest_below(heights[left:right], left, bottom))
    return tuple(map(int, best[1:]))


def _largest_below(heights, left, bottom):
    """(pixels, x, y, width, height) of the largest rectangle under a histogram that stands on the row `bottom`."""
    best, stack = (0,), []
    changes = np.flatnonzero(np.diff(heights, prepend=-1)).tolist()
    for x, height in zip(changes + [len(heights)], heights[changes].tolist() + [-1]):
        start = x
        while stack and stack[-1][1] >= height:
            start, tall = stack.pop()
            best = max(best, (tall * (x - start), int(left) + start, bottom + 1 - tall, x - start, tall))
        stack.append((start, height))
    return best


def find_exact(pixels):
    """The Areas whose blocks the file has kept to the bit, as a PNG does.

    Of each region of constant pixels those, one after the other, that a grid of blocks explains.
    """
    same, found, looked_at = alike(pixels), [], set()
    covered = opened(find_constant(*same), SMALLEST - 1, SMALLEST - 1)
    free = np.ones(covered.shape, dtype=bool)  # of areas that were found
    while len(looked_at) < MOST:
        boxes = list(islice((box for box in region_boxes(covered) if box not in looked_at), MOST - len(looked_at)))
        looked_at.update(boxes)
        before = len(found)
        for box in boxes:
            area = _largest_exact(pixels, box, free, same)
            if area:
                found.append(area)
                free[area.box()] = covered[area.box()] = False
        if len(found) == before:  # else there may be more in what is left
            break
    return found


def _largest_exact(pixels, box, free, same):
    """The largest exact Area that begins in a box (top, bottom, left, right), or None. free, same: see exact_area."""
    # Blocks of which a pixel's width is left have no constant square, and lie beside the box.
    top, bottom, left, right = max(0, box[0] - 1), box[1] + 1, max(0, box[2] - 1), box[3] + 1
    inside, trials = pixels[top:bottom, left:right], []
    if min(np.count_nonzero(steps > SMALLEST_STEP) for steps in _steps(inside)) < SMALLEST:
        return None
    for grid in exact_grids(*(neighbours[top:bottom, left:right] for neighbours in same)):
        area = Area(left, top, right - left, bottom - top, *grid)
        trials.append(exact_area(pixels, area, 0, free, same))
    for area in list(filter(None, trials)):
        wider = exact_area(pixels, area, max(area.width, area.height), free, same)
        while wider and wider.width * wider.height > area.width * area.height:  # the box has cut it
            area, wider = wider, exact_area(pixels, wider, max(wider.width, wider.height), free, same)
        trials.append(area)
    good = [area for area in trials if area and is_exact(pixels, area) and free[area.box()].all()]
    largest = max(good, key=lambda area: area.width * area.height, default=None)
    if largest:
        least = SMALLEST_STEP * (1 + (_on_jpeg_grid(largest) or np.prod(_whole_blocks(largest)) < BY_CHANCE))
        if all(steps.sum() > least * np.count_nonzero(steps) for steps in _steps(pixels[largest.box()])):
            return largest
    return None


def _on_jpeg_grid(area):
    """Whether all lines of an Area's grid are lines of JPEG's, of 8 x 8 pixels."""
    rows, columns = area.lines()
    return not ((rows[1:-1] + area.y) % 8).any() and not ((columns[1:-1] + area.x) % 8).any()


def _whole_blocks(area):
    """How many whole blocks an Area has along y and along x."""
    sides = (area.block_height, area.block_width)
    return [(np.diff(lines) >= np.floor(side)).sum() for lines, side in zip(area.lines(), sides)]


def _steps(values):
    """Yields by how many grey levels each pixel of (H, W, C) differs from the one above, and from the one to the left,
    in the channel in which it does most. uint8."""
    for a, b in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        steps = np.maximum(a, b) - np.minimum(a, b)
        yield reduce(np.maximum, np.moveaxis(steps, 2, 0))


def exact_grids(across, down):
    """(width, height, phase_x, phase_y) of the square blocks, some at most, that constant runs of pixels speak for.

    Runs along rows and columns vote for their length and their start modulo that, as an Area's phases. across, down:
    as from `alike`.
    """
    votes = []
    for neighbours in (across, down.T):
        lines, ends = np.nonzero(~neighbours[:, 1:])
        lengths, starts = np.diff(ends), ends[:-1] + 1
        inside = (np.diff(lines) == 0) & (lengths >= 2)
        lengths, starts = lengths[inside], starts[inside]
        keys, counts = np.unique(lengths * 2**32 + starts % np.maximum(lengths, 1), return_counts=True)
        order = np.argsort(counts, kind="stable")
        votes.append({int(keys[i] >> 32): (int(counts[i]), int(keys[i] & 0xFFFF)) for i in order})  # the most counts
    sides = sorted(votes[0].keys() & votes[1].keys(), key=lambda side: -side * min(vote[side][0] for vote in votes))
    return [(float(side), float(side), *(float(vote[side][1]) for vote in votes)) for side in sides[:GRIDS_TRIED]]


def exact_area(pixels, area, around=AROUND, free=None, same=None):
    """An Area that was found with the edges that its blocks have to the bit, or None where a file has not kept them.

    The largest rectangle in which each pixel equals its left and its upper neighbour, but on lines of the grid.
    around: pixels around it in which its edges may lie. free: (H, W) bool, pixels that may be in it; None: all.
    same: what `alike` returns, where that is known.
    """
    sides = [round(side) for side in (area.block_width, area.block_height)]
    if max(abs(area.block_width - sides[0]), abs(area.block_height - sides[1])) > WHOLE_SIDE:
        return None
    y, x = max(0, area.y - around), max(0, area.x - around)
    box = slice(y, area.y + area.height + around), slice(x, area.x + area.width + around)
    same = [neighbours[box] for neighbours in same] if same else alike(pixels[box])
    first = round(area.x + area.phase_x) - x, round(area.y + area.phase_y) - y
    on_line = [(np.arange(n) - start) % side == 0 for n, side, start in zip(same[0].shape[::-1], sides, first)]
    on_line[0][0] = on_line[1][0] = True  # what is before is not looked at
    equal = (same[0] | on_line[0]) & (same[1] | on_line[1][:, None])
    equal = opened(equal if free is None else equal & free[box], 2 * sides[1] + 1, 2 * sides[0] + 1)
    if not equal.any():  # and smaller ones is_exact does not believe
        return None
    left, top, width, height = _largest_rectangle(equal)
    # A first column that is not on a line equals the one before, which is of the same block then; so do rows.
    left_more, top_more = not on_line[0][left], not on_line[1][top]
    if free is not None and not free[box][top - top_more : top + height, left - left_more : left + width].all():
        left_more = top_more = 0
    left, top, width, height = left - left_more, top - top_more, width + left_more, height + top_more
    phases = [float((start - edge) % side) for start, edge, side in zip(first, (left, top), sides)]
    exact = Area(left + x, top + y, width, height, *map(float, sides), *phases, area.average, area.confidence)
    return exact if is_exact(pixels, exact) else None


def is_exact(pixels, area):
    """Whether an area is made of constant blocks, and like a photo: 3 a side at least, most unlike the next.

    2 a side are whole; more where they are small, or on the grid of JPEG, whose blocks are constant in smooth places.
    """
    (rows, columns), side = area.lines(), min(area.block_width, area.block_height)
    whole = _whole_blocks(area)
    if min(whole) < 2 or (_on_jpeg_grid(area) or side <= 4) and whole[0] * whole[1] < BY_CHANCE:
        return False
    cells = means_between(pixels[area.box()], rows, columns)
    if min(cells.shape[:2]) < 3 or not np.array_equal(spread_between(cells, rows, columns), pixels[area.box()]):
        return False
    pairs = [(np.diff(cells, axis=axis) != 0).any(axis=2) for axis in (0, 1)]
    return sum(pair.sum() for pair in pairs) >= (0.5 if side > 3 else 0.9) * sum(pair.size for pair in pairs)


def square_area(pixels, rectangle):
    """The Area of a rectangle (x, y, width, height) of square blocks.

    On the grid that the file has kept to the bit, or else on one that begins at the rectangle's corner.
    """
    x, y, width, height = rectangle
    inside = pixels[y : y + height, x : x + width]
    for grid in exact_grids(*alike(inside)):
        area = exact_area(inside, Area(0, 0, width, height, *grid), around=0)
        if area and (area.width, area.height) == (width, height):
            return replace(area, x=x, y=y)
    size = float(estimate_block_size(inside))
    return Area(x, y, width, height, size, size)


# ------------------------------------------------------------------------------------------------ restoring


def block_values(pixels, area):
    """(values, tolerance): of the area's blocks, (rows, columns, C) float64; how far off they may be, grey levels.

    The mean of each block's inner part, and the deviation of single pixels from it, which is 0 where the file has kept
    the blocks as they were.
    """
    values, (rows, columns) = pixels[area.box()], area.lines()
    inner = []
    for lines in (rows, columns):
        margins = np.floor(np.diff(lines) * (1 - INNER) / 2).astype(np.int64)
        inner.append((lines[:-1] + margins, lines[1:] - margins))
    whole = means_between(values, rows, columns)
    if np.array_equal(spread_between(whole, rows, columns), values):
        return whole, 0.0
    used = [np.concatenate([np.arange(a, b) for a, b in zip(*ends)]) for ends in inner]
    edges = [np.concatenate([[0], np.cumsum(ends[1] - ends[0])]) for ends in inner]
    middle = values[np.ix_(*used)]
    means = means_between(middle, *edges)
    return means, float(np.sqrt(np.mean((middle - spread_between(means, *edges)) ** 2)))


def parts_of(area):
    """The area, cut along lines of its grid into Areas of at most LARGEST pixels a side when they are restored."""
    cuts, working = [], working_side((area.block_width + area.block_height) / 2)
    for lines, side, phase in zip(area.lines(), (area.block_height, area.block_width), (area.phase_y, area.phase_x)):
        count = ceil(lines[-1] * working / side / LARGEST)
        wanted = np.arange(1, count) * lines[-1] / count
        starts = np.unique([0, *(lines[np.abs(lines - place).argmin()] for place in wanted)])
        # from a start to the next line of the grid: there, but for what was rounded
        phases = [phase if start == 0 else (phase - start + side / 2) % side - side / 2 for start in starts]
        cuts.append(list(zip(starts.tolist(), np.append(starts[1:], lines[-1]).tolist(), phases)))
    for top, bottom, phase_y in cuts[0]:
        for left, right, phase_x in cuts[1]:
            place = {"x": area.x + left, "y": area.y + top, "width": right - left, "height": bottom - top}
            yield replace(area, **place, phase_x=phase_x, phase_y=phase_y)


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
    known[hidden] = False
    offset = [before[i] + before_area[i] * scale[i] for i in (0, 1)]
    view = View(None, known, around, (*offset, *(before + extent)), pad)
    filled = pixels.copy()
    filled[area.box()] = spread_between(cells.round(), *area.lines())
    inputs = view.of(filled)
    at = [np.minimum(np.arange(n) // working, count - 1) for n, count in zip(extent, cells.shape[1::-1])]
    inputs[hidden] = np.moveaxis(np.floor(cells)[np.ix_(at[1], at[0])], 2, 0)  # as the challenge pixelates
    return view._replace(inputs=inputs)


def working_side(side):
    """The side, in whole pixels, at which blocks of a side in pixels are restored."""
    return round(side) if SIZE_RANGE[0] <= round(side) <= SIZE_RANGE[1] else WORKING_SIZE


def restore_area(predict, pixels, area, blocks, device, precision):
    """(the photo, (H, W, C) uint8, with one Area restored; how its blocks most likely were averaged; whether that is
    sure).

    Where they seem to be means, each channel keeps them, as well as the file has. blocks: the block_values of the area
    in the file.
    """
    cells, tolerance = blocks
    view = view_area(pixels, area, cells)
    tensors = torch.from_numpy(view.inputs.astype(np.uint8)).to(device), torch.from_numpy(view.known).to(device)
    together = len(view.inputs) if view.inputs[0].size <= AT_ONCE else 1
    parts = [[t[i : i + together] for t in tensors] for i in range(0, len(view.inputs), together)]
    restored = torch.cat([restore_float(predict, *part, precision) for part in parts]).cpu().numpy()[:, 0] * 255
    restored = [_resize(channel, (area.width, area.height), view.inside) for channel in restored]
    restored = np.stack(restored, axis=2).astype(np.float64)
    average, sure = (area.average, True) if area.average else tell_average(restored, cells, area)
    result = pixels.copy()
    result[area.box()] = keep_values(restored, cells, tolerance, replace(area, average=average)).round()
    return result, average, sure


def tell_average(restored, cells, area):
    """(the average, of AVERAGES, under which these pixels, (h, w, C) float64, come nearest to cells; whether that is
    sure)."""
    if cells.shape[0] * cells.shape[1] < BY_CHANCE:
        return AVERAGES[0], False
    off = {average: np.sqrt(np.mean((averaged(restored, area.lines(), average) - cells) ** 2)) for average in AVERAGES}
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
            means = from_light(means_between(light, *lines))
            wanted = np.clip(means, cells - tolerance, cells + tolerance)
            change = to_light(wanted.clip(0, 255)) - to_light(means)
            restored = from_light(np.clip(light + spread(change, *lines), 0, LIGHT[-1]))
        else:
            means = means_between(restored, *lines)
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
