"""Image sources: a folder or zip of photos, or "synthetic", decoded once, in parallel, into a cache on disk."""

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import platform
import shutil
import stat
import time
import warnings
import zipfile
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

import synthetic
from datasets import EXTENSIONS, IMAGE_SIZE, to_8_bits, to_grayscale
from processes import start_worker, workers_end
from utils import UserError, digest, locked, show

try:
    import fcntl
except ImportError:  # Windows, which deletes no file that is open
    fcntl = None

# ------------------------------------------------------------------------------------------------ reading photos

CACHE_VERSION = 2  # part of every cache's key: raise it when decoding or the file layout changes
CACHE_SIDE = 128  # shortest side of a cached photo: as the course's photos, twice the challenge's images
SYNTHETIC_SIDE = 96
COLOUR_SIDE = 2048  # longest side of a photo cached in colour, of larger ones the middle
SYNTHETIC_COLOUR_SIDE = 128
MAX_FILE_BYTES = 256 * 2**20  # a larger photo is left out: it is no photo, or a zip bomb
CHUNK = 32  # photos a worker decodes in one go
# What a file's own state makes reading fail with; all else (a disk, a share) may be over next time.
LASTING = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)


def list_photos(images):
    """The photos of a folder or zip file: a sorted list of (name, stamp), name with forward slashes, relative.

    stamp changes when the file does: size and modification time, or size and checksum in a zip. Hidden files are
    skipped (among them the resource forks that macOS adds to zips). Raises UserError where there is nothing to read.
    """
    if os.path.isdir(images):
        photos = []
        for folder, subfolders, files in os.walk(images, onerror=_tell_unread_folder):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in files:
                if _is_photo(name):
                    path = os.path.join(folder, name)
                    photos.append((os.path.relpath(path, images).replace(os.sep, "/"), _stamp(path)))
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


def _tell_unread_folder(error):
    if error.errno not in LASTING:
        raise error
    print(f"Left out the folder {show(error.filename)}: {error.strerror}")


def _stamp(path):
    try:
        found = os.stat(path)
    except OSError:  # a link to nowhere: it will be left out as unreadable
        return "missing"
    if not stat.S_ISREG(found.st_mode):
        return "no file"
    return f"{found.st_size} {found.st_mtime_ns}" + ("" if os.access(path, os.R_OK) else " unreadable")


def _is_photo(name):
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(EXTENSIONS) and not base.startswith(".") and not name.startswith("__MACOSX/")


@functools.cache  # reading the directory of a large zip takes a while, so a worker process does it once
def _open_zip(path):
    return zipfile.ZipFile(path)


def _read_photo(images, name):
    """The bytes of one photo."""
    path = os.path.join(images, name)
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for, without end
        raise ValueError("no plain file")
    opened = open(path, "rb") if os.path.isdir(images) else _open_zip(images).open(name)
    with opened as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def decode_photo(data, colour=False):
    """The two arrays that the cache keeps of a photo, uint8: the photo, grayscale or in colour, and a thumbnail.

    data: bytes of a JPEG or PNG of any mode. Returns the photo, (h, w), its shortest side at most CACHE_SIDE, its
    longest cropped to twice that; or in colour (h, w, 1 or 3), only cropped, to COLOUR_SIDE; and its thumbnail in the
    challenge's own form, (64, 64): Resize(64, bilinear), CenterCrop(64), grayscale (nearly so for JPEGs over 1000
    pixels a side, which for grayscale are decoded at a fraction of their size).
    Raises ValueError where a side is shorter than 64; Pillow raises where it cannot decode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if min(image.size) < IMAGE_SIZE:
                raise ValueError(f"smaller than {IMAGE_SIZE} pixels")
            if not colour:
                image.draft(None, (4 * CACHE_SIDE, 4 * CACHE_SIDE))  # large JPEGs: decode at a fraction of their size
            with contextlib.suppress(SyntaxError):  # from a broken EXIF block, which spoils no pixel
                image = ImageOps.exif_transpose(image)
            image = _without_mode(image)
    thumbnail = _grayscale(_resize(image, IMAGE_SIZE, IMAGE_SIZE))
    if colour:
        return np.atleast_3d(_crop(image, COLOUR_SIDE)), thumbnail
    return _grayscale(_resize(image, CACHE_SIDE, 2 * CACHE_SIDE)), thumbnail


def _without_mode(image):
    """Any Pillow mode to "RGB" or "L"; transparent parts become white."""
    if image.mode.startswith("I"):
        return Image.fromarray(to_8_bits(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _resize(image, side, longest):
    """Shortest side to `side` unless it is shorter already, longest cropped to `longest`, as torchvision does it."""
    shortest = min(image.size)
    width, height = (int(length * side / shortest) if shortest > side else length for length in image.size)
    return _crop(image.resize((width, height), Image.Resampling.BILINEAR), longest)


def _crop(image, longest):
    left, top = (int(round(max(0, length - longest) / 2)) for length in image.size)
    return image.crop((left, top, min(left + longest, image.width), min(top + longest, image.height)))


def _grayscale(image):
    return to_grayscale(np.array(image))[0]


def _decode_chunk(images, names, colour=False):
    """[(photo, thumbnail), or the reason why the photo is left out] of one worker.

    Raises UserError where a photo may be readable another time: the cache would remember that it is not.
    """
    results = []
    for name in names:
        try:
            results.append(decode_photo(_read_photo(images, name), colour))
        except MemoryError:
            raise
        except Exception as error:  # whatever a broken file makes a decoder raise, it costs this one photo
            if isinstance(error, OSError) and error.errno and not _lasts(error, os.path.join(images, name)):
                advice = "start again when all of it can be read"
                raise UserError(f"images: {name} in {show(images)}: {error.strerror}; {advice}") from None
            results.append(str(error) if type(error) is ValueError else "unreadable")
    return results


def _lasts(error, path):
    return error.errno in LASTING or (error.errno == errno.ENOENT and os.path.islink(path))  # a link to nowhere


def _draw_chunk(seed, indices, colour=False):
    """[(image, thumbnail)] of the synthetic source, as _decode_chunk gives them for photos."""
    draw, side = (
        (synthetic.synthetic_colour_image, SYNTHETIC_COLOUR_SIDE)
        if colour
        else (synthetic.synthetic_image, SYNTHETIC_SIDE)
    )
    images = [draw(seed, index, side) for index in indices]
    return [(image, _grayscale(_resize(Image.fromarray(image), IMAGE_SIZE, IMAGE_SIZE))) for image in images]


# ------------------------------------------------------------------------------------------------ the cache


class DamagedCache(Exception):
    """Its files have been changed or cut off."""


class ImageCache:
    """Decoded photos on disk, mapped into memory: `cache[i]` is photo i, (h, w) or (h, w, 1 or 3) uint8,
    `cache.thumbnails[i]` the same in the challenge's form, (64, 64) uint8.

    names: the photos' names, in order. left_out: (name, reason) of those that could not be used.
    """

    def __init__(self, path):
        """Raises DamagedCache where the files are missing or do not fit one another."""
        self.path = path
        try:
            self.index = open(os.path.join(path, "index.json"), encoding="utf-8")  # open as long as the cache is in use
            with contextlib.suppress(OSError, AttributeError):
                fcntl.flock(self.index, fcntl.LOCK_SH | fcntl.LOCK_NB)
            index = json.load(self.index)
            self.names, self.left_out = index["names"], [(name, reason) for name, reason in index["left_out"]]
            self.shapes = np.array(index["shapes"], dtype=np.int64).reshape(len(self.names), -1)
            self.ends = self.shapes.prod(axis=1).cumsum()
            self.pixels, self.thumbnails = (
                np.memmap(os.path.join(path, name), dtype=np.uint8, mode="r")
                for name in ("pixels.bin", "thumbnails.bin")
            )
            self.thumbnails = self.thumbnails.reshape(len(self.names), IMAGE_SIZE, IMAGE_SIZE)
            if not self.names or self.shapes.min() < 1 or len(self.pixels) != self.ends[-1]:
                raise ValueError("sizes do not fit")
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError) as error:
            with contextlib.suppress(AttributeError):
                self.index.close()
            raise DamagedCache(f"{path} ({error})") from None

    def __reduce__(self):  # a worker process maps the files itself; pickling the arrays would copy them
        return ImageCache, (self.path,)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        shape, end = self.shapes[index], self.ends[index]
        return self.pixels[end - shape.prod() : end].reshape(shape)


def open_cache(images, cache_dir, seed, synthetic_images, colour=False):
    """The ImageCache of an image source, made first where there is none that fits.

    images: a folder, a .zip or "synthetic"; cache_dir: where caches lie; seed and synthetic_images: of the synthetic
    source alone; colour: photos in colour and of full size. A cache fits while the source's files (names, sizes, times
    or checksums) and the settings are the same; of each source one cache is kept, and one in colour. One whose files
    are damaged is made again.
    """
    if images == "synthetic":
        source, photos = "synthetic", []
        with open(synthetic.__file__, "rb") as file:
            settings = [SYNTHETIC_SIDE, seed, synthetic_images, hashlib.sha256(file.read()).hexdigest()]
    else:
        source, photos = os.path.abspath(images), list_photos(images)
        settings = [CACHE_SIDE, photos]
    settings += [COLOUR_SIDE, SYNTHETIC_COLOUR_SIDE] * colour
    stem = os.path.splitext(os.path.basename(source))[0] + "-" + digest([source, "colour"] if colour else source)
    path = os.path.join(cache_dir, f"{stem}-{digest([CACHE_VERSION, IMAGE_SIZE, settings])}")
    if images == "synthetic":
        chunks = [range(i, min(i + CHUNK, synthetic_images)) for i in range(0, synthetic_images, CHUNK)]
        names, job, first = [f"synthetic {i}" for i in range(synthetic_images)], _draw_chunk, seed
    else:
        names = [name for name, _ in photos]
        size = CHUNK // 8 if colour else CHUNK  # photos of full size take memory
        chunks = [names[i : i + size] for i in range(0, len(names), size)]
        job, first = _decode_chunk, images
    job = functools.partial(job, colour=colour)
    build = functools.partial(_build_cache, names=names, chunks=chunks, job=job, first=first)
    try:
        cache = ImageCache(path)
    except DamagedCache:
        advice = f"Waiting for another run, which prepares images of {show(source)} too."
        with locked(os.path.join(cache_dir, f"{stem}.lock"), advice, wait=True):
            cache = _repaired(path, stem, build)
    _tell_left_out(cache.left_out, len(photos))
    return cache


def _repaired(path, stem, build):
    """The ImageCache at path, made now unless another process has just done so."""
    try:
        return ImageCache(path)
    except DamagedCache as error:
        if os.path.exists(path):
            print(f"The cache {error} is damaged; it is made again.")
            shutil.rmtree(path)
    _make_cache(path, stem, build)
    return ImageCache(path)


def _in_use(path):
    """Whether a process has the cache at path open."""
    with contextlib.suppress(OSError, AttributeError), open(os.path.join(path, "index.json")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _make_cache(path, stem, build):
    """Build a cache beside its place, move it there, and delete the older ones of its source (names begin with stem)
    that no process uses.
    """
    cache_dir = os.path.dirname(path)
    building = f"{path}.building.{digest(platform.node())}.{os.getpid()}"
    try:
        os.makedirs(building)
        build(building)
        for name in os.listdir(cache_dir):
            old = os.path.join(cache_dir, name)
            if not name.startswith(stem + "-") or old == building:
                continue
            with contextlib.suppress(OSError):  # another process was faster
                if _abandoned(old) if ".building." in name else not _in_use(old):
                    shutil.rmtree(old)
        os.replace(building, path)
    except OSError as error:
        error.filename = error.filename or cache_dir
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _tell_left_out(left_out, count):
    """One line that names the photos that are not used, and why. left_out: (name, reason) each."""
    if not left_out:
        return
    reasons = {reason: [name for name, why in left_out if why == reason] for _, reason in left_out}
    listed = "; ".join(
        f"{len(names)} {reason} ({', '.join(names[:10])}{', ...' if len(names) > 10 else ''})"
        for reason, names in reasons.items()
    )
    listed = listed.encode(errors="backslashreplace").decode()  # names need not be valid Unicode
    print(f"Left out {len(left_out)} of {count} photos: {listed}")


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


def _build_cache(path, names, chunks, job, first):
    """Write a cache's files into the folder path: job(first, chunk) for all chunks, in parallel."""
    index, verb = {"names": [], "left_out": [], "shapes": []}, "drawing" if job.func is _draw_chunk else "decoding"
    progress = tqdm(total=len(names), desc=verb, unit=" images", smoothing=0)
    workers = min(os.cpu_count() or 1, 8, len(chunks))
    with (
        workers_end(),
        open(os.path.join(path, "pixels.bin"), "wb") as pixels,
        open(os.path.join(path, "thumbnails.bin"), "wb") as thumbnails,
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
                    photo, thumbnail = result
                    pixels.write(photo.tobytes())
                    thumbnails.write(thumbnail.tobytes())
                    index["names"].append(name)
                    index["shapes"].append(photo.shape)
            progress.update(len(results))
    if not index["names"]:
        raise UserError(
            f"images: none of the {len(names)} photos in {first} can be used ({names[0]}: {index['left_out'][0][1]})"
        )
    with open(os.path.join(path, "index.json"), "w", encoding="utf-8") as file:
        json.dump(index, file)


# ------------------------------------------------------------------------------------------------ the split

MAX_HELD_OUT = 20_000  # images whose digests a model keeps, 8 bytes each


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


def image_source(config, colour=False):
    """(cache, indices of the training images, indices of the images held out) of config.images."""
    cache = open_cache(config.images, config.cache_dir, config.seed, config.synthetic_images, colour)
    train_indices, validation_indices = split_by_folder(cache.names, config.validation_fraction)
    if not len(train_indices) or not len(validation_indices):
        raise UserError(
            f"images: {config.images} has {len(cache)} usable photos; training and validation need one each"
        )
    return cache, train_indices, validation_indices


def thumbnail_digests(cache, indices):
    """A number for each of these images that tells their thumbnails apart: (N,) int64."""
    digests = (hashlib.blake2b(cache.thumbnails[i].tobytes(), digest_size=8).digest() for i in indices)
    return np.array([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=np.int64)


def held_out_digests(cache, train_indices, validation_indices):
    """The thumbnail_digests of images that are held out, with no copy trained on: a 1-D int64 tensor, for the model."""
    held_out = thumbnail_digests(cache, validation_indices[:MAX_HELD_OUT])
    return torch.from_numpy(np.setdiff1d(held_out, thumbnail_digests(cache, np.unique(train_indices))))


def images_with_truth(config, given, models, colour=False):
    """(cache, indices, what they are in words): images of config.images to measure these models on.

    models: evaluation.Models, those without config not trained. The images are those that all models trained on any of
    them held out. They are said to be held out if the models' records show it; where they do not, a warning is printed.
    """
    models = [model for model in models if model.config]
    like = [model.config for model in models if _stem(model.config.images) == _stem(config.images)]
    for name in {"seed", "synthetic_images"} - given:
        if like:
            setattr(config, name, getattr(like[0], name))
    cache = open_cache(config.images, config.cache_dir, config.seed, config.synthetic_images, colour)
    source = "drawn images" if config.images == "synthetic" else f"images of {show(config.images)}"
    chosen = np.ones(len(cache), dtype=bool)
    if not models and config.images == "synthetic":
        chosen = _held_out(cache, config)
    digests = thumbnail_digests(cache, range(len(cache))) if models else None
    unknown = {}
    for model in models:
        for entry in model.record:
            held_out = np.isin(digests, entry["held_out"].numpy())
            if held_out.any():
                chosen &= held_out
            elif (entry["images"] == "synthetic") == (config.images == "synthetic"):  # maybe of the same images
                unknown.setdefault(entry["images"], []).append(model.name)
                if not len(entry["held_out"]) and _stem(entry["images"]) == _stem(config.images):
                    chosen &= _held_out(cache, config if "validation_fraction" in given else model.config)
    if not chosen.any():
        raise UserError(f"images: these models held out no image of {config.images} in common; name other images")
    words = f"{'all ' * bool(chosen.all())}{chosen.sum():,} {source}"
    for trained_on, names in unknown.items():
        print(
            f"warning: {', '.join(dict.fromkeys(names))}: trained on {trained_on}, and no record shows that the "
            f"{source} were held out; if they were not, the score is too good"
        )
    return cache, np.flatnonzero(chosen), words + ", held out of training" * bool(models and not unknown)


def _held_out(cache, config):
    """Which images a training as config says holds out, if it sees the same list of images: (N,) bool."""
    return np.isin(np.arange(len(cache)), split_by_folder(cache.names, config.validation_fraction)[1])


def _stem(path):
    return os.path.splitext(os.path.basename(path))[0]
