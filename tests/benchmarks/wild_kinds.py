"""Mosaics as people make them, of any shape and on any grid, and what only looks like one: for wild.py.

KINDS: {name: function of (rng, a photo, (H, W, 3) uint8) that returns (picture, truth, mask of the mosaic)}; ODD: the
same of what is to be found, but is not expected to be restored well; MIMICS: {name: function of the same that returns a
picture without one}.
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


def in_a_box(rng, photo):
    """(blocks in a rectangle, its mask, the blocks' side)"""
    x, y, width, height = draw_box(rng, photo.shape[:2])
    mask, side = np.zeros(photo.shape[:2], dtype=bool), draw_side(rng)
    mask[y : y + height, x : x + width] = True
    return all_blocks(photo, side, phases=(x % side, y % side)), mask, side


def rotated(rng, photo):
    angle = float(rng.uniform(5, 40))
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]]
    mask = np.hypot(x - photo.shape[1] / 2, y - photo.shape[0] / 2) < 0.33 * photo.shape[0]
    turned = all_blocks(np.asarray(Image.fromarray(photo).rotate(angle)), draw_side(rng))
    return through(mask, np.asarray(Image.fromarray(turned).rotate(-angle)), photo), photo, mask


def semitransparent(rng, photo):
    blocks, mask, _ = in_a_box(rng, photo)
    mixed = rng.uniform(0.6, 0.9) * (blocks.astype(float) - photo) + photo
    return through(mask, mixed.round().astype(np.uint8), photo), photo, mask


def blurred_before(rng, photo):
    soft = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(3)))
    blocks, mask, _ = in_a_box(rng, soft)
    return through(mask, blocks, photo), photo, mask


def blurred_after(rng, photo):
    blocks, mask, side = in_a_box(rng, photo)
    soft = Image.fromarray(through(mask, blocks, photo)).filter(ImageFilter.GaussianBlur(side / 8))
    return through(mask, np.asarray(soft), photo), photo, mask


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


def heat_map(rng, photo):
    """A chart of measured values, from blue over green to red."""
    side = draw_side(rng)
    field = Image.fromarray(rng.random((5, 6)).astype(np.float32))
    field = field.resize([-(-n // side) for n in photo.shape[1::-1]], Image.Resampling.BICUBIC)
    heat = np.asarray(field) + rng.normal(0, 0.03, field.size[::-1])
    cells = 255 * np.clip(1.5 - np.abs(4 * heat[:, :, None].clip(0, 1) - [3, 2, 1]), 0, 1)
    return enlarged(cells.astype(np.uint8), side, photo.shape)


def lcd(rng, photo):
    """A photo of a screen: each of its pixels has a red, a green and a blue part, and a dark line below."""
    side = int(rng.choice((6, 9)))
    result = all_blocks(photo, side).astype(float)
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]]
    result *= np.where((x % side * 3 // side)[:, :, None] == [0, 1, 2], 1, 0.35)
    result[y % side == side - 1] *= 0.4
    return np.asarray(Image.fromarray(result.astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6)))


def drawn_blocks(rng, photo):
    """Blocks of a game: a few colours, each block a little lighter or darker."""
    side, colours = draw_side(rng) + 3, rng.integers(20, 230, (6, 3))
    rows, columns = (-(-n // side) for n in photo.shape[:2])
    kinds = (np.sin(np.arange(columns) / 5) + np.sin(np.arange(rows) / 4)[:, None] + 2) * 1.49
    cells = colours[kinds.astype(int)] + 9 * rng.integers(-1, 2, (rows, columns, 1))
    return enlarged(cells.clip(0, 255).astype(np.uint8), side, photo.shape)


def enlarged_picture(rng, photo):
    """A small picture, each of whose pixels became 2 x 2 to 4 x 4."""
    side = int(rng.integers(2, 5))
    height, width = (n // side * side for n in photo.shape[:2])
    small = Image.fromarray(photo).resize((width // side, height // side), Image.Resampling.LANCZOS)
    return enlarged(np.asarray(small), side, photo.shape)


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
ODD = {
    "rotated": rotated,
    "semitransparent": semitransparent,
    "blurred before": blurred_before,
    "blurred after": blurred_after,
}
MIMICS = {
    "pixel art": pixel_art,
    "JPEG quality 8 to 18": strong_jpeg,
    "screenshot": screenshot,
    "QR code": qr_code,
    "brick": brick,
    "heat map": heat_map,
    "photo of a screen": lcd,
    "blocks of a game": drawn_blocks,
    "enlarged picture": enlarged_picture,
    "photo": lambda rng, photo: photo,
}
