"""How good predictions are: errors of images, measurements on a dataset, and confidence intervals."""

from typing import NamedTuple

import numpy as np
import torch


class Measurement(NamedTuple):
    """Results of several predictors on a dataset of N samples."""

    figures: dict  # {score: (predictors, N) float64}, for each sample
    seconds: np.ndarray  # (predictors,) of computation
    sample: object  # some samples with the first predictor's output, for plot_samples
    details: np.ndarray | None = None  # data for a task's own tables, per sample or per area
    outputs: list | None = None  # if asked for: pixelated images or None, known arrays, images, each one's predictions


def mae_per_image(predictions, images):
    """The mean absolute error of each image, (N,), in the units of the images. Both (N, C, H, W)."""
    return (predictions - images).abs().flatten(1).mean(1)


def psnr_per_image(predictions, images):
    """The peak signal-to-noise ratio of each image, (N,), in dB: 10 log10(1 / MSE), for images in [0, 1].

    It is capped at 100 dB, an MSE of 1e-10, so that the mean over images stays finite.
    """
    return -10 * ((predictions - images) ** 2).flatten(1).mean(1).clamp(min=1e-10).log10()


def ssim_per_image(predictions, images):
    """The structural similarity of each image (Wang et al. 2004), (N,), as papers on super-resolution define it.

    Gaussian windows of 11x11 pixels, deviation 1.5, inside the image; K 0.01 and 0.03; the mean over windows and
    channels. Both (N, C, H, W) in [0, 1], at least 11 pixels a side.
    """
    window = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).tolist()

    def blur(maps):
        height, width = (length - 10 for length in maps.shape[2:])
        maps = sum(weight * maps[:, :, i : i + height] for i, weight in enumerate(window))
        return sum(weight * maps[:, :, :, i : i + width] for i, weight in enumerate(window))

    x, y = blur(predictions), blur(images)
    xx, yy, xy = (
        blur(a * b) - c
        for a, b, c in ((predictions, predictions, x * x), (images, images, y * y), (predictions, images, x * y))
    )
    similarity = (2 * x * y + 0.01**2) * (2 * xy + 0.03**2) / ((x * x + y * y + 0.01**2) * (xx + yy + 0.03**2))
    return similarity.flatten(1).mean(1)


def confidence_interval(values, groups=None):
    """(low, high): the 95 % bootstrap interval of the mean, from resampling whole groups of values.

    groups: (N,) int, the number of each value's group; values of one photo, or of one folder's photos, are alike.
    None: each value is a group.
    """
    groups = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    rng, n = np.random.default_rng(0), len(counts)
    means = [sums[drawn].sum() / counts[drawn].sum() for drawn in (rng.integers(n, size=n) for _ in range(1000))]
    return tuple(np.percentile(means, [2.5, 97.5]))
