"""The cache: every image of a source, decoded once, in parallel, into files that are mapped into memory."""

import contextlib
import functools
import hashlib
import json
import os
import shutil
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

import numpy as np
from tqdm import tqdm

from datasets import IMAGE_SIZE
from depixelation.engine.processes import Interrupts, start_worker, workers_end
from depixelation.images import synthetic
from depixelation.images.photos import (
    CACHE_SIDE,
    COLOUR_SIDE,
    SYNTHETIC_COLOUR_SIDE,
    SYNTHETIC_SIDE,
    decode_chunk,
    draw_chunk,
    list_photos,
)
from utils import UserError, digest, display_path, locked

CACHE_VERSION = 3  # part of every cache's key: raise it when decoding or the file layout changes
CHUNK = 32  # photos that a worker decodes at once


class DamagedCache(Exception):
    """A cache whose files were changed or truncated."""


class ImageCache:
    """Decoded photos on disk, mapped into memory: `cache[i]` is photo i, (h, w) or (h, w, 1 or 3) uint8,
    `cache.thumbnails[i]` the same in the challenge's form, (64, 64) uint8.

    names: the photos' names, in order. left_out: (name, reason) of those that could not be used.
    """

    def __init__(self, path):
        """Raises DamagedCache where the files are missing or do not fit one another."""
        self.path = path
        try:
            with open(os.path.join(path, "index.json"), encoding="utf-8") as file:
                index = json.load(file)
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
            raise DamagedCache(f"{path} ({error})") from None

    def __reduce__(self):  # a worker process maps the files itself; pickling the arrays would copy them
        return ImageCache, (self.path,)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        shape, end = self.shapes[index], self.ends[index]
        return self.pixels[end - shape.prod() : end].reshape(shape)


def open_cache(images, cache_dir, seed, synthetic_images, colour=False):
    """Open the ImageCache of an image source, or build one if none fits.

    images: a folder, a .zip or "synthetic"; cache_dir: the folder of the caches; seed and synthetic_images: of the
    synthetic source alone; colour: photos in colour and of full size. A cache fits while the source's files (names,
    sizes, times or checksums) and the settings are the same. Each source keeps one cache, and one in colour. A damaged
    cache is rebuilt.
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
        names, job, first = [f"synthetic {i}" for i in range(synthetic_images)], draw_chunk, seed
    else:
        names = [name for name, _ in photos]
        size = CHUNK // 8 if colour else CHUNK  # photos of full size take memory
        chunks = [names[i : i + size] for i in range(0, len(names), size)]
        job, first = decode_chunk, images
    job = functools.partial(job, colour=colour)
    build = functools.partial(_build_cache, names=names, chunks=chunks, job=job, first=first)
    try:
        cache = ImageCache(path)
    except DamagedCache:
        advice = f"Waiting for another run, which prepares images of {display_path(source)} too."
        with locked(os.path.join(cache_dir, f"{stem}.lock"), advice, wait=True):
            cache = _repaired(path, stem, build)
    _tell_left_out(cache.left_out, len(photos))
    return cache


def _repaired(path, stem, build):
    """The ImageCache at path; build it unless another process has just done so."""
    try:
        return ImageCache(path)
    except DamagedCache as error:
        if os.path.exists(path):
            print(f"The cache {error} is damaged; it is made again.")
            shutil.rmtree(path)
    _make_cache(path, stem, build)
    return ImageCache(path)


def _make_cache(path, stem, build):
    """Build a cache beside its final place, then move it there.

    It replaces the source's previous cache, whose name also begins with stem. The caller holds the source's lock, so
    any unfinished build found here was abandoned.
    """
    cache_dir = os.path.dirname(path)
    for name in os.listdir(cache_dir):
        if name.startswith(f"{stem}-") and ".building." in name:
            shutil.rmtree(os.path.join(cache_dir, name), ignore_errors=True)
    building = f"{path}.building.{os.getpid()}"
    try:
        os.makedirs(building)
        build(building)
        for name in os.listdir(cache_dir):
            if name.startswith(f"{stem}-") and ".building." not in name:
                shutil.rmtree(os.path.join(cache_dir, name), ignore_errors=True)  # Windows keeps files in use by a run
        os.replace(building, path)
    except OSError as error:
        error.filename = error.filename or cache_dir
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _tell_left_out(left_out, count):
    """Print one line that names the unusable photos and the reasons. left_out: (name, reason) each."""
    if not left_out:
        return
    reasons = {reason: [name for name, why in left_out if why == reason] for _, reason in left_out}
    listed = "; ".join(
        f"{len(names)} {reason} ({', '.join(names[:10])}{', ...' if len(names) > 10 else ''})"
        for reason, names in reasons.items()
    )
    listed = listed.encode(errors="backslashreplace").decode()  # names need not be valid Unicode
    print(f"Left out {len(left_out)} of {count} photos: {listed}")


def _build_cache(path, names, chunks, job, first):
    """Write a cache's files into the folder path: job(first, chunk) for all chunks, in parallel."""
    index, verb = {"names": [], "left_out": [], "shapes": []}, "drawing" if job.func is draw_chunk else "decoding"
    progress = tqdm(total=len(names), desc=verb, unit=" images", smoothing=0)
    workers = min(os.cpu_count() or 1, 8, len(chunks))
    with (
        Interrupts(loud=False) as interrupts,
        workers_end(),
        open(os.path.join(path, "pixels.bin"), "wb") as pixels,
        open(os.path.join(path, "thumbnails.bin"), "wb") as thumbnails,
        progress,
        ProcessPoolExecutor(workers, initializer=start_worker) as pool,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(pool.shutdown, cancel_futures=True)  # after Ctrl-C, drop queued work
        stack.enter_context(workers_end(BrokenExecutor))  # if one was killed, the pool would wait for the others
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
            interrupts.check()
    if not index["names"]:
        raise UserError(
            f"images: none of the {len(names)} photos in {first} can be used ({names[0]}: {index['left_out'][0][1]})"
        )
    with open(os.path.join(path, "index.json"), "w", encoding="utf-8") as file:
        json.dump(index, file)
