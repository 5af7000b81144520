"""Restoring from Python, without the command line: `from depixelation import restore`. Writes and prints nothing."""

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image

from depixelation.commands.depixelate import DepixelateOptions, Restorer
from depixelation.engine.processes import quiet
from depixelation.mosaics.area import Area, check_area
from depixelation.mosaics.given import given_areas
from depixelation.mosaics.photo import find_areas, restore_photo
from depixelation.tasks.depixelation import Depixelation
from utils import check_value


class Restored(NamedTuple):
    """What `restore` returns."""

    image: np.ndarray | Image.Image  # of the kind, shape and mode that was given
    areas: list[Area]  # the pixelated areas, given or found


def restore(
    image: np.ndarray | Image.Image,
    areas: list[tuple[int, int, int, int]] | None = None,
    mask: np.ndarray | None = None,
    *,
    block_size: float | tuple[float, float] | None = None,
    realism: float = 0.0,
    seed: int | None = None,
    sensitivity: float = 0.5,
    model: str | None = None,
    device: str = "auto",
) -> Restored:
    """Find the pixelated areas of an image and restore them. Restored pixels are a guess.

    image: (H, W) or (H, W, 3) uint8 array, or a Pillow image (L, RGB or RGBA; others become RGB).
    areas: (x, y, width, height) in pixels of each area; None: they are found.
    mask: (H, W) bool array in place of areas, True where the image is pixelated. Nothing else is changed.
    block_size: side of the blocks in these, in pixels, or their width and height; None: it is measured.
    realism: how real it looks, from 0, most accurate, to 1. seed: draw a possible original, another one for each seed.
    sensitivity: of the search, 0 to 1; higher finds more, false areas too. model: a models/NAME.pt to restore with.
    Raises TypeError or ValueError for another image, areas or mask, and utils.UserError for another model or number.
    """
    pixels, back = _pixels_of(image)
    if areas is not None and mask is not None:
        raise ValueError("give areas or a mask, not both")
    block = _block_of(block_size, areas is not None or mask is not None)
    named = {"realism": float(realism), "sensitivity": float(sensitivity)}
    for name, value in named.items():
        check_value(DepixelateOptions, name, value, "restore")
    with quiet():
        restorer = _restorer(model, device, bool(realism or seed is not None))
    if mask is not None or areas is not None:
        rectangles = [check_area(tuple(map(int, area)), pixels, "the image") for area in areas or ()]
        mask = mask if mask is None else _checked_mask(np.asarray(mask), pixels)
        found = given_areas(pixels, rectangles, mask, block)
    else:
        restorer.finder.sensitivity = sensitivity
        found = find_areas(restorer.finder, pixels)
    if not found:
        return Restored(back(pixels), found)
    realistic = restorer.realistic.at(realism or 1.0, seed or 0) if restorer.realistic else None
    result = restore_photo(pixels, found, restorer.accurate, realistic, restorer.detects_average)
    return Restored(back(result.restored), result.areas)


@functools.lru_cache(2)  # loading takes longer than a small photo
def _restorer(model, device, realistic):
    task = Depixelation(Depixelation.Config(device=device))
    restorer = Restorer(task, DepixelateOptions(model=model, realism=1.0 if realistic else 0.0))
    return restorer


def _pixels_of(image):
    """((H, W, 1 or 3) uint8, function that gives such an array the form of the image)."""
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB", "RGBA"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        pixels = np.asarray(image)
        alpha = image.getchannel("A") if image.mode == "RGBA" else None

        def back(restored):
            result = Image.fromarray(restored if restored.shape[2] == 3 else restored[:, :, 0])
            if alpha is not None:
                result.putalpha(alpha)
            return result

        return pixels.reshape(*pixels.shape[:2], -1)[:, :, :3], back
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image must be an array or a Pillow image, not {type(image).__name__}")
    if image.dtype != np.uint8:
        raise TypeError(f"image must have dtype uint8, not {image.dtype}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)) or not image.size:
        raise ValueError(f"image must have shape (H, W) or (H, W, 3), not {image.shape}")
    return image.reshape(*image.shape[:2], -1), lambda restored: restored.reshape(image.shape).copy()


def _block_of(block_size, places):
    """(width, height) of blocks, or None. places: whether areas are given, too."""
    if block_size is None:
        return None
    block = tuple(map(float, block_size if isinstance(block_size, (tuple, list)) else (block_size, block_size)))
    if len(block) != 2 or not min(block) >= 2:
        raise ValueError(f"block_size must be a side in pixels, from 2 on, or (width, height), not {block_size}")
    if not places:
        raise ValueError("block_size says what is in areas or a mask; give one of them, too")
    return block


def _checked_mask(mask, pixels):
    if mask.dtype != bool or mask.shape != pixels.shape[:2]:
        raise ValueError(f"mask must be bool of shape {pixels.shape[:2]}, not {mask.dtype} of shape {mask.shape}")
    return mask
