"""A pixelated area of a photo: where it is, which grid its blocks have, and how their values came about."""

from dataclasses import asdict, dataclass, field, replace

import numpy as np

from datasets import from_linear, means_between, spread_between, to_linear
from utils import UserError, key

# A block's value: the mean of its sRGB values, the mean of its light (GIMP), or its middle pixel.
AVERAGES = ("srgb", "linear", "center")
GRIDS = ("rectangle", "picture")  # where the grid of blocks begins
SIDES = (4, 64)  # of blocks when they are made, in pixels
SCALES = (0.5, 1.5)  # of a picture after it was pixelated
INNER = 0.6  # share of a block's side, in its middle, that files and scaling hardly blur
MOST, FEW = 2**24, 2**20  # pixels of an area that are computed with at once
CELL = 4  # pixels a side of the squares that the finder's network judges


@dataclass
class Area:
    """A pixelated area of a photo, in pixels: a box, and which of its pixels. Sides and phases are fractional where the
    photo was scaled, or the area in parts of a pixel."""

    x: int
    y: int
    width: int
    height: int
    block_width: float
    block_height: float
    phase_x: float = 0.0  # from x to the first line of the grid at or right of it
    phase_y: float = 0.0
    average: str | None = None  # of AVERAGES, where that is known
    confidence: float | None = 1.0  # None: the user has named the area
    mask: np.ndarray | None = field(default=None, repr=False, compare=False)  # (height, width) bool; None: all pixels

    def lines(self):
        """Where blocks begin and the area ends, relative to it: (rows, columns), increasing int64 arrays from 0."""
        return (
            grid_lines(self.height, self.block_height, self.phase_y),
            grid_lines(self.width, self.block_width, self.phase_x),
        )

    def box(self):
        """As slices of (H, W, ...) arrays."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)

    @property
    def inside(self):
        """Which pixels of the box belong to the area: (height, width) bool."""
        return np.ones((self.height, self.width), dtype=bool) if self.mask is None else self.mask

    @property
    def size(self):
        """In pixels."""
        return self.width * self.height if self.mask is None else int(self.mask.sum())

    def put(self, pixels, values):
        """Write values, (height, width, C), to the area's own pixels of a photo, (H, W, C)."""
        pixels[self.box()][self.inside] = values[self.inside]

    def cropped(self, left, top, right, bottom):
        """The part within these edges, relative to the box, on the same grid."""
        phases = float((self.phase_x - left) % self.block_width), float((self.phase_y - top) % self.block_height)
        mask = None if self.mask is None else self.mask[top:bottom, left:right]
        place = self.x + left, self.y + top, right - left, bottom - top
        return Area(
            *place, self.block_width, self.block_height, *phases, self.average, self.confidence,
            None if mask is None or mask.all() else mask,
        )

    def as_json(self):
        """A dict of numbers and words; pixels: how many belong to the area."""
        values = asdict(replace(self, mask=None))
        del values["mask"]
        values["confidence"] = None if self.confidence is None else round(self.confidence, 4)
        return values | {"given": self.confidence is None, "pixels": self.size}

    def scaled(self, scale, width, height):
        """The same area after the whole picture, then width x height pixels, was scaled."""
        left, top = round(self.x * scale), round(self.y * scale)
        right, bottom = round((self.x + self.width) * scale), round((self.y + self.height) * scale)
        sides = self.block_width * scale, self.block_height * scale
        phases = (self.x + self.phase_x) * scale - left, (self.y + self.phase_y) * scale - top
        right, bottom = min(right, width), min(bottom, height)
        mask = None
        if self.mask is not None:
            at = [((np.arange(a, b) + 0.5) / scale - start).astype(np.int64).clip(0, n - 1) for a, b, start, n in (
                (top, bottom, self.y, self.height), (left, right, self.x, self.width))]
            mask = self.mask[np.ix_(*at)]
        phases = [p % s for p, s in zip(phases, sides)]
        return Area(left, top, right - left, bottom - top, *sides, *phases, self.average, mask=mask)

    def _shared(self, other):
        left, right = max(self.x, other.x), min(self.x + self.width, other.x + other.width)
        top, bottom = max(self.y, other.y), min(self.y + self.height, other.y + other.height)
        if left >= right or top >= bottom:
            return 0
        if self.mask is None and other.mask is None:
            return (right - left) * (bottom - top)
        parts = (each.inside[top - each.y : bottom - each.y, left - each.x : right - each.x] for each in (self, other))
        return int(np.logical_and(*parts).sum())

    def overlap(self, other):
        """Intersection over union of two areas."""
        shared = self._shared(other)
        return shared / max(1, self.size + other.size - shared)

    def share_in(self, other):
        """The share of this area that lies in another one."""
        return self._shared(other) / max(1, self.size)


def grid_lines(length, side, phase):
    """0, the lines phase + k * side within (0, length), rounded, and length."""
    lines = np.rint(np.arange(phase, length, side)).astype(np.int64)
    return np.unique(np.concatenate([[0], lines[(lines > 0) & (lines < length)], [length]]))


def bands(rows, width, sums=False):
    """Yield (first, last) of rows of blocks between lines, increasing from 0, to be computed with one after the other.

    They have about FEW pixels. sums: where what follows depends on the order in which numbers are added, MOST pixels.
    """
    first, height = 0, (MOST if sums else FEW) // width
    while first < len(rows) - 1:
        last = max(first + 1, int(np.searchsorted(rows, rows[first] + height, side="right")) - 1)
        yield first, last
        first = last


def to_light(values):
    """sRGB values, 0 to 255, to linear light on the same scale."""
    return 255 * to_linear(np.asarray(values, dtype=np.float64) / 255)


def from_light(values):
    """The inverse of `to_light`."""
    return 255 * from_linear(np.clip(values, 0, None) / 255)


LIGHT = to_light(np.arange(256))


def pixelate_area(pixels, area):
    """Replace the area's blocks by their value, in place, floored as the challenge does it. pixels: (H, W, C) uint8."""
    cells = averaged(pixels[area.box()], area.lines(), area.average)
    cells = cells.round() if area.average == "linear" else np.floor(cells)
    area.put(pixels, spread_between(cells, *area.lines()))


def averaged(values, lines, average):
    """One value for each block between these lines, (rows, columns, C), of pixels, (H, W, C) uint8 or float64.

    average: of AVERAGES; None: as "srgb".
    """
    if average == "center":
        return values[np.ix_(*((edges[:-1] + edges[1:]) // 2 for edges in lines))]
    if average == "linear":
        light = LIGHT[values] if values.dtype == np.uint8 else to_light(values)
        return from_light(means_between(light, *lines))
    return means_between(values, *lines)


# ------------------------------------------------------------------------------------------------ named by the user


def _areas(value):
    numbers = len(value) % 4 == 0 and len(value) and all(type(x) is int and x >= 0 for x in value)
    return None if numbers else "four whole numbers for each area: x, y, width, height"


AREA = key(
    None,
    "x, y, width and height of an area of your photos, in pixels; may be given several times",
    argparse={"nargs": 4, "action": "append"},
    check=_areas,
)


def _block_size(value):
    return None if parse_block_size(value) else "a side in pixels, from 2 on, or two: 8x12"


BLOCK_SIZE = key(
    None, "side of the blocks of --area or --mask, in pixels, or WIDTHxHEIGHT; none: it is measured", check=_block_size
)


def parse_block_size(text):
    """(width, height) of blocks, of "8", "8x12" or "7.5"; None of anything else."""
    try:
        sides = [float(word) for word in text.lower().split("x")]
    except ValueError:
        return None
    fine = len(sides) in (1, 2) and all(2 <= side <= 10**6 for side in sides)
    return (sides[0], sides[-1]) if fine else None


def check_area(area, pixels, path):
    """(x, y, width, height) that lies in the photo. Raises UserError."""
    x, y, width, height = area
    if width < 2 or height < 2:
        raise UserError(f"area: {x} {y} {width} {height} (x, y, width, height) must be 2 pixels a side at least")
    if x < 0 or y < 0 or x + width > pixels.shape[1] or y + height > pixels.shape[0]:
        raise UserError(
            f"area: {x} {y} {width} {height} (x, y, width, height) does not lie in {path}, "
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
        )
    return area


def in_fours(numbers):
    """x, y, width and height of each area of a flat list."""
    return [tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]
