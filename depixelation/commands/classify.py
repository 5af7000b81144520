"""--task classification --predict: tells what the user's pictures show."""

import itertools
import math
import os
import sys
from textwrap import shorten

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from datasets import to_grayscale
from depixelation.commands import Command
from depixelation.commands.each_photo import exit_status
from depixelation.commands.isolating import LEAST_INK, find_things, ink_against_corners, strongest
from depixelation.engine.models import load_models
from depixelation.engine.options import ModelOptions
from depixelation.engine.outputs import check_outputs, written_by_us
from depixelation.figures.sheets import grid_rows, plot_sheet
from depixelation.images.digits import NAMES, SIDE, warp
from depixelation.images.photo_files import read_photo
from depixelation.tasks.classification import probabilities
from utils import UserError, display_path

MAX_SHOWN = 48  # things on the sheet, about
NOTHING = "shows nothing: all of it is as light as its corners"
RED = (230, 60, 0)
POLARITY = {True: "dark on light", False: "light on dark"}
# Where a label is unsure: see is_sure.
# For each class the 1 % quantile of MNIST's digits: shapes often look like a 0, an 8 or a 4, but not quite.
LEAST_PROBABILITY = {"digits": (0.85, 0.77, 0.62, 0.74, 0.81, 0.83, 0.76, 0.58, 0.84, 0.57), "clothes": (0.5,) * 10}
THICKEST = 0.203
GREYEST = 0.863


def _turned(degrees, slant, scale):
    cos, sin = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    return [[cos, slant / scale - sin, 0.0], [sin, cos, 0.0]]


TURNED = [_turned(14, 0, 1), _turned(-14, 0, 1), _turned(0, 0.25, 1), _turned(0, -0.25, 1)]
TURNED += [_turned(0, 0, 1.2), _turned(0, 0, 0.85)]


def opaque(pixels, alpha):
    """The grey values of a picture, as photo_files.read_photo returns it: (H, W) float64 in [0, 255].

    Transparent parts become white, or black if what is drawn is light.
    """
    grey = (pixels[..., 0] if pixels.shape[2] == 1 else to_grayscale(pixels)[0]).astype(np.float64)
    if alpha is None or not alpha.any():
        return grey
    cover = alpha / 255
    return grey * cover + (1 - cover) * (0 if (grey * cover).sum() > 127.5 * cover.sum() else 255)


def normalize(grey, labels):
    """Bring a picture of one thing into the form that the networks know.

    grey: (H, W) in [0, 255]. labels: "digits" or "clothes". Returns the thing, (28, 28) uint8, light on black, and
    whether it was dark on light. Raises ValueError if nothing can be seen.
    """
    ink, dark_on_light = ink_against_corners(grey)
    if strongest(ink) < LEAST_INK:
        raise ValueError(NOTHING)
    return normalize_ink(ink, labels), dark_on_light


def normalize_ink(ink, labels):
    """Cut out, scale and centre a thing, (H, W), 0 on paper. Returns (28, 28) uint8.

    A digit's longer side becomes 20 pixels, and its centre of mass the middle, as LeCun et al. 1998 did it. Clothes
    fill the image.
    """
    if labels == "digits":
        ink = ink / strongest(ink) * 255
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
    return canvas


def is_sure(predictor, images, likely, labels):
    """Whether the class of each image, (N, 1, 28, 28) uint8, is sure: (N,) bool. likely: its `probabilities`.

    A digit is unsure if its probability falls when it is turned, slanted or scaled, if it is wider than pens are, or if
    most of it is grey. The limits were chosen on 1,500 training digits of MNIST, of which 1.5 % are unsure.
    """
    least = torch.tensor(LEAST_PROBABILITY[labels])
    if labels != "digits":
        return likely.max(1).values >= least[likely.argmax(1)]
    maps = images.float() / 255
    matrices = torch.tensor(TURNED)
    views = [maps, *(warp(maps, matrix.expand(len(maps), 2, 3), None, SIDE) for matrix in matrices)]
    mean = torch.stack([predictor(view).cpu().softmax(1) for view in views]).mean(0)
    black, drawn = maps > 0.5, maps > 0.1
    inner = -F.max_pool2d(-F.pad(black.float(), (2, 2, 2, 2)), 5, 1)  # less two pixels all around
    thick = inner.sum((1, 2, 3)) / black.sum((1, 2, 3)).clamp(min=1)
    grey = (drawn & (maps < 0.9)).sum((1, 2, 3)) / drawn.sum((1, 2, 3)).clamp(min=1)
    return (mean.max(1).values >= least[mean.argmax(1)]) & (thick <= THICKEST) & (grey <= GREYEST)


def with_boxes(grey, things, marks):
    """The picture, (H, W, 3) uint8. Where there are several things, each has a box and its mark."""
    image = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if len(things) > 1:
        line, drawing = max(1, max(image.size) // 200), ImageDraw.Draw(image)
        for thing, mark in zip(things, marks):
            left, top, right, bottom = thing.box
            box = [max(0, left - line), max(0, top - line), right + line, bottom + line]
            drawing.rectangle(box, outline=RED, width=line)
            drawing.text(box[:2], mark, RED, font_size=max(10, max(image.size) // 20), anchor="ls")
    return np.asarray(image)


def sheet_path(config):
    """losses/NAME_predictions.png; if an earlier call wrote that, NAME_predictions_2.png and so on."""
    numbers = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
    paths = (config.file("losses", f"_predictions{number}.png") for number in numbers)
    return next(path for path in paths if not (os.path.isfile(path) and written_by_us(path, "picture")))


class Reader:
    """Finds the things in pictures, and names their classes."""

    def __init__(self, model):
        self.predictor, self.kind = model.predictor, model.trained_with.labels

    def judge(self, things):
        """(images, (N, 28, 28) uint8; probabilities, (N, classes); whether each is sure, (N,) bool array)."""
        images = np.stack([normalize_ink(thing.ink, self.kind) for thing in things])
        tensors = torch.from_numpy(images)[:, None]
        likely = probabilities(self.predictor, tensors)
        return images, likely, is_sure(self.predictor, tensors, likely, self.kind).numpy()

    def read(self, path):
        """(picture in grey, its things, and of these what `judge` returns). Raises UserError."""
        grey = opaque(*read_photo(path)[:2])
        things = find_things(grey, self.kind, lambda things: self.judge(things)[2])
        if not things:
            raise UserError(f"{path}: {NOTHING}; name a picture of one of the {self.kind}")
        return grey, things, *self.judge(things)


def predict_pictures(task, options, paths):
    """Print the class of each thing in each picture, a line each, and draw them with their labels.

    A picture that cannot be read does not stop the others. Returns the exit_status.
    """
    sheet = sheet_path(task.config)
    check_outputs([(sheet, "picture")], paths)
    (model,), _, _ = load_models(task, options, [])
    reader, cells, failed = Reader(model), [], 0
    for path in paths:
        try:
            result = reader.read(path)
        except UserError as error:
            print(f"main.py: error: {error}", file=sys.stderr)
            failed += 1
            continue
        print_classes(path, reader.kind, *result[1:])
        cells += cells_of(path, reader.kind, *result) if len(cells) < 2 * MAX_SHOWN else []
    if cells:
        plot_sheet(grid_rows(*zip(*cells)), sheet)
        which = f" (the first {MAX_SHOWN} or so)" if len(cells) >= 2 * MAX_SHOWN else ""
        print(f"Pictures with their labels{which}: {display_path(sheet)}")
    return exit_status(failed, len(paths))


def print_classes(path, kind, things, images, likely, sure):
    """Print a line for each thing; before several, one with all labels."""
    if len(things) > 1:
        marks = " ".join(str(int(row.argmax())) if certain else "?" for row, certain in zip(likely, sure))
        print(f"{path}: {len(things)} things: {marks}")
    for number, (thing, row, certain) in enumerate(zip(things, likely, sure), 1):
        where = f" (thing {number} of {len(things)}, at x {thing.box[0]}, y {thing.box[1]})" if len(things) > 1 else ""
        print(f"{path}{where}: {in_words(row, certain, kind)}; {POLARITY[thing.dark_on_light]}")


def cells_of(path, kind, grey, things, images, likely, sure):
    """The picture's part of the sheet, [(image, title)]: itself, and each thing as the network sees it."""
    best = likely.argmax(1).tolist()
    marks = [str(label) if certain else "?" for label, certain in zip(best, sure)]
    cells = [(with_boxes(grey, things, marks), shorten(os.path.basename(path), 32))]
    for image, label, row, certain in zip(images, best, likely, sure):
        words = f"{label} ({NAMES[kind][label]}), {row[label]:.3f}\nas the network sees it"
        cells.append((image, words if certain else f"unsure: {words}"))
    return cells


def in_words(row, sure, kind):
    """The two likeliest classes. row: (classes,) probabilities."""
    first, second = row.topk(2).indices.tolist()
    return (
        f"{'' if sure else 'unsure; most like '}label {first} ({NAMES[kind][first]}), probability {row[first]:.3f}; "
        f"runner-up {second}, {row[second]:.3f}"
    )


COMMAND = Command(
    "predict",
    predict_pictures,
    "say what pictures show, and draw them with labels",
    "+",
    "PICTURE",
    ModelOptions,
    ("classification",),
    "python main.py --task classification --predict coat.jpg --model models/FashionMNIST.pt",
)
