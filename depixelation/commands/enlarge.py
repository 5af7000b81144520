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
from depixelation.commands.each_photo import for_each_photo
from depixelation.engine.enlarging import enlarge_photo, fill_transparent
from depixelation.engine.models import load_models
from depixelation.engine.options import ModelOptions, RealismOptions
from depixelation.images.photo_files import read_photo, save_photo
from utils import display_path, key

RESULT = re.compile(r"(?P<base>.+)_x2\.png$")


@dataclass(frozen=True)
class EnlargeOptions(RealismOptions, ModelOptions):
    """Of --predict for photos."""

    output: str | None = key(None, "the folder for photos that are written; none: beside each", path=True)
    overwrite: bool = key(False, "enlarge photos again that have a result", argparse={"nargs": "?", "const": "true"})


def enlarge(task, options, paths):
    """Write each photo at twice its size, beside it or to --output, as PHOTO_x2.png.

    Returns 1 where a photo could not be read or written, which does not end the work on the others.
    """

    def begin():
        (model,), _, _ = load_models(task, options, [])
        predictor = blend_of(task, model.predictor, options)
        return lambda path, base: enlarge_file(predictor, path, base + "_x2.png")

    return for_each_photo(paths, ["_x2.png"], begin, options.output, options.overwrite, RESULT)


def enlarge_file(predictor, path, written):
    """Read a photo, enlarge it, write it and say so. Raises UserError."""
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
    tqdm.write(f"{display_path(path)}: {result.shape[1]} x {result.shape[0]} pixels in {seconds:.1f} s: {name}")


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
