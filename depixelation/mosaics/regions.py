"""Connected regions of a mask, and the rectangles that they are made of."""

import numpy as np

SMALLEST = 6  # pixels a side; smaller areas are ignored
UNEVEN = 0.06  # share of a region by which it may differ from a rectangle
GAIN = 0.5  # share of this difference that may remain after a cut
STEPS = 12  # cuts are tried at so many of the largest steps in a region's outline
THIN = 0.35  # rows or columns below this share of a region's longest one are outgrowths
PART = 4  # cells; smaller parts of a region are discarded
BAND = 256  # rows of a mask, looked at together


def runs_of(mask):
    """(rows, starts, ends) of what is True in the rows of a (H, W) bool mask: int64 arrays."""
    found = [np.nonzero(np.diff(np.pad(mask[y : y + BAND], ((0, 0), (1, 1))))) for y in range(0, len(mask), BAND)]
    rows = np.concatenate([places[0] + i * BAND for i, places in enumerate(found)])
    ends = np.concatenate([places[1] for places in found])  # each start is followed by its end
    return rows[::2].copy(), ends[::2].copy(), ends[1::2].copy()


def find_regions(mask, least=1):
    """Connected regions of a (H, W) bool mask of at least so many pixels: a list of their runs, as from `runs_of`."""
    rows, starts, ends = runs_of(mask)
    if not len(rows):
        return []
    labels = _labels(rows, starts, ends, mask.shape[1] + 1)
    order = np.argsort(labels, kind="stable")
    first = np.append(0, np.flatnonzero(np.diff(labels[order])) + 1)
    enough = np.flatnonzero(np.add.reduceat((ends - starts)[order], first) >= least)
    groups = [order[a:b] for a, b in zip(first[enough], np.append(first[1:], len(order))[enough])]
    return [(rows[group], starts[group], ends[group]) for group in groups]


def _labels(rows, starts, ends, stride):
    """A number for each run that is the same where they are connected. stride: more than all ends."""
    above = (rows - 1) * stride
    low = np.searchsorted(rows * stride + ends, above + starts, side="right")  # the first one above that it touches
    high = np.searchsorted(rows * stride + starts, above + ends)
    roots = np.where(high > low, low, np.arange(len(rows)))
    while True:
        farther = roots[roots]
        if np.array_equal(farther, roots):
            break
        roots = farther
    more = np.flatnonzero(high - low > 1)  # runs that join those above
    counts = (high - low)[more] - 1
    others = np.arange(counts.sum()) + np.repeat(low[more] + 1 - np.cumsum(counts) + counts, counts)
    pairs = np.stack([roots[np.repeat(more, counts)], roots[others]])
    parent = {}

    def root(i):
        while i in parent:
            if parent[i] in parent:  # halve the way
                parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for own, other in pairs[:, pairs[0] != pairs[1]].T.tolist():
        own, other = root(own), root(other)
        if own != other:
            parent[own] = other
    final = np.arange(len(rows))
    joined = list(parent)
    final[joined] = [root(i) for i in joined]
    return final[roots]


def as_mask(region, shape):
    """One of find_regions' regions as a bool mask of this shape."""
    rows, starts, ends = region
    lengths = ends - starts
    mask = np.zeros(shape, dtype=bool)
    mask[np.repeat(rows, lengths), np.arange(lengths.sum()) + np.repeat(ends - np.cumsum(lengths), lengths)] = True
    return mask


def regions_that_meet(mask, other):
    """Those connected regions of a mask, (H, W) bool, that share pixels with another one: again a mask."""
    rows, starts, ends = runs_of(mask)
    counted = np.pad(np.cumsum(other, axis=1), ((0, 0), (1, 0)))
    meet, labels = counted[rows, ends] > counted[rows, starts], _labels(rows, starts, ends, mask.shape[1] + 1)
    chosen = np.isin(labels, labels[meet])
    return as_mask((rows[chosen], starts[chosen], ends[chosen]), mask.shape)


def region_boxes(mask):
    """Yield (top, bottom, left, right) of the rectangles that make up the regions of a mask.

    Large regions that fill their box come first.
    """
    regions = []
    for rows, starts, ends in find_regions(mask, SMALLEST**2):
        size, box = (ends - starts).sum(), (rows[0], rows[-1] + 1, starts.min(), ends.max())
        if min(box[1] - box[0], box[3] - box[2]) >= SMALLEST:
            regions.append((size**2 / ((box[1] - box[0]) * (box[3] - box[2])), box, rows, starts, ends))
    for _, (top, bottom, left, right), rows, starts, ends in sorted(regions, key=lambda region: -region[0]):
        shape = int(bottom - top), int(right - left)
        parts = split((rows - top, starts - left, ends - left), shape)
        for a, b, c, d in filter(None, (_trim(part, shape) for part in parts)):
            if min(b - a, d - c) >= SMALLEST:
                yield int(a + top), int(b + top), int(c + left), int(d + left)


def split(runs, shape):
    """Cut a region of a mask of this (h, w) shape at steps of its outline, as long as that makes rectangles.

    runs: as from `runs_of`. Returns a list of the same for each part.
    """
    differs = _unlike_box(runs, shape)
    best, parts = GAIN * differs, None
    for axis in (0, 1) if differs > max(PART, UNEVEN * _size(runs)) else ():
        steps = np.abs(np.diff(_counts(runs, shape)[axis]))
        for at in np.argsort(-steps)[:STEPS] + 1:
            halves = _cut(runs, axis, at)
            left = _unlike_box(halves[0], shape)
            if left < best and (left := left + _unlike_box(halves[1], shape)) < best:
                best, parts = left, halves
    return [part for half in parts for part in split(half, shape)] if parts else [runs]


def _cut(runs, axis, at):
    """What lies before a row, or for axis 1 a column, and what lies behind it."""
    if axis == 0:
        place = np.searchsorted(runs[0], at)
        return [tuple(each[part] for each in runs) for part in (slice(place), slice(place, None))]
    rows, starts, ends = runs
    parts = (starts < at, starts, np.minimum(ends, at)), (ends > at, np.maximum(starts, at), ends)
    return [(rows[there], first[there], last[there]) for there, first, last in parts]


def _size(runs):
    return int((runs[2] - runs[1]).sum())


def _counts(runs, shape):
    """How many pixels there are in each row, and in each column."""
    rows, starts, ends = runs
    begun = np.bincount(starts, minlength=shape[1] + 1) - np.bincount(ends, minlength=shape[1] + 1)
    return np.bincount(rows, ends - starts, shape[0]).astype(np.int64), np.cumsum(begun)[:-1]


def _unlike_box(runs, shape):
    """How many pixels lie in a region or in its trimmed box, but not in both."""
    box = _trim(runs, shape)
    if box is None:
        return 0
    (rows, starts, ends), (top, bottom, left, right) = runs, box
    there = slice(*np.searchsorted(rows, (top, bottom)))
    inside = np.maximum(0, np.minimum(ends[there], right) - np.maximum(starts[there], left))
    return (bottom - top) * (right - left) - 2 * int(inside.sum()) + _size(runs)


def _trim(runs, shape):
    """(top, bottom, left, right) of a region without thin outgrowths; None where nothing is left."""
    ranges = []
    for counts in _counts(runs, shape):
        used = np.flatnonzero(counts > THIN * counts.max())
        if not len(used):
            return None
        ranges += [int(used[0]), int(used[-1]) + 1]
    return tuple(ranges)
