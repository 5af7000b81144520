"""Exact areas of any shape: whole and cut cells of a grid that the file kept constant."""

from dataclasses import replace
from functools import reduce

import numpy as np

from datasets import means_between
from depixelation.mosaics.area import Area, grid_lines
from depixelation.mosaics.regions import as_mask, find_regions, regions_that_meet

CUT = 0.06  # a cut cell counts if this share of its pixels has one value,
CUT_LEAST = 4  # and at least so many pixels, in squares of 2 x 2
ROUNDS = 4  # how often a shape grows over cut cells
STRONG = 0.25  # share of a cut cell that must be constant before the shape grows on from it
ODD = 0.03  # cut cells around a rectangle are coincidence up to this share of it
LINES_LEAST = 4  # lines that the fit of a grid needs
LINE = 0.2  # a line changes at least this share of the pixels that the strongest line changes
EXPLAINED = 0.85  # share of all changes between pixels that must lie on the grid's lines
COLOURS = 32  # drawn blocks have at most so many colours,
SHARE_OF_COLOURS = 0.25  # and fewer colours than this share of the cells
STEP = 2.5  # least mean difference of neighbouring blocks that differ, in grey levels
PALETTE, PALETTE_SHARE = 256, 0.6  # the same limits for heat maps. Their neighbouring blocks
UNLIKE = 0.85  # differ by at least this share of the difference between random blocks
TONE = 20  # grey levels; a block farther from both tones lies between them
NEAR = 128  # pixels around an area that are searched for JPEG's lines
JPEG_LINES = 1.55  # how many times as much JPEG's lines change as other places
WHOLE = 0.97  # above this share of constant cells, all of a picture is pixelated, even where it is flat
FEW_CELLS = 12  # whole cells that an area needs


# ------------------------------------------------------------------------------------------------ the grid


def fit_lines(changes):
    """Fit a grid, (side, phase), to the places where pixels change. None if no grid fits.

    changes: (n,) how many pixels differ from the one before, at each place. The largest side that explains them is
    returned. Where the sides of blocks alternate, side and phase are fractions.
    """
    strong = np.flatnonzero(changes >= max(2, LINE * changes.max(initial=0)))
    if len(strong) < LINES_LEAST:
        return None
    gaps, counts = np.unique(np.diff(strong), return_counts=True)
    total, fits = changes.sum(), []
    for gap in gaps[np.argsort(-counts, kind="stable")][:8]:
        fit = _refine(strong, changes, float(gap)) if gap >= 2 else None
        if fit:
            side, phase = fit
            lines = grid_lines(len(changes), side, phase)[:-1]
            hit = changes[lines[lines > 0]]
            if hit.sum() >= EXPLAINED * total and (hit > 0).mean() > 0.7:
                fits.append((hit.sum() / total + 0.002 * side, side, phase))
    return max(fits)[1:] if fits else None


def _refine(lines, weights, side):
    """Refine a guessed side to (side, phase), so that the grid's rounded lines are those given; None if none fits."""
    middle = int(np.argmax(weights[lines]))
    index = np.zeros(len(lines))
    kept = np.zeros(len(lines), dtype=bool)
    kept[middle] = True
    for order in (range(middle + 1, len(lines)), range(middle - 1, -1, -1)):
        last, first = middle, middle
        for i in order:
            steps = (lines[i] - lines[last]) / side
            if abs(steps - round(steps)) * side <= 1.01 and round(steps):
                index[i] = index[last] + round(steps)
                kept[i], last = True, i
                if abs(index[i] - index[first]) >= 2:  # many blocks tell the side more finely than one
                    side = (lines[i] - lines[first]) / (index[i] - index[first])
    if kept.sum() < LINES_LEAST:
        return None
    k, x = index[kept], lines[kept].astype(np.float64)
    slope = np.polyfit(k, x, 1)[0]
    trials = [float(round(slope)), *np.linspace(slope - 1.2 / np.ptp(k), slope + 1.2 / np.ptp(k), 241)]
    rests = x - np.outer(trials, k)
    half, middles = np.ptp(rests, axis=1) / 2, (rests.max(axis=1) + rests.min(axis=1)) / 2
    if trials[0] >= 2 and half[0] == 0:
        return trials[0], float(middles[0] % trials[0])
    good = np.flatnonzero(half <= 0.499)
    if not len(good):
        return None
    best = good[len(good) // 2] if good[0] else good[1:][len(good[1:]) // 2] if len(good) > 1 else 0
    return float(trials[best]), float(middles[best] % trials[best])


def line_grids(across, down, covered):
    """The grid whose lines separate constant squares: [(width, height, phase_x, phase_y)], or [] if there is none.

    across, down: from `alike`. covered: (H, W) bool, the pixels in constant squares.
    """
    fits = []
    for same, constant in ((across, covered), (down.T, covered.T)):
        changes = ~same[:, 1:] & constant[:, 1:] & constant[:, :-1]
        fits.append(fit_lines(np.append(0, changes.sum(axis=0))))
    return [(fits[0][0], fits[1][0], fits[0][1], fits[1][1])] if all(fits) else []


# ------------------------------------------------------------------------------------------------ the cells


def shape_on_grid(pixels, area, same, free):
    """Extend an Area to the connected constant cells of its grid: an Area of any shape, or None.

    same: what `alike` returns for the photo. free: (H, W) bool, the pixels that may belong to it.
    """
    (height, width), margins = free.shape, np.ceil([area.block_width + 1, area.block_height + 1]).astype(int)
    margins = margins.tolist()
    left, top, right, bottom = area.x, area.y, area.x + area.width, area.y + area.height
    origin, found = (area.x + area.phase_x, area.y + area.phase_y), None
    while True:
        left, top = max(0, left - margins[0]), max(0, top - margins[1])
        right, bottom = min(width, right + margins[0]), min(height, bottom + margins[1])
        phases = (origin[0] - left) % area.block_width, (origin[1] - top) % area.block_height
        window = Area(left, top, right - left, bottom - top, area.block_width, area.block_height, *phases)
        found = _shape_in(pixels, window, area, same, free)
        if found is None:
            return None
        ends = found.x + found.width, found.y + found.height
        cut = (found.x <= left and left > 0, found.y <= top and top > 0, ends[0] >= right and right < width,
               ends[1] >= bottom and bottom < height)
        if not any(cut):
            return found
        margins = [2 * margin for margin in margins]
        area = Area(found.x, found.y, found.width, found.height, area.block_width, area.block_height)


def _shape_in(pixels, window, area, same, free):
    """The largest shape in a window (an Area with a grid) that shares pixels with the area's box, or None."""
    box, (rows, columns) = window.box(), window.lines()
    values = pixels[box]
    colours = np.zeros(values.shape[:2], dtype=np.uint32)
    for channel in np.moveaxis(values, 2, 0):
        colours = colours << 8 | channel
    touch, across = _across_lines([neighbours[box] for neighbours in same], (rows, columns))
    equal = [neighbours[box].copy() for neighbours in same]
    equal[0][:, columns[:-1]] = equal[1][rows[:-1]] = True
    constant = means_between(equal[0] & equal[1] & free[box], rows, columns) == 1
    # A cell that the window cuts counts as whole only at the photo's edge.
    for axis, (lines, start, total) in enumerate(((rows, window.y, len(pixels)), (columns, window.x, pixels.shape[1]))):
        ends = np.ones(len(lines) - 1, dtype=bool)
        side = (window.block_height, window.block_width)[axis]
        ends[0] &= start == 0 or lines[1] >= np.floor(side)
        ends[-1] &= start + lines[-1] == total or lines[-1] - lines[-2] >= np.floor(side)
        constant &= ends.reshape((-1, 1) if axis == 0 else (1, -1))
    cells = colours[np.ix_(rows[:-1], columns[:-1])]
    constant &= ~_flat_ends(touch, across, constant, (rows, columns))
    if constant.sum() < 2:
        return None
    mask, cellwise = _grow(values, colours, constant, (rows, columns), free[box], touch, across)
    best = None
    inner = slice(area.y - window.y, area.y - window.y + area.height), slice(
        area.x - window.x, area.x - window.x + area.width
    )
    for region in find_regions(cellwise, _least_cells(window)):
        member = as_mask(region, cellwise.shape)
        whole = member & constant
        if not _like_a_photo(pixels, cells, whole, window):
            continue
        inside = mask & _spread(member, rows, columns)
        if inside[inner].any() and (best is None or inside.sum() > best[0].sum()):
            best = inside, whole
    return _cropped(window, *best, rows, columns) if best else None


def _cropped(window, mask, whole, rows, columns):
    """Crop the window to a mask. If its whole cells form a rectangle with hardly anything beside it, crop to that."""
    y, x = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
    if whole[y[0] : y[-1] + 1, x[0] : x[-1] + 1].all():
        top, bottom, left, right = rows[y[0]], rows[y[-1] + 1], columns[x[0]], columns[x[-1] + 1]
        if mask.sum() - (bottom - top) * (right - left) <= ODD * mask.sum():
            mask = np.zeros_like(mask)
            mask[top:bottom, left:right] = True
    y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    full = Area(window.x, window.y, window.width, window.height, window.block_width, window.block_height,
                window.phase_x, window.phase_y, mask=mask)
    return full.cropped(int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1)


def _grow(values, colours, constant, lines, free, touch, across):
    """Grow the constant cells over cut cells beside them. Returns (mask of pixels, mask of cells).

    Of a cut cell, the pixels of its most frequent colour belong: those in squares of 2 x 2, and those touching these.
    """
    mask, known = _spread(constant, *lines), constant.copy()
    number = np.arange(constant.size).reshape(constant.shape)
    rows, columns = (np.repeat(np.arange(len(edges) - 1), np.diff(edges)) for edges in lines)  # of cells, for pixels
    sizes = np.outer(*(np.diff(edges) for edges in lines))
    strong, done = constant.copy(), constant.copy()
    for _ in range(ROUNDS):
        asked = wider(strong) & ~done
        if not asked.any():
            break
        done |= asked
        y, x = np.nonzero(_spread(asked, *lines) & free)
        at = number[rows[y], columns[x]]
        order = np.lexsort((colours[y, x], at))
        at, y, x = at[order], y[order], x[order]
        edges = (np.diff(at) != 0) | (np.diff(colours[y, x]) != 0)
        starts = np.flatnonzero(np.append(True, edges)) if len(at) else at
        counts = np.diff(np.append(starts, len(at)))
        runs = np.repeat(np.arange(len(starts)), counts)
        most = np.zeros(constant.size, dtype=np.int64)
        np.maximum.at(most, at[starts], counts)
        first = np.full(constant.size, -1)
        hits = counts == most[at[starts]]
        first[at[starts][hits]] = np.flatnonzero(hits)  # the last of equally frequent colours
        chosen = runs == first[at]
        piece = np.zeros(mask.shape, dtype=bool)
        piece[y[chosen], x[chosen]] = True
        solid = _squares(piece, lines)
        solid = touching(solid) & piece & _spread(asked, *lines)
        counts = means_between(solid, *lines) * sizes
        good = (counts >= np.maximum(CUT_LEAST, CUT * sizes)) & asked & ~_by_chance(values, solid, touch, across, lines)
        mask |= solid & _spread(good, *lines)
        known |= good
        strong = good & (counts >= STRONG * sizes)
    return mask, known


def _by_chance(values, pieces, touch, across, lines):
    """Cells whose piece of one colour crosses the grid's lines, or ends without a step: (rows, columns) bool."""
    on_lines = 3 * means_between(across * pieces, *lines) >= means_between(touch * pieces, *lines)
    on_lines &= means_between(touch * pieces, *lines) > 0
    steps, ends = np.zeros(pieces.shape, dtype=np.uint16), np.zeros(pieces.shape, dtype=np.uint8)
    for axis, edges in enumerate(lines):
        first, second = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        pairs = zip(*(np.moveaxis(values[part], 2, 0) for part in (first, second)))
        change = reduce(np.maximum, (np.maximum(*pair) - np.minimum(*pair) for pair in pairs))
        border = pieces[first] != pieces[second]
        border[(slice(None),) * axis + (edges[1:-1] - 1,)] = False
        steps[first] += change * border
        ends[first] += border
    return on_lines | (means_between(steps, *lines) < STEP * means_between(ends, *lines))


def _squares(mask, lines):
    """Pixels of a mask in squares of 2 x 2 that lie in the mask and in one cell: (H, W) bool."""
    inner = mask[:-1, :-1] & mask[1:, :-1] & mask[:-1, 1:] & mask[1:, 1:]
    rows, columns = lines
    inner[rows[1:-1] - 1] = False
    inner[:, columns[1:-1] - 1] = False
    result = np.zeros_like(mask)
    for place in ((slice(None, -1), slice(None, -1)), (slice(None, -1), slice(1, None)),
                  (slice(1, None), slice(None, -1)), (slice(1, None), slice(1, None))):
        result[place] |= inner
    return result


def touching(mask):
    """A mask and the four neighbours of its pixels."""
    result = mask.copy()
    result[1:] |= mask[:-1]
    result[:-1] |= mask[1:]
    result[:, 1:] |= mask[:, :-1]
    result[:, :-1] |= mask[:, 1:]
    return result


def wider(mask):
    """A mask and the eight neighbours of its pixels."""
    rows = mask.copy()
    rows[1:] |= mask[:-1]
    rows[:-1] |= mask[1:]
    result = rows.copy()
    result[:, 1:] |= rows[:, :-1]
    result[:, :-1] |= rows[:, 1:]
    return result


def _spread(cells, rows, columns):
    return cells.repeat(np.diff(rows), axis=0).repeat(np.diff(columns), axis=1)


def _across_lines(same, lines):
    """How many of the grid's lines each pixel touches, and how many of the pixels across equal it: (H, W) int8 each."""
    touch, equal = np.zeros((2, *same[0].shape), dtype=np.int8)
    for axis, (neighbours, edges) in enumerate(zip(same[::-1], lines)):
        for place in edges[1:-1]:
            before, after = ((place - 1, place) if axis == 0 else ((slice(None), place - 1), (slice(None), place)))
            for side in (before, after):
                touch[side] += 1
                equal[side] += neighbours[after]
    return touch, equal


def _flat_ends(touch, equal, constant, lines):
    """Constant cells of flat regions that border on cells which are not constant, as in a page or a sky.

    Returns (rows, columns) bool. There, cells are constant by chance, unless nearly all cells are constant.
    """
    if constant.mean() > WHOLE:
        return np.zeros_like(constant)
    flat = constant & (2 * means_between(equal, *lines) >= means_between(touch, *lines))
    open_ends = touching(~np.pad(constant, 1))[1:-1, 1:-1]
    return regions_that_meet(flat, open_ends)


def _like_a_photo(pixels, cells, whole, window):
    """Whether the whole cells, (rows, columns) bool, look like a pixelated photo.

    There must be enough of them, in many colours, and most must differ from their neighbours by more than chance.
    """
    side = min(window.block_width, window.block_height)
    if np.count_nonzero(whole) < _least_cells(window):
        return False
    inner = np.ix_(np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0)))
    if drawn(cells[inner] if whole[inner].mean() > 0.5 else cells[whole][None]):
        return False
    differ, steps = [], []
    rows, columns = (edges[:-1] for edges in window.lines())
    values = pixels[window.box()][np.ix_(rows, columns)].astype(np.int16)
    for axis in (0, 1):
        both = np.take(whole, range(1, whole.shape[axis]), axis) & np.take(whole, range(whole.shape[axis] - 1), axis)
        steps.append(np.abs(np.diff(values, axis=axis)).max(axis=2)[both])
    steps = np.concatenate(steps)
    differ = steps > 0
    if not differ.any() or differ.mean() < (0.9 if side <= 3 else 0.5):
        return False
    if steps[differ].mean() < STEP * (2 if side <= 4 else 1):
        return False
    at = (window.block_width, window.block_height, window.x + window.phase_x, window.y + window.phase_y)
    if any(n % 8 for n in at):
        return True
    mask = _spread(whole, *window.lines())
    return not has_jpeg_lines(pixels, replace(window, mask=mask))


def _least_cells(window):
    """How many whole cells an area has at least."""
    return FEW_CELLS * (3 if min(window.block_width, window.block_height) < 4 else 1)


def drawn(cells):
    """Whether blocks, (rows, columns) of colour numbers, are drawn and not averaged: pixel art, QR codes, heat maps.

    They have few colours; or they have a palette's, and neighbours are no more alike than random blocks.
    """
    distinct, codes = np.unique(cells, return_inverse=True)
    codes = codes.reshape(cells.shape)
    if len(distinct) <= COLOURS:
        return len(distinct) < SHARE_OF_COLOURS * cells.size
    if len(distinct) > PALETTE or len(distinct) > PALETTE_SHARE * cells.size or min(cells.shape) < 3:
        return False
    levels = np.stack([distinct >> shift & 255 for shift in (0, 8, 16)], axis=1)[codes].astype(np.float64)
    steps = np.mean([np.abs(np.diff(levels, axis=axis)).mean() for axis in (0, 1)])
    shuffled = np.random.default_rng(0).permutation(levels.reshape(-1, 3))
    return steps > UNLIKE * np.abs(np.diff(shuffled, axis=0)).mean()


def two_tones(cells):
    """Whether blocks, (rows, columns, C), have two tones and hardly any between, as a QR code has, even in a JPEG."""
    levels = cells.mean(axis=2)
    dark, bright = np.percentile(levels, (10, 90))
    between = np.minimum(np.abs(levels - dark), np.abs(levels - bright)) > TONE
    return levels.size >= FEW_CELLS and bright - dark > 5 * TONE and between.mean() < 0.05


def has_jpeg_lines(pixels, area):
    """Whether a photo shows the lines of strong JPEG compression, every 8 pixels, around an Area."""
    top, left = (max(0, start - NEAR) // 8 * 8 for start in (area.y, area.x))
    near = slice(top, area.y + area.height + NEAR), slice(left, area.x + area.width + NEAR)
    luma = pixels[near].astype(np.int16).sum(axis=2)
    outside = np.ones(luma.shape, dtype=bool)
    outside[area.y - top : area.y - top + area.height, area.x - left : area.x - left + area.width] = ~area.inside
    if outside.mean() < 0.02:
        return False  # no JPEG makes all blocks of a picture constant
    scores = []
    for axis in (0, 1):
        change = np.abs(np.diff(luma, axis=axis)).astype(np.float64)
        both = np.take(outside, range(1, luma.shape[axis]), axis) & np.take(outside, range(luma.shape[axis] - 1), axis)
        on = np.arange(1, luma.shape[axis]) % 8 == 0
        parts = [
            np.compress(chosen, change * both, axis).sum() / max(1, np.compress(chosen, both, axis).sum())
            for chosen in (on, ~on)
        ]
        scores.append(parts[0] / max(parts[1], 0.1))
    return min(scores) > JPEG_LINES
