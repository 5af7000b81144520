"""Sheets of images; and the functions that create and save every figure."""

import torch

from depixelation.engine.outputs import sign
from utils import atomic_write


def new_figure(**options):
    """A matplotlib Figure with these keywords."""
    from matplotlib.figure import Figure  # slow to import (half a second): only drawing waits for it

    return Figure(**options)


def save_figure(figure, path, note=""):
    """Save a matplotlib figure atomically: as a JPEG if its name ends in .jpg or .jpeg, else as a PNG.

    note: text to add to the picture's comment.
    """
    text = f"{sign('picture')} {note}".strip()
    options = {"format": "png", "metadata": {"Software": text}}
    if str(path).lower().endswith((".jpg", ".jpeg")):
        options = {"format": "jpeg", "pil_kwargs": {"comment": text}}
    with atomic_write(path) as file:
        figure.savefig(file, dpi=100, **options)


def sheet_rows(columns, captions=None):
    """The rows of `plot_sheet`, one per sample.

    columns: {title: (N, C, H, W) tensor of 0 to 255, C 1 or 3}. captions: {title: N texts below the images}.
    """
    captions, count = captions or {}, len(next(iter(columns.values())))
    return [
        [
            (images[i].permute(1, 2, 0).squeeze(2), title * (i == 0), captions[title][i] if title in captions else "")
            for title, images in columns.items()
        ]
        for i in range(count)
    ]


def grid_rows(images, titles, columns=6):
    """The rows of `plot_sheet` for grey images, (H, W) in [0, 255], with a title each."""
    cells = [(image, title, "") for image, title in zip(images, titles)]
    return [cells[i : i + columns] for i in range(0, len(cells), columns)]


def plot_sheet(rows, path, note="", heading=""):
    """Draw a sheet of images. rows: lists of (image, text above it, text below it).

    Images: (H, W) or (H, W, 3), arrays or tensors of 0 to 255. note: see save_figure. heading: a line above all. All
    share one Axes, because creating one for each would take most of the time.
    """
    side, gap, line = 2.1, 0.1, 0.16  # inches
    texts = [[max(cell[k].count("\n") + 1 if cell[k] else 0 for cell in row) for k in (1, 2)] for row in rows]
    width = max(map(len, rows)) * (side + gap) + gap
    top = gap + 2 * line * bool(heading)
    tall = [max(side * cell[0].shape[0] / max(cell[0].shape[:2]) for cell in row) for row in rows]  # of wide images
    height = sum(tall) + sum(gap + line * (above + below) for above, below in texts) + top
    figure = new_figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(gap, gap, heading, ha="left", va="top", fontsize=10)
    y = top
    for row, (above, below), extent_y in zip(rows, texts, tall):
        y += line * above
        for k, (image, title, caption) in enumerate(row):
            image = image.numpy() if isinstance(image, torch.Tensor) else image
            x, extent = gap + k * (side + gap), side / max(image.shape[:2])
            right, bottom = x + extent * image.shape[1], y + extent * image.shape[0]
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(x, right, bottom, y))
            axes.text(x + side / 2, y - 0.03, title, ha="center", va="bottom", fontsize=8)
            axes.text(x + side / 2, y + extent_y + 0.03, caption, ha="center", va="top", fontsize=8)
        y += extent_y + gap + line * below
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    save_figure(figure, path, note)
