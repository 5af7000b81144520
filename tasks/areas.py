"""Pixelated areas of a photo of any size and colour: found where they are exact, and restored."""

from math import ceil

import numpy as np
import torch
from PIL import Image

from datasets import SIZE_RANGE, block_means
from tasks.finder import SMALLEST, fit_area, region_boxes, to_luma
from tasks.mosaics import LIGHT, Area, from_light, means_between, spread_between, to_light
from tasks.restoration import restore_float

WORKING_SIZE = 12  # of larger blocks at the scale at which they are restored
FLAT_AREAS = 20  # of a single value each that may be larger than the pixelated rectangle
CONTEXT = 24  # pixels around the area that a network sees, at that scale
AT_ONCE = 2**19  # pixels at that scale up to which all channels are restored together
SMOOTH = 0.5  # share of an interpolation in areas of middle pixels, which the network takes for means
INNER = 0.6  # share of a block's side, in its middle, that files and scaling hardly blur


def estimate_block_size(values):
    """The size of the blocks in a pixelated rectangle, (H, W, C), also where a JPEG has blurred them a little.

    It is the largest for which the blocks are as constant as for the best one, up to 2 grey levels.
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
    return max(size for size, spread in zip(sizes, spreads) if spread <= 2 * min(spreads) + 2)


def find_constant(pixels):
    """Which pixels belong to a constant 2x2 square, (H, W) bool, of a photo, (H, W, C)."""
    equal_right = (pixels[:, :-1] == pixels[:, 1:]).all(axis=2)
    equal_down = (pixels[:-1] == pixels[1:]).all(axis=2)
    constant = equal_right[:-1] & equal_right[1:] & equal_down[:, :-1]
    covered = np.zeros(pixels.shape[:2], dtype=bool)
    for top in (0, 1):
        for left in (0, 1):
            covered[top : top + constant.shape[0], left : left + constant.shape[1]] |= constant
    return covered


def find_area(pixels):
    """(x, y, width, height) of the pixelated rectangle: the largest that is covered by constant 2x2 squares, and not by
    a single value, as a white margin is.

    None where there is none of more than 4x4 pixels that is made of blocks (a JPEG, say, has blurred them).
    """
    covered = find_constant(pixels)
    for _ in range(FLAT_AREAS):
        x, y, width, height = _largest_rectangle(covered)
        if width <= 4 or height <= 4:
            return None
        area = pixels[y : y + height, x : x + width]
        if not (area == area[0, 0]).all():
            return _with_last_blocks(pixels, x, y, width, height)
        covered[y : y + height, x : x + width] = False
    return None


def _largest_rectangle(covered):
    """(x, y, width, height) of the largest rectangle that is True everywhere; 0 each where there is none."""
    best, heights = (0, 0, 0, 0, 0), np.zeros(covered.shape[1] + 1, dtype=int)
    for bottom, row in enumerate(covered):  # the largest rectangle under a histogram, row by row
        heights[:-1] = np.where(row, heights[:-1] + 1, 0)
        stack = []
        changes = np.flatnonzero(np.diff(heights, prepend=-1))
        for right in changes.tolist() + [len(heights)]:
            height = int(heights[right]) if right < len(heights) else -1
            start = right
            while stack and stack[-1][1] >= height:
                start, tall = stack.pop()
                best = max(best, (tall * (right - start), start, bottom + 1 - tall, right - start, tall))
            stack.append((start, height))
    return best[1:]


def _with_last_blocks(pixels, x, y, width, height):
    """The rectangle as `find_area` gives it, with a last row and column that are one pixel wide where there are any."""
    size = estimate_block_size(pixels[y : y + height, x : x + width])
    column = pixels[y : y + height, x + width : x + width + 1]
    if width % size == 0 and column.size and np.array_equal(block_means(column, size), column):
        width += 1
    row = pixels[y + height : y + height + 1, x : x + width]
    if height % size == 0 and row.size and np.array_equal(block_means(row, size), row):
        height += 1
    area = pixels[y : y + height, x : x + width]
    return (x, y, width, height) if np.array_equal(block_means(area, size), area) else None


def find_exact(pixels):
    """The Areas whose blocks the file has kept to the bit, as a PNG does: of each region of constant pixels the one."""
    luma, found = to_luma(pixels), []
    for top, bottom, left, right in region_boxes(find_constant(pixels)):
        if min(bottom - top, right - left) >= SMALLEST:
            near = find_area(pixels[top:bottom, left:right])
            square = square_area(pixels, (near[0] + left, near[1] + top, *near[2:])) if near else None
            fitted = fit_area(luma, (top, bottom, left, right))
            found += [area for area in (square, fitted) if area and is_exact(pixels, area)][:1]
    return found


def is_exact(pixels, area):
    """Whether an area is made of constant blocks, and like a photo: 3 a side at least, most unlike the next.

    Blocks on the grid of JPEG do not count, as files of low quality have constant ones where nothing was pixelated.
    """
    (rows, columns), side = area.lines(), min(area.block_width, area.block_height)
    if not ((rows[:-1] + area.y) % 8).any() and not ((columns[:-1] + area.x) % 8).any():
        return False
    cells = means_between(pixels[area.box()], rows, columns)
    if min(cells.shape[:2]) < 3 or not np.array_equal(spread_between(cells, rows, columns), pixels[area.box()]):
        return False
    pairs = [(np.diff(cells, axis=axis) != 0).any(axis=2) for axis in (0, 1)]
    return sum(pair.sum() for pair in pairs) >= (0.5 if side > 3 else 0.9) * sum(pair.size for pair in pairs)


def square_area(pixels, rectangle):
    """The Area of a rectangle (x, y, width, height) whose square blocks begin at its corner."""
    x, y, width, height = rectangle
    size = float(estimate_block_size(pixels[y : y + height, x : x + width]))
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


def restore_area(predict, pixels, area, device, precision):
    """The photo, (H, W, C) uint8, with one Area restored; each channel keeps the values of its blocks, as well as the
    file has kept them.

    Blocks of a size that the network does not know, or not square, are restored at a scale at which it knows them.
    """
    rows, columns = area.lines()
    cells, tolerance = block_values(pixels, area)
    sides = np.array([area.block_width, area.block_height])
    working = round(float(sides.mean()))
    working = working if SIZE_RANGE[0] <= working <= SIZE_RANGE[1] else WORKING_SIZE
    scale = working / sides
    # a grid that begins outside of the area: its first blocks are completed, with pixels that are known
    before_area = [s - p if np.rint(p) > 0 else 0.0 for s, p in zip(sides, (area.phase_x, area.phase_y))]
    filled = pixels.copy()
    filled[area.box()] = spread_between(cells.round(), rows, columns)
    pad = ceil(max(0, before_area[0] - area.x, before_area[1] - area.y))
    filled = np.pad(filled, ((pad, 0), (pad, 0), (0, 0)), "edge")
    start = np.array([area.x - before_area[0] + pad, area.y - before_area[1] + pad])
    length = np.array([area.width + before_area[0], area.height + before_area[1]])
    total = np.array(filled.shape[1::-1])
    extent = np.maximum(2, np.rint(length * scale).astype(int))
    before = np.minimum(CONTEXT, (start * scale).astype(int))
    after = np.minimum(CONTEXT, ((total - start - length) * scale).astype(int))
    box = (*(start - before / scale), *np.minimum(start + length + after / scale, total))
    inputs = np.stack([_resize(channel, before + extent + after, box) for channel in np.moveaxis(filled, 2, 0)])[
        :, None
    ]
    inside = (slice(None), 0, slice(before[1], before[1] + extent[1]), slice(before[0], before[0] + extent[0]))
    known = np.ones(inputs.shape, dtype=bool)
    known[inside] = False
    at = [np.minimum(np.arange(n) // working, count - 1) for n, count in zip(extent, cells.shape[1::-1])]
    inputs[inside] = np.moveaxis(np.floor(cells)[np.ix_(at[1], at[0])], 2, 0)  # as the challenge pixelates
    tensors = torch.from_numpy(inputs.astype(np.uint8)).to(device), torch.from_numpy(known).to(device)
    together = len(inputs) if inputs[0].size <= AT_ONCE else 1
    parts = [[t[i : i + together] for t in tensors] for i in range(0, len(inputs), together)]
    restored = torch.cat([restore_float(predict, *part, precision) for part in parts]).cpu().numpy()[:, 0] * 255
    offset = [before[i] + before_area[i] * scale[i] for i in (0, 1)]
    ends = [before[i] + extent[i] for i in (0, 1)]
    restored = [_resize(channel, (area.width, area.height), (*offset, *ends)) for channel in restored]
    if area.average == "center":
        smooth = [_resize(channel, (area.width, area.height), None) for channel in np.moveaxis(cells, 2, 0)]
        restored = [(1 - SMOOTH) * a + SMOOTH * b for a, b in zip(restored, smooth)]
    restored = keep_values(np.stack(restored, axis=2).astype(np.float64), cells, tolerance, area)
    result = pixels.copy()
    result[area.box()] = restored.round()
    return result


def keep_values(restored, cells, tolerance, area):
    """An area's pixels, (h, w, C) float64, as near to these as the blocks' values allow, within [0, 255].

    Blocks' means, of light where these were averaged, may differ from cells by the tolerance, in grey levels. Of the
    middle pixel's value no mean follows.
    """
    rows, columns = area.lines()
    if area.average == "center":
        return restored.clip(0, 255)
    for _ in range(10):  # alternate between what has these means and what is within [0, 255]
        if area.average == "linear":
            light = to_light(restored.clip(0, 255))
            means = from_light(means_between(light, rows, columns))
            wanted = np.clip(means, cells - tolerance, cells + tolerance)
            change = to_light(wanted.clip(0, 255)) - to_light(means)
            restored = from_light(np.clip(light + spread_between(change, rows, columns), 0, LIGHT[-1]))
        else:
            means = means_between(restored, rows, columns)
            change = np.clip(means, cells - tolerance, cells + tolerance) - means
            restored = np.clip(restored + spread_between(change, rows, columns), 0, 255)
    return restored


def _resize(channel, sides, box):
    return np.asarray(
        Image.fromarray(channel.astype(np.float32)).resize(tuple(sides), Image.Resampling.BICUBIC, box)
    ).clip(0, 255)
