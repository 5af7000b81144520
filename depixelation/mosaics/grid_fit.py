"""Fits the grid of blocks in a rectangle of a photo: sides and phases, fractional where the photo was scaled."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from depixelation.mosaics.area import SCALES, SIDES, Area
from depixelation.mosaics.regions import BAND, SMALLEST

SIDE_RANGE = (SIDES[0] * SCALES[0], SIDES[1] * SCALES[1])
CAP = 24.0  # grey levels: larger differences between neighbours count as these
ENOUGH = 0.9  # share of the best score at which the smallest side wins, as multiples of a side fit almost as well
WHOLE = 0.97  # share of the best score at which a whole number of pixels wins


def fit_grid(profile, guess=None):
    """(side, phase, strength) of the regular lines in a profile: differences between a pixel and the next.

    profile: (n - 1,) float for n pixels. guess: the side, within a quarter; without it, all of SIDE_RANGE are tried.
    strength: how far the lines stand out, 0 to 1. A line at phase p lies between pixels p - 1 and p. The score of a
    side and phase is the mean on the lines minus that elsewhere, over its standard error. Multiples of the true side
    score less because they have fewer lines, fractions because some of their lines are not there. Returns None where
    no two lines fit in.
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
    if not guess:  # see ENOUGH
        enough = ENOUGH * max(trials).score
        first = next(trial.side for trial in trials if trial.score >= enough)
        trials = [trial for trial in trials if first <= trial.side <= 1.1 * first]
    best = max(trials)
    reach = step(best.side)
    best = max(_comb(smooth, side) for side in np.linspace(best.side - reach, best.side + reach, 13))
    whole = _comb(smooth, float(max(2, round(best.side))))
    if abs(whole.side - best.side) <= 2 * reach and whole.score >= WHOLE * best.score:  # the photo was not scaled
        best = whole
    return (best.side, best.phase, max(0.0, (best.on - best.off) / (best.on + best.off))) if best.on > 0 else None


class Comb(NamedTuple):
    """Regular lines: their score, which comes first to compare them; the profile's mean on them and elsewhere."""

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


def changes_along(luma, axis, mask=None):
    """(sums, counts): by how much pixels differ from the ones before along an axis, at most CAP, at each place of it.

    luma: (H, W) uint8. mask: (H, W) bool, in which both must lie; None: all do, and counts is one number for all.
    sums: float32, whole numbers.
    """
    sums, counts = [], []
    for y in range(0, len(luma), BAND):
        part = slice(y, y + BAND + (axis == 0))  # with the first row of the next one
        before, after = ((slice(None),) * axis + (side,) for side in (slice(None, -1), slice(1, None)))
        values, inside = luma[part], None if mask is None else mask[part]
        change = np.maximum(values[before], values[after]) - np.minimum(values[before], values[after])
        np.minimum(change, np.uint8(CAP), out=change)
        if mask is not None:
            both = inside[before] & inside[after]
            change *= both
            counts.append(both.sum(axis=1 - axis))
        sums.append(change.sum(axis=1 - axis, dtype=np.int64))
    join = np.concatenate if axis == 0 else sum
    return join(sums).astype(np.float32), join(counts) if counts else luma.shape[1 - axis]


def fit_area(luma, box, guess=None):
    """Fit the Area of a box (top, bottom, left, right); None without a grid. guess: blocks' (width, height)."""
    top, bottom, left, right = box
    if bottom - top < SMALLEST or right - left < SMALLEST:
        return None
    found = []
    for axis, about in zip((1, 0), guess or (None, None)):
        change, count = changes_along(luma[top:bottom, left:right], axis)
        found.append(fit_grid(change / np.float32(count), about))
    if not all(found):
        return None
    (width, phase_x, clear_x), (height, phase_y, clear_y) = found
    area = Area(left, top, right - left, bottom - top, width, height, phase_x, phase_y)
    return replace(_snap(area, luma.shape), confidence=min(clear_x, clear_y))


def _snap(area, shape):
    """Move the area's edges onto nearby lines of its grid, and adjust the phases."""
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
