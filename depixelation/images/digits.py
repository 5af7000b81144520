"""MNIST and Fashion-MNIST: reading their files, drawing digits instead, splitting them; the base of their tasks."""

import contextlib
import functools
import gzip
import hashlib
import math
import os
import shutil
import tempfile
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from depixelation.engine.task import Task
from utils import Config, UserError, display_path, inherited, key

SIDE = 28  # pixels, of every image
DOWNLOADS = ("MNIST", "FashionMNIST")  # torchvision's names
WORDS = ("synthetic", *DOWNLOADS)
FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")}
FILES["test"] = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
NAMES = {
    "digits": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "clothes": tuple("T-shirt/top,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot".split(",")),
}
MAX_BYTES = 2**30  # larger than any file of these data sets


@dataclass(frozen=True)
class DigitsConfig(Config):
    """The keys of the exercises on these images."""

    images: str = key(
        "synthetic",
        "MNIST or FashionMNIST, which torchvision downloads into cache_dir; a folder with such files (idx, gzip or "
        'not), or with a folder raw of them; or "synthetic", digits drawn by the program',
        path=True,
        words=WORDS,
        may_change=True,
    )
    max_minutes: float | None = inherited("max_minutes", 5.0)
    validation_fraction: float = key(
        0.06, "share of the training part to hold out, class by class", above=0, maximum=0.5
    )


# ------------------------------------------------------------------------------------------------ idx files


def read_idx(path):
    """The array of bytes in an idx file (http://yann.lecun.com/exdb/mnist), gzip or not. Raises UserError."""
    from torchvision.datasets.mnist import (
        read_sn3_pascalvincent_tensor,  # slow to import (a second)
    )

    advice = "fetch it again, or name another folder with --images"
    try:
        with _unpacked(path) as unpacked:
            values = read_sn3_pascalvincent_tensor(unpacked).numpy()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: a damaged or truncated gzip file ({error}); {advice}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {advice}") from None
    except (AssertionError, KeyError, ValueError, RuntimeError, TypeError):  # torchvision's own errors
        raise UserError(f"{path}: no idx file, or not all of one; {advice}") from None
    if values.dtype != np.uint8:
        raise UserError(f"{path}: no idx file of bytes; {advice}")
    return values


@contextlib.contextmanager
def _unpacked(path):
    """Yield the path, or for a gzip file, that of an unpacked temporary copy. Raises ValueError if it is too large."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if not packed:
        if os.path.getsize(path) > MAX_BYTES:
            raise ValueError("too large")
        yield path
        return
    with gzip.open(path) as file, tempfile.NamedTemporaryFile(delete=False) as copy:
        try:
            shutil.copyfileobj(_Limited(file), copy)
            copy.close()  # Windows cannot open a file twice
            yield copy.name
        finally:
            copy.close()
            os.remove(copy.name)


class _Limited:
    """A file that raises ValueError once more than MAX_BYTES are read."""

    def __init__(self, file):
        self.file, self.left = file, MAX_BYTES

    def read(self, size):
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError("too large")
        return data


def idx_file(folder, name):
    """The path of an idx file in a folder, unpacked or not; None where it is not there."""
    paths = (os.path.join(folder, name + suffix) for suffix in ("", ".gz"))
    return next((path for path in paths if os.path.isfile(path)), None)


def read_part(folder, part):
    """(images, (N, 28, 28) uint8; labels, (N,) int64, 0 to 9) of the part "train" or "test". Raises UserError."""
    paths = [idx_file(folder, name) for name in FILES[part]]
    for path, name in zip(paths, FILES[part]):
        if path is None:
            raise UserError(f"images: {folder} lacks the file {name} (or {name}.gz); put it there")
    images, labels = map(read_idx, paths)
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE) or not len(images):
        raise UserError(f"{paths[0]}: holds an array {images.shape}, but must hold images of {SIDE} x {SIDE} pixels")
    if labels.shape != (len(images),):
        raise UserError(
            f"{paths[1]}: holds an array {labels.shape}, but must hold a label for each of {len(images)} images"
        )
    if labels.max() > 9:
        raise UserError(f"{paths[1]}: holds the label {labels.max()}, but must hold 0 to 9")
    return images, labels.astype(np.int64)


def find_folder(images):
    """The folder of idx files that --images FOLDER means: itself, its raw, or a raw one deeper. Raises UserError."""
    if not os.path.isdir(images):
        raise UserError(f"images: {images} is not a folder; name one with idx files, or {', '.join(WORDS)}")
    inside = [os.path.join(images, name, "raw") for name in sorted(os.listdir(images))]
    names = [name for pair in FILES.values() for name in pair]
    for candidates in ([images], [os.path.join(images, "raw")], inside):
        found = [folder for folder in candidates if any(idx_file(folder, name) for name in names)]
        if len(found) > 1:
            raise UserError(f"images: {images} holds several data sets; name one of {', '.join(found)}")
        if found:
            return found[0]
    raise UserError(f"images: {images} holds no {names[0]} (or .gz), nor does a folder raw in it")


def download(name, cache_dir):
    """The folder of MNIST's or FashionMNIST's files, which torchvision fetches and checks. Raises UserError."""
    import torchvision  # slow to import (a second)

    folder = os.path.join(cache_dir, name, "raw")
    try:
        getattr(torchvision.datasets, name)(cache_dir, download=True)
    except (OSError, RuntimeError, EOFError, ValueError, zlib.error) as error:  # torchvision's own errors
        reason = " ".join(str(error).split())
        names = ", ".join(name for pair in FILES.values() for name in pair)
        raise UserError(
            f"images: {name} cannot be downloaded ({reason[:150]}); try again, or put the unpacked files {names} into "
            f"{display_path(folder)} by hand"
        ) from None
    return folder


def load_part(config, part):
    """The part "train" or "test" of config.images, as from read_part; it is downloaded or drawn if need be."""
    if config.images == "synthetic":
        count = config.synthetic_images
        return draw_digits(config.seed, part, count if part == "train" else max(10, count // 6))
    folder = download(config.images, config.cache_dir) if config.images in DOWNLOADS else find_folder(config.images)
    return read_part(folder, part)


def split_by_class(labels, fraction, seed):
    """Indices of training and validation images: (train, validation), sorted int64 arrays.

    Of each class the same fraction is held out, drawn at random from the seed. labels: (N,) ints.
    """
    rng, held_out = np.random.default_rng(seed), []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out.append(members[:count])
    validation = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


class DigitsTask(Task):
    """Base class of the exercises on these images."""

    def example_input(self):
        return torch.zeros(1, 1, SIDE, SIDE)

    def dataset(self, images, labels, training):
        """A Dataset of images, (N, 28, 28) uint8, and labels, (N,) int64. training: whether they are trained on."""
        raise NotImplementedError

    def prepare(self):
        config = self.config
        images, labels = load_part(config, "train")
        train, validation = split_by_class(labels, config.validation_fraction, config.seed)
        if not len(train) or not len(validation):
            count = len(images)
            raise UserError(f"images: {config.images} has {count} images to train on; give each class two or more")
        if config.max_images:
            train = np.resize(train[: config.max_images], len(train))  # epochs keep their length
        self.content = hashlib.sha256(images[train].tobytes() + labels[train].tobytes()).hexdigest()[:16]
        self.training_set = self.dataset(images[train], labels[train], True)
        self.validation_set = self.dataset(images[validation], labels[validation], False)

    def fingerprint(self):
        return self.content

    def is_trained_on(self, fingerprint):
        return fingerprint == self.content

    def test_part(self):
        """(the test part as a dataset, its description)."""
        images, labels = load_part(self.config, "test")
        drawn = self.config.images == "synthetic"
        kind = "drawn digits" if drawn else f"images of {display_path(self.config.images)}"
        return self.dataset(images, labels, False), f"{len(images):,} {kind}, the test part"


# ------------------------------------------------------------------------------------------------ drawn digits

FONTS = "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSansMono DejaVuSerif DejaVuSerif-Italic DejaVuSerif-Bold "
FONTS += "STIXGeneral STIXGeneralItalic STIXGeneralBol cmr10 cmb10 cmss10 cmti10 cmtt10"
CANVAS = 2 * SIDE  # pixels a side, of a glyph
DIGIT = 40  # pixels, the longer side of a glyph: MNIST's digits have 20 of 28
STROKES = (0, 1, 2, 3)  # pixels by which a glyph is thickened to each side


@functools.cache
def _glyphs():
    """Every digit in every font and thickness: (fonts * strokes, 10, CANVAS, CANVAS) float32 in [0, 1]."""
    import matplotlib  # for its fonts; slow to import (half a second)

    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    glyphs = []
    for name in FONTS.split():
        font = ImageFont.truetype(os.path.join(folder, f"{name}.ttf"), 60)
        for stroke in STROKES:
            for digit in range(10):
                drawn = Image.new("L", (160, 160))
                ImageDraw.Draw(drawn).text((40, 40), str(digit), 255, font, stroke_width=stroke)
                drawn = drawn.crop(drawn.getbbox())
                scale = DIGIT / max(drawn.size)
                drawn = drawn.resize([max(1, round(length * scale)) for length in drawn.size])
                canvas = Image.new("L", (CANVAS, CANVAS))
                canvas.paste(drawn, tuple((CANVAS - length) // 2 for length in drawn.size))
                glyphs.append(np.asarray(canvas, np.float32) / 255)
    return torch.from_numpy(np.stack(glyphs)).view(-1, 10, CANVAS, CANVAS)


def warp(images, matrices, bend, side):
    """Warp images, (N, 1, H, W), by an affine map and a smooth displacement: (N, 1, side, side), zero outside.

    matrices: (N, 2, 3), from places in the output to places in the input, both -1 to 1 (as in F.affine_grid).
    bend: (N, 2, h, w) displacements in these units on a coarse grid, or None.
    """
    places = F.affine_grid(matrices, (len(images), 1, side, side), align_corners=False)  # (N, side, side, 2)
    if bend is not None:
        places = places + F.interpolate(bend, (side, side), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(images, places, align_corners=False)


def random_matrices(count, turn, shear, scale, shift, generator=None):
    """Random affine maps for `warp`, (count, 2, 3).

    turn, shear, scale: deviations of the angle in degrees, of the slant, of the logarithm of width and height.
    shift: the largest shift, in pixels of SIDE.
    """

    def draw(*shape):
        return torch.randn(count, *shape, generator=generator)

    angle, slant = turn * math.pi / 180 * draw(), shear * draw()
    width, height = torch.exp(-scale * draw(2)).T
    cos, sin = angle.cos(), angle.sin()
    rows = [width * cos, width * (slant * cos - sin), height * sin, height * (slant * sin + cos)]
    shifts = (torch.rand(count, 2, 1, generator=generator) * 2 - 1) * shift * 2 / SIDE
    return torch.cat([torch.stack(rows, 1).view(count, 2, 2), shifts], 2)


def draw_digits(seed, part, count):
    """(images, (count, 28, 28) uint8; labels): digits in matplotlib's fonts, warped and thickened, light on dark.

    Each image depends on its number, the part ("train" or "test") and the seed; the classes take turns.
    """
    glyphs, labels = _glyphs(), np.arange(count) % 10
    generator = torch.Generator().manual_seed(2 * seed + (part == "test"))
    images = []
    for first in range(0, count, 1000):
        digits = torch.from_numpy(labels[first : first + 1000])
        n = len(digits)
        chosen = glyphs[torch.randint(len(glyphs), (n,), generator=generator), digits][:, None]
        matrices = random_matrices(n, 9, 0.2, 0.12, 2, generator)
        bend = 0.06 * torch.randn(n, 2, 4, 4, generator=generator)
        light = 0.7 + 0.3 * torch.rand(n, 1, 1, 1, generator=generator)
        images.append((255 * light * warp(chosen, matrices, bend, SIDE)).round().to(torch.uint8)[:, 0])
    return torch.cat(images).numpy(), labels
