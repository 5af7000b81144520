"""Measures how real restored rectangles look, apart from their error, without downloaded networks."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from architectures import BlockGrid
from datasets import SIZE_RANGE

BINS = 15  # of spatial frequency, up to half a cycle a pixel
SPECTRUM = 32  # pixels a side of the Fourier transform; smaller rectangles are padded
STEPS, BATCH, RATE = 250, 64, 4e-3  # of the classifier's training


class Realism(NamedTuple):
    """Measures of one model's restorations. The truth has accuracy 0.5, spectrum 0, gradient 1, violation 0."""

    accuracy: float  # of a classifier that tells restored from true rectangles, on images it has not seen
    low: float  # its 95 % interval (Wilson 1927)
    high: float
    spectrum: float  # mean distance of the power spectra over frequencies, in dB
    gradient: float  # mean gradient inside the rectangles, as a share of the truth's
    violation: float  # largest distance of a block's mean from the range its pixelated value allows, in grey levels


def measure_realism(pixelated_images, known_arrays, predictions, images, seed=0, steps=None):
    """The Realism of predictions. All (N, 1, H, W) uint8, known_arrays bool.

    pixelated_images: None for images without blocks; the violation is NaN then.
    """
    unknown = ~known_arrays
    accuracy, low, high = two_sample_accuracy(predictions, images, unknown, seed, steps)
    ours, true = (gradients(values.float(), unknown) for values in (predictions, images))
    return Realism(
        accuracy,
        low,
        high,
        spectrum_distance(predictions, images, unknown),
        ours / true if true else 1.0,
        float("nan") if pixelated_images is None else block_violation(pixelated_images, predictions, unknown),
    )


def print_realism(names, pixelated_images, known_arrays, images, *predictions):
    """A table of the Realism of several models' predictions."""
    width = max(map(len, names))
    print(
        "\nHow real rectangles look. Classifier: how often it tells restored from true rectangles; 50 % is guessing."
    )
    blocks = "" if pixelated_images is None else "  block means off by"
    print(f"{'':{width}} classifier   95 % interval  spectrum, dB off  gradient{blocks}")
    for name, restored in zip(names, predictions):
        found = measure_realism(pixelated_images, known_arrays, restored, images)
        print(
            f"{name:{width}} {found.accuracy:10.1%}  {found.low:6.1%} to {found.high:6.1%} {found.spectrum:16.2f} "
            f"{found.gradient:9.3f}" + f" {found.violation:19.2f}" * bool(blocks)
        )


# ------------------------------------------------------------------------------------------------ the classifier


class Judge(nn.Module):
    """Judges whether a rectangle is restored: (N, 1, H, W) grey values and their mask -> (N,) logits."""

    def __init__(self, channels=(24, 48, 64), strides=(2, 2, 1)):
        super().__init__()
        widths = (4, *channels)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, s, 1) for a, b, s in zip(widths, channels, strides))
        self.last = nn.Linear(channels[-1], 1)

    def forward(self, images, unknown):
        across, down = F.pad(images.diff(dim=3), (0, 1)), F.pad(images.diff(dim=2), (0, 0, 0, 1))
        maps, inside = torch.cat([images, 4 * across.abs(), 4 * down.abs(), unknown], 1), unknown
        for layer in self.layers:
            maps = F.relu(layer(maps))
        inside = F.adaptive_avg_pool2d(inside, maps.shape[2:])
        pooled = (maps * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1e-6)
        return self.last(pooled)[:, 0]


def two_sample_accuracy(predictions, images, unknown, seed=0, steps=None):
    """(accuracy, low, high) of a fresh classifier that tells predictions from images, (N, 1, H, W) uint8.

    It is trained on the first half of the images and measured on the second (Lopez-Paz and Oquab 2017).
    """
    half, steps = len(images) // 2, steps or STEPS
    values = [((t.float() - 128) / 64) for t in (predictions, images)]
    masks = unknown.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge().to(images.device)
        optimizer = torch.optim.Adam(judge.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randperm(half)[:BATCH]
            logits = [judge(t[chosen], masks[chosen]) for t in values]  # the same images, restored and true
            loss = F.softplus(-logits[0]).mean() + F.softplus(logits[1]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        right = [
            (judge(t[half:][i : i + 256], masks[half:][i : i + 256]) > 0) == (k == 0)
            for k, t in enumerate(values)
            for i in range(0, len(images) - half, 256)
        ]
    right = torch.cat(right)
    return (right.float().mean().item(), *wilson_interval(int(right.sum()), len(right)))


def wilson_interval(successes, trials, z=1.96):
    """(low, high): the 95 % interval of a share (Wilson 1927)."""
    share, weight = successes / trials, z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    reach = z / (1 + weight) * np.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return middle - reach, middle + reach


# ------------------------------------------------------------------------------------------------ the other measures


def gradients(images, unknown):
    """The mean length of the gradient inside the rectangles, from differences to the right and below."""
    across, down = images.diff(dim=3)[:, :, :-1], images.diff(dim=2)[:, :, :, :-1]
    inside = unknown[:, :, :-1, :-1] & unknown[:, :, 1:, :-1] & unknown[:, :, :-1, 1:]
    return ((across**2 + down**2).sqrt() * inside).sum().item() / max(1, int(inside.sum()))


def power_spectrum(images, unknown):
    """The azimuthal mean of the power inside the rectangles, (BINS,) float64, in order of frequency.

    Each rectangle gives its middle, at most SPECTRUM pixels a side, minus its mean, under a Hann window.
    """
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(SPECTRUM), np.fft.fftfreq(SPECTRUM)))
    bins = np.ceil(frequencies * 2 * BINS).astype(int)
    total = np.zeros((SPECTRUM, SPECTRUM))
    for image, hidden in zip(images[:, 0].double().numpy(), unknown[:, 0].numpy()):
        ends = [np.flatnonzero(hidden.any(axis=axis))[[0, -1]] for axis in (1, 0)]
        starts = [max(a, (a + b + 1 - SPECTRUM) // 2) for a, b in ends]
        area = image[tuple(slice(s, min(b + 1, s + SPECTRUM)) for s, (_, b) in zip(starts, ends))]
        window = np.outer(*(np.hanning(n + 2)[1:-1] for n in area.shape))
        total += np.abs(np.fft.fft2((area - area.mean()) * window, (SPECTRUM, SPECTRUM))) ** 2 / (window**2).sum()
    return np.array([total[bins == i].mean() for i in range(1, BINS + 1)]) / len(images)


def spectrum_distance(predictions, images, unknown):
    """The mean absolute difference between the power of predictions and of images, over frequencies, in dB."""
    ours, true = (power_spectrum(values, unknown) for values in (predictions, images))
    return float(np.abs(10 * np.log10((ours + 1e-3) / (true + 1e-3))).mean())


def block_violation(pixelated_images, predictions, unknown):
    """The largest distance of a block's mean in predictions from [value, value + 1), which its flooring allows.

    In grey levels. Rounding alone can cost half of one.
    """
    grid = BlockGrid(pixelated_images.float(), unknown, range(SIZE_RANGE[0], SIZE_RANGE[1] + 1))
    means, values = grid.means(predictions.float()), pixelated_images.float()
    below, above = values - means, means - values - 1
    return float((torch.maximum(below, above).clamp(min=0) * unknown).max())
