"""--task super_resolution --predict: photos at twice their size."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from depixelation.commands import Command
from depixelation.commands.blending import blend_of
from depixelation.engine.enlarging import enlarge_photo, fill_transparent
from depixelation.engine.models import load_models
from depixelation.engine.options import ModelOptions, RealismOptions
from depixelation.images.photo_files import output_paths, read_photo, save_photo
from utils import display_path


@dataclass(frozen=True)
class EnlargeOptions(RealismOptions, ModelOptions):
    """Of --predict for photos."""


def enlarge(task, options, paths):
    """Write each photo at twice its size beside it, as PHOTO_x2.png."""
    written = output_paths(paths, "_x2.png")
    (model,), _, _ = load_models(task, options, [])
    predictor = blend_of(task, model.predictor, options)
    for path, enlarged in zip(paths, written):
        pixels, alpha, profile = read_photo(path)
        started = time.monotonic()
        planes = torch.tensor(pixels).permute(2, 0, 1)
        if alpha is not None:
            planes = fill_transparent(planes, torch.tensor(alpha))
        result = enlarge_photo(predictor, planes).permute(1, 2, 0).numpy()
        if alpha is not None:
            alpha = np.asarray(Image.fromarray(alpha).resize(result.shape[1::-1], Image.Resampling.BICUBIC))
        save_photo(result, alpha, profile, enlarged)
        seconds, name = time.monotonic() - started, display_path(enlarged)
        print(f"{display_path(path)}: {result.shape[1]} x {result.shape[0]} pixels in {seconds:.1f} s: {name}")
    return 0


COMMAND = Command(
    "predict",
    enlarge,
    "write each photo at twice its size, 8 bits a channel, beside it as PHOTO_x2.png",
    "+",
    "PHOTO",
    EnlargeOptions,
    ("super_resolution",),
    "python main.py --task super_resolution --predict holiday.jpg",
)
