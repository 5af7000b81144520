"""Finds the things in a picture: anything on paper of one tone, or digits on an uneven background."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from depixelation.mosaics.regions import find_regions

WORK = 640  # pixels of a picture's longer side when an uneven background is removed
VISIBLE = {"digits": 0.35, "clothes": 0.05}  # ink with this share of the strongest belongs to a thing
GAPS = {"digits": 0.02, "clothes": 0.03}  # parts nearer than this share of the longer side make one thing
SMALLEST = {"digits": 0.05, "clothes": 0.25}  # share of the largest thing's ink; a thing with less is dust or a part
LEAST_INK = 8  # grey levels; weaker ink is ignored
EVEN = 0.25  # an even background varies by at most this share of the strongest ink
LINE = 0.15, 0.5  # a line longer than this share of the width is no stroke, if it ends at the rim; if not


@dataclass
class Thing:
    """A thing in a picture."""

    ink: np.ndarray  # (h, w) float64, of this thing alone, 0 on paper
    box: tuple  # left, top, right, bottom in the picture
    dark_on_light: bool


def ink_against_corners(grey):
    """(ink: how far a picture, (H, W) in [0, 255], is darker than its corners, or else lighter; whether darker)."""
    height, width = grey.shape
    side = max(1, min(height, width) // 14)
    ends = (slice(side), slice(-side, None))
    difference = grey - np.median([grey[rows, columns] for rows in ends for columns in ends])
    dark_on_light = bool(np.maximum(-difference, 0).sum() > np.maximum(difference, 0).sum())
    return np.maximum(-difference if dark_on_light else difference, 0), dark_on_light


def strongest(ink):
    """The strength of a picture's strokes, which a speck of dust does not set."""
    return max(np.percentile(ink, 99.8), ink.max() / 2)


def find_things(grey, kind, judge=None):
    """The Things in a picture, (H, W) in [0, 255], row by row, from left to right. Empty if nothing can be seen.

    kind: "digits" or "clothes". judge: a function of Things that returns whether each is surely a digit. In a picture
    of digits with an uneven background, it decides what is paper and what was written.
    """
    ink, dark_on_light = ink_against_corners(grey)
    if strongest(ink) < LEAST_INK:
        return []
    things = separate(ink, dark_on_light, kind)
    if kind != "digits" or judge is None:
        return things
    sheet = any(is_sheet(thing, grey.shape) for thing in things)
    found = things_on_uneven(grey, sheet)
    best, most = next((each for each in found if each), things) if sheet else things, 0.0
    for candidate in [*([things] * (not sheet)), *found] if found else ():
        heights = np.array([thing.box[3] - thing.box[1] for thing in candidate])
        sure = judge(candidate) if candidate else np.zeros(0, bool)
        if not sure.any():
            continue
        kept = sure | (heights > heights[sure].max() / 2)  # the rest is the grain of a table
        score = heights[sure].sum() - heights[kept & ~sure].sum() / 4  # the holes of a 0 are not as high as it is
        if score > most:
            best, most = [thing for thing, keep in zip(candidate, kept) if keep], score
    return best


# ------------------------------------------------------------------------------------------------ parts


def separate(ink, dark_on_light, kind, scale=1.0):
    """Separate a map of ink, (H, W), into Things. scale: pixels of the picture for one of the map."""
    gap = max(1, round(GAPS[kind] / 2 * max(ink.shape)))
    mask = extreme(ink > VISIBLE[kind] * strongest(ink), 2 * gap + 1)
    parts = []
    for rows, starts, ends in find_regions(mask):
        own = np.zeros(ink.shape, bool)
        for row, start, end in zip(rows, starts, ends):
            own[row, start:end] = True
        parts.append([own, float(ink[own].sum()), rows[0], rows[-1] + 1, starts.min(), ends.max()])
    largest = max((part[1] for part in parts), default=0)
    parts = merge([part for part in parts if part[1] > SMALLEST[kind] / 3 * largest])
    things = []
    for own, amount, top, bottom, left, right in parts:
        if amount < SMALLEST[kind] * largest:
            continue
        box = tuple(round(scale * place) for place in (left, top, right, bottom))
        things.append(Thing(np.where(own, ink, 0)[top:bottom, left:right], box, dark_on_light))
    return in_reading_order(things)


def merge(parts):
    """Join near parts of one thing, one above the other, such as the bar of a 5. parts: lists, see `separate`."""
    joined = []
    for part in sorted(parts, key=lambda part: -part[1]):
        own, amount, top, bottom, left, right = part
        for other in joined:
            overlap = min(right, other[5]) - max(left, other[4])
            apart = max(top, other[2]) - min(bottom, other[3])
            tall = other[3] - other[2]
            if overlap > 0.5 * (right - left) and apart < 0.2 * tall and bottom - top < 0.5 * tall:
                other[0] = other[0] | own
                other[1] += amount
                other[2:] = min(top, other[2]), max(bottom, other[3]), min(left, other[4]), max(right, other[5])
                break
        else:
            joined.append(part)
    return joined


def in_reading_order(things):
    """The things row by row, from left to right."""
    rows = []
    for thing in sorted(things, key=lambda thing: thing.box[1] + thing.box[3]):
        middle = (thing.box[1] + thing.box[3]) / 2
        if rows and middle < max(other.box[3] for other in rows[-1]):
            rows[-1].append(thing)
        else:
            rows.append([thing])
    return [thing for row in rows for thing in sorted(row, key=lambda thing: thing.box[0])]


# ------------------------------------------------------------------------------------------------ uneven backgrounds


def things_on_uneven(grey, sheet):
    """[dark things, light things] of a picture whose background is uneven or ruled. [] if it is even.

    sheet: whether the picture shows a sheet of paper. Without the sheet, its background may seem even.
    """
    scale = max(1.0, max(grey.shape) / WORK)
    small = Image.fromarray(grey.astype(np.float32))
    if scale > 1:
        size = [max(1, round(length / scale)) for length in grey.shape[::-1]]
        small = small.resize(size, Image.Resampling.BOX)
    small = np.asarray(small, np.float64)
    if min(small.shape) > 100:  # less noise; strokes are wide enough
        blurred = Image.fromarray(small.clip(0, 255).round().astype(np.uint8)).filter(ImageFilter.BoxBlur(1))
        small = np.asarray(blurred, np.float64)
    found, even = [], False
    for dark_on_light in (True, False):
        ink, flat = strokes(small if dark_on_light else 255 - small, relative=dark_on_light)
        even |= flat and not sheet
        if strongest(ink) >= LEAST_INK:
            things = separate(ink, dark_on_light, "digits", scale)
            found.append([t for t in things if not touches_rim(t, grey.shape) and not is_sheet(t, grey.shape)])
    return [] if even else found


def touches_rim(thing, shape):
    left, top, right, bottom = thing.box
    margin = 0.01 * max(shape)
    return min(left, top) <= margin or right >= shape[1] - margin or bottom >= shape[0] - margin


def is_sheet(thing, shape):
    """Whether a thing is a sheet of paper rather than writing: large, and filling its box."""
    width, height = np.subtract(thing.box[2:], thing.box[:2])
    return (thing.ink > VISIBLE["digits"] * thing.ink.max()).mean() > 0.55 and width * height > 0.2 * math.prod(shape)


def strokes(grey, relative):
    """Find narrow dark strokes: (how much darker each pixel is than its surroundings, (H, W) in [0, 255]; whether the
    surroundings are even).

    The surroundings are a morphological closing, which keeps shades and the edges of paper. relative: divide by their
    light.
    """
    clean = without_lines(without_lines(grey).T).T
    background = closing(clean, *[max(3, round(0.4 * min(grey.shape)))] * 2)
    ink = background - clean
    low, high = np.percentile(background, (2, 98))
    flat = high - low < EVEN * strongest(ink) and np.array_equal(clean, grey)
    if relative:
        ink = ink / np.maximum(background, 0.4 * background.max() + 1) * 255
    return np.maximum(ink - min(1.5 * np.median(ink), 25), 0), flat


def without_lines(grey):
    """Remove dark lines that run across a picture: their pixels become what stands above or below."""
    height, width = grey.shape
    if min(height, width) < 60:
        return grey
    thick = max(3, round(0.03 * height))
    thin = closing(grey, thick, 1) - grey
    level = max(LEAST_INK, 0.25 * np.percentile(thin, 99.5))
    run = max(3, round(0.12 * width))
    tolerance = 2 * max(1, height // 200) + 1  # lines are seldom quite straight
    runs = extreme(thin > level, tolerance, (0,))
    runs = extreme(~extreme(~runs, run, (1,)), run, (1,))
    lines = np.zeros(grey.shape, bool)
    for rows, starts, ends in find_regions(runs):
        length, at_rim = ends.max() - starts.min(), starts.min() <= 2 or ends.max() >= width - 2
        long = length > LINE[not at_rim] * width
        if long and rows[-1] + 1 - rows[0] < 0.12 * length + 2 * thick:
            for row, start, end in zip(rows, starts, ends):
                lines[row, start:end] = True
    return np.where(extreme(lines, 3), closing(grey, 2 * thick + tolerance, 1), grey) if lines.any() else grey


def extreme(image, size, axes=(0, 1), function=np.maximum):
    """The maximum, or minimum, over windows of so many pixels along each of these axes."""
    for axis in axes:
        before = size // 2
        widths = [(before, size - 1 - before) if other == axis else (0, 0) for other in (0, 1)]
        values, reach = np.moveaxis(np.pad(image, widths, "edge"), axis, 0), 1
        while 2 * reach <= size:
            values, reach = function(values[:-reach], values[reach:]), 2 * reach
        if reach < size:
            values = function(values[: reach - size], values[size - reach :])
        image = np.moveaxis(values, 0, axis)
    return image


def closing(image, height, width):
    """Remove what is dark and narrower or lower than the window. Beyond its rim, a picture goes on as at the rim."""
    height, width = height + 1 - height % 2, width + 1 - width % 2
    image = np.pad(image, ((height // 2,) * 2, (width // 2,) * 2), "edge")
    for function in (np.maximum, np.minimum):
        image = extreme(extreme(image, height, (0,), function), width, (1,), function)
    return image[height // 2 :, width // 2 :][: image.shape[0] - height + 1, : image.shape[1] - width + 1]
