"""Mosaics as people make them, of any shape and on any grid, and what only looks like one: for wild.py.

KINDS: {name: function of (rng, a photo, (H, W, 3) uint8) that returns (picture, truth, mask of the mosaic)}; MIMICS:
{name: function of the same that returns a picture without one}.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from datasets import spread_between
from depixelation.mosaics.area import Area, grid_lines, pixelate_area
from depixelation.mosaics.making import compress

SIDES = (5, 8, 11, 15, 20)  # of blocks, in pixels


def all_blocks(pixels, width, height=None, phases=(0, 0)):
    """The whole picture in blocks."""
    result, (rows, columns) = pixels.copy(), pixels.shape[:2]
    grid = float(width), float(height or width), *map(float, phases)
    pixelate_area(result, Area(0, 0, columns, rows, *grid, "srgb"))
    return result


def through(mask, blocks, pixels):
    return np.where(mask[:, :, None], blocks, pixels)


def draw_side(rng):
    return int(rng.choice(SIDES))


def draw_ellipse(rng, shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    a, b = (rng.uniform(0.2, 0.35) * length for length in shape[::-1])
    middle = [rng.uniform(half + 4, length - half - 4) for half, length in zip((a, b), shape[::-1])]
    return ((x - middle[0]) / a) ** 2 + ((y - middle[1]) / b) ** 2 <= 1


def draw_box(rng, shape, share=(0.3, 0.6)):
    """(x, y, width, height)"""
    width, height = (int(rng.uniform(*share) * length) for length in shape[::-1])
    return int(rng.integers(2, shape[1] - width - 1)), int(rng.integers(2, shape[0] - height - 1)), width, height


def ellipse(rng, photo):
    mask = draw_ellipse(rng, photo.shape[:2])
    return through(mask, all_blocks(photo, draw_side(rng)), photo), photo, mask


def brush(rng, photo):
    side, (height, width) = draw_side(rng), photo.shape[:2]
    stroke = Image.new("L", (width, height))
    points = [(rng.uniform(30, width - 30), rng.uniform(30, height - 30)) for _ in range(4)]
    pen, radius = ImageDraw.Draw(stroke), max(14, 1.6 * side)
    for first, second in zip(points, points[1:]):
        for share in np.linspace(0, 1, 60):
            x, y = ((1 - share) * a + share * b for a, b in zip(first, second))
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    mask = np.asarray(stroke) > 127
    return through(mask, all_blocks(photo, side), photo), photo, mask


def fractional(rng, photo):
    """A region resized down and up again, nearest."""
    x, y, width, height = draw_box(rng, photo.shape[:2])
    region, side = (slice(y, y + height), slice(x, x + width)), draw_side(rng)
    result, mask = photo.copy(), np.zeros(photo.shape[:2], dtype=bool)
    small = Image.fromarray(photo[region]).resize((max(3, width // side), max(3, height // side)), Image.Resampling.BOX)
    result[region] = np.asarray(small.resize((width, height), Image.Resampling.NEAREST))
    mask[region] = True
    return result, photo, mask


def whole(rng, photo):
    return all_blocks(photo, draw_side(rng)), photo, np.ones(photo.shape[:2], dtype=bool)


def overlay(rng, photo):
    """A line and a caption over a rectangle of blocks."""
    x, y, width, height = draw_box(rng, photo.shape[:2], (0.4, 0.6))
    mask = np.zeros(photo.shape[:2], dtype=bool)
    mask[y : y + height, x : x + width] = True
    drawn = Image.new("RGBA", photo.shape[1::-1])
    pen = ImageDraw.Draw(drawn)
    pen.fontmode = "1"
    pen.line((0, y + 10, photo.shape[1], y + height - 10), (255, 230, 0, 255), 3)
    pen.text((x + 10, y + 8), "a caption", (255, 255, 255, 255))
    drawn = np.asarray(drawn)
    over = drawn[:, :, 3] > 0
    phases, side = (x, y), draw_side(rng)
    blocks = through(mask, all_blocks(photo, side, phases=[n % side for n in phases]), photo)
    return through(over, drawn[:, :, :3], blocks), through(over, drawn[:, :, :3], photo), mask & ~over


def not_square(rng, photo):
    side, mask = draw_side(rng), np.zeros(photo.shape[:2], dtype=bool)
    x, y, *_ = draw_box(rng, photo.shape[:2], (0.55, 0.6))
    sides = (side, round(1.6 * side))[:: rng.choice((-1, 1))]
    counts = [int(0.5 * length // n) for n, length in zip(sides, photo.shape[1::-1])]
    mask[y : y + sides[1] * counts[1], x : x + sides[0] * counts[0]] = True
    return through(mask, all_blocks(photo, *sides, (x % sides[0], y % sides[1])), photo), photo, mask


def feathered(rng, photo):
    mask = draw_ellipse(rng, photo.shape[:2])
    share = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(4))
    share = np.asarray(share)[:, :, None] / 255
    mixed = share * all_blocks(photo, draw_side(rng)) + (1 - share) * photo
    return mixed.round().astype(np.uint8), photo, share[:, :, 0] > 0.5


def corner(rng, photo):
    """Each block is its corner pixel."""
    x, y, width, height = draw_box(rng, photo.shape[:2])
    region, side = (slice(y, y + height), slice(x, x + width)), draw_side(rng)
    lines = grid_lines(height, side, 0), grid_lines(width, side, 0)
    result, mask = photo.copy(), np.zeros(photo.shape[:2], dtype=bool)
    result[region] = spread_between(photo[region][np.ix_(lines[0][:-1], lines[1][:-1])], *lines)
    mask[region] = True
    return result, photo, mask


def enlarged(cells, side, shape):
    return cells.repeat(side, axis=0).repeat(side, axis=1)[: shape[0], : shape[1]]


def pixel_art(rng, photo):
    side = draw_side(rng)
    small = Image.fromarray(photo).resize([-(-n // side) for n in photo.shape[1::-1]])
    small = small.quantize(int(rng.integers(6, 25))).convert("RGB")
    return enlarged(np.asarray(small), side, photo.shape)


def strong_jpeg(rng, photo):
    return compress(photo, int(rng.integers(8, 19)), int(rng.choice((0, 2))))


def screenshot(rng, photo):
    image = Image.new("RGB", photo.shape[1::-1], (238, 240, 243))
    pen = ImageDraw.Draw(image)
    for top in range(0, photo.shape[0], 40):
        colour = tuple(rng.integers(150, 256, 3).tolist())
        pen.rectangle((8, top + 6, photo.shape[1] - 9, top + 36), colour, (90, 90, 90))
        pen.text((14, top + 14), "".join(map(chr, rng.integers(65, 123, 30))), (20, 20, 20))
    return np.asarray(image)


def qr_code(rng, photo):
    side = draw_side(rng)
    cells = np.where(rng.random([-(-n // side) for n in photo.shape[:2]]) < 0.5, 0, 255).astype(np.uint8)
    return enlarged(np.repeat(cells[:, :, None], 3, axis=2), side, photo.shape)


def brick(rng, photo):
    side, (height, width) = draw_side(rng) + 6, photo.shape[:2]
    y, x = np.mgrid[:height, :width]
    row = y // side
    column = (x + row % 2 * side) // (2 * side)
    tones = rng.normal(0, 12, (height, width // side + 3))
    wall = np.array([150, 80, 60]) + tones[row, column][:, :, None] + rng.normal(0, 4, (height, width, 1))
    joint = (y % side < 2) | ((x + row % 2 * side) % (2 * side) < 2)
    return np.where(joint[:, :, None], 190, wall).clip(0, 255).astype(np.uint8)


KINDS = {
    "ellipse": ellipse,
    "brush stroke": brush,
    "fractional blocks": fractional,
    "whole picture": whole,
    "line and caption over": overlay,
    "not square": not_square,
    "feathered ellipse": feathered,
    "corner pixel": corner,
}
MIMICS = {
    "pixel art": pixel_art,
    "JPEG quality 8 to 18": strong_jpeg,
    "screenshot": screenshot,
    "QR code": qr_code,
    "brick": brick,
}
