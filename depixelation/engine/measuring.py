"""How good predictions are: errors of images, what is measured on a dataset, and how sure a mean is."""

from typing import NamedTuple

import numpy as np
import torch


class Measurement(NamedTuple):
    """What several predictors reach on a dataset of N samples."""

    figures: dict  # {score: (predictors, N) float64}, for each sample
    seconds: np.ndarray  # (predictors,) that each took
    sample: object  # some samples with the first predictor's output, for plot_samples
    details: np.ndarray | None = None  # what a task's own tables need, of each sample or each of its areas
    outputs: list | None = None  # if asked for: pixelated images or None, known arrays, images, predictions of each


def mae_per_image(predictions, images):
    """The mean absolute error of each image, (N,), in the units of the images. Both (N, C, H, W)."""
    return (predictions - images).abs().flatten(1).mean(1)


def psnr_per_image(predictions, images):
    """The peak signal-to-noise ratio of each image, (N,), in dB: 10 log10(1 / MSE), for images in [0, 1].

    It ends at 100 dB, an MSE of 1e-10, so that the mean over images stays finite.
    """
    return -10 * ((predictions - images) ** 2).flatten(1).mean(1).clamp(min=1e-10).log10()


def ssim_per_image(predictions, images):
    """The structural similarity of each image (Wang et al. 2004), (N,), as papers on super-resolution mean it.

    Gaussian windows of 11x11 pixels, deviation 1.5, that lie in the image; K 0.01 and 0.03; the mean over windows and
    channels. Both (N, C, H, W) in [0, 1], of 11 pixels a side at least.
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
    """(low, high): 95 % of the means of as many groups' values, drawn with replacement (bootstrap), lie between them.

    groups: (N,) int, the number of each value's group, as values of one photo, or of photos of one folder, are alike;
    none: each has its own.
    """
    groups = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    rng, n = np.random.default_rng(0), len(counts)
    means = [sums[drawn].sum() / counts[drawn].sum() for drawn in (rng.integers(n, size=n) for _ in range(1000))]
    return tuple(np.percentile(means, [2.5, 97.5]))
