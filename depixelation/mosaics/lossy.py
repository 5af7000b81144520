"""Areas of any shape in lossy files, such as JPEGs, whose blocks are not quite constant."""

from dataclasses import replace

import numpy as np
from PIL import Image

from datasets import means_between, spread_between
from depixelation.mosaics.area import CELL, INNER, Area, bands
from depixelation.mosaics.grid_fit import changes_along, fit_grid
from depixelation.mosaics.regions import as_mask, find_regions
from depixelation.mosaics.shapes import COLOURS, has_jpeg_lines

ROUGH, TIMES = 6.0, 4.0  # a block is rough if it deviates by more grey levels, and more times the median deviation
UNEVEN, MORE = 3.0, 2.0  # the same limits where the network sees no mosaic
LIKELY = 0.4  # below this chance the network sees no mosaic
UNSTEADY = 8.0  # grey levels; if blocks usually deviate more, roughness says nothing
LEAST, MOST = 0.08, 0.6  # an area is cut if this share of its blocks is rough and at its ends,
CORNERS = 3  # with so many of its four corners, which a round mosaic leaves out
CLEAR = 0.5  # share of a shape's pixels that its grid must explain
BLOCKS = 2  # an area has at least so many blocks a side
UNCLEAR = 0.95  # share of an area's pixels that its grid must explain where a photo has the lines of strong JPEG
LIKE_PALETTE = 0.1  # blocks that differ from a palette's colours by less, in mean steps between blocks, are drawn
LOOKED_AT = 2048  # pixels a side of the corner of a large area that tells whether it is drawn
HALF = 0.45  # a block belongs to a shape that covers this share of it


def explained(pixels, area):
    """How many pixels of an Area its grid explains.

    It is the area's size times 1 - a / b. Within blocks, pixels vary by a on the grid, and by b on the grid moved by
    half a block.
    """
    moved = replace(
        area,
        phase_x=(area.phase_x + area.block_width / 2) % area.block_width,
        phase_y=(area.phase_y + area.block_height / 2) % area.block_height,
    )
    off = [_variance_in_blocks(pixels[area.box()], grid.lines(), area.inside) for grid in (area, moved)]
    return area.size * max(0.0, 1 - off[0] / max(off[1], 1e-9))


def _variance_in_blocks(values, lines, inside):
    """The mean square of what differs from the means of blocks, of (H, W, C) uint8 in a mask."""
    (rows, columns), total = lines, 0.0
    for a, b in bands(rows, columns[-1], sums=True):
        place = slice(rows[a], rows[b])
        edges = rows[a : b + 1] - rows[a], columns
        off = spread_between(means_between(values[place], *edges), *edges)
        np.square(np.subtract(values[place], off, out=off), out=off)
        total += off[inside[place]].sum()
    return total / (np.count_nonzero(inside) * values.shape[2])


def trimmed(pixels, area, chance):
    """The area without the rough blocks at its ends, which do not follow its grid; all of it where that is not clear.

    chance: (h, w), the network's probability that each of the photo's squares of CELL pixels is pixelated.
    """
    lines = rows, columns = area.lines()
    if area.mask is not None or min(len(rows), len(columns)) < 4:
        return area
    far = area.x + area.width == pixels.shape[1], area.y + area.height == pixels.shape[0]
    if sum((area.x == 0, area.y == 0, *far)) >= 3:  # all of a picture, or half of it
        return area
    rough, chances = [], []
    for a, b in bands(rows, area.width):
        edges = rows[a : b + 1] - rows[a], columns
        values = pixels[area.box()][rows[a] : rows[b]].astype(np.float64).mean(axis=2)
        rough.append(np.sqrt(_inner_moments(values, edges)[1]))
        y, x = np.arange(rows[a], rows[b]) + area.y, np.arange(area.width) + area.x
        chances.append(means_between(chance[np.ix_(y // CELL, x // CELL)], *edges))
    rough = np.concatenate(rough)
    usual = np.median(rough)
    if usual > UNSTEADY:
        return area
    if explained(pixels, area) < CLEAR * area.size:  # the grid is not right
        return area
    unlikely = np.concatenate(chances) < LIKELY
    rough = rough > np.where(unlikely, max(UNEVEN, MORE * usual), max(ROUGH, TIMES * usual))
    # Where the network sees no mosaic along a whole side, its blocks are hardly visible rather than absent.
    if not any(side.all() for side in (unlikely[0], unlikely[-1], unlikely[:, 0], unlikely[:, -1])):
        rough |= unlikely
    ends = np.zeros(rough.shape, dtype=bool)
    edge = np.ones(rough.shape, dtype=bool)
    edge[1:-1, 1:-1] = False
    for region in find_regions(rough):
        member = as_mask(region, rough.shape)
        if (member & edge).any():
            ends |= member
    if not LEAST <= ends.mean() <= MOST or ends[[0, 0, -1, -1], [0, -1, 0, -1]].sum() < CORNERS:
        return area
    return replace(area, mask=~spread_between(ends, *lines))


def is_no_mosaic(pixels, area):
    """Whether what a network takes for an area is drawn, of few colours, as pixel art in a JPEG; or holds the blocks of
    strong JPEG compression; or hardly a block."""
    if min(area.width / area.block_width, area.height / area.block_height) < BLOCKS:
        return True
    part = area.cropped(0, 0, min(area.width, LOOKED_AT), min(area.height, LOOKED_AT))
    if has_palette(_inner_moments(pixels[part.box()].astype(np.float64), part.lines())[0]):
        return True
    return explained(pixels, area) < UNCLEAR * area.size and has_jpeg_lines(pixels, area)


def has_palette(cells):
    """Whether blocks, (rows, columns, C), have few colours: if only so many are allowed, they differ from these by far
    less than from each other."""
    colours = min(COLOURS, cells[..., 0].size // 8)
    if colours < 8:
        return False
    image = Image.fromarray(cells.round().astype(np.uint8).repeat(3 // cells.shape[2], axis=2))
    reduced = np.asarray(image.quantize(colours, Image.Quantize.MEDIANCUT, 3).convert("RGB"))
    steps = np.concatenate([np.abs(np.diff(cells, axis=axis)).max(axis=2).ravel() for axis in (0, 1)])
    return np.sqrt(np.mean((reduced - cells) ** 2)) < LIKE_PALETTE * steps.mean()


def _inner_moments(values, lines):
    """The mean and the variance within the middle of each block, (rows, columns, ...), of (H, W, ...) values."""
    used, edges = [], []
    for each in lines:
        margins = np.floor(np.diff(each) * (1 - INNER) / 2).astype(np.int64)
        used.append(np.concatenate([np.arange(a, b) for a, b in zip(each[:-1] + margins, each[1:] - margins)]))
        edges.append(np.concatenate([[0], np.cumsum(np.diff(each) - 2 * margins)]))
    inner = values[np.ix_(*used)]
    means = means_between(inner, *edges)
    return means, (means_between(inner**2, *edges) - means**2).clip(0)


def shape_of(pixels, luma, cells, guess):
    """Fit an Area of any shape to the cells of CELL pixels, (h, w) bool, that the network sees. None if no grid fits.

    guess: the approximate (width, height) of its blocks.
    """
    y, x = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
    top, bottom, left, right = (int(n) * CELL for n in (y[0], y[-1] + 1, x[0], x[-1] + 1))
    mask = cells[y[0] : y[-1] + 1, x[0] : x[-1] + 1].repeat(CELL, axis=0).repeat(CELL, axis=1)
    inside = luma[top:bottom, left:right]
    mask, fits = mask[: inside.shape[0], : inside.shape[1]], []
    for axis, about in zip((1, 0), guess):
        change, count = changes_along(inside, axis, mask)
        profile = change / np.maximum(count, 1) * np.sqrt(count / max(1, count.max()))
        fits.append(fit_grid(profile, about) if len(profile) > 4 else None)
    if not all(fits):
        return None
    (width, phase_x, _), (height, phase_y, _) = fits
    area = Area(left, top, inside.shape[1], inside.shape[0], width, height, phase_x, phase_y)
    blocks = means_between(mask, *area.lines()) >= HALF
    if not blocks.any():
        return None
    area = replace(area, mask=spread_between(blocks, *area.lines()))
    share = explained(pixels, area) / area.size
    return replace(area, confidence=share) if share >= CLEAR else None
