"""Figures of restored images: sheets, the error by block size and area, error against realism, possible originals."""

import itertools

import numpy as np
import torch

from architectures import BlockGrid, interpolate
from datasets import SIZE_RANGE
from depixelation.engine.realism import two_sample_accuracy
from depixelation.engine.restoration import restore, rmse_per_image
from depixelation.figures.sheets import new_figure, save_figure, sheet_rows

SHARES = 0, 0.25, 0.5, 0.75, 1  # of realism
SPREAD = 4  # factor by which maps brighten the deviation of possible originals


def restoration_sheet(pixelated_images, known_arrays, predictions, images=None):
    """Restorations, one row per image: truth, pixelated, interpolation, prediction, error.

    All (N, 1, H, W) uint8, known_arrays bool. images: None if the truth is unknown; it and the error are left out then.
    Returns the rows of sheets.plot_sheet.
    """
    grid = BlockGrid(pixelated_images / 255, ~known_arrays, range(SIZE_RANGE[0], SIZE_RANGE[1] + 1))
    start = interpolate(pixelated_images / 255, grid.expected_means(pixelated_images / 255), grid) * 255
    columns, captions = {"pixelated": pixelated_images, "interpolation": start, "prediction": predictions}, {}
    if images is not None:
        off = 4 * (predictions.int() - images.int()).abs()
        title = "error, black 0, white 64 or more"
        columns = {"truth": images, **columns, title: off.clamp(0, 255)}
        errors = rmse_per_image(predictions.double(), images.double(), known_arrays)
        captions[title] = [f"RMSE {error:.1f} grey levels" for error in errors]
    return sheet_rows(columns, captions)


def possible_sheet(blend, pixelated_images, known_arrays, images, count):
    """Possible originals, one row per image: truth (if known), pixelated, R = 0, 0.5, 1, `count` possible originals,
    and their deviation.

    blend: a RealismBlend. All (N, 1, H, W) uint8, known_arrays bool. Returns the rows of sheets.plot_sheet.
    """
    columns = {"truth": images, "pixelated": pixelated_images}
    for realism in (0, 0.5, 1):
        columns[f"R = {realism:g}"] = restore(blend.at(realism), pixelated_images, known_arrays)
    samples = blend.samples(count if blend.draws else 0)
    possible = [restore(sample, pixelated_images, known_arrays) for sample in samples]
    columns |= {f"possible {i + 1}": values for i, values in enumerate(possible)}
    if possible:
        spread = torch.stack(possible).float().std(dim=0, correction=0)
        columns[f"{SPREAD} times their deviation"] = (SPREAD * spread).clamp(max=255)
    return sheet_rows({title: values for title, values in columns.items() if values is not None})


def plot_errors(errors, geometry, names, path):
    """Plot scores by block size and by area as a PNG, a line per model. errors: (models, N). geometry: (N, 2), block
    size and area in pixels."""
    figure = new_figure(figsize=(10, 4.5), layout="constrained")
    areas = [16, 64, 128, 192, 256, 384, 512, 640, 768, 1025, 1600, 2304, 3200, 10000]  # the challenge's are below 1025
    panels = (
        ("block size in pixels", geometry[:, 0], np.arange(4, 18)),
        ("area of the rectangle in pixels", geometry[:, 1], areas),
    )
    for axes, (label, column, edges) in zip(figure.subplots(1, 2, sharey=True), panels):
        members = [(low <= column) & (column < high) for low, high in itertools.pairwise(edges)]
        members = [member for member in members if member.any()]
        x = [column[member].mean() for member in members]
        for i, (name, row) in enumerate(zip(names, errors)):
            y = [row[member].mean() for member in members]
            color = str(0.6 * i / len(names))
            axes.plot(x, y, "--" if i % 2 else "-", marker="osv^Dx"[i % 6], color=color, label=name)
        axes.set(xlabel=label)
        axes.grid(color="0.9")
    figure.axes[0].set(ylabel="RMSE on the unknown pixels, grey levels")
    figure.axes[1].legend(fontsize=8)
    save_figure(figure, path)


def plot_tradeoff(start, ends, images, known_arrays, path):
    """Plot error against realism, along straight lines from one model's predictions to those of others.

    start: (name, predictions). ends: a list of such pairs. predictions and images: (N, 1, H, W) uint8.
    """
    figure = new_figure(figsize=(7, 5), layout="constrained")
    axes, unknown = figure.add_subplot(), ~known_arrays
    for i, (name, end) in enumerate(ends):
        points = []
        for share in SHARES:
            mixed = torch.lerp(start[1].float(), end.float(), share).round().to(torch.uint8)
            error = rmse_per_image(mixed.double(), images.double(), known_arrays).mean().item()
            points.append((error, 100 * two_sample_accuracy(mixed, images, unknown)[0]))
        axes.plot(
            *zip(*points), "--" if i % 2 else "-", marker="os^vD"[i % 5], color=str(0.6 * i / len(ends)), label=name
        )
        for share, point in zip(SHARES, points):
            axes.annotate(f" R = {share:g}", point, fontsize=8)
    axes.axhline(50, color="0.3", linewidth=1)
    axes.annotate("cannot be told from the truth", (1, 50), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes.set(
        xlabel=f"RMSE on the unknown pixels, grey levels; R = 0: {start[0]}", ylabel="classifier is right, per cent"
    )
    axes.legend()
    save_figure(figure, path)
