"""Photos with their pixelated areas drawn into them."""

import numpy as np
from PIL import Image, ImageDraw

RED, YELLOW = (255, 0, 0), (255, 255, 0)


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
    image = pixels.repeat(3 // pixels.shape[2], axis=2)
    for area in areas:
        rows, columns = area.lines()
        inside, grid = area.inside, np.zeros((area.height, area.width), dtype=bool)
        grid[rows[1:-1]] = grid[:, columns[1:-1]] = True
        middle = inside
        for _ in range(max(1, min(image.shape[:2]) // 300)):
            wider = np.pad(middle, 1)
            middle = middle & wider[:-2, 1:-1] & wider[2:, 1:-1] & wider[1:-1, :-2] & wider[1:-1, 2:]
        image[area.box()][grid & inside] = YELLOW
        image[area.box()][inside & ~middle] = RED
    return image


def white_areas(pixels, areas):
    """(H, W, 1) uint8: white where a photo's areas are, black elsewhere, as --mask takes it."""
    mask = np.zeros((*pixels.shape[:2], 1), dtype=np.uint8)
    for area in areas:
        mask[area.box()][area.inside] = 255
    return mask
