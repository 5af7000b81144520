"""Makes pictures with pixelated areas at known places, as programs produce them, to train and to measure on."""

import io

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import Dataset

from depixelation.images.synthetic import synthetic_colour_image
from depixelation.mosaics.area import AVERAGES, CELL, SCALES, SIDES, Area, pixelate_area

FORMATS = {"PNG": None, "JPEG 95": (95, 0), "JPEG 80": (80, 2), "scaled JPEG 80": (80, 2)}  # quality, subsampling
VISIBLE = 3.0  # grey levels that each edge of an area must change by; less, as in a clear sky, is invisible
LARGE = 10_000  # pixels; areas below this size have more weight in training
REACH = 128  # pixels; the finder does not tell edges beyond this distance apart


def compress(pixels, quality, subsampling):
    """(H, W, C) uint8 after a JPEG of this quality (1 to 100) and chroma subsampling (0: 4:4:4, 2: 4:2:0)."""
    file = io.BytesIO()
    _to_image(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(file, formats=["JPEG"])).reshape(pixels.shape)


def _to_image(pixels):
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])


# ------------------------------------------------------------------------------------------------ random areas


def draw_areas(rng, pixels, count, skew=1.0):
    """Pixelate up to `count` random areas of a picture, in place. Returns a list of Area.

    Areas may touch, but do not overlap. Each is visible: along every edge its blocks differ from the original.
    skew: above 1, more blocks are small.
    """
    (height, width), areas = pixels.shape[:2], []
    for _ in range(6 * count):
        if len(areas) == count:
            break
        low, high = np.log(SIDES)
        side = min(int(round(np.exp(low + (high - low) * rng.random() ** skew))), min(width, height) // 3)
        blocks = np.exp(rng.uniform(np.log(3), np.log(24), 2))
        extent = [int(min(max(12, n * side), length)) for n, length in zip(blocks, (width, height))]
        x, y = (int(rng.integers(0, length - n + 1)) for n, length in zip(extent, (width, height)))
        if areas and rng.random() < 0.3:  # touch the last one
            x, y = areas[-1].x + areas[-1].width, areas[-1].y
        if x + extent[0] > width or y + extent[1] > height:
            continue
        phases = (0.0, 0.0) if rng.random() < 0.6 else (float(-x % side), float(-y % side))
        area = Area(x, y, *extent, float(side), float(side), *phases, draw_average(rng))
        if not any(area.overlap(other) for other in areas):
            before = pixels[area.box()].copy()
            pixelate_area(pixels, area)
            if is_visible(before, pixels[area.box()], side):
                areas.append(area)
            else:
                pixels[area.box()] = before
    return areas


def draw_average(rng):
    """Draw one of AVERAGES."""
    return AVERAGES[int(rng.choice(3, p=(0.5, 0.3, 0.2)))]


def is_visible(before, after, side):
    """Whether the outer `side` rows and columns of an area, (H, W, C) uint8, each changed by VISIBLE, as an RMSE."""
    change = ((before.astype(np.float32) - after) ** 2).mean(axis=2)
    return min(strip.mean() for strip in (change[:side], change[-side:], change[:, :side], change[:, -side:])) >= (
        VISIBLE**2
    )


def draw_distractor(rng, side):
    """Draw a picture that looks pixelated but is not, (side, side, 3) uint8: pixel art, a screen, a wall of tiles."""
    kind, unit = rng.integers(4), int(rng.integers(3, 13))
    if kind == 0:  # letters of hard-edged dots
        small = -(-side // unit)
        image = Image.new("RGB", (small, small), tuple(rng.integers(0, 256, 3).tolist()))
        pen, font = ImageDraw.Draw(image), ImageFont.load_default(10)
        pen.fontmode = "1"
        for top in range(0, small, 11):
            text = "".join(map(chr, rng.integers(33, 127, small // 4)))
            pen.text((int(rng.integers(-5, 3)), top), text, tuple(rng.integers(0, 256, 3).tolist()), font)
        return np.asarray(image.resize((small * unit, small * unit), Image.Resampling.NEAREST))[:side, :side]
    if kind == 1:  # windows, buttons, tables
        image = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
        pen, font = ImageDraw.Draw(image), ImageFont.load_default(int(rng.integers(9, 16)))
        for _ in range(int(rng.integers(5, 40))):
            x, y, w, h = rng.integers(0, side, 2).tolist() + rng.integers(4, side // 2, 2).tolist()
            pen.rectangle((x, y, x + w, y + h), tuple(rng.integers(0, 256, 3).tolist()), "black", int(rng.integers(2)))
            pen.text((x + 2, y + 2), "".join(map(chr, rng.integers(65, 123, 12))), (0, 0, 0), font)
        return np.asarray(image)
    tones = rng.normal(rng.uniform(60, 200), rng.uniform(5, 40), (side // unit + 2, side // unit + 2, 1))
    wall = np.clip(tones + rng.normal(0, 5, (1, 1, 3)), 0, 255).repeat(unit, axis=0).repeat(unit, axis=1)
    wall = wall[:side, :side].copy()
    y, x = np.ogrid[:side, :side]
    if kind == 2:  # tiles or bricks with joints
        joint = int(rng.integers(1, 3))
        shift = (y // unit % 2) * (unit // 2) * int(rng.integers(2))
        wall[((y % unit < joint) | ((x + shift) % unit < joint)) & np.ones((side, side), dtype=bool)] = rng.uniform(
            0, 255
        )
    else:  # a checked or woven cloth
        wall = wall * 0 + tones[0, 0] + 40 * (np.sign(np.sin(x * np.pi / unit)) + np.sin(y * np.pi / unit))[:, :, None]
    return np.clip(wall + rng.normal(0, rng.uniform(0.5, 6), wall.shape), 0, 255).astype(np.uint8)


class Mosaics(Dataset):
    """Base class: pictures with known pixelated areas, from a cache of photos in colour (see datasets.CachedCrops)."""

    def __init__(self, cache, indices, seed):
        self.cache, self.indices, self.seed = cache, indices, seed
        self.names = [cache.names[index] for index in indices]

    def source(self, rng, photo, side, cut=(0.5, 2)):
        """Scale a piece of a photo, cut[0] to cut[1] times `side`, to (side, side, 3) uint8. 3 % are drawn images."""
        if rng.random() < 0.03:
            return synthetic_colour_image(self.seed, int(rng.integers(2**31)), side)
        height, width = photo.shape[:2]
        cut = min(height, width, max(48, side * np.exp(rng.uniform(*np.log(cut)))))
        x, y = rng.random() * (width - cut), rng.random() * (height - cut)
        image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(photo, (height, width, 3))))
        image = image.resize((side, side), Image.Resampling.BICUBIC, (x, y, x + cut, y + cut))
        return np.asarray(image)[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]

    def make(self, rng, photo, side, file, count, skew=1.0, mosaic=True):
        """Make a picture: (pixels, (side, side, 3) uint8; list of Area).

        file: a key of FORMATS; None: any quality. skew: see `draw_areas`. mosaic: False leaves out the pixelation
        alone, and the picture stays the same otherwise.
        """
        scale = draw_scale(rng, file)
        first = -(-side // scale) if scale != 1 else side
        if count == 0 and rng.random() < 0.5:
            pixels = draw_distractor(rng, int(first)).copy()
        else:
            pixels = self.source(rng, photo, int(first)).copy()
        pixels = stored_before(rng, pixels)
        plain = pixels.copy()
        areas = draw_areas(rng, pixels, count, skew)
        pixels = pixels if mosaic else plain
        if scale != 1:
            (pixels,) = resize(rng, side, pixels)
            areas = [area.scaled(side / first, side, side) for area in areas]
        return store(rng, pixels, file), areas


def draw_scale(rng, file):
    """Draw the factor by which a picture is scaled after pixelation. file: a key of FORMATS; None: any."""
    scale = float(np.exp(rng.uniform(*np.log(SCALES)))) if file == "scaled JPEG 80" else 1.0
    return float(np.exp(rng.uniform(*np.log(SCALES)))) if file is None and rng.random() < 0.4 else scale


def stored_before(rng, pixels):
    """Compress 30 % of pictures as JPEG: photos are often JPEGs before they are pixelated."""
    return compress(pixels, int(rng.integers(20, 96)), int(rng.choice((0, 2)))).copy() if rng.random() < 0.3 else pixels


def resize(rng, side, *pictures):
    """Scale pictures, (H, W, 3) uint8, to this side, all with the same random filter."""
    kind = Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.BILINEAR
    return [np.asarray(Image.fromarray(pixels).resize((side, side), kind)) for pixels in pictures]


def store(rng, pixels, file):
    """The pixels after they were stored in a file of this kind, see draw_scale."""
    lossy = FORMATS[file] if file else (int(rng.integers(60, 101)), int(rng.choice((0, 2))))
    return compress(pixels, *lossy) if lossy and (file or rng.random() < 0.7) else pixels


class MosaicCrops(Mosaics):
    """Training samples, each a function of its key (epoch, i) and the seed.

    luma, (1, S, S) uint8; and for its cells of CELL pixels a side, n = S / CELL: covered, (1, n, n) float32, the share
    that is pixelated; grids, (6, n, n) float32, log2 of the distances from the cell's middle to the area's left, top,
    right and bottom edge (see `log_distance`) and of the blocks' width and height, 0 outside; averages, (n, n) int64,
    the index of the average, -1 outside; weights, (1, n, n) float32, larger in small areas.
    """

    SIDE = 256

    def __init__(self, cache, indices, seed, crops, distinct=None):
        super().__init__(cache, indices, seed)
        self.crops, self.distinct = crops, distinct

    def __len__(self):
        return self.crops

    def __getitem__(self, key):
        epoch, i = key if self.distinct is None else (0, key[1] % self.distinct)
        rng = np.random.default_rng((self.seed, epoch, i))
        photo = self.cache[self.indices[(epoch * self.crops + i) % len(self.indices)]]
        count = int(rng.choice(6, p=(0.15, 0.2, 0.25, 0.2, 0.1, 0.1)))
        pixels, areas = self.make(rng, photo, self.SIDE, None, count, skew=1.5)
        n = self.SIDE // CELL
        covered, grids = np.zeros((1, n, n), dtype=np.float32), np.zeros((6, n, n), dtype=np.float32)
        averages, weights = np.full((n, n), -1, dtype=np.int64), np.ones((1, n, n), dtype=np.float32)
        middles = np.arange(n) * CELL + CELL / 2
        for area in areas:
            edges = (area.x, area.y), (area.x + area.width, area.y + area.height)
            across, down = (
                np.clip(middles + CELL / 2 - a, 0, CELL) - np.clip(middles + CELL / 2 - b, 0, CELL)
                for a, b in zip(*edges)
            )
            share = down[:, None] * across / CELL**2
            covered[0] += share
            inside = share >= 0.5
            for k, (axis, sign) in enumerate(((0, 1), (1, 1), (0, -1), (1, -1))):
                distance = log_distance(sign * (middles - edges[k // 2][axis]))
                grids[k][inside] = np.broadcast_to(distance if axis == 0 else distance[:, None], (n, n))[inside]
            grids[4][inside], grids[5][inside] = np.log2([area.block_width, area.block_height])
            averages[inside] = AVERAGES.index(area.average)
            weights[0][share > 0] = np.clip((LARGE / (area.width * area.height)) ** 0.5, 1, 8)
        luma = np.asarray(Image.fromarray(pixels).convert("L"))
        return tuple(map(torch.from_numpy, (luma[None].copy(), covered, grids, averages, weights)))


def log_distance(distance):
    """log2(distance + 2), the distance in pixels and at most REACH, so that small ones matter most."""
    return np.log2(np.clip(distance, 0, REACH) + 2)


class MosaicPhotos(Mosaics):
    """Pictures to measure on: item i is (pixels, (SIDE, SIDE, 3) uint8; areas; file, a key of FORMATS).

    It is a function of i and the seed. All formats are equally frequent, and every fifth picture has no area.
    """

    SIDE = 384

    def __init__(self, cache, indices, count, seed=0):
        super().__init__(cache, indices, seed)
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return *self._make(i, True), list(FORMATS)[i % len(FORMATS)]

    def truth(self, i):
        """Item i without pixelation, but scaled and stored in the same way."""
        return self._make(i, False)[0]

    def _make(self, i, mosaic):
        rng = np.random.default_rng((self.seed, 7, i))
        photo = self.cache[self.indices[i % len(self.indices)]]
        count = 0 if i // len(FORMATS) % 5 == 4 else int(rng.integers(1, 4))
        return self.make(rng, photo, self.SIDE, list(FORMATS)[i % len(FORMATS)], count, mosaic=mosaic)
