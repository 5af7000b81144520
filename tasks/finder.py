"""Finds the pixelated areas of a photo: a network says where they are, a fit says which grid each has."""

import itertools
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn
from torch.nn import functional as F

from architectures import UNet
from tasks.mosaics import AVERAGES, CELL, SCALES, SIDES, Area

TILE = 1024  # pixels a side of what the network sees at once, beside MARGIN
MARGIN = 128  # pixels around it; a multiple of the network's 32
SMALLEST = 6  # pixels a side; smaller areas are not looked for
SIDE_RANGE = (SIDES[0] * SCALES[0], SIDES[1] * SCALES[1])
CAP = 24.0  # grey levels: larger differences between neighbours count as these
ENOUGH = 0.9  # of the best score: the smallest side that has it is taken, as multiples of a side fit almost as well
WHOLE = 0.97  # of the best score: a whole number of pixels that has it is taken
UNEVEN = 0.06  # share of a region by which it may differ from a rectangle
GAIN = 0.5  # share of what differs that may be left after a cut
STEPS = 12  # in a region's outline, at which cuts are tried
THIN = 0.35  # share of the longest row or column of a region below which one is an outgrowth
NEAR = 24  # pixels from an edge within which cells are asked for it
AGREE = 8  # pixels by which they may differ
TRUST = 0.6  # share of the cells near an end that see an edge in one place, from which on it may be far away
DOUBLE = 0.3  # intersection over union of two areas that are the same one
VOTES = 0.25  # share of the cells on either side of a line that see an edge there, if areas touch
DIFFER = 2.25  # standard deviations by which the logarithms of blocks' sizes differ in areas that touch
OCTAVES = 0.2  # at least
STEADY = 0.05  # added to these deviations, so that steady sizes do not make small differences large
PART = 4  # cells; a smaller part of a region is none
CERTAIN = 0.72  # times the sensitivity: how far the confidence may be from 1


class MosaicNet(nn.Module):
    """Where a photo is pixelated: (N, 1, H, W) luma in [0, 1], H and W multiples of CELL -> (N, 10, H / 4, W / 4).

    Of each cell of 4x4 pixels: the logit of being in a pixelated area; log2 of the distances to this area's left, top,
    right and bottom edges (see `log_distance`), as in FCOS (Tian et al. 2019) and EAST (Zhou et al. 2017); log2 of the
    blocks' width and height; logits of the AVERAGES, which only training uses, as restoring tells more of them. A U-Net
    at a quarter of the resolution sees all pixels of each cell, and the differences between neighbours.
    """

    def __init__(self, channels=(32, 40, 64, 64), blocks=(1, 1, 1, 2)):
        super().__init__()
        self.unet = UNet(3 * CELL**2, 7 + len(AVERAGES), channels, blocks)

    def forward(self, luma):
        across = F.pad((luma[..., 1:] - luma[..., :-1]).abs(), (0, 1))
        down = F.pad((luma[..., 1:, :] - luma[..., :-1, :]).abs(), (0, 0, 0, 1))
        cells = self.unet(F.pixel_unshuffle(torch.cat([luma - 0.5, 4 * across, 4 * down], 1), CELL))
        return cells + cells.new_tensor([0, *[4] * 6, 0, 0, 0])[:, None, None]


# ------------------------------------------------------------------------------------------------ the network's part


@torch.inference_mode()
def predict_cells(network, luma, device, precision):
    """The network's view of a whole photo, (H, W) uint8, tile by tile: (10, ceil(H / 4), ceil(W / 4)) float16 as of
    MosaicNet, but the first, of being in a pixelated area, is a probability."""
    height, width = luma.shape
    padded = np.pad(luma, ((0, -height % CELL), (0, -width % CELL)), "edge")
    cells = np.empty((7 + len(AVERAGES), padded.shape[0] // CELL, padded.shape[1] // CELL), dtype=np.float16)
    for top, left in itertools.product(*(range(0, length, TILE) for length in padded.shape)):
        y, x = max(0, top - MARGIN), max(0, left - MARGIN)
        tile = padded[y : top + TILE + MARGIN, x : left + TILE + MARGIN]
        tile = torch.from_numpy(tile).to(device).float()[None, None] / 255
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            seen = network(tile.contiguous(memory_format=torch.channels_last))[0].float()
        seen[0].sigmoid_()
        top, left, y, x, side = (n // CELL for n in (top, left, y, x, TILE))
        seen = seen.cpu().numpy()[:, top - y : top - y + side, left - x : left - x + side]
        cells[:, top : top + side, left : left + side] = seen
    return cells


class Cells(NamedTuple):
    """Cells that lie in one area, or seem to: what the network says of each, (10, n), and their middles, (2, n), x and
    y in pixels, float32."""

    seen: np.ndarray
    middles: np.ndarray

    def edges(self, axis):
        """Where each cell sees the first and the last edge of its area along an axis (0: x), in pixels: (n,) each."""
        first, last = 2.0 ** self.seen[1 + axis] - 2, 2.0 ** self.seen[3 + axis] - 2
        return self.middles[axis] - first, self.middles[axis] + last

    def where(self, chosen):
        return Cells(self.seen[:, chosen], self.middles[:, chosen])


def find_cells(cells, threshold):
    """The Cells of each area that the network sees in `predict_cells`' output."""
    groups = []
    for rows, starts, ends in find_regions(cells[0] > threshold):
        if (ends - starts).sum() >= PART:
            y = np.repeat(rows, ends - starts)
            x = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends)])
            middles = (np.stack([x, y]) * CELL + CELL / 2).astype(np.float32)
            groups += cut(Cells(cells[:, y, x].astype(np.float32), middles))
    return groups


def cut(cells):
    """A region's Cells, cut where areas touch: along lines that those on both sides of them see as their edge, or else
    where the sizes of blocks differ, or else where its outline has a step."""
    best, parts = VOTES, None
    for axis in (0, 1):
        middles, (first, last) = cells.middles[axis], cells.edges(axis)
        votes = np.rint(first / CELL).astype(np.int64)
        votes = votes[(first > middles.min()) & (middles - first < NEAR)]
        lines, counts = np.unique(votes, return_counts=True)
        for line in lines[np.argsort(-counts)[:STEPS]] * CELL:
            after, before = (middles > line) & (middles < line + NEAR), (middles < line) & (middles > line - NEAR)
            if min(after.sum(), before.sum()) >= PART:
                agree = [(np.abs(edge - line) <= AGREE).mean() for edge in (first[after], last[before])]
                if min(agree) > best:
                    best, parts = min(agree), [middles > line, middles < line]
    if parts is None:
        parts = _by_size(cells)
    if parts is None:
        x, y = ((middles - middles.min()) / CELL for middles in cells.middles)
        x, y = x.astype(np.int64), y.astype(np.int64)
        region = np.zeros((y.max() + 1, x.max() + 1), dtype=bool)
        region[y, x] = True
        parts = [part[y, x] for part in split(region)]
    parts = [cells.where(part) for part in parts if part.sum() >= PART]
    return [part for half in parts for part in cut(half)] if len(parts) > 1 else [cells]


def _by_size(cells):
    """A region's Cells, cut along the line on both sides of which blocks are of different sizes; None if there is none.

    That with the largest difference of the means, in standard deviations within both parts.
    """
    sizes, best, parts = cells.seen[5:7].mean(axis=0), DIFFER, None
    for middles in cells.middles:
        order = np.argsort(middles, kind="stable")
        values, at = sizes[order].astype(np.float64), middles[order]
        n = np.arange(1, len(values))
        sums, squares = np.cumsum(values), np.cumsum(values**2)
        first, second = sums[:-1] / n, (sums[-1] - sums[:-1]) / n[::-1]
        within = (squares[-1] - n * first**2 - n[::-1] * second**2).clip(0) / len(values)
        apart = np.abs(first - second)
        score = apart / np.sqrt(within + STEADY**2)
        score[(apart < OCTAVES) | (at[1:] == at[:-1]) | (n < PART) | (n[::-1] < PART)] = 0
        if len(score) and score.max() > best:
            best, line = score.max(), at[score.argmax()]
            parts = [middles > line, middles <= line]
    return parts


def outline(cells):
    """((top, bottom, left, right), share, filled) of an area's Cells.

    Its box, in pixels, float: where the cells near an end see the edge, also far from them if most agree, as blocks may
    be hardly visible up to there; how many agree; the share that cells have of the box, without what is far from them.
    """
    ends, shares, spans = [], [], []
    for axis in (1, 0):
        middles = cells.middles[axis]
        lines, counts = np.unique(middles, return_counts=True)
        used = lines[counts > THIN * counts.max()]
        for edge, limit, sign in zip(cells.edges(axis), (used[0], used[-1]), (1, -1)):
            near = edge[sign * (middles - limit) < NEAR]
            seen = float(np.median(near))
            near_end = float(np.clip(seen, limit - AGREE, limit + AGREE))
            shares.append((np.abs(near - seen) <= AGREE).mean())
            if shares[-1] < TRUST:
                seen = near_end
                shares[-1] = (np.abs(near - seen) <= AGREE).mean()
            ends.append(seen)
            spans.append(near_end)
    area = (spans[1] - spans[0]) * (spans[3] - spans[2])
    filled = cells.seen.shape[1] * CELL**2 / max(1, area)
    return tuple(ends), float(np.mean(shares)), min(filled, 1 / filled)


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
        while above < stop and own < end:  # both from left to right
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


def region_boxes(mask):
    """Yield (top, bottom, left, right) of the rectangles that the regions of a mask are made of.

    Those of large regions that fill their box come first.
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
    """A region, (h, w) bool, as a list of such: cut at the steps of its outline, as long as that makes rectangles."""
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
    """How many pixels of a region and its trimmed box are in one of them alone."""
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


# ------------------------------------------------------------------------------------------------ the fit


def fit_grid(profile, guess=None):
    """(side, phase, strength) of the regular lines in a profile: differences between a pixel and the next.

    profile: (n - 1,) float for n pixels. guess: about the side, within a quarter; else all of SIDE_RANGE are tried.
    strength: how far the lines stand out, 0 to 1. A line at phase p lies between pixels p - 1 and p. The measure, for
    each side and phase: the mean on the lines less that of all others, over its standard error; multiples of the side
    have fewer lines, and parts of it lines where there are none. None where no two lines fit in.
    """
    length = len(profile) + 1
    low, high = (guess / 1.25, guess * 1.25) if guess else SIDE_RANGE
    low, high = max(low, 1.9), min(high, length / 1.2)
    if high <= low:
        return None
    smooth = np.convolve(np.pad(np.log1p(profile), 1, "edge"), [0.25, 0.5, 0.25], "valid")  # weak lines count, too

    def step(side):
        return max(0.01, 0.3 * side / max(2, length / side))

    trials, side = [], low
    while side <= high:
        trials.append(_comb(smooth, side))
        side += step(side)
    if not guess:  # the smallest side that is good enough, as its multiples fit almost as well
        enough = ENOUGH * max(trials).score
        first = next(trial.side for trial in trials if trial.score >= enough)
        trials = [trial for trial in trials if first <= trial.side <= 1.1 * first]
    best = max(trials)
    reach = step(best.side)
    best = max(_comb(smooth, side) for side in np.linspace(best.side - reach, best.side + reach, 13))
    whole = _comb(smooth, float(max(2, round(best.side))))
    if abs(whole.side - best.side) <= 2 * reach and whole.score >= WHOLE * best.score:  # it was not scaled
        best = whole
    return (best.side, best.phase, max(0.0, (best.on - best.off) / (best.on + best.off))) if best.on > 0 else None


class Comb(NamedTuple):
    """Regular lines: how well they fit a profile, by which they are compared, and its mean on them and elsewhere."""

    score: float
    side: float
    phase: float
    on: float
    off: float


def _comb(profile, side):
    """The Comb of this side that fits the profile, (n - 1,) for n pixels, best."""
    length = len(profile) + 1
    phases = np.arange(0, side, max(0.25, side / 48))
    lines = np.arange(0, length / side + 1) * side + phases[:, None]  # (P, K)
    valid = (lines >= 1) & (lines <= length - 1)
    at = np.clip(lines - 1, 0, length - 2)
    below = np.minimum(at.astype(np.int64), length - 3)
    values = (profile[below] * (1 - at + below) + profile[below + 1] * (at - below)) * valid
    count = valid.sum(axis=1)
    on = values.sum(axis=1) / np.maximum(count, 1)
    off = (profile.sum() - values.sum(axis=1)) / np.maximum(len(profile) - count, 1)
    score = (on - off) * np.sqrt(count * np.maximum(1 - count / len(profile), 0))
    i = int(score.argmax())
    return Comb(float(score[i]), float(side), float(phases[i]), float(on[i]), float(off[i]))


def fit_area(luma, box, guess=None):
    """The Area of a box (top, bottom, left, right), its grid fitted, or None. guess: blocks' (width, height)."""
    top, bottom, left, right = box
    if bottom - top < SMALLEST or right - left < SMALLEST:
        return None
    inside = luma[top:bottom, left:right].astype(np.float32)
    found = []
    for axis, about in zip((1, 0), guess or (None, None)):
        profile = np.minimum(np.abs(np.diff(inside, axis=axis)), CAP).mean(axis=1 - axis)
        found.append(fit_grid(profile, about))
    if not all(found):
        return None
    (width, phase_x, clear_x), (height, phase_y, clear_y) = found
    area = Area(left, top, right - left, bottom - top, width, height, phase_x, phase_y)
    return replace(_snap(area, luma.shape), confidence=min(clear_x, clear_y))


def _snap(area, shape):
    """The area with edges moved onto near lines of its grid, and phases to match."""
    moved = []
    for start, length, side, phase, total in (
        (area.x, area.width, area.block_width, area.phase_x, shape[1]),
        (area.y, area.height, area.block_height, area.phase_y, shape[0]),
    ):
        line, reach = start + phase, max(1.0, min(6.0, 0.15 * side))
        ends = []
        for edge in (start, start + length):
            near = line + round((edge - line) / side) * side
            ends.append(int(np.clip(round(near) if abs(near - edge) <= reach else edge, 0, total)))
        phase = (line - ends[0]) % side
        moved.append((ends[0], ends[1] - ends[0], 0.0 if min(phase, side - phase) < 0.5 else phase))
    (x, width, phase_x), (y, height, phase_y) = moved
    return replace(area, x=x, y=y, width=width, height=height, phase_x=phase_x, phase_y=phase_y)


# ------------------------------------------------------------------------------------------------ all together


class Finder:
    """Calls a photo's pixelated areas by name: finder(pixels, device, precision) -> a list of Area."""

    def __init__(self, network, fit=True, sensitivity=0.5):
        """sensitivity: in (0, 1); more finds more, and more that is none. fit: else the network alone."""
        self.network, self.fit, self.sensitivity = network, fit, sensitivity

    @property
    def least(self):
        """The confidence of what is not taken for an area any more."""
        return 1 - CERTAIN * self.sensitivity

    def __call__(self, pixels, device, precision):
        return [area for area in self.candidates(pixels, device, precision) if area.confidence > self.least]

    def candidates(self, pixels, device, precision):
        """Areas of any confidence."""
        luma = to_luma(pixels)
        height, width = luma.shape
        areas = []
        for cells in find_cells(predict_cells(self.network, luma, device, precision), 1 - self.sensitivity):
            (top, bottom, left, right), share, filled = outline(cells)
            top, bottom = (int(np.clip(round(end), 0, height)) for end in (top, bottom))
            left, right = (int(np.clip(round(end), 0, width)) for end in (left, right))
            guess = 2.0 ** np.median(cells.seen[5:7], axis=1)
            area = Area(left, top, right - left, bottom - top, *guess.tolist())
            chance = float(cells.seen[0].mean()) * share * filled
            if min(area.width, area.height) < SMALLEST:
                continue
            area = fit_area(luma, (top, bottom, left, right), tuple(guess)) if self.fit else area
            if area is not None:
                chance *= (min(area.block_width, area.block_height) / max(area.block_width, area.block_height)) ** 0.5
                areas.append(replace(area, confidence=float(chance)))
        return _without_doubles(areas)


def _without_doubles(areas):
    """The areas without those of which another, with more confidence, is about the same: parts may see all of one."""
    kept = []
    for area in sorted(areas, key=lambda area: -area.confidence):
        if all(area.overlap(other) < DOUBLE for other in kept):
            kept.append(area)
    return kept


def find_flat(pixels, device=None, precision=None):
    """The classical baseline, without a network: regions of little difference to neighbours that have a grid."""
    luma = to_luma(pixels).astype(np.int16)
    quiet = np.zeros(luma.shape, dtype=bool)
    right, down = np.abs(np.diff(luma, axis=1)) <= 2, np.abs(np.diff(luma, axis=0)) <= 2
    quiet[:-1, :-1] = right[:-1] & right[1:] & down[:, :-1] & down[:, 1:]
    closed = Image.fromarray(quiet.astype(np.uint8) * 255)
    closed = closed.filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.MinFilter(5))  # over the lines between blocks
    areas = [fit_area(luma, box) for box in region_boxes(np.asarray(closed) > 0)]
    return [area for area in areas if area and area.confidence > 0.5]


def to_luma(pixels):
    """(H, W, 1 or 3) uint8 -> (H, W) uint8, Rec. 601."""
    return np.asarray(Image.fromarray(pixels).convert("L")) if pixels.shape[2] == 3 else pixels[:, :, 0]
