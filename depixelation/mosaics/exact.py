"""Pixelated areas that the file kept to the bit: their blocks are constant, so they are found exactly."""

from dataclasses import replace
from functools import reduce
from itertools import islice

import numpy as np

from datasets import spread_between
from depixelation.mosaics.area import Area, bands
from depixelation.mosaics.regions import BAND, SMALLEST, region_boxes
from depixelation.mosaics.shapes import drawn, has_jpeg_lines, line_grids, shape_on_grid, two_tones

MOST = 200  # largest boxes of a photo that are searched for exact blocks
MEASURED = 2048  # pixels a side of an area's corner, in which its block size is measured
GRIDS_TRIED = 3  # in each box
SMALLEST_STEP = 2.5  # least mean difference of neighbouring blocks, in grey levels; gradients have about 1
BY_CHANCE = 12  # with fewer constant blocks, small or on JPEG's grid, it may be coincidence
AROUND = 16  # pixels around a found area that may hold its exact edges
WHOLE_SIDE = 0.1  # pixels; a fitted side that is nearer to a whole number is that number
MORE = 1.05  # a shape replaces the largest rectangle if it has so many times its pixels
SAME = 0.5  # two areas are the same if they share this much
PEEKED = 512  # pixels a side of a corner, which shows of most pictures that they are not enlarged
HIDES_NOTHING = 4  # a picture that is enlarged by so much, all of it, is no mosaic
LEAST_PICTURE = 48  # pixels a side, at least, of a picture before it was enlarged so
ROUNDING = 0.01  # grey levels by which constant blocks seem to vary, in floating point


def estimate_block_size(values):
    """Estimate the block size of a pixelated rectangle, (H, W, C), even if a JPEG has blurred it a little.

    It is the largest size whose blocks are constant, or else as constant as the best size's up to 2 grey levels.
    """
    values = values[:MEASURED, :MEASURED].astype(np.int64)
    height, width = values.shape[:2]
    square = (values**2).sum()
    sums = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0), (0, 0)))  # of all values above and to the left
    sizes, spreads = range(2, max(height, width) + 1), []
    for size in sizes:  # the variance within blocks is the mean square of all values less that of the blocks' means
        rows, columns = (np.append(np.arange(0, length, size), length) for length in (height, width))
        blocks = np.diff(np.diff(sums[np.ix_(rows, columns)], axis=0), axis=1)
        counts = np.diff(rows)[:, None, None] * np.diff(columns)[:, None]
        spreads.append(np.sqrt(max(0, square - (blocks.astype(np.float64) ** 2 / counts).sum()) / values.size))
    least = min(spreads)
    limit = 2 * least + 2 if least > ROUNDING else ROUNDING
    return max(size for size, spread in zip(sizes, spreads) if spread <= limit)


def alike(pixels):
    """Compare each pixel of a photo, (H, W, C), to the one on its left, and to the one above: (across, down).

    (H, W) bool each, True where they are equal, and at the photo's left or upper edge.
    """
    across, down = np.ones((2, *pixels.shape[:2]), dtype=bool)
    for channel in np.moveaxis(pixels, 2, 0):
        across[:, 1:] &= channel[:, 1:] == channel[:, :-1]
        down[1:] &= channel[1:] == channel[:-1]
    return across, down


def find_constant(across, down):
    """Pixels that belong to a constant square of 2 x 2: (H, W) bool. across, down: from `alike`."""
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
    """Pixels that lie in a rectangle of this size whose upper left corner is one of the True `starts`."""
    return ~_all_true(~np.pad(starts, ((height - 1,) * 2, (width - 1,) * 2)), height, width)


def _largest_rectangle(covered):
    """(x, y, width, height) of the largest rectangle that is True everywhere; 0 each where there is none."""
    best, gaps = (0, 0, 0, 0, 0), np.full(covered.shape[1], -1)  # the last row that is False
    for bottom, row in enumerate(covered):  # the largest rectangle under a histogram, row by row
        gaps[~row] = bottom
        ending = row & ~covered[bottom + 1] if bottom + 1 < len(covered) else row  # else there is a larger one below
        if not ending.any():
            continue
        heights = bottom - gaps
        edges = np.flatnonzero(np.diff(row, prepend=False, append=False))
        starts, ends = edges[::2], edges[1::2]  # of what is True in this row
        hopeful = np.maximum.reduceat(heights, starts) * (ends - starts) >= best[0]
        hopeful &= np.logical_or.reduceat(ending, starts)
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


def enlarged_by(pixels):
    """The whole number by which a picture, (H, W, C), seems to be enlarged, each of its pixels to a square; 1 for none.

    The squares are all of it; they have few colours, as pixel art, or are too small to hide anything. Larger ones of
    many colours are a photo that was pixelated as a whole.
    """
    for part in (pixels[:PEEKED, :PEEKED], pixels):
        places = [np.flatnonzero(~same.all(axis=axis)) for axis, same in enumerate(alike(part))]
        factor = int(np.gcd.reduce(np.concatenate(places), initial=0))
        if factor == 1:
            return 1
    if not all(map(len, places)) or any(length % factor for length in pixels.shape[:2]):
        return 1
    whole = Area(0, 0, pixels.shape[1], pixels.shape[0], float(factor), float(factor))
    small = factor <= HIDES_NOTHING and min(pixels.shape[:2]) >= LEAST_PICTURE * factor
    return factor if small or is_drawn(pixels, whole) else 1


def find_exact(pixels):
    """Find the Areas whose blocks the file kept to the bit, as a PNG does.

    Each region of constant pixels gives, one after another, the areas that a grid of blocks explains.
    """
    same, found, looked_at = alike(pixels), [], set()
    covered = opened(find_constant(*same), SMALLEST - 1, SMALLEST - 1)
    free = np.ones(covered.shape, dtype=bool)  # False in the areas found so far
    while len(looked_at) < MOST:
        boxes = list(islice((box for box in region_boxes(covered) if box not in looked_at), MOST - len(looked_at)))
        looked_at.update(boxes)
        before = len(found)
        for box in boxes:
            area = _largest_exact(pixels, box, free, same, covered)
            if area:
                found.append(area)
                free[area.box()] &= ~area.inside
                covered[area.box()] &= ~area.inside
        if len(found) == before:  # otherwise the rest may hold more
            break
    return found


def _largest_exact(pixels, box, free, same, covered):
    """The largest exact Area that begins in a box (top, bottom, left, right), or None.

    free, same: see exact_area. covered: (H, W) bool, the pixels in constant squares.
    """
    # Cut blocks one pixel wide hold no constant square, so they lie beside the box.
    top, bottom, left, right = int(max(0, box[0] - 1)), box[1] + 1, int(max(0, box[2] - 1)), box[3] + 1
    inside, trials = pixels[top:bottom, left:right], []
    if not covered[box[0] : box[1], box[2] : box[3]].any():  # all of it was found before
        return None
    if min(np.count_nonzero(steps > SMALLEST_STEP) for steps in _steps(inside)) < SMALLEST:
        return None
    near = [neighbours[top:bottom, left:right] for neighbours in same]
    grids = list(dict.fromkeys([*exact_grids(*near), *line_grids(*near, covered[top:bottom, left:right])]))
    begun = [Area(left, top, inside.shape[1], inside.shape[0], *grid) for grid in grids]
    for area in begun:
        trials.append(exact_area(pixels, area, 0, free, same))
    for area in list(filter(None, trials)):
        wider = exact_area(pixels, area, max(area.width, area.height), free, same)
        while wider and wider.width * wider.height > area.width * area.height:  # the box had cut it
            area, wider = wider, exact_area(pixels, wider, max(wider.width, wider.height), free, same)
        trials.append(area)
    good = [area for area in trials if area and is_exact(pixels, area) and free[area.box()].all()]
    largest = max(good, key=lambda area: area.size, default=None)
    if largest and not is_pixelated(pixels, largest):
        largest = None
    shapes = list(filter(None, (shape_on_grid(pixels, area, same, free) for area in begun)))
    most = max((area.size for area in shapes), default=0)
    shapes = [area for area in shapes if MORE * area.size >= most]  # a fraction of the true side fits as well
    shape = max(shapes, key=lambda area: area.block_width * area.block_height, default=None)
    return shape if shape and (not largest or shape.size > MORE * largest.size) else largest


def is_pixelated(pixels, area):
    """Whether the blocks of an exact area differ as a photo's do: by enough, and in enough colours."""
    doubtful = _on_jpeg_grid(area) or np.prod(_whole_blocks(area)) < BY_CHANCE
    least = SMALLEST_STEP * (1 + doubtful)
    if not all(steps.sum() > least * np.count_nonzero(steps) for steps in _steps(pixels[area.box()])):
        return False
    return not is_drawn(pixels, area) and not (doubtful and has_jpeg_lines(pixels, area))


def is_drawn(pixels, area):
    """Whether an area holds blocks that are drawn, not averaged: their pixels have few colours. See `drawn`."""
    values = pixels[area.box()]
    middles = values[np.ix_(*((lines[:-1] + lines[1:]) // 2 for lines in area.lines()))]
    cells = _colours(middles)
    if two_tones(middles):
        return True
    return drawn(cells) and len(_distinct(values, area.inside)) <= 2 * len(np.unique(cells))


def _colours(values):
    """A number for each colour of (..., C) uint8: int64."""
    return sum(values[..., i].astype(np.int64) << 8 * i for i in range(values.shape[-1]))


def _distinct(values, mask):
    """The numbers of the colours of the pixels, (H, W, C), in a mask."""
    found = np.zeros(0, dtype=np.int64)
    for y in range(0, len(values), BAND):
        found = np.union1d(found, _colours(values[y : y + BAND][mask[y : y + BAND]]))
    return found


def _on_jpeg_grid(area):
    """Whether all lines of an Area's grid are lines of JPEG's, of 8 x 8 pixels."""
    rows, columns = area.lines()
    return not ((rows[1:-1] + area.y) % 8).any() and not ((columns[1:-1] + area.x) % 8).any()


def _whole_blocks(area):
    """How many whole blocks an Area has along y and along x."""
    sides = (area.block_height, area.block_width)
    return [(np.diff(lines) >= np.floor(side)).sum() for lines, side in zip(area.lines(), sides)]


def _steps(values):
    """Yield how far each pixel of (H, W, C) uint8 is from the one above, then from the one to its left.

    In grey levels of the channel that differs most, as uint8.
    """
    for a, b in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        pairs = zip(np.moveaxis(a, 2, 0), np.moveaxis(b, 2, 0))
        yield reduce(np.maximum, (np.maximum(*pair) - np.minimum(*pair) for pair in pairs))


def exact_grids(across, down):
    """Propose grids of square blocks, GRIDS_TRIED at most: [(width, height, phase_x, phase_y)].

    Each constant run of pixels along a row or column votes for its length, and for its start modulo that, as an Area's
    phases. across, down: from `alike`.
    """
    votes = []
    for neighbours in (across, down.T):
        keys, counts = _runs(neighbours)
        order = np.argsort(counts, kind="stable")
        votes.append({int(keys[i] >> 32): (int(counts[i]), int(keys[i] & 0xFFFF)) for i in order})  # the most counts
    sides = sorted(votes[0].keys() & votes[1].keys(), key=lambda side: -side * min(vote[side][0] for vote in votes))
    return [(float(side), float(side), *(float(vote[side][1]) for vote in votes)) for side in sides[:GRIDS_TRIED]]


def _runs(neighbours):
    """(keys, counts): how many runs have this length and this start modulo it, as length * 2**32 + start."""
    found = []
    for y in range(0, len(neighbours), BAND):
        lines, ends = np.nonzero(np.ascontiguousarray(~neighbours[y : y + BAND, 1:]))
        lengths, starts = np.diff(ends), ends[:-1] + 1
        inside = (np.diff(lines) == 0) & (lengths >= 2)
        lengths, starts = lengths[inside], starts[inside]
        found.append(np.unique(lengths * 2**32 + starts % np.maximum(lengths, 1), return_counts=True))
    keys, which = np.unique(np.concatenate([keys for keys, _ in found]), return_inverse=True)
    return keys, np.bincount(which, np.concatenate([counts for _, counts in found]), len(keys))


def exact_area(pixels, area, around=AROUND, free=None, same=None):
    """Move the edges of a found Area to where its exact blocks end. None if the file did not keep them.

    The result is the largest rectangle whose pixels equal their left and upper neighbours, except on the grid's lines.
    around: pixels around the area that may hold its edges. free: (H, W) bool, the pixels that may belong to it; None:
    all. same: what `alike` returns, if that is known.
    """
    sides = [round(side) for side in (area.block_width, area.block_height)]
    if max(abs(area.block_width - sides[0]), abs(area.block_height - sides[1])) > WHOLE_SIDE:
        return None
    y, x = max(0, area.y - around), max(0, area.x - around)
    box = slice(y, area.y + area.height + around), slice(x, area.x + area.width + around)
    same = [neighbours[box] for neighbours in same] if same else alike(pixels[box])
    first = round(area.x + area.phase_x) - x, round(area.y + area.phase_y) - y
    on_line = [(np.arange(n) - start) % side == 0 for n, side, start in zip(same[0].shape[::-1], sides, first)]
    on_line[0][0] = on_line[1][0] = True  # the pixels before these are outside of the window
    equal = (same[0] | on_line[0]) & (same[1] | on_line[1][:, None])
    equal = opened(equal if free is None else equal & free[box], 2 * sides[1] + 1, 2 * sides[0] + 1)
    if not equal.any():  # is_exact would refuse smaller ones
        return None
    left, top, width, height = _largest_rectangle(equal)
    # Off the grid's lines, a first column equals the one before, so both are of one block. The same goes for rows.
    left_more, top_more = not on_line[0][left], not on_line[1][top]
    if free is not None and not free[box][top - top_more : top + height, left - left_more : left + width].all():
        left_more = top_more = 0
    left, top, width, height = left - left_more, top - top_more, width + left_more, height + top_more
    phases = [float((start - edge) % side) for start, edge, side in zip(first, (left, top), sides)]
    exact = Area(left + x, top + y, width, height, *map(float, sides), *phases, area.average, area.confidence)
    return exact if is_exact(pixels, exact) else None


def is_exact(pixels, area):
    """Whether an area has constant blocks and looks like a photo: 3 or more a side, most unlike their neighbours.

    At least 2 a side must be whole, and BY_CHANCE in all if they are small or on JPEG's grid: where a photo is smooth,
    JPEG makes constant blocks.
    """
    (rows, columns), side = area.lines(), min(area.block_width, area.block_height)
    whole = _whole_blocks(area)
    if min(whole) < 2 or (_on_jpeg_grid(area) or side <= 4) and whole[0] * whole[1] < BY_CHANCE:
        return False
    values = pixels[area.box()]
    cells = values[np.ix_(rows[:-1], columns[:-1])]
    if min(cells.shape[:2]) < 3:
        return False
    for a, b in bands(rows, area.width):
        part = spread_between(cells[a:b], rows[a : b + 1], columns)
        if not np.array_equal(part, values[rows[a] : rows[b]]):
            return False
    pairs = [(np.diff(cells, axis=axis) != 0).any(axis=2) for axis in (0, 1)]
    return sum(pair.sum() for pair in pairs) >= (0.5 if side > 3 else 0.9) * sum(pair.size for pair in pairs)


def square_area(pixels, rectangle):
    """Fit square blocks to a rectangle (x, y, width, height). Returns an Area.

    Its grid is the one that the file kept to the bit; otherwise it begins at the rectangle's corner.
    """
    x, y, width, height = rectangle
    inside = pixels[y : y + height, x : x + width]
    for grid in exact_grids(*alike(inside)):
        area = exact_area(inside, Area(0, 0, width, height, *grid), around=0)
        if area and (area.width, area.height) == (width, height):
            return replace(area, x=x, y=y)
    size = float(estimate_block_size(inside))
    return Area(x, y, width, height, size, size)
