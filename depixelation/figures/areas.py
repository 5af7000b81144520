"""Photos with their pixelated areas drawn into them."""

import numpy as np
from PIL import Image, ImageDraw


def outline_areas(pixels, truth, areas):
    """The photo, (H, W, 3) uint8, with the true areas in white and the found ones in black."""
    image = Image.fromarray(pixels).convert("RGB")
    pen, width = ImageDraw.Draw(image), max(2, min(image.size) // 150)
    for each, colour in [(area, "white") for area in truth] + [(area, "black") for area in areas]:
        inset = width * (colour == "black")  # so that both can be seen where they agree
        box = (each.x + inset, each.y + inset, each.x + each.width - 1 - inset, each.y + each.height - 1 - inset)
        if box[0] < box[2] and box[1] < box[3]:
            pen.rectangle(box, None, colour, width)
    return np.asarray(image)


def mark_areas(pixels, areas):
    """The photo in RGB with the areas' edges in red and their grids in yellow."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).convert("RGB")
    pen = ImageDraw.Draw(image)
    for area in areas:
        rows, columns = area.lines()
        right, bottom = area.x + area.width - 1, area.y + area.height - 1
        for line in columns[1:-1].tolist():
            pen.line((area.x + line, area.y, area.x + line, bottom), "yellow")
        for line in rows[1:-1].tolist():
            pen.line((area.x, area.y + line, right, area.y + line), "yellow")
        pen.rectangle((area.x, area.y, right, bottom), None, "red", max(1, min(image.size) // 300))
    return np.asarray(image)
