"""From images to batches.

The course's functions and classes come first: `to_grayscale`, `prepare_image`, `RandomImagePixelationDataset`,
`stack_with_padding`. Then what training adds: `CachedPixelationDataset`, the same dataset over a cache of decoded
images, with fresh random crops and rectangles. A batch travels as uint8 and becomes float on the device. Denoising has
`NoisyImages`, and the exercise's `NoisyFashionMNIST`. Super-resolution has the exercise's `SRDataset`, and the same
over the cache: `CachedCrops` to train on, `CachedPhotos` to measure on.
"""

import glob
import os
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F
from torch.utils.data import Dataset

# Formats that Pillow may try, whatever the file's name. Its others are unsafe: PostScript starts a program.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "DIB", "GIF", "PPM", "TGA", "QOI")
EXTENSIONS = ".jpg .jpeg .jpe .jfif .pjpeg .pjp .png .apng .webp .avif .jp2 .j2k .j2c .jpc .jpf .jpx .tif .tiff .bmp "
EXTENSIONS = tuple((EXTENSIONS + ".dib .ppm .pgm .pbm .pnm .tga .qoi").split())  # of photos in FORMATS
IMAGE_SIZE = 64  # pixels a side, of every image of the challenge
WIDTH_RANGE = HEIGHT_RANGE = (4, 32)  # of the pixelated rectangle, in pixels, inclusive
SIZE_RANGE = (4, 16)  # of the blocks, in pixels a side, inclusive


# ------------------------------------------------------------------------------------------------ the course's part


def to_linear(values):
    """sRGB values to linear light, both 0 to 1 (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((np.maximum(values, 0) + 0.055) / 1.055) ** 2.4)


def from_linear(values):
    """The inverse of `to_linear`."""
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * np.maximum(values, 0) ** (1 / 2.4) - 0.055)


_TO_LINEAR = to_linear(np.arange(256) / 255)  # look-up table for 8-bit values


def to_grayscale(pil_image):
    """Colorimetric grayscale: sRGB is made linear, weighted to luminance (Rec. 709) and encoded again.

    pil_image: (H, W, 3) array, values in [0, 255]; or (H, W), which is grayscale already and is copied.
    Returns (1, H, W) in the dtype of the input; integer dtypes are rounded. Raises ValueError for another shape.
    """
    image = np.asarray(pil_image)
    if image.ndim == 2:
        return image.copy()[None]
    if image.ndim != 3:
        raise ValueError(f"image must have shape (H, W) or (H, W, 3), not {image.shape}")
    if image.shape[2] != 3:
        raise ValueError(f"image must have 3 channels, not {image.shape[2]}: its shape is {image.shape}")
    linear = _TO_LINEAR[image] if image.dtype == np.uint8 else to_linear(image / 255)
    luminance = 0.2126 * linear[..., 0] + 0.7152 * linear[..., 1] + 0.0722 * linear[..., 2]
    encoded = from_linear(luminance) * 255
    if np.issubdtype(image.dtype, np.integer):
        encoded = np.round(encoded)
    return encoded.astype(image.dtype)[None]


def means_between(values, rows, columns):
    """The mean of each cell between these lines, float64: (H, W, ...) -> (len(rows) - 1, len(columns) - 1, ...)."""
    sums = np.add.reduceat(np.add.reduceat(values, rows[:-1], axis=0, dtype=np.float64), columns[:-1], axis=1)
    counts = np.diff(rows)[:, None] * np.diff(columns)
    return sums / counts.reshape(*counts.shape, *[1] * (values.ndim - 2))


def spread_between(cells, rows, columns):
    """Each cell's value repeated over its pixels: the inverse of `means_between` for constant cells."""
    return cells.repeat(np.diff(rows), axis=0).repeat(np.diff(columns), axis=1)


def block_means(values, size):
    """Replace each pixel by the mean of its block: (H, W, ...) -> the same shape, float64.

    Blocks of size x size pixels start at the top-left corner; the right and bottom edges may cut off the last ones.
    """
    lines = [np.append(np.arange(0, length, size), length) for length in values.shape[:2]]
    return spread_between(means_between(values, *lines), *lines)


def to_8_bits(pil_image):
    """Convert a Pillow image of 9 to 16 bits a pixel (or of mode I) to (H, W) uint8; a TIFF's tags give its range."""
    tags = getattr(pil_image, "tag_v2", {})
    top = 2 ** tags.get(258, (16,))[0] - 1  # BitsPerSample
    values = np.clip(np.asarray(pil_image), 0, top) / (top / 255)
    return (255 - values if tags.get(262) == 0 else values).round().astype(np.uint8)  # 0: WhiteIsZero


def upright(pil_image):
    """Turn a Pillow image upright, in place, as its EXIF says, and return it. Damaged EXIF is ignored."""
    with warnings.catch_warnings(action="ignore"):
        try:
            ImageOps.exif_transpose(pil_image, in_place=True)
        except MemoryError:
            raise
        except Exception:  # whatever damaged EXIF makes Pillow raise
            pass
    return pil_image


def prepare_image(image, x, y, width, height, size):
    """Pixelate one rectangle: blocks of size x size from its top-left corner, cut off at its right and bottom edge.

    image: (1, H, W) array. x, y: top-left corner of the rectangle; width, height: its extent; size: of a block, pixels.
    Returns pixelated_image, (1, H, W) in the dtype of image, each block replaced by its mean (cast, so floored for
    integer images); known_array, (1, H, W) bool, False inside the rectangle; target_array, (1, height, width), the
    original rectangle. All are copies. Raises ValueError for another shape, an extent or size below 2, or a rectangle
    that leaves the image.
    """
    if image.ndim != 3 or image.shape[0] != 1:
        raise ValueError(f"image must have shape (1, H, W), not {image.shape}")
    if width < 2 or height < 2 or size < 2:
        raise ValueError(f"width, height and size must be at least 2, not {width}, {height} and {size}")
    if x < 0 or x + width > image.shape[2]:
        raise ValueError(f"x from {x} to {x + width} leaves the image, which is {image.shape[2]} pixels wide")
    if y < 0 or y + height > image.shape[1]:
        raise ValueError(f"y from {y} to {y + height} leaves the image, which is {image.shape[1]} pixels high")
    area = (0, slice(y, y + height), slice(x, x + width))
    target_array = image[area].copy()[None]
    pixelated_image = image.copy()
    pixelated_image[area] = block_means(image[area], size).astype(image.dtype)
    known_array = np.ones(image.shape, dtype=bool)
    known_array[area] = False
    return pixelated_image, known_array, target_array


def _check_range(name, value_range):
    if value_range[0] < 2:
        raise ValueError(f"the minimum of {name} must be at least 2, not {value_range[0]}")
    if value_range[0] > value_range[1]:
        raise ValueError(f"the minimum of {name} must not exceed its maximum: {tuple(value_range)}")


def draw_rectangle(rng, image_width, image_height, width_range, height_range, size_range):
    """A random (x, y, width, height, size), uniform over the ranges (inclusive) and over the places that fit."""
    width = min(int(rng.integers(width_range[0], width_range[1], endpoint=True)), image_width)
    height = min(int(rng.integers(height_range[0], height_range[1], endpoint=True)), image_height)
    x = int(rng.integers(image_width - width, endpoint=True))
    y = int(rng.integers(image_height - height, endpoint=True))
    return x, y, width, height, int(rng.integers(size_range[0], size_range[1], endpoint=True))


class RandomImagePixelationDataset(Dataset):
    """The course's dataset: every .jpg below image_dir, sorted by absolute path, full size, decoded at each access.

    Sample i is (pixelated_image, known_array, target_array, image_file), see `prepare_image`; its rectangle depends
    on i alone. dtype: of the image arrays, as in np.array(image, dtype). A range is (minimum, maximum), inclusive;
    width and height are clipped to the image. Raises ValueError for a minimum below 2 or above its maximum.
    """

    def __init__(self, image_dir, width_range, height_range, size_range, dtype=None):
        self.ranges = {"width_range": width_range, "height_range": height_range, "size_range": size_range}
        for name, value_range in self.ranges.items():
            _check_range(name.removesuffix("_range"), value_range)
        files = glob.glob(os.path.join(glob.escape(os.fspath(image_dir)), "**", "*.jpg"), recursive=True)
        self.image_files = sorted(os.path.abspath(file) for file in files)
        self.dtype = dtype

    def __len__(self):
        return len(self.image_files)

    def __getitem__(self, index):
        with Image.open(self.image_files[index], formats=FORMATS) as file:
            image = to_grayscale(np.array(file, dtype=self.dtype))
        return self.pixelate(image, np.random.default_rng(index), self.image_files[index])

    def pixelate(self, image, rng, image_file, **extent):
        """A sample: the image, (1, H, W), with a random rectangle. extent: ranges that replace the dataset's."""
        ranges = {**self.ranges, **extent}
        return *prepare_image(image, *draw_rectangle(rng, image.shape[2], image.shape[1], **ranges)), image_file


def stack_with_padding(batch_as_list):
    """The course's collate function, for samples of any size.

    batch_as_list: samples of RandomImagePixelationDataset. Returns pixelated images, (N, 1, H, W), padded with 0 at the
    right and bottom; known arrays, (N, 1, H, W) bool, padded with True; a list of the target arrays as tensors; a list
    of the image files.
    """
    pixelated_images, known_arrays, target_arrays, image_files = zip(*batch_as_list)
    shape = (len(batch_as_list), *np.max([image.shape for image in pixelated_images], axis=0))
    stacked_images = np.zeros(shape, dtype=pixelated_images[0].dtype)
    stacked_known = np.ones(shape, dtype=bool)
    for i, (image, known) in enumerate(zip(pixelated_images, known_arrays)):
        stacked_images[i, :, : image.shape[1], : image.shape[2]] = image
        stacked_known[i, :, : image.shape[1], : image.shape[2]] = known
    targets = [torch.from_numpy(target) for target in target_arrays]
    return torch.from_numpy(stacked_images), torch.from_numpy(stacked_known), targets, list(image_files)


# ------------------------------------------------------------------------------------------------ noise

NOISE = {  # kind: (mean of the noise, function of a generator and a shape that draws it), at level 1
    "uniform": (0.5, lambda rng, shape: rng.random(shape, dtype=np.float32)),
    "gaussian": (0.0, lambda rng, shape: rng.standard_normal(shape, dtype=np.float32)),
}


class NoisyImages(Dataset):
    """Pairs (noisy, clean), (1, H, W) float32 each: clean in [0, 1], noisy = clean + noise_level * noise, not clipped.

    noise: "uniform" in (0, 1), or "gaussian" of mean 0 and deviation 1. The noise of sample (epoch, i) is a function of
    seed, epoch and i. If fixed, that of sample i is a function of seed and i. Otherwise torch's global generator draws
    it anew at each access.
    """

    def __init__(self, images, fixed, noise="uniform", noise_level=1.0, seed=0):
        """images: (N, H, W) uint8 array."""
        if noise not in NOISE:
            raise ValueError(f"noise must be one of {', '.join(NOISE)}, not {noise!r}")
        if not noise_level >= 0:
            raise ValueError(f"noise_level must be at least 0, not {noise_level}")
        self.images, self.fixed, self.noise, self.noise_level, self.seed = images, fixed, noise, noise_level, seed

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        epoch, index = key if isinstance(key, tuple) else (None, key)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range: there are {len(self)} images")
        index %= len(self)
        if epoch is not None:
            rng = np.random.default_rng((self.seed, 1, epoch, index))
        else:
            rng = np.random.default_rng((self.seed, 0, index) if self.fixed else torch.randint(2**62, (1,)).item())
        clean = self.images[index][None].astype(np.float32) / 255
        draw = NOISE[self.noise][1]
        noisy = clean + np.float32(self.noise_level) * draw(rng, clean.shape)
        return torch.from_numpy(noisy), torch.from_numpy(clean)


class NoisyFashionMNIST(NoisyImages):
    """The exercise's dataset, from torchvision's FashionMNIST below the folder root; see NoisyImages.

    Training images get new noise at each access, test images (train=False) always the same. Raises RuntimeError if the
    files are missing and, with download=True, cannot be downloaded.
    """

    def __init__(self, root, train=True, download=False, noise="uniform", noise_level=1.0, seed=0):
        from torchvision.datasets import FashionMNIST  # slow to import (a second), needed here only

        images = FashionMNIST(root, train=train, download=download).data.numpy()
        super().__init__(images, not train, noise, noise_level, seed)


# ------------------------------------------------------------------------------------------------ super-resolution

DOWNSCALING = ("bilinear", "bicubic", "nearest")


def halve(images, downscaling="bilinear", antialias=True):
    """Halve the size of images, (N, C, 2h, 2w) float in [0, 1] -> (N, C, h, w), also in [0, 1].

    The result equals torchvision's Resize of tensors, clamped to [0, 1], which bicubic overshoots.

    antialias: wider kernels that see every pixel, as in Pillow and MATLAB; it has no effect on nearest. Bicubic with it
    matches MATLAB's imresize except at the very edge; without it, the coefficient is -0.75. Bilinear without it is the
    mean of 2x2 pixels. Nearest takes the upper left one of them.
    """
    side = (images.shape[2] // 2, images.shape[3] // 2)
    smooth = antialias and downscaling != "nearest"
    return F.interpolate(images, side, mode=downscaling, antialias=smooth).clamp(0, 1)


def color_jitter(image, rng, strength):
    """Apply torchvision's ColorJitter(strength, strength, strength, strength) with random numbers from rng.

    Brightness, contrast, saturation (factors 1 - strength to 1 + strength) and hue (-strength to strength turns), in
    random order. image and result: (3, H, W) float in [0, 1].
    """
    from torchvision.transforms import functional as tf  # slow to import (a second), needed here only

    changes = (tf.adjust_brightness, tf.adjust_contrast, tf.adjust_saturation, tf.adjust_hue)
    amounts = rng.uniform(-strength, strength, 4) + (1, 1, 1, 0)
    for i in rng.permutation(4):
        image = changes[i](image, float(amounts[i]))
    return image


class SRDataset(Dataset):
    """The exercise's pairs of a folder's photos: (low_resolution, high_resolution), (3, size / 2, size / 2) and
    (3, size, size) float32 in [0, 1].

    high_resolution is a random crop with brightness, contrast, saturation and hue changed by up to jitter (see
    `color_jitter`), low_resolution the same at half the size (see `halve`). torch's global generator makes all random
    choices. The photos are all files with one of EXTENSIONS in the folder and its subfolders, sorted by path.

    The sheet only says Resize, bilinear. That antialiases in the torchvision used here, and always did for Pillow
    images. Before torchvision 0.17 it did not for tensors; antialias=False reproduces that.

    Raises ValueError for an odd size, an unknown downscaling or a folder without photos, and at access to a photo
    smaller than size.
    """

    def __init__(self, folder, size=64, jitter=0.2, downscaling="bilinear", antialias=True):
        if size < 2 or size % 2 or downscaling not in DOWNSCALING or not 0 <= jitter <= 0.5:
            raise ValueError(
                f"size must be even, jitter 0 to 0.5, downscaling one of {', '.join(DOWNSCALING)}, "
                f"not {size}, {jitter}, {downscaling!r}"
            )
        self.size, self.jitter, self.downscaling, self.antialias = size, jitter, downscaling, antialias
        files = glob.glob(os.path.join(glob.escape(os.fspath(folder)), "**", "*"), recursive=True)
        self.image_files = sorted(file for file in files if file.lower().endswith(EXTENSIONS))
        if not self.image_files:
            raise ValueError(f"no photos in {folder} (looked for {', '.join(EXTENSIONS)})")

    def __len__(self):
        return len(self.image_files)

    def __getitem__(self, index):
        with Image.open(self.image_files[index], formats=FORMATS) as file:
            image = upright(file)
            photo = np.asarray((Image.fromarray(to_8_bits(image)) if image.mode[0] == "I" else image).convert("RGB"))
        if min(photo.shape[:2]) < self.size:
            raise ValueError(f"{self.image_files[index]}: smaller than {self.size} pixels")
        return self.pair(photo, np.random.default_rng(torch.randint(2**62, (1,)).item()), self.size)

    def pair(self, photo, rng, size):
        """A random sample of a photo, (H, W, 3) uint8."""
        y, x = (int(rng.integers(length - size, endpoint=True)) for length in photo.shape[:2])
        crop = np.ascontiguousarray(photo[y : y + size, x : x + size].transpose(2, 0, 1))  # (3, size, size)
        high_resolution = torch.from_numpy(crop).float() / 255
        if self.jitter:
            high_resolution = color_jitter(high_resolution, rng, self.jitter)
        return halve(high_resolution[None], self.downscaling, self.antialias)[0], high_resolution


class CachedCrops(SRDataset):
    """Training pairs from a cache of photos in colour, as uint8 tensors: crops that are also flipped and transposed.

    The item of key (epoch, i) is a function of the key and the seed. An epoch has `crops` items; the photos take turns.
    A crop is cut out after downscaling, so its edges are what they would be in the whole photo.

    cache, indices: as in CachedPixelationDataset, but cache[i] is (h, w, 1 or 3), at least size + 2 * MARGIN pixels a
    side. distinct: train on the first `distinct` samples only.
    """

    MARGIN = 4  # pixels beyond a crop that the kernels of `halve` reach; even

    def __init__(self, cache, indices, seed, crops, distinct=None, *, size, jitter, downscaling, antialias):
        """size, jitter, downscaling, antialias: as in SRDataset."""
        self.cache, self.indices, self.seed, self.crops, self.distinct = cache, indices, seed, crops, distinct
        self.names = [cache.names[index] for index in indices]
        self.size, self.jitter, self.downscaling, self.antialias = size, jitter, downscaling, antialias

    def __len__(self):
        return self.crops

    def __getitem__(self, key):
        epoch, i = key if self.distinct is None else (0, key[1] % self.distinct)
        rng = np.random.default_rng((self.seed, epoch, i))
        photo = self.cache[self.indices[(epoch * self.crops + i) % len(self.indices)]]  # (h, w, 1 or 3)
        photo = np.broadcast_to(photo, (*photo.shape[:2], 3))
        flipped = photo[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
        turned = flipped.transpose(1, 0, 2) if rng.random() < 0.5 else flipped
        pair = self.pair(turned, rng, self.size + 2 * self.MARGIN)
        return tuple(
            (image * 255).round().to(torch.uint8)[:, margin:-margin, margin:-margin]
            for image, margin in zip(pair, (self.MARGIN // 2, self.MARGIN))
        )


class CachedPhotos(Dataset):
    """Whole photos of a cache in colour, to measure on: (low_resolution, high_resolution), uint8.

    They are (C, h, w) and (C, 2h, 2w); C is 1 where the file is grey, else 3. An odd side loses its last pixel.
    """

    def __init__(self, cache, indices, downscaling, antialias):
        self.cache, self.indices, self.downscaling, self.antialias = cache, indices, downscaling, antialias
        self.names = [cache.names[index] for index in indices]

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        photo = torch.from_numpy(np.array(self.cache[self.indices[index]])).permute(2, 0, 1)
        high = photo[:, : photo.shape[1] // 2 * 2, : photo.shape[2] // 2 * 2]
        low = halve(high[None].float() / 255, self.downscaling, self.antialias)[0]
        return (low * 255).round().to(torch.uint8), high


# ------------------------------------------------------------------------------------------------ training


class Key(NamedTuple):
    """The key of a training sample, which is a function of these fields and the dataset's seed."""

    epoch: int
    index: int  # among the dataset's images
    width: int  # of the rectangle, in pixels, like height
    height: int


class CachedPixelationDataset(RandomImagePixelationDataset):
    """The same samples from a cache of decoded images: 64x64, rectangles as in the test set.

    For validation (crop_scale None), item i is the image's thumbnail in the challenge's form, with a rectangle that is
    a function of (seed, i). For training, items have a Key: each is a random resized crop, half of them flipped, with a
    rectangle of the key's extent. The crop's side is a share of the image's shortest side; crop_scale bounds it.

    cache: `cache[i]` an image, (h, w) uint8; `cache.thumbnails[i]` the same, (64, 64) uint8; `cache.names[i]`.
    indices: of the images to use.
    """

    def __init__(self, cache, indices, seed, crop_scale=None, distinct=None):
        """distinct: train on the first `distinct` samples only, always the same; epochs keep their length."""
        self.cache, self.indices, self.seed, self.crop_scale = cache, indices, seed, crop_scale
        self.distinct = min(distinct or len(indices), len(indices))
        self.ranges = {"width_range": WIDTH_RANGE, "height_range": HEIGHT_RANGE, "size_range": SIZE_RANGE}

    def __len__(self):
        return len(self.indices)

    @property
    def names(self):
        """The names of its images, in order."""
        return [self.cache.names[index] for index in self.indices]

    def __getitem__(self, key):
        if self.crop_scale is None:
            return self._sample(
                self.cache.thumbnails[self.indices[key]], np.random.default_rng((self.seed, 0, key)), key
            )
        rng = np.random.default_rng((self.seed, key.epoch, key.index))
        image = self._augment(self.cache[self.indices[key.index]], rng)
        extent = {"width_range": (key.width, key.width), "height_range": (key.height, key.height)}
        return self._sample(image, rng, key.index, **extent)

    def _sample(self, image, rng, i, **extent):
        return self.pixelate(image[None], rng, self.cache.names[self.indices[i]], **extent)

    def _augment(self, photo, rng):
        height, width = photo.shape
        side = rng.uniform(*self.crop_scale) * min(height, width)
        x, y = rng.random() * (width - side), rng.random() * (height - side)
        crop = Image.fromarray(photo).resize(
            (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, (x, y, x + side, y + side)
        )
        image = np.asarray(crop)
        return image[:, ::-1] if rng.random() < 0.5 else image

    def batches(self, batch_size, start, window_side=None):
        """Batches of keys from step `start` on, without end: each epoch in a new random order.

        window_side: a function of a rectangle's width or height. With it, the rectangles of a batch have equal window
        sides, so a network that crops to such windows wastes no computation.
        """
        for epoch, step, rng in epochs(len(self), self.seed, batch_size, start):
            widths, heights = (
                rng.integers(*bounds, len(self), endpoint=True) for bounds in (WIDTH_RANGE, HEIGHT_RANGE)
            )
            order = rng.permutation(len(self))
            if self.distinct < len(self):
                first = np.random.default_rng(self.seed)
                widths, heights = (
                    first.integers(*bounds, self.distinct, endpoint=True) for bounds in (WIDTH_RANGE, HEIGHT_RANGE)
                )
                epoch, order = 0, order % self.distinct
            if window_side:
                order = order[np.lexsort([window_side(extent[order]) for extent in (widths, heights)])]
            for batch in rng.permutation(-(-len(self) // batch_size))[step:]:
                chosen = order[batch * batch_size : (batch + 1) * batch_size]
                yield [Key(epoch, int(i), int(widths[i]), int(heights[i])) for i in chosen]


def epochs(count, seed, batch_size, start):
    """Yield (epoch, step within it, generator of the epoch's order) without end, from step `start` of a run on."""
    epoch, step = divmod(start, -(-count // batch_size))
    while True:
        yield epoch, step, np.random.default_rng((seed, epoch))
        epoch, step = epoch + 1, 0


def collate(batch_as_list):
    """stack_with_padding for training: pixelated images, known arrays and the original images, (N, 1, H, W) each."""
    pixelated_images, known_arrays, target_arrays, _ = stack_with_padding(batch_as_list)
    images = pixelated_images.clone()
    images[~known_arrays] = torch.cat([target.flatten() for target in target_arrays])  # both in row-major order
    return pixelated_images, known_arrays, images
