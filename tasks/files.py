"""Files: restore pixelated areas as --depixelate finds them, in pictures of any kind that were stored as any file.

It differs from the challenge in what photos of full size look like, in larger rectangles and blocks, in JPEG and
scaling, after which both the blocks' values and what is around them are known only roughly, and in what a block's value
is: its mean in sRGB or in light, or its middle pixel. The network has to see for itself which.
"""

import itertools
import os
from dataclasses import dataclass, fields

import numpy as np

from tasks import Task, own_photos
from tasks.areas import CONTEXT, block_values, view_area, working_side
from tasks.depixelation import Depixelation, DepixelationConfig
from tasks.evaluation import plot_columns
from tasks.images import held_out_digests, image_source, images_with_truth
from tasks.mosaics import (
    SIDES,
    Area,
    Mosaics,
    draw_average,
    draw_scale,
    is_visible,
    pixelate_area,
    resize,
    store,
    stored_before,
)
from tasks.refining import with_refiner
from utils import ROOT, inherited, key

SIDE = 400  # pixels a side of a picture, at most, out of which an area is taken
EXTENTS = (32, 48, 64)  # of areas with whole blocks, at the scale at which they are restored; up to STEP pixels less
STEP = 8  # so that all have windows of a few sides, and a batch is restored in few groups
BLOCKS = 2.5  # a side, at least
CUT = (0.5, 1.4)  # side of the piece of a photo that a picture is made of, as a multiple of the picture's
GROUPS = {  # as depixelation's
    "block size": (0, ((4, 6), (7, 9), (10, 12), (13, 16)), "pixels, at the network's scale"),
    "rectangle": (1, ((16, 1024), (1025, 2304), (2305, 10000)), "area in pixels, at that scale"),
}
ATTEMPTS = 6  # at an area that can be seen
CANVAS = 128  # pixels a side of a sample, more than any View of such areas has


@dataclass
class FilesConfig(DepixelationConfig):
    """The keys of files: all of depixelation, whose models it loads, and its own."""

    task: str = inherited("task", "files")
    name: str = inherited("name", "restorer")
    network_options: dict = inherited("network_options", {"margin": 16, "consistent": False})
    batch_size: int = inherited("batch_size", 32)
    synthetic_images: int = inherited("synthetic_images", 2000)
    crops: int = key(16000, "training areas in an epoch, made of the photos in turn", minimum=1, maximum=10**7)
    pictures: int = key(1000, "areas made to measure on", minimum=4, maximum=10**5)


class FileAreas(Mosaics):
    """One channel of one area of a picture, seen as a network is to restore it: samples as of `prepare_image`.

    They are a function of their key, (epoch, i), and the seed; for validation, training False, of i and the seed.
    """

    def __init__(self, cache, indices, seed, count, training=True, distinct=None):
        super().__init__(cache, indices, seed)
        self.count, self.training, self.distinct = count, training, distinct

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        epoch, i = key if self.training else (0, key)
        epoch, i = (0, i % self.distinct) if self.distinct else (epoch, i)
        rng = np.random.default_rng((self.seed, 8 if self.training else 9, epoch, i))
        index = self.indices[(epoch * self.count + i) % len(self.indices)]
        photo = self.cache[index]
        for attempt in itertools.count():
            pixels, truth, area, fits, visible = self.draw(rng, photo)
            if fits and (visible or attempt >= ATTEMPTS):
                break
        channel = [int(rng.integers(3))]
        pixels, truth = pixels[:, :, channel], truth[:, :, channel]
        view = view_area(pixels, area, block_values(pixels, area)[0])
        known, rest = view.known[0], [(0, 0)]
        for axis in (1, 2):  # what fills the canvas is copied from known pixels, unless the area is as long as the view
            first, *_, last = known.all(axis=3 - axis)[0]
            missing = CANVAS - known.shape[axis]
            rest.append((missing, 0) if first and not last else (0, missing))
        known = np.pad(known, rest, constant_values=True)
        inputs, truth = (np.pad(values[0], rest, "edge") for values in (view.inputs, view.of(truth)))
        truth = truth.round().astype(np.uint8)
        return inputs.astype(np.uint8), known, truth[~known], self.cache.names[index]

    def draw(self, rng, photo):
        """(a pixelated picture, as it is stored; what it was; its Area; whether that fits the canvas; can be seen)."""
        scale = draw_scale(rng, None)
        side = int(round(np.exp(rng.uniform(*np.log(SIDES)))))
        working = working_side(side * scale)
        largest = rng.choice([extent for extent in EXTENTS if extent - STEP >= BLOCKS * working])
        extents = (largest - rng.integers(2, STEP - 1, 2)) * side / working  # in pixels, before the picture is scaled
        around = rng.integers(0, 4 * CONTEXT, (2, 2)).clip(max=CONTEXT + 1) * side / working
        first = int(min(SIDE / scale, np.ceil(extents + around.sum(axis=0)).max()))
        extents = np.minimum(extents.round(), first).astype(int)
        # Where there is less or more room than was drawn: anywhere between.
        ends = np.sort([around[0], first - extents - around[1]], axis=0).clip(0, first - extents).astype(int)
        x, y = rng.integers(ends[0], ends[1] + 1).tolist()
        cut = (0, 0) if rng.random() < 0.6 else rng.integers(0, side, 2).tolist()  # off the first blocks of the grid
        width, height = (int(extent) - off for extent, off in zip(extents, cut))
        phases = [float(-off % side) for off in cut]
        area = Area(x + cut[0], y + cut[1], width, height, float(side), float(side), *phases, draw_average(rng))
        source = stored_before(rng, self.source(rng, photo, first, CUT))
        pixels = source.copy()
        pixelate_area(pixels, area)
        visible = is_visible(source[area.box()], pixels[area.box()], side)
        if scale != 1:
            length = round(first * scale)
            pixels, source = resize(rng, length, pixels, source)
            area = area.scaled(length / first, length, length)
        fits = working_side((area.block_width + area.block_height) / 2) == working  # else it is three times as large
        return store(rng, pixels, None), source, area, fits, visible


class Files(Depixelation):
    """As depixelation, of areas in files of any kind, on which models of both tasks can be compared."""

    Config = FilesConfig
    summary = "restore pixelated areas of photos of any kind, for --depixelate"
    also_loads = ("depixelation",)
    groups = GROUPS
    actions = own_photos.ACTIONS
    shipped = os.path.join(ROOT, "models", "files.pt")
    batches = Task.batches
    report = Depixelation.report_errors  # without the challenge's points and places

    @classmethod
    def like(cls, config, given):
        """The task with what a DepixelationConfig says of restoring. given: the keys that were named as options."""
        names = {field.name for field in fields(config)} - {"task"}
        if "name" not in given and config.name == type(config).name:  # so it names no run
            names.remove("name")
        return cls(FilesConfig(**{name: getattr(config, name) for name in names}))

    def prepare(self):
        config = self.config
        cache, train_indices, validation_indices = image_source(config, colour=True)
        self.held_out = held_out_digests(cache, train_indices, validation_indices)
        self.training_set = FileAreas(cache, train_indices, config.seed, config.crops, distinct=config.max_images)
        self.validation_set = FileAreas(cache, validation_indices, 0, config.pictures, training=False)

    def evaluation_set(self, given, models):
        cache, indices, source = images_with_truth(self.config, given, with_refiner(self, models), colour=True)
        count = self.config.pictures
        words = f"{count:,} areas of {source}; score: mean RMSE at the network's scale, in grey levels of 255"
        return FileAreas(cache, indices, 0, count, training=False), words

    def columns(self, models, measured):
        return {}

    def plot_log(self, rows, path):
        plot_columns(rows, (("train_loss", "training loss"), ("score", "score, grey levels of 255")), path)


TASK = Files
