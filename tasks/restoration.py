"""Restored images of the challenge: from a network's output to uint8 predictions, their errors and pictures."""

import itertools

import numpy as np
import torch
from matplotlib.figure import Figure

from architectures import BlockGrid, interpolate
from datasets import SIZE_RANGE
from tasks.evaluation import plot_images, save_figure

BATCH = 256  # images measured or restored at once; more fill the groups of equal windows better, and take more memory
# Scores of the course's leaderboard of 2023, on other photos of the same set.
LEADERBOARD_2023 = {"IdentityModel": 23.163, "BasicCNN": 17.892, "rank 10": 14.484, "rank 7": 14.309, "rank 5": 13.952}
LEADERBOARD_2023 |= {"rank 3": 13.672, "rank 2": 13.634, "rank 1": 12.649}


def to_inputs(pixelated_images, known_arrays):
    """uint8 and bool, (N, 1, H, W) -> what networks take, (N, 2, H, W) float32: grey values and mask in [0, 1]."""
    return torch.cat([pixelated_images.float() / 255, known_arrays.float()], dim=1)


def mse_per_image(predictions, images, known_arrays):
    """The mean squared error over each image's unknown pixels, (N,); the arguments are those of rmse_per_image."""
    unknown = ~known_arrays  # known True: given; False: to be predicted
    return ((predictions - images) ** 2 * unknown).flatten(1).sum(1) / unknown.flatten(1).sum(1)


def rmse_per_image(predictions, images, known_arrays):
    """The root mean squared error over each image's unknown pixels (known False), (N,), in the units of the images.

    All (N, 1, H, W). The challenge's score is its mean over the images, on uint8 values: give float64 for that.
    """
    return mse_per_image(predictions, images, known_arrays).sqrt()


@torch.inference_mode()
def restore_float(predict, pixelated_images, known_arrays, precision):
    """A network's output, (N, 1, H, W) float32, for (N, 1, H, W) uint8 images and bool masks.

    precision: torch.dtype of the convolutions.
    """
    with torch.autocast(pixelated_images.device.type, precision, enabled=precision != torch.float32):
        return predict(to_inputs(pixelated_images, known_arrays)).float()


def restore(predict, pixelated_images, known_arrays, precision):
    """Predictions as they are submitted: (N, 1, H, W) uint8, clamped and rounded, known pixels unchanged.

    The arguments are those of `restore_float`.
    """
    outputs = restore_float(predict, pixelated_images, known_arrays, precision)
    return torch.where(known_arrays, pixelated_images, (outputs * 255).clamp(0, 255).round().to(torch.uint8))


def plot_losses(rows, loss, path):
    """The run's curve as a PNG: training loss, validation score and reference lines over samples.

    rows: as logged. loss: its kind; of "mse" the root is drawn.
    """
    power = 0.5 if loss == "mse" else 1
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    samples = [row["samples"] for row in rows]
    axes.plot(
        samples,
        [row.get("own_loss", row["train_loss"]) ** power for row in rows],
        "--",
        marker=".",
        color="0.5",
        label="training loss",
    )
    axes.plot(samples, [row["score"] for row in rows], marker="o", color="black", label="validation score")
    for value, style, label in (
        (rows[-1]["identity_score"], "-", "IdentityModel, same images"),
        (LEADERBOARD_2023["BasicCNN"], "-.", "BasicCNN, 2023"),
        (LEADERBOARD_2023["rank 1"], ":", "rank 1, 2023"),
    ):
        axes.axhline(value, linestyle=style, color="0.3", linewidth=1)
        axes.annotate(
            f"{label}: {value:.2f}", (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
        )
    axes.set(xlabel="training samples", ylabel="grey levels (of 255); RMSE on the unknown pixels", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.9))  # below the line of IdentityModel
    save_figure(figure, path)


def plot_samples(pixelated_images, known_arrays, predictions, images, path, note=""):
    """A sheet of restorations as a PNG, a row an image: truth, pixelated, what ResidualUNet starts from, prediction,
    error. All (N, 1, H, W) uint8, known_arrays bool.

    images None: the truth is unknown, and neither it nor the error is shown. note: for the picture's comment.
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
    plot_images(columns, path, captions, note)


def plot_errors(errors, geometry, names, path):
    """Score by block size and by area as a PNG, a line per model. errors: (models, N). geometry: (N, 2), block
    size and area in pixels."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
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
