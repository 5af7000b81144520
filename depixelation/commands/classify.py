"""--task classification --predict: what pictures of the user's show."""

import numpy as np
import torch
from PIL import Image

from datasets import to_grayscale
from depixelation.commands import Command
from depixelation.engine.models import load_models
from depixelation.engine.options import ModelOptions
from depixelation.engine.outputs import check_outputs
from depixelation.figures.sheets import grid_rows, plot_sheet
from depixelation.images.digits import NAMES, SIDE
from depixelation.images.photo_files import read_photo
from depixelation.tasks.classification import probabilities
from utils import UserError, display_path

MAX_SHOWN = 48  # pictures that are drawn


def opaque(pixels, alpha):
    """Grey values, (H, W) float64 in [0, 255], of a picture as photo_files.read_photo gives it.

    What is transparent becomes white, or black where what is drawn is light.
    """
    grey = (pixels[..., 0] if pixels.shape[2] == 1 else to_grayscale(pixels)[0]).astype(np.float64)
    if alpha is None or not alpha.any():
        return grey
    cover = alpha / 255
    return grey * cover + (1 - cover) * (0 if (grey * cover).sum() > 127.5 * cover.sum() else 255)


def normalize(grey, labels):
    """A picture as the networks know it: light on black, cut out, scaled and centred. Returns it and its polarity.

    grey: (H, W) in [0, 255]. Returns (28, 28) uint8, and whether the picture was dark on light: whether more of it is
    darker than its corners than lighter. A digit's longer side becomes 20 pixels and its centre of mass the middle, as
    LeCun et al. 1998 did it; clothes fill the image. Raises ValueError where nothing can be seen.
    """
    height, width = grey.shape
    side = max(1, min(height, width) // 14)
    ends = (slice(side), slice(-side, None))
    difference = grey - np.median([grey[rows, columns] for rows in ends for columns in ends])
    dark_on_light = bool(np.maximum(-difference, 0).sum() > np.maximum(difference, 0).sum())
    ink = np.maximum(-difference if dark_on_light else difference, 0)
    strongest = max(np.percentile(ink, 99.8), ink.max() / 2)  # a speck of dust is not to decide
    if strongest < 8:
        raise ValueError("shows nothing: all of it is as light as its corners")
    if labels == "digits":
        ink = ink / strongest * 255
    visible = ink > (0.2 if labels == "digits" else 0.05) * ink.max()  # clothes have dark parts, paper has shades
    rows, columns = (np.flatnonzero(visible.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = (20 if labels == "digits" else SIDE) / max(ink.shape)
    size = [max(1, round(length * scale)) for length in ink.shape[::-1]]
    ink = np.asarray(Image.fromarray(ink.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)).clip(0, 255)
    start = []
    for axis, length in enumerate(ink.shape):
        # MNIST's centres of mass lie in pixel 14, counted from 0; clothes are centred by their extent.
        middle = np.average(np.arange(length), weights=ink.sum(1 - axis)) if labels == "digits" else (length - 1) / 2
        start.append(min(max(0, round((14 if labels == "digits" else 13.5) - middle)), SIDE - length))
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    canvas[start[0] : start[0] + ink.shape[0], start[1] : start[1] + ink.shape[1]] = ink.round()
    return canvas, dark_on_light


def predict_pictures(task, options, paths):
    """--predict: print the class of each picture, a line each, and draw them with their labels."""
    sheet = task.config.file("losses", "_predictions.png")
    check_outputs([(sheet, "picture")], paths)
    (model,), _, _ = load_models(task, options, [])
    kind = model.trained_with.labels
    pictures = [opaque(*read_photo(path)[:2]) for path in paths]
    seen = []
    for path, grey in zip(paths, pictures):
        try:
            seen.append(normalize(grey, kind))
        except ValueError as error:
            raise UserError(f"{path}: {error}; name a picture of one of the {kind}") from None
    images, dark_on_light = zip(*seen)
    likely = probabilities(model.predictor, torch.from_numpy(np.stack(images))[:, None])
    first, second = likely.topk(2).indices.T.tolist()
    for i, path in enumerate(paths):
        polarity = "dark on light" if dark_on_light[i] else "light on dark"
        print(
            f"{path}: label {first[i]} ({NAMES[kind][first[i]]}), probability {likely[i, first[i]]:.3f}; "
            f"runner-up {second[i]}, {likely[i, second[i]]:.3f}; {polarity}"
        )
    titles = [f"{k} ({NAMES[kind][k]}), {row[k]:.3f}" for k, row in zip(first, likely)]
    shown = [picture for pair in zip(pictures, images) for picture in pair][: 2 * MAX_SHOWN]
    texts = [text for title in titles for text in (title, "as the network sees it")]
    plot_sheet(grid_rows(shown, texts), sheet)
    which = f" (the first {MAX_SHOWN})" if len(paths) > MAX_SHOWN else ""
    print(f"Pictures with their labels{which}: {display_path(sheet)}")
    return 0


COMMAND = Command(
    "predict",
    predict_pictures,
    "tell what pictures show, and draw them labelled",
    "+",
    "PICTURE",
    ModelOptions,
    ("classification",),
    "python main.py --task classification --predict coat.jpg --model models/FashionMNIST.pt",
)
