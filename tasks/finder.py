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
from tasks.mosaics import AVERAGES, EDGE, SCALES, SIDES, Area

TILE = 1024  # pixels a side of what the network sees at once, beside MARGIN
MARGIN = 128  # pixels around it; a multiple of the network's 32
SMALLEST = 6  # pixels a side; smaller areas are not looked for
SIDE_RANGE = (SIDES[0] * SCALES[0], SIDES[1] * SCALES[1])
CAP = 24.0  # grey levels: larger differences between neighbours count as these
ENOUGH = 0.9  # of the best score: the smallest side that has it is taken, as multiples of a side fit almost as well
WHOLE = 0.97  # of the best score: a whole number of pixels that has it is taken
RECTANGULAR = 0.75  # share of its bounding box that a region fills if it is one area
THIN = 0.15  # share of the longest row or column of a region below which one is an outgrowth
OTHER_GRID = 0.3  # octaves by which both sides of blocks differ from one area to the next
CERTAIN = 0.7  # times the sensitivity: how far the confidence may be from 1
SURE = 0.6  # probability from which on the way of averaging is told


class MosaicNet(nn.Module):
    """Where a photo is pixelated: (N, 1, H, W) luma in [0, 1], H and W multiples of 4 -> (maps, cells).

    maps: (N, 2, H, W) logits: of being in a pixelated area; of being at its edge. cells: (N, 5, H / 4, W / 4): log2 of
    the blocks' width and height, logits of the AVERAGES. A U-Net at a quarter of the resolution sees all 4x4 pixels of
    each of its own, and the differences between neighbours.
    """

    def __init__(self, channels=(32, 40, 64, 64), blocks=(1, 1, 1, 2)):
        super().__init__()
        self.unet = UNet(3 * 16, 2 * 16 + 2 + len(AVERAGES), channels, blocks)

    def forward(self, luma):
        across = F.pad((luma[..., 1:] - luma[..., :-1]).abs(), (0, 1))
        down = F.pad((luma[..., 1:, :] - luma[..., :-1, :]).abs(), (0, 0, 0, 1))
        maps = self.unet(F.pixel_unshuffle(torch.cat([luma - 0.5, 4 * across, 4 * down], 1), 4))
        return F.pixel_shuffle(maps[:, :32], 4), maps[:, 32:] + maps.new_tensor([4, 4, 0, 0, 0])[:, None, None]


# ------------------------------------------------------------------------------------------------ the network's part


@torch.inference_mode()
def predict_maps(network, luma, device, precision):
    """The network's view of a whole photo, (H, W) uint8, tile by tile: (area, edge) (H, W) float16 probabilities;
    (5, ceil(H / 4), ceil(W / 4)) float16 as MosaicNet's cells."""
    height, width = luma.shape
    padded = np.pad(luma, ((0, -height % 4), (0, -width % 4)), "edge")
    chances = np.empty((2, *padded.shape), dtype=np.float16)
    cells = np.empty((5, padded.shape[0] // 4, padded.shape[1] // 4), dtype=np.float16)
    for top, left in itertools.product(*(range(0, length, TILE) for length in padded.shape)):
        y, x = max(0, top - MARGIN), max(0, left - MARGIN)
        tile = (
            torch.from_numpy(padded[y : top + TILE + MARGIN, x : left + TILE + MARGIN]).to(device).float()[None, None]
        )
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            maps, coarse = network((tile / 255).contiguous(memory_format=torch.channels_last))
        maps = maps.float().sigmoid().cpu().numpy()[0, :, top - y : top - y + TILE, left - x : left - x + TILE]
        chances[:, top : top + TILE, left : left + TILE] = maps
        top, left, y, x, side = (n // 4 for n in (top, left, y, x, TILE))
        coarse = coarse.float().cpu().numpy()[0, :, top - y : top - y + side, left - x : left - x + side]
        cells[:, top : top + side, left : left + side] = coarse
    return chances[:, :height, :width], cells


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
    """(top, bottom, left, right) of the rectangles that the regions of a mask are made of."""
    boxes = []
    for rows, starts, ends in find_regions(mask):
        if (ends - starts).sum() >= SMALLEST - 2 * EDGE:
            top, left = rows[0], starts.min()
            region = np.zeros((rows[-1] + 1 - top, ends.max() - left), dtype=bool)
            for row, start, end in zip(rows - top, starts - left, ends - left):
                region[row, start:end] = True
            boxes += [(int(a + top), int(b + top), int(c + left), int(d + left)) for a, b, c, d in _split(region)]
    return boxes


def _split(region, depth=4):
    """Boxes that cover a region: one, or where it fills too little of that, those of the parts of its best cut."""
    box = _trim(region)
    if box is None:
        return []
    top, bottom, left, right = box
    inside = region[top:bottom, left:right]
    if inside.mean() >= RECTANGULAR or depth == 0:
        return [box]
    best, parts = 0, None
    for axis in (0, 1):
        counts = inside.sum(axis=1 - axis)
        cut = int(np.abs(np.diff(counts)).argmax()) + 1 if len(counts) > 1 else 0  # where the outline has its step
        pieces = [np.zeros_like(region) for _ in range(2)]
        for piece, part in zip(pieces, (slice(0, cut), slice(cut, None))):
            at = (part, slice(None)) if axis == 0 else (slice(None), part)
            piece[top:bottom, left:right][at] = inside[at]
        fill = sum(_filled(piece) for piece in pieces)
        if cut and fill > best:
            best, parts = fill, pieces
    return [box for piece in parts for box in _split(piece, depth - 1)] if parts else [box]


def _filled(region):
    """The share of its trimmed box that a region fills, times its pixels."""
    box = _trim(region)
    return 0 if box is None else region[box[0] : box[1], box[2] : box[3]].mean() * region.sum()


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


def cut_by_grid(box, sides):
    """The boxes that a box is cut into where blocks have other sides on both sides of the cut: areas that touch.

    box: (top, bottom, left, right), pixels. sides: (2, h, w) log2 of the blocks' width and height, of 4x4 pixels each.
    """
    top, bottom, left, right = box
    inside = sides[:, top // 4 : -(-bottom // 4), left // 4 : -(-right // 4)].astype(np.float32)
    best = None
    for axis in (1, 2):
        means = np.median(inside, axis=3 - axis)  # (2, n)
        for cut in range(2, means.shape[1] - 1):
            parts = means[:, :cut].mean(axis=1), means[:, cut:].mean(axis=1)
            step, even = np.abs(parts[0] - parts[1]).min(), np.sqrt(cut * (means.shape[1] - cut)) / means.shape[1]
            if step > OTHER_GRID and (best is None or step * even > best[0]):
                best = step * even, axis, cut
    if best is None:
        return [box]
    _, axis, cut = best
    middle = (top, left)[axis - 1] // 4 * 4 + 4 * cut
    if axis == 1:
        halves = (top, middle, left, right), (middle, bottom, left, right)
    else:
        halves = (top, bottom, left, middle), (top, bottom, middle, right)
    return [part for half in halves for part in cut_by_grid(half, sides)]


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
    trials, side = [], low
    while side <= high:
        trials.append(_comb(smooth, side))
        side += max(0.01, 0.3 * side / max(2, length / side))
    first = next(trial.side for trial in trials if trial.score >= ENOUGH * max(trials).score)
    best = max(trial for trial in trials if guess or first <= trial.side <= 1.1 * first)
    reach = max(0.01, 0.3 * best.side / max(2, length / best.side))
    best = max(_comb(smooth, side) for side in np.linspace(best.side - reach, best.side + reach, 13))
    whole = _comb(smooth, float(max(2, round(best.side))))
    if abs(whole.side - best.side) <= 2 * reach and whole.score >= WHOLE * best.score:  # it was not scaled
        best = whole
    return (best.side, best.phase, max(0.0, (best.on - best.off) / (best.on + best.off))) if best.on > 0 else None


class Comb(NamedTuple):
    """Regular lines: how well they fit a profile, best first, and the profile's mean on them and elsewhere."""

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

    def __call__(self, pixels, device, precision):
        luma = to_luma(pixels)
        (chances, edges), cells = predict_maps(self.network, luma, device, precision)
        threshold, certain = 1 - self.sensitivity, 1 - CERTAIN * self.sensitivity
        areas = []
        boxes = region_boxes((chances > threshold) & (edges < 0.5))
        boxes = [part for box in boxes for part in cut_by_grid(box, cells[:2])]
        for top, bottom, left, right in boxes:
            box = (
                max(0, top - EDGE),
                min(bottom + EDGE, len(luma)),
                max(0, left - EDGE),
                min(right + EDGE, luma.shape[1]),
            )
            at = slice(top // 4, -(-bottom // 4)), slice(left // 4, -(-right // 4))
            guess = 2.0 ** np.median(cells[:2, *at].astype(np.float32).reshape(2, -1), axis=1)
            logits = torch.from_numpy(cells[2:, *at].astype(np.float32)).mean((1, 2)).softmax(0)
            chance = float(chances[top:bottom, left:right].astype(np.float32).mean())
            if self.fit:
                area = fit_area(luma, box, tuple(guess))
                chance = chance if area is None else chance * area.confidence**0.25
            else:
                area = Area(box[2], box[0], box[3] - box[2], box[1] - box[0], *guess)
            if area is not None and min(area.width, area.height) >= SMALLEST and chance > certain:
                average = AVERAGES[int(logits.argmax())] if logits.max() >= SURE else None
                areas.append(replace(area, average=average, confidence=chance))
        return areas


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
