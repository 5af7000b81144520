"""--task denoising --predict: pictures of any size without their noise."""

import itertools
import re
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from datasets import NOISE
from depixelation.commands import Command
from depixelation.commands.each_photo import for_each_photo
from depixelation.engine.enlarging import fill_transparent
from depixelation.engine.models import load_models
from depixelation.engine.options import ModelOptions
from depixelation.images.photo_files import photo_jobs, read_photo, save_photo
from depixelation.tasks.denoising import DenoisingConfig
from utils import display_path, inherited, key

RESULT = re.compile(r"(?P<base>.+)_denoised\.png$")
TILE = 256  # pixels a side that are denoised at once
BORDER = 64  # more pixels on each side, farther than the shipped networks see; a multiple of 4, as U-Nets halve twice
DEVIATIONS = {"uniform": 12**-0.5, "gaussian": 1.0}  # of the noise at level 1
CONTRAST = 5  # weaker noise is amplified at most so many times; networks fail beyond
CENTER = 2048  # pixels a side of the part in which noise is measured


@dataclass(frozen=True)
class DenoiseOptions(ModelOptions):
    """The options of --predict for noisy pictures."""

    noise: str | None = key(
        None,
        "the noise in the pictures; none: its strength is measured and brightness stays as it is",
        choices=tuple(NOISE),
    )
    noise_level: float | None = inherited("noise_level", None, DenoisingConfig)


def measured_deviation(pixels):
    """Measure white noise in (C, H, W) uint8 pixels: its deviation, in [0, 1]. A robust form of Immerkaer 1996.

    The difference of two Laplacians is zero on planes and edges along the axes; its median is noise.
    """
    height, width = pixels.shape[1:]
    if min(height, width) < 3:
        return 0.0
    top, left = max(0, height - CENTER) // 2, max(0, width - CENTER) // 2
    part = pixels[:, top : top + CENTER, left : left + CENTER].float() / 255
    rows = part[:, :-2] - 2 * part[:, 1:-1] + part[:, 2:]
    both = (rows[:, :, :-2] - 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 6
    return float(np.median(both.abs().numpy())) / 0.6745


def smooth(planes):
    """Blur (N, 1, H, W) over 9 x 9 pixels; near ones weigh most."""
    for _ in range(2):
        planes = F.avg_pool2d(F.pad(planes, (2, 2, 2, 2), "replicate"), 5, 1)
    return planes


class Denoiser:
    """Applies a network that was trained for one noise to pictures with another.

    trained: (mean, deviation) of the noise that the network knows. present: the same of the picture's noise. Contrast
    is scaled by the ratio of the deviations. If the picture then leaves [0, 1], the range of training, the network sees
    only its differences from a smooth version.
    """

    def __init__(self, predictor, trained, present):
        self.predictor, self.trained_mean = predictor, trained[0]
        self.mean, deviation = present
        self.contrast = min(trained[1] / max(deviation, 1e-6), CONTRAST)
        self.share = min(1, self.contrast * deviation / trained[1]) ** 2  # how much of the result counts

    def __call__(self, pixels):
        """Denoise (C, H, W) uint8, channel by channel: the same shape. Takes memory for one tile only."""
        height, width = pixels.shape[1:]
        result, in_range = torch.empty_like(pixels), self.contrast <= 1.25 or self.is_dark(pixels)
        corners = list(itertools.product(range(0, height, TILE), range(0, width, TILE)))
        for top, left in tqdm(corners, desc="denoising", unit=" tiles", leave=False, disable=len(corners) < 10):
            y, x = max(0, top - BORDER), max(0, left - BORDER)
            tile = pixels[:, y : top + TILE + BORDER, x : left + TILE + BORDER, None].permute(0, 3, 1, 2) / 255
            restored = self.restore(tile - self.mean, in_range) * self.share
            restored += (tile - self.mean) * (1 - self.share)
            rows, columns = slice(top, top + TILE), slice(left, left + TILE)
            part = restored[:, 0, top - y :, left - x :][:, :TILE, :TILE]
            result[:, rows, columns] = (part * 255).clamp(0, 255).round()
        return result

    def is_dark(self, pixels):
        """Whether a picture, (C, H, W) uint8, is so dark that it stays in [0, 1] when its contrast is scaled."""
        step = max(1, max(pixels.shape[1:]) // 1000)
        light = smooth(pixels[:, None, ::step, ::step] / 255) - self.mean
        return float(np.percentile(light.numpy(), 99.5)) * self.contrast <= 1.1

    def restore(self, planes, in_range):
        """Denoise planes, (C, 1, H, W), whose noise has mean 0."""
        low = torch.zeros_like(planes) if in_range else smooth(planes)
        middle = 0.0 if in_range else 0.5
        height, width = planes.shape[2:]
        inputs = (planes - low) * self.contrast + middle + self.trained_mean
        inputs = F.pad(inputs, (0, -width % 4, 0, -height % 4), "replicate")  # DenoisingCNN halves twice
        outputs = self.predictor(inputs)[:, :, :height, :width].cpu()
        return (outputs - middle) / self.contrast + low


def noise_of(kind, level):
    """(mean, deviation) of noise of this kind and level."""
    return level * NOISE[kind][0], level * DEVIATIONS[kind]


def denoise(task, options, paths):
    """Write each picture without its noise beside it, as PICTURE_denoised.png.

    A picture that fails does not stop the others. Returns the exit_status.
    """

    def begin():
        (model,), _, _ = load_models(task, options, [])
        config = model.trained_with or task.config
        kind, (mean, deviation) = config.noise, noise_of(config.noise, config.noise_level)
        trained = f"Trained for {kind} noise of level {config.noise_level:g}"
        print(f"{trained} (mean {mean:.2f}, deviation {deviation:.2f}; white is 1).")
        return lambda path, base: denoise_file(model, options, kind, (mean, deviation), path, base + "_denoised.png")

    return for_each_photo(photo_jobs(paths, ["_denoised.png"], result=RESULT), ["_denoised.png"], begin)


def denoise_file(model, options, kind, trained, path, denoised):
    """Read a picture, denoise it, write it and say so. Raises UserError.

    kind, trained: the noise that the model knows, and its mean and deviation.
    """
    pixels, alpha, metadata = read_photo(path)
    started = time.monotonic()
    planes = torch.tensor(pixels).permute(2, 0, 1)
    if alpha is not None:
        planes = fill_transparent(planes, torch.tensor(alpha))
    named = options.noise or options.noise_level
    present = noise_of(options.noise or kind, options.noise_level or 1.0) if named else None
    present = present or (0.0, measured_deviation(planes))
    result = Denoiser(model.predictor, trained, present)(planes)
    save_photo(result.permute(1, 2, 0).numpy(), alpha, metadata, denoised)
    tqdm.write(
        f"{display_path(path)}: {pixels.shape[1]} x {pixels.shape[0]} pixels, noise of deviation {present[1]:.3f} "
        f"({'named' if named else 'measured'}), in {time.monotonic() - started:.1f} s: {display_path(denoised)}"
    )


COMMAND = Command(
    "predict",
    denoise,
    "write each picture without its noise, beside it as PICTURE_denoised.png; in colour, channel by channel",
    "+",
    "PICTURE|FOLDER",
    DenoiseOptions,
    ("denoising",),
    "python main.py --task denoising --predict noisy.png --noise gaussian --noise_level 0.1",
)
