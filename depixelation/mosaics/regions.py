"""Connected regions of a mask, and the rectangles that they are made of."""

import numpy as np

SMALLEST = 6  # pixels a side; smaller areas are ignored
UNEVEN = 0.06  # share of a region by which it may differ from a rectangle
GAIN = 0.5  # share of this difference that may remain after a cut
STEPS = 12  # cuts are tried at so many of the largest steps in a region's outline
THIN = 0.35  # rows or columns below this share of a region's longest one are outgrowths
PART = 4  # cells; smaller parts of a region are discarded


def find_regions(mask):
    """Connected regions of a (H, W) bool mask: a list of (rows, starts, ends), int64 arrays of their runs."""
    changes = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(changes == 1)
    ends = np.nonzero(changes == -1)[1]
    parent = list(range(len(rows)))

    def root(i):
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first = np.searchsorted(rows, np.arange(len(mask) + 1))
    for row in range(1, len(mask)):
        above, own, end = int(first[row - 1]), int(first[row]), int(first[row + 1])
        stop = own
        while above < stop and own < end:  # walk through both rows from left to right
            if starts[above] < ends[own] and starts[own] < ends[above]:
                parent[root(own)] = root(above)
            if ends[above] < ends[own]:
                above += 1
            else:
                own += 1
    labels = np.array([root(i) for i in range(len(rows))], dtype=np.int64)
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
    return [(rows[group], starts[group], ends[group]) for group in groups]


def as_mask(region, shape):
    """One of find_regions' regions as a bool mask of this shape."""
    mask = np.zeros(shape, dtype=bool)
    for row, start, end in zip(*region):
        mask[row, start:end] = True
    return mask


def region_boxes(mask):
    """Yield (top, bottom, left, right) of the rectangles that make up the regions of a mask.

    Large regions that fill their box come first.
    """
    regions = []
    for rows, starts, ends in find_regions(mask):
        size, box = (ends - starts).sum(), (rows[0], rows[-1] + 1, starts.min(), ends.max())
        if size >= SMALLEST**2 and min(box[1] - box[0], box[3] - box[2]) >= SMALLEST:
            regions.append((size**2 / ((box[1] - box[0]) * (box[3] - box[2])), box, rows, starts, ends))
    for _, (top, bottom, left, right), rows, starts, ends in sorted(regions, key=lambda region: -region[0]):
        region = np.zeros((bottom - top, right - left), dtype=bool)
        for row, start, end in zip(rows - top, starts - left, ends - left):
            region[row, start:end] = True
        for a, b, c, d in filter(None, map(_trim, split(region))):
            if min(b - a, d - c) >= SMALLEST:
                yield int(a + top), int(b + top), int(c + left), int(d + left)


def split(region):
    """Cut a region, (h, w) bool, at steps of its outline, while that brings it closer to rectangles: a list."""
    differs = _unlike_box(region)
    best, parts = GAIN * differs, None
    for axis in (0, 1) if differs > max(PART, UNEVEN * region.sum()) else ():
        steps = np.abs(np.diff(region.sum(axis=1 - axis, dtype=np.int64)))
        for at in np.argsort(-steps)[:STEPS] + 1:
            left = sum(map(_unlike_box, np.split(region, [at], axis=axis)))
            if left < best:
                before = np.arange(region.shape[axis]).reshape((-1, 1) if axis == 0 else -1) < at
                best, parts = left, [region & before, region & ~before]
    return [part for half in parts for part in split(half)] if parts else [region]


def _unlike_box(region):
    """How many pixels lie in a region or in its trimmed box, but not in both."""
    box = _trim(region)
    if box is None:
        return 0
    inside = region[box[0] : box[1], box[2] : box[3]]
    return inside.size - 2 * int(inside.sum()) + int(region.sum())


def _trim(region):
    """(top, bottom, left, right) of a region without thin outgrowths; None where nothing is left."""
    ranges = []
    for axis in (1, 0):
        counts = region.sum(axis=axis)
        used = np.flatnonzero(counts > THIN * counts.max())
        if not len(used):
            return None
        ranges += [int(used[0]), int(used[-1]) + 1]
    return tuple(ranges)
