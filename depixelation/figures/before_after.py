"""The picture of a photo before and after, side by side with captions, without matplotlib."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDEST = 2000  # pixels
CAPTIONS = "before", "after: a guess"
RED = (220, 30, 30)
MARGIN = 0.25  # of the area's sides, around it, in the zoom
ENLARGED = 8  # times, at most, in the zoom


def before_after(before, after, areas):
    """A photo, (H, W, C) uint8, before and after, (h, w, 3) uint8 and at most WIDEST wide, its areas outlined.

    Where it had to be made smaller, a second row shows the first area larger.
    """
    height, width = before.shape[:2]
    gap = min(16, max(2, width // 50))
    cell = (WIDEST - gap) // 2
    rows = [_pair(before, after, areas, min(1, cell / width))]
    if width > cell and areas:
        left, upper, right, lower = _around(areas[0], (width, height))
        largest = min(cell / (right - left), cell / (lower - upper), ENLARGED)
        scale = int(largest) if largest >= 1 else largest  # by whole numbers, so that blocks stay sharp
        rows.append(_pair(*(picture[upper:lower, left:right] for picture in (before, after)), [], scale))
    return np.asarray(_sheet(rows, gap))


def _pair(before, after, areas, scale):
    """Both pictures in another size, the areas outlined in the first one."""
    size = [max(1, int(side * scale)) for side in before.shape[1::-1]]
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    # One after the other: Pillow's copy of a large photo takes four bytes a pixel.
    pair = [Image.fromarray(each if each.shape[2] == 3 else each[:, :, 0]).resize(size, how).convert("RGB")
            for each in (before, after)]
    outlined = np.array(pair[0])
    for area in areas:
        _outline(outlined, area, scale)
    return Image.fromarray(outlined), pair[1]


def _outline(pixels, area, scale):
    """A line around an area, in place, so thin that it hides nothing of it."""
    left, top, right, bottom = (round(n * scale) for n in (area.x, area.y, area.x + area.width, area.y + area.height))
    inside = Image.fromarray(area.inside).resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.NEAREST)
    inside = np.pad(np.asarray(inside), 1)
    grown = inside.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            grown |= np.roll(inside, step, axis)
    rows, columns = np.nonzero(grown & ~inside)
    height, width = pixels.shape[:2]
    pixels[(rows + top - 1).clip(0, height - 1), (columns + left - 1).clip(0, width - 1)] = RED


def _around(area, size):
    """(left, upper, right, lower) of an area and what is around it."""
    starts, sides = (area.x, area.y), (area.width, area.height)
    margin = max(8, int(MARGIN * max(sides)))
    low = [max(0, start - margin) for start in starts]
    high = [min(total, start + side + margin) for total, start, side in zip(size, starts, sides)]
    return (*low, *high)


def _sheet(rows, gap):
    """Pairs of pictures in rows on white, with captions above."""
    cell = max(picture.width for row in rows for picture in row)
    font = ImageFont.load_default(min(28, max(11, cell // 24)))
    ends = [font.getbbox(caption)[2:] for caption in CAPTIONS]
    cell = max(cell, *(width + gap for width, _ in ends))
    strip = max(height for _, height in ends) + 2 * max(2, gap // 2)
    height = strip + sum(row[0].height for row in rows) + gap * (len(rows) - 1)
    sheet = Image.new("RGB", (2 * cell + gap, height), "white")
    pen, top = ImageDraw.Draw(sheet), strip
    for k, caption in enumerate(CAPTIONS):
        pen.text((k * (cell + gap) + (cell - ends[k][0]) // 2, max(2, gap // 2)), caption, "black", font)
    for row in rows:
        for k, picture in enumerate(row):
            sheet.paste(picture, (k * (cell + gap) + (cell - picture.width) // 2, top))
        top += row[0].height + gap
    return sheet
