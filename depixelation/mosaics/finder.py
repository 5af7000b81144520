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
from depixelation.engine.predictor import Timed
from depixelation.mosaics.area import AVERAGES, CELL, Area
from depixelation.mosaics.edges import followed
from depixelation.mosaics.grid_fit import fit_area
from depixelation.mosaics.lossy import explained, shape_of, trimmed
from depixelation.mosaics.regions import (
    PART,
    SMALLEST,
    STEPS,
    THIN,
    as_mask,
    find_regions,
    region_boxes,
    runs_of,
    split,
)

TILE = 1024  # pixels a side of what the network sees at once, without MARGIN
MARGIN = 128  # pixels of context around a tile; a multiple of the network's 32
NEAR = 24  # pixels from an edge within which cells vote for its place
AGREE = 8  # pixels by which agreeing votes may differ
TRUST = 0.6  # share of agreeing votes from which on an edge may lie far from the cells
DOUBLE = 0.3  # two areas are the same from this intersection over union on
VOTES = 0.25  # areas touch at a line if more than this share of the cells on either side see an edge there
DIFFER = 2.25  # standard deviations by which the logarithms of block sizes must differ in touching areas
OCTAVES = 0.2  # by which they must differ at least
STEADY = 0.05  # added to these deviations, so that uniform sizes do not inflate small differences
THRESHOLDS = (0.5, 0.35, 0.2, 0.1, 0.05, 0.01)  # of a cell's chance, one after the other, as the sensitivity grows
SHAPE = 24  # cells of a region that may be no rectangle
LEFT_OUT = 0.25  # share of it that rectangles must leave out
WRONG = 0.9  # share of an area's change that its grid must explain; else one that is not square is tried
CERTAIN = 0.72  # times the sensitivity: the largest distance of the confidence from 1


class MosaicNet(nn.Module):
    """Where a photo is pixelated: (N, 1, H, W) luma in [0, 1], H and W multiples of CELL -> (N, 10, H / 4, W / 4).

    For each cell of 4x4 pixels: the logit of being in a pixelated area; log2 of the distances to this area's left, top,
    right and bottom edges (see `log_distance`), as in FCOS (Tian et al. 2019) and EAST (Zhou et al. 2017); log2 of the
    blocks' width and height; logits of the AVERAGES, used in training only, as restoring recognises them better.
    A U-Net at a quarter of the resolution sees all pixels of each cell, and the differences between neighbours.
    """

    def __init__(self, channels=(32, 40, 64, 64), blocks=(1, 1, 1, 2)):
        super().__init__()
        self.unet = UNet(3 * CELL**2, 7 + len(AVERAGES), channels, blocks)

    def forward(self, luma):
        across = F.pad((luma[..., 1:] - luma[..., :-1]).abs(), (0, 1))
        down = F.pad((luma[..., 1:, :] - luma[..., :-1, :]).abs(), (0, 0, 0, 1))
        cells = self.unet(F.pixel_unshuffle(torch.cat([luma - 0.5, 4 * across, 4 * down], 1), CELL))
        return cells + cells.new_tensor([0, *[4] * 6, 0, 0, 0])[:, None, None]


def predict_cells(predictor, luma):
    """Run a MosaicNet on a whole photo, (H, W) uint8, tile by tile: (10, ceil(H / 4), ceil(W / 4)) float16.

    The channels are those of MosaicNet, but the first, of being in a pixelated area, is a probability.
    """
    height, width = luma.shape
    padded = np.pad(luma, ((0, -height % CELL), (0, -width % CELL)), "edge")
    cells = np.empty((7 + len(AVERAGES), padded.shape[0] // CELL, padded.shape[1] // CELL), dtype=np.float16)
    for top, left in itertools.product(*(range(0, length, TILE) for length in padded.shape)):
        y, x = max(0, top - MARGIN), max(0, left - MARGIN)
        tile = padded[y : top + TILE + MARGIN, x : left + TILE + MARGIN]
        tile = torch.from_numpy(tile).float()[None, None] / 255
        seen = predictor(tile.contiguous(memory_format=torch.channels_last))[0]
        seen = torch.cat([seen[:1].sigmoid(), seen[1:]])
        top, left, y, x, side = (n // CELL for n in (top, left, y, x, TILE))
        seen = seen.cpu().numpy()[:, top - y : top - y + side, left - x : left - x + side]
        cells[:, top : top + side, left : left + side] = seen
    return cells


class Cells(NamedTuple):
    """Cells that seem to lie in one area. seen: the network's output for each, (10, n). middles: their places, (2, n),
    x and y in pixels. Both float32."""

    seen: np.ndarray
    middles: np.ndarray

    def edges(self, axis):
        """The first and the last edge of its area along an axis (0: x) that each cell sees, in pixels: (n,) each."""
        first, last = 2.0 ** self.seen[1 + axis] - 2, 2.0 ** self.seen[3 + axis] - 2
        return self.middles[axis] - first, self.middles[axis] + last

    def where(self, chosen):
        return Cells(self.seen[:, chosen], self.middles[:, chosen])


def find_cells(cells, threshold):
    """The Cells of each area that the network sees in `predict_cells`' output."""
    return [part for region in regions_of(cells, threshold) for part in cut(region)]


def regions_of(cells, threshold):
    """The Cells of each connected region in which the network sees one area or several."""
    for rows, starts, ends in find_regions(cells[0] > threshold, PART):
        y = np.repeat(rows, ends - starts)
        x = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends)])
        middles = (np.stack([x, y]) * CELL + CELL / 2).astype(np.float32)
        yield Cells(cells[:, y, x].astype(np.float32), middles)


def cut(cells):
    """Cut a region's Cells where areas touch: along lines that the cells on both sides see as their edge, else where
    block sizes differ, else where the outline has a step."""
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
        parts = [as_mask(part, region.shape)[y, x] for part in split(runs_of(region), region.shape)]
    parts = [cells.where(part) for part in parts if part.sum() >= PART]
    return [part for half in parts for part in cut(half)] if len(parts) > 1 else [cells]


def _by_size(cells):
    """Masks of a region's Cells on either side of a line at which block sizes change; None without one.

    It is the line with the largest difference of the means, in standard deviations within both parts.
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

    The box, float pixels, ends where the cells near each end see the edge. This may be far from them if most agree, as
    blocks may be hardly visible up to there. share: of the cells that agree. filled: how well the cells fill the box,
    without its parts far from them; 1 is best.
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


class Finder(Timed):
    """Finds a photo's pixelated areas: finder(pixels) -> a list of Area."""

    def __init__(self, predictor, fit=True, sensitivity=0.5):
        """predictor: of a MosaicNet. sensitivity: in (0, 1); higher finds more areas, false ones too. fit: False keeps
        the network's edges and grids."""
        self.predictor, self.fit, self.sensitivity = predictor, fit, sensitivity

    @property
    def least(self):
        """Areas at or below this confidence are discarded."""
        return 1 - CERTAIN * self.sensitivity

    def __call__(self, pixels):
        with self.timed():
            return [area for area in self.candidates(pixels) if area.confidence > self.least]

    def candidates(self, pixels):
        """Areas of any confidence; with more sensitivity, the same and more."""
        luma = to_luma(pixels)
        cells, areas = predict_cells(self.predictor, luma), []
        for threshold in THRESHOLDS:
            if areas and threshold < 1 - self.sensitivity:
                break
            more = []
            for region in regions_of(cells, threshold):
                parts = [part for part in (self._rectangle(pixels, luma, each) for each in cut(region)) if part]
                shape = self._shape(pixels, luma, region, parts) if self.fit else None
                more += [shape] if shape else parts
            more = [area for area in _without_doubles(more) if all(area.overlap(one) < DOUBLE for one in areas)]
            areas += [followed(pixels, trimmed(pixels, area, cells[0])) for area in more] if self.fit else more
            if threshold <= 1 - self.sensitivity:
                break
        return areas

    def _rectangle(self, pixels, luma, cells):
        """The Area of an area's Cells, or None."""
        height, width = luma.shape
        (top, bottom, left, right), share, filled = outline(cells)
        top, bottom = (int(np.clip(round(end), 0, height)) for end in (top, bottom))
        left, right = (int(np.clip(round(end), 0, width)) for end in (left, right))
        guess = 2.0 ** np.median(cells.seen[5:7], axis=1)
        area = Area(left, top, right - left, bottom - top, *guess.tolist())
        if min(area.width, area.height) < SMALLEST:
            return None
        chance = float(cells.seen[0].mean()) * share * filled
        if self.fit:
            area = fit_area(luma, (top, bottom, left, right), tuple(guess))
            if area is None:
                return None
            if explained(pixels, area) < WRONG * area.size:  # blocks may not be square, as networks expect
                other = fit_area(luma, (top, bottom, left, right))
                area = max(filter(None, (area, other)), key=lambda each: explained(pixels, each))
        chance *= (min(area.block_width, area.block_height) / max(area.block_width, area.block_height)) ** 0.5
        return replace(area, confidence=float(chance))

    @staticmethod
    def _shape(pixels, luma, region, parts):
        """The Area of a region that is no rectangle, if the sure ones of its parts leave much of it out; or None."""
        x, y = (region.middles / CELL).astype(np.int64)
        if len(x) < SHAPE:
            return None
        member = np.zeros((-(-luma.shape[0] // CELL), -(-luma.shape[1] // CELL)), dtype=bool)
        member[y, x] = True
        left = member.copy()
        for area in parts:
            if area.confidence > 1 - CERTAIN / 2:
                place = [(start // CELL, -(-(start + length) // CELL)) for start, length in (
                    (area.y, area.height), (area.x, area.width))]
                left[slice(*place[0]), slice(*place[1])] = False
        if left.sum() < LEFT_OUT * member.sum():
            return None
        shape = shape_of(pixels, luma, member, tuple(2.0 ** np.median(region.seen[5:7], axis=1)))
        return replace(shape, confidence=shape.confidence**0.5 * float(region.seen[0].mean())) if shape else None


def _without_doubles(areas):
    """Drop areas that duplicate a more confident one: several parts of an area may each see all of it."""
    kept = []
    for area in sorted(areas, key=lambda area: -area.confidence):
        if all(area.overlap(other) < DOUBLE for other in kept):
            kept.append(area)
    return kept


class FlatFinder(Timed):
    """The classical baseline without a network: flat regions that fit a grid."""

    def __call__(self, pixels):
        with self.timed():
            luma = to_luma(pixels).astype(np.int16)
            quiet = np.zeros(luma.shape, dtype=bool)
            right, down = np.abs(np.diff(luma, axis=1)) <= 2, np.abs(np.diff(luma, axis=0)) <= 2
            quiet[:-1, :-1] = right[:-1] & right[1:] & down[:, :-1] & down[:, 1:]
            closed = Image.fromarray(quiet.astype(np.uint8) * 255)
            closed = closed.filter(ImageFilter.MaxFilter(5)).filter(
                ImageFilter.MinFilter(5)
            )  # closes the lines between blocks
            areas = [fit_area(luma, box) for box in region_boxes(np.asarray(closed) > 0)]
            return [area for area in areas if area and area.confidence > 0.5]


def to_luma(pixels):
    """(H, W, 1 or 3) uint8 -> (H, W) uint8, Rec. 601."""
    if pixels.shape[2] == 1:
        return pixels[:, :, 0]
    luma = np.empty(pixels.shape[:2], dtype=np.uint8)
    for y in range(0, len(pixels), TILE):
        luma[y : y + TILE] = Image.fromarray(pixels[y : y + TILE]).convert("L")
    return luma
