"""Samples of areas to restore, as --depixelate finds them, in pictures of any kind and any file format."""

import itertools

import numpy as np

from depixelation.mosaics.area import SIDES, Area, pixelate_area
from depixelation.mosaics.making import Mosaics, draw_average, draw_scale, is_visible, resize, store, stored_before
from depixelation.mosaics.restoring import CONTEXT, block_values, view_area, working_side

SIDE = 400  # pixels a side, at most, of the picture that an area is taken from
EXTENTS = (32, 48, 64)  # pixels a side of areas with whole blocks, at the working scale; up to STEP pixels less
STEP = 8  # small, so that few sides of windows occur and a batch is restored in few groups
BLOCKS = 2.5  # the least number of blocks a side
CUT = (0.5, 1.4)  # side of the piece of a photo that a picture is made of, as a multiple of the picture's
ATTEMPTS = 6  # to make a visible area
CANVAS = 128  # pixels a side of a sample, more than any View of such areas


class FileAreas(Mosaics):
    """Samples as from `prepare_image`: one channel of one area of a picture, as the network is to restore it.

    Each is a function of its key, (epoch, i), and the seed; for validation (training False), of i and the seed.
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
        for axis in (1, 2):  # pad with copies of known pixels, unless the area is as long as the view
            first, *_, last = known.all(axis=3 - axis)[0]
            missing = CANVAS - known.shape[axis]
            rest.append((missing, 0) if first and not last else (0, missing))
        known = np.pad(known, rest, constant_values=True)
        inputs, truth = (np.pad(values[0], rest, "edge") for values in (view.inputs, view.of(truth)))
        truth = truth.round().astype(np.uint8)
        return inputs.astype(np.uint8), known, truth[~known], self.cache.names[index]

    def draw(self, rng, photo):
        """(a pixelated picture, as stored; its original; its Area; whether that fits the canvas, and is visible)."""
        scale = draw_scale(rng, None)
        side = int(round(np.exp(rng.uniform(*np.log(SIDES)))))
        working = working_side(side * scale)
        largest = rng.choice([extent for extent in EXTENTS if extent - STEP >= BLOCKS * working])
        extents = (largest - rng.integers(2, STEP - 1, 2)) * side / working  # in pixels, before the picture is scaled
        around = rng.integers(0, 4 * CONTEXT, (2, 2)).clip(max=CONTEXT + 1) * side / working
        first = int(min(SIDE / scale, np.ceil(extents + around.sum(axis=0)).max()))
        extents = np.minimum(extents.round(), first).astype(int)
        # Where the room differs from the drawn margins, place the area anywhere between.
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
