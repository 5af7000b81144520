"""From photos to batches.

The course's functions and classes come first: `to_grayscale`, `prepare_image`, `RandomImagePixelationDataset`,
`stack_with_padding`. Then what training adds: an image source (folder, zip or "synthetic") is decoded once, in
parallel, into a cache of small grayscale arrays on disk (`ImageCache`), split by folder, and served with fresh random
crops and rectangles (`PixelationDataset`). A batch travels as uint8 and becomes float on the device.
"""

import contextlib
import functools
import glob
import hashlib
import io
import json
import os
import platform
import shutil
import time
import warnings
import zipfile
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from tqdm import tqdm

import synthetic
from processes import start_worker
from utils import UserError

IMAGE_SIZE = 64  # pixels a side, of every image of the challenge
WIDTH_RANGE = HEIGHT_RANGE = (4, 32)  # of the pixelated rectangle, in pixels, inclusive
SIZE_RANGE = (4, 16)  # of the blocks, in pixels a side, inclusive
EXTENSIONS = (".jpg", ".jpeg", ".png")


# ------------------------------------------------------------------------------------------------ the course's part

# The sRGB transfer function (IEC 61966-2-1), tabulated for the 256 values of 8-bit images.
_TO_LINEAR = np.arange(256) / 255
_TO_LINEAR = np.where(_TO_LINEAR <= 0.04045, _TO_LINEAR / 12.92, ((_TO_LINEAR + 0.055) / 1.055) ** 2.4)


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
    if image.dtype == np.uint8:
        linear = _TO_LINEAR[image]
    else:
        rgb = image / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((np.maximum(rgb, 0) + 0.055) / 1.055) ** 2.4)
    luminance = 0.2126 * linear[..., 0] + 0.7152 * linear[..., 1] + 0.0722 * linear[..., 2]
    encoded = (
        np.where(luminance <= 0.0031308, 12.92 * luminance, 1.055 * np.maximum(luminance, 0) ** (1 / 2.4) - 0.055) * 255
    )
    if np.issubdtype(image.dtype, np.integer):
        encoded = np.round(encoded)
    return encoded.astype(image.dtype)[None]


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
    rows, columns = np.arange(0, height, size), np.arange(0, width, size)
    heights, widths = np.minimum(size, height - rows), np.minimum(size, width - columns)
    wide = np.int64 if np.issubdtype(image.dtype, np.integer) else np.float64  # a block's sum overflows uint8
    sums = np.add.reduceat(np.add.reduceat(image[area], rows, axis=0, dtype=wide), columns, axis=1)
    means = (sums / (heights[:, None] * widths)).astype(image.dtype)
    pixelated_image = image.copy()
    pixelated_image[area] = means.repeat(heights, axis=0).repeat(widths, axis=1)
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
    """The course's dataset: every .jpg below image_dir, in the order of the absolute paths, full size, decoded anew.

    Sample i is (pixelated_image, known_array, target_array, image_file), see `prepare_image`; its rectangle is a
    function of i. dtype: of the image arrays, as in np.array(image, dtype). A range is (minimum, maximum), inclusive;
    width and height are clipped to the image. Raises ValueError for a minimum below 2 or above its maximum.
    """

    def __init__(self, image_dir, width_range, height_range, size_range, dtype=None):
        for name, value_range in (("width", width_range), ("height", height_range), ("size", size_range)):
            _check_range(name, value_range)
        files = glob.glob(os.path.join(glob.escape(os.fspath(image_dir)), "**", "*.jpg"), recursive=True)
        self.image_files = sorted(os.path.abspath(file) for file in files)
        self.ranges = width_range, height_range, size_range
        self.dtype = dtype

    def __len__(self):
        return len(self.image_files)

    def __getitem__(self, index):
        with Image.open(self.image_files[index]) as file:
            image = to_grayscale(np.array(file, dtype=self.dtype))
        rectangle = draw_rectangle(np.random.default_rng(index), image.shape[2], image.shape[1], *self.ranges)
        return *prepare_image(image, *rectangle), self.image_files[index]


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


# ------------------------------------------------------------------------------------------------ reading photos

CACHE_VERSION = 1  # part of every cache's key: raise it when decoding or the file layout changes
CACHE_SIDE = 128  # shortest side of a cached photo: as the course's photos, twice the challenge's images
SYNTHETIC_SIDE = 96
MAX_FILE_BYTES = 256 * 2**20  # a larger photo is left out: it is no photo, or a zip bomb
CHUNK = 32  # photos a worker decodes in one go


def list_photos(images):
    """The photos of a folder or zip file: a sorted list of (name, stamp), name with forward slashes, relative.

    stamp changes when the file does: size and modification time, or size and checksum in a zip. Hidden files are
    skipped (among them the resource forks that macOS adds to zips). Raises UserError where there is nothing to read.
    """
    if os.path.isdir(images):
        photos = []
        for folder, subfolders, files in os.walk(images):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in files:
                if _is_photo(name):
                    path = os.path.join(folder, name)
                    try:
                        stamp = "{0.st_size} {0.st_mtime_ns}".format(os.stat(path))
                    except OSError:  # a link to nowhere: it will be left out as unreadable
                        stamp = "missing"
                    photos.append((os.path.relpath(path, images).replace(os.sep, "/"), stamp))
    elif os.path.isfile(images):
        try:
            with zipfile.ZipFile(images) as file:
                entries = file.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"images: {images} cannot be read as a zip file ({error}); give a folder or a .zip"
            ) from None
        photos = [(entry.filename, f"{entry.file_size} {entry.CRC}") for entry in entries if _is_photo(entry.filename)]
    else:
        raise UserError(f'images: there is no folder or file {images}; give one that exists, or "synthetic"')
    if not photos:
        raise UserError(f"images: no photos in {images} (looked for {', '.join(EXTENSIONS)}, also in subfolders)")
    return sorted(photos)


def _is_photo(name):
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(EXTENSIONS) and not base.startswith(".") and not name.startswith("__MACOSX/")


@functools.cache  # reading the directory of a large zip takes a while, so a worker process does it once
def _open_zip(path):
    return zipfile.ZipFile(path)


def _read_photo(images, name):
    """The bytes of one photo."""
    opened = open(os.path.join(images, name), "rb") if os.path.isdir(images) else _open_zip(images).open(name)
    with opened as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def decode_photo(data):
    """The two arrays that the cache keeps of a photo, both uint8 grayscale.

    data: bytes of a JPEG or PNG of any mode. Returns the photo, (h, w), its shortest side at most CACHE_SIDE, its
    longest cropped to twice that; and its view in the challenge's own form, (64, 64): Resize(64, bilinear),
    CenterCrop(64), grayscale (nearly so for JPEGs over 1000 pixels a side, which are decoded at a fraction of it).
    Raises ValueError where a side is shorter than 64; Pillow raises where it cannot decode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if min(image.size) < IMAGE_SIZE:
                raise ValueError(f"smaller than {IMAGE_SIZE} pixels")
            image.draft(None, (4 * CACHE_SIDE, 4 * CACHE_SIDE))  # large JPEGs: decode at a fraction of their size
            with contextlib.suppress(SyntaxError):  # from a broken EXIF block, which spoils no pixel
                image = ImageOps.exif_transpose(image)
            image = _without_mode(image)
    return _grayscale(_resize(image, CACHE_SIDE, 2 * CACHE_SIDE)), _grayscale(_resize(image, IMAGE_SIZE, IMAGE_SIZE))


def _without_mode(image):
    """Any Pillow mode to "RGB" or "L"; transparent parts become white."""
    if image.mode.startswith("I"):  # 16 bits a pixel
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _resize(image, side, longest):
    """Shortest side to `side` unless it is shorter already, longest cropped to `longest`, as torchvision does it."""
    shortest = min(image.size)
    width, height = (int(length * side / shortest) if shortest > side else length for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (int(round(max(0, length - longest) / 2)) for length in (width, height))
    return image.crop((left, top, min(left + longest, width), min(top + longest, height)))


def _grayscale(image):
    return to_grayscale(np.array(image))[0]


def _decode_chunk(images, names):
    """[(photo, view), or the reason why the photo is left out] of one worker."""
    results = []
    for name in names:
        try:
            results.append(decode_photo(_read_photo(images, name)))
        except Exception as error:  # whatever a broken file makes a decoder raise, it costs this one photo
            reason = str(error) if type(error) is ValueError else "unreadable"
            results.append(reason)
    return results


def _draw_chunk(seed, indices):
    """[(image, view)] of the synthetic source, as _decode_chunk gives them for photos."""
    images = [synthetic.synthetic_image(seed, index, SYNTHETIC_SIDE) for index in indices]
    return [(image, np.asarray(_resize(Image.fromarray(image), IMAGE_SIZE, IMAGE_SIZE))) for image in images]


# ------------------------------------------------------------------------------------------------ the cache


class ImageCache:
    """Decoded photos on disk, mapped into memory: `cache[i]` is photo i, (h, w) uint8, `cache.views[i]` its (64, 64).

    names: the photos' names, in order. left_out: (name, reason) of those that could not be used.
    """

    def __init__(self, path):
        self.path = path
        with open(os.path.join(path, "index.json"), encoding="utf-8") as file:
            index = json.load(file)
        self.names, self.left_out = index["names"], index["left_out"]
        self.shapes = np.array(index["shapes"], dtype=np.int64)  # (N, 2)
        self.ends = self.shapes.prod(axis=1).cumsum()
        self.pixels = np.memmap(os.path.join(path, "pixels.bin"), dtype=np.uint8, mode="r")
        self.views = np.memmap(os.path.join(path, "views.bin"), dtype=np.uint8, mode="r").reshape(
            -1, IMAGE_SIZE, IMAGE_SIZE
        )

    def __reduce__(self):  # a worker process maps the files itself; pickling the arrays would copy them
        return ImageCache, (self.path,)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        height, width = self.shapes[index]
        end = self.ends[index]
        return self.pixels[end - height * width : end].reshape(height, width)


def open_cache(images, cache_dir, seed, synthetic_images):
    """The ImageCache of an image source, made first where there is none that fits.

    images: a folder, a .zip or "synthetic"; cache_dir: where caches lie; seed and synthetic_images: of the synthetic
    source alone. A cache fits while the source's files (names, sizes, times or checksums) and the settings are the
    same; of each source one cache is kept.
    """
    if images == "synthetic":
        source, photos = "synthetic", []
        with open(synthetic.__file__, "rb") as file:
            settings = [SYNTHETIC_SIDE, seed, synthetic_images, hashlib.sha256(file.read()).hexdigest()]
    else:
        source, photos = os.path.abspath(images), list_photos(images)
        settings = [CACHE_SIDE, photos]
    place = os.path.splitext(os.path.basename(source))[0] + "-" + digest(source)
    path = os.path.join(cache_dir, f"{place}-{digest([CACHE_VERSION, IMAGE_SIZE, settings])}")
    if not os.path.isfile(os.path.join(path, "index.json")):
        if images == "synthetic":
            chunks = [range(i, min(i + CHUNK, synthetic_images)) for i in range(0, synthetic_images, CHUNK)]
            names, job, first = [f"synthetic {i}" for i in range(synthetic_images)], _draw_chunk, seed
        else:
            names = [name for name, _ in photos]
            chunks = [names[i : i + CHUNK] for i in range(0, len(names), CHUNK)]
            job, first = _decode_chunk, images
        os.makedirs(cache_dir, exist_ok=True)
        building = f"{path}.building.{digest(platform.node())}.{os.getpid()}"
        try:
            os.makedirs(building)
            _build_cache(building, names, chunks, job, first, "drawing" if images == "synthetic" else "decoding")
            for name in os.listdir(cache_dir):  # of the same source, but made of other files or settings
                old = os.path.join(cache_dir, name)
                if not name.startswith(place + "-") or old == building:
                    continue
                with contextlib.suppress(OSError):  # another process was faster
                    if ".building." not in name or _abandoned(old):
                        shutil.rmtree(old)
            os.replace(building, path)
        except OSError as error:
            error.filename = error.filename or cache_dir
            raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    cache = ImageCache(path)
    if cache.left_out:
        reasons = {reason: [name for name, why in cache.left_out if why == reason] for _, reason in cache.left_out}
        listed = "; ".join(
            f"{len(names)} {reason} ({', '.join(names[:10])}{', ...' if len(names) > 10 else ''})"
            for reason, names in reasons.items()
        )
        listed = listed.encode(errors="backslashreplace").decode()  # names need not be valid Unicode
        print(f"Left out {len(cache.left_out)} of {len(photos)} photos: {listed}")
    return cache


def _abandoned(building):
    """Whether the process that built a cache in this folder is gone; of other machines' and on Windows: for a day."""
    machine, pid = building.rsplit(".", 2)[1:]
    if os.name != "posix" or machine != digest(platform.node()):
        return time.time() - os.stat(building).st_mtime > 86400
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        pass
    return False


def digest(value):
    """16 hexadecimal digits that tell values, of what JSON can hold, apart."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _build_cache(path, names, chunks, job, first, verb):
    """Write a cache's files into the folder path: job(first, chunk) for all chunks, in parallel."""
    index = {"names": [], "left_out": [], "shapes": []}
    progress = tqdm(total=len(names), desc=verb, unit=" images", smoothing=0)
    workers = min(os.cpu_count() or 1, 8, len(chunks))
    with (
        open(os.path.join(path, "pixels.bin"), "wb") as pixels,
        open(os.path.join(path, "views.bin"), "wb") as views,
        progress,
        ProcessPoolExecutor(workers, initializer=start_worker) as pool,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(pool.shutdown, cancel_futures=True)  # after Ctrl-C, do not work off what is queued
        remaining = iter(names)
        for results in pool.map(job, [first] * len(chunks), chunks):
            for result, name in zip(results, remaining):
                if isinstance(result, str):
                    index["left_out"].append((name, result))
                else:
                    photo, view = result
                    pixels.write(photo.tobytes())
                    views.write(view.tobytes())
                    index["names"].append(name)
                    index["shapes"].append(photo.shape)
            progress.update(len(results))
    if not index["names"]:
        raise UserError(
            f"images: none of the {len(names)} photos in {first} can be used ({names[0]}: {index['left_out'][0][1]})"
        )
    with open(os.path.join(path, "index.json"), "w", encoding="utf-8") as file:
        json.dump(index, file)


def split_by_folder(names, fraction):
    """Indices of training and validation photos: (train, validation), sorted int64 arrays.

    Photos of one folder look alike, so whole folders are held out: every k-th, until they make up `fraction` of the
    photos. A folder with over a quarter of all photos is cut into runs of neighbours, which then count as folders; so
    is a source without folders.
    """
    folders = {}
    for i, name in enumerate(names):
        folders.setdefault(name.rpartition("/")[0], []).append(i)
    groups = []
    for members in folders.values():
        run = len(members) if len(members) <= len(names) / 4 else max(1, min(100, len(names) // 20))
        groups += [members[i : i + run] for i in range(0, len(members), run)]
    wanted = max(1, round(fraction * len(names)))
    step = max(1, round(1 / fraction))
    order = [i for start in range(step) for i in range(start, len(groups), step)]
    held_out, count = set(), 0
    for i in order:
        if count < wanted and count + len(groups[i]) < len(names):
            held_out.add(i)
            count += len(groups[i])
    parts = [
        [i for g, members in enumerate(groups) if (g in held_out) == chosen for i in members]
        for chosen in (False, True)
    ]
    return tuple(np.array(sorted(part), dtype=np.int64) for part in parts)


# ------------------------------------------------------------------------------------------------ batches


class PixelationDataset(Dataset):
    """Samples in the form of RandomImagePixelationDataset, from an ImageCache: 64x64, rectangles as in the test set.

    For validation (crop_scale None) item i is the photo's own view, with a rectangle that is a function of (seed, i).
    For training an item is asked for as (epoch, i, width, height): a random resized crop, its side a share of the
    photo's shortest side within crop_scale, maybe flipped, with a rectangle of this extent at a new place; all a
    function of (seed, epoch, i).
    """

    def __init__(self, cache, indices, seed, crop_scale=None):
        self.cache, self.indices, self.seed, self.crop_scale = cache, indices, seed, crop_scale

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, key):
        epoch, i, *extent = key if self.crop_scale else (0, key)
        rng = np.random.default_rng((self.seed, epoch, i))
        index = self.indices[i]
        if self.crop_scale:
            image = self._augment(self.cache[index], rng)
        else:
            image = self.cache.views[index]
        ranges = [(n, n) for n in extent] or (WIDTH_RANGE, HEIGHT_RANGE)
        rectangle = draw_rectangle(rng, IMAGE_SIZE, IMAGE_SIZE, *ranges, SIZE_RANGE)
        return *prepare_image(image[None], *rectangle), self.cache.names[index]

    def _augment(self, photo, rng):
        height, width = photo.shape
        side = rng.uniform(*self.crop_scale) * min(height, width)
        x, y = rng.random() * (width - side), rng.random() * (height - side)
        crop = Image.fromarray(photo).resize(
            (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, (x, y, x + side, y + side)
        )
        image = np.asarray(crop)
        return image[:, ::-1] if rng.random() < 0.5 else image


def collate(batch_as_list):
    """stack_with_padding for training: pixelated images, known arrays and the original images, (N, 1, H, W) each."""
    pixelated_images, known_arrays, target_arrays, _ = stack_with_padding(batch_as_list)
    images = pixelated_images.clone()
    images[~known_arrays] = torch.cat([target.flatten() for target in target_arrays])  # both in row-major order
    return pixelated_images, known_arrays, images


def epoch_order(dataset, seed, batch_size, start, window_side=None):
    """Batches of keys for PixelationDataset from step `start` on, without end: each epoch in a new random order.

    window_side: a function of a rectangle's width or height. Where it is given, a batch holds images whose rectangles
    agree in it, so that a network which looks at windows of this side computes no more than it needs.
    """
    steps = -(-len(dataset) // batch_size)
    epoch, step = divmod(start, steps)
    while True:
        rng = np.random.default_rng((seed, epoch))
        extents = [rng.integers(*bounds, len(dataset), endpoint=True) for bounds in (WIDTH_RANGE, HEIGHT_RANGE)]
        order = rng.permutation(len(dataset))
        if window_side:
            order = order[np.lexsort([window_side(extent[order]) for extent in extents])]
        for batch in rng.permutation(steps)[step:]:
            chosen = order[batch * batch_size : (batch + 1) * batch_size]
            yield [(epoch, int(i), *(int(extent[i]) for extent in extents)) for i in chosen]
        epoch, step = epoch + 1, 0
