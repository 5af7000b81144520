"""Splits a source into training and held-out images, and chooses those that may measure a model."""

import hashlib
import os

import numpy as np
import torch

from depixelation.images.cache import open_cache
from utils import UserError, digest, display_path

MAX_HELD_OUT = 20_000  # images whose digests a model keeps, 8 bytes each


def alike_groups(names):
    """Lists of the indices of photos that may look alike: those of one folder.

    A folder with over a quarter of all photos is cut into runs of neighbours; so is a source without folders.
    """
    folders = {}
    for i, name in enumerate(names):
        folders.setdefault(name.rpartition("/")[0], []).append(i)
    groups = []
    for members in folders.values():
        run = len(members) if len(members) <= len(names) / 4 else max(1, min(100, len(names) // 20))
        groups += [members[i : i + run] for i in range(0, len(members), run)]
    return groups


def group_numbers(names):
    """The number of each photo's group of alike_groups: (N,) int64."""
    numbers = np.empty(len(names), dtype=np.int64)
    for number, members in enumerate(alike_groups(names)):
        numbers[members] = number
    return numbers


def split_by_folder(names, fraction):
    """Indices of training and validation photos: (train, validation), sorted int64 arrays.

    Photos of one folder look alike, so whole folders are held out: every k-th, until they make up `fraction` of the
    photos. See alike_groups.
    """
    groups = alike_groups(names)
    wanted = max(1, round(fraction * len(names)))
    step = max(1, min(len(groups), round(1 / fraction)))
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
    """A 64-bit digest of each of these images' thumbnails: (N,) int64."""
    digests = (hashlib.blake2b(cache.thumbnails[i].tobytes(), digest_size=8).digest() for i in indices)
    return np.array([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=np.int64)


def content_digest(cache):
    """A digest of all images' thumbnails, in order. Held-out ones count: they may have changed places with others."""
    return digest(thumbnail_digests(cache, range(len(cache))).tolist())


def held_out_digests(cache, train_indices, validation_indices):
    """The thumbnail_digests of held-out images without a copy in training: a 1-D int64 tensor, for the model."""
    held_out = thumbnail_digests(cache, validation_indices[:MAX_HELD_OUT])
    return torch.from_numpy(np.setdiff1d(held_out, thumbnail_digests(cache, np.unique(train_indices))))


def images_with_truth(config, options, models, colour=False):
    """(cache, indices, description) of images from config.images to measure these models on.

    options: EvaluateOptions. models: Models; those without trained_with were not trained. An image is chosen if every
    model that was trained on this source held it out. The description says "held out" if the models' records prove it;
    otherwise a warning is printed.
    """
    models = [model for model in models if model.trained_with]
    alike = [m.trained_with for m in models if _stem(m.trained_with.images) == _stem(config.images)]
    seed, count = (
        getattr(alike[0] if alike and getattr(options, name) is None else config, name)
        for name in ("seed", "synthetic_images")
    )
    cache = open_cache(config.images, config.cache_dir, seed, count, colour)
    source = "drawn images" if config.images == "synthetic" else f"images of {display_path(config.images)}"
    chosen = np.ones(len(cache), dtype=bool)
    if not models and config.images == "synthetic":
        chosen = _held_out(cache, config)
    digests = thumbnail_digests(cache, range(len(cache))) if models else None
    unknown, beside = {}, set()
    for model in models:
        for entry in model.record:
            held_out = np.isin(digests, entry["held_out"].numpy())
            if held_out.any():
                chosen &= held_out
            elif (entry["images"] == "synthetic") == (config.images == "synthetic"):  # perhaps the same images
                if model.asked_for:
                    unknown.setdefault(entry["images"], []).append(model.name)
                else:
                    beside.add(model.name)
                if not len(entry["held_out"]) and _stem(entry["images"]) == _stem(config.images):
                    chosen &= _held_out(cache, model.trained_with if options.validation_fraction is None else config)
    if not chosen.any():
        raise UserError(f"images: these models held out no image of {config.images} in common; name other images")
    words = f"{'all ' * bool(chosen.all())}{chosen.sum():,} {source}"
    for trained_on, names in unknown.items():
        print(
            f"warning: {', '.join(dict.fromkeys(names))}: trained on {trained_on}, and no record shows that the "
            f"{source} were held out; if they were not, the score is too good"
        )
    if models and not unknown:
        words += ", held out of training"
        words += f"; of {', '.join(sorted(beside))} no record shows it" if beside else ""
    return cache, np.flatnonzero(chosen), words


def _held_out(cache, config):
    """Which images a training with this config holds out if it sees the same list of images: (N,) bool."""
    return np.isin(np.arange(len(cache)), split_by_folder(cache.names, config.validation_fraction)[1])


def _stem(path):
    return path if path == "synthetic" else os.path.join(".", os.path.splitext(os.path.basename(path))[0])
