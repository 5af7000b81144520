"""--task super_resolution --predict: photos at twice their size."""

import re
import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from depixelation.commands import Command
from depixelation.commands.blending import blend_of
from depixelation.commands.each_photo import PhotoOptions, for_each_photo, page_of
from depixelation.engine.enlarging import enlarge_photo, fill_transparent
from depixelation.engine.models import load_models
from depixelation.engine.options import ModelOptions, RealismOptions
from depixelation.figures.page import Entry
from depixelation.images.photo_files import photo_jobs, read_photo, save_photo
from utils import display_path

WRITTEN = "_x2.png"
RESULT = re.compile(r"(?P<base>.+)_x2\.png$")
NAME = "enlarged.html"
GUESS = "What enlarging adds is a guess. It does not recover what the photo does not hold."
CLOSER = 160  # pixels a side of the part of a photo that its page shows larger


@dataclass(frozen=True)
class EnlargeOptions(PhotoOptions, RealismOptions, ModelOptions):
    """Of --predict for photos."""


def enlarge(task, options, paths):
    """Write each photo at twice its size, beside it or to --output, as PHOTO_x2.png.

    Several photos get a page of before and after. A photo that cannot be read or written does not end the work on the
    others. Returns the exit_status.
    """

    def begin():
        (model,), _, _ = load_models(task, options, [])
        predictor = blend_of(task, model.predictor, options)
        return lambda path, base: enlarge_file(predictor, path, base + WRITTEN, options.realism)

    jobs = photo_jobs(paths, [WRITTEN], options.output, RESULT)
    words = {"title": "Enlarged photos", "guess": GUESS}
    page = page_of(NAME, options, paths, jobs, lambda path, base: Entry(path, base + WRITTEN), **words)
    return for_each_photo(jobs, [WRITTEN], begin, options.overwrite, page)


def enlarge_file(predictor, path, written, realism=0.0):
    """Read a photo, enlarge it, write it and say so. Returns the page's Entry. Raises UserError."""
    pixels, alpha, metadata = read_photo(path)
    started = time.monotonic()
    planes = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)
    if alpha is not None:
        planes = fill_transparent(planes, torch.tensor(alpha))
    result = enlarge_photo(predictor, planes).permute(1, 2, 0).numpy()
    if alpha is not None:
        alpha = np.asarray(Image.fromarray(alpha).resize(result.shape[1::-1], Image.Resampling.BICUBIC))
    save_photo(result, alpha, metadata, written)
    seconds, name = time.monotonic() - started, display_path(written)
    size = f"{result.shape[1]} x {result.shape[0]} pixels"
    tqdm.write(f"{display_path(path)}: {size} in {seconds:.1f} s: {name}")
    facts = [f"{size}, twice the size", f"realism {realism:g} of 1, where 0 is most accurate"]
    return Entry(path, written, [closer(*result.shape[1::-1])], [*facts, f"enlarged in {seconds:.1f} s"])


def closer(width, height):
    """The middle of an enlarged photo, as the page shows areas."""
    sides = [min(2 * CLOSER, side) for side in (width, height)]
    x, y = ((total - side) // 2 for total, side in zip((width, height), sides))
    outline = f"M{x} {y}H{x + sides[0]}V{y + sides[1]}H{x}z"
    return {"box": [x, y, *sides], "outline": outline, "text": "the middle"}


COMMAND = Command(
    "predict",
    enlarge,
    "write each photo at twice its size, 8 bits a channel, beside it as PHOTO_x2.png",
    "+",
    "PHOTO|FOLDER",
    EnlargeOptions,
    ("super_resolution",),
    "python main.py --task super_resolution --predict holiday.jpg",
)
