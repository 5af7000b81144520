"""Where the user says that photos are pixelated: --area, --mask and --block_size."""

import os

import numpy as np

from depixelation.images.photo_files import EXTENSIONS, read_photo
from depixelation.mosaics.area import check_area, in_fours, parse_block_size
from depixelation.mosaics.given import given_areas
from utils import UserError, display_path


def check_given(options):
    """Raise UserError if options contradict each other."""
    if options.area and options.mask:
        raise UserError("mask: --area says where the photo is pixelated, too; give only one of them")
    if options.block_size and not (options.area or options.mask):
        raise UserError("block_size: say where such blocks are, too: --area X Y WIDTH HEIGHT or --mask FILE.png")
    if options.mask and not os.path.exists(options.mask):
        raise UserError(f"mask: {display_path(options.mask)} does not exist; name a picture, or a folder of pictures")


def changed_option(options):
    """The first option that was given and would change results that exist already. None if there is none."""
    names = "area", "mask", "block_size", "sensitivity", "realism"
    return next((name for name in names if getattr(options, name) != getattr(type(options)(), name)), None)


def is_mask(mask, path):
    """Whether a file is a mask rather than a photo: `mask` itself, or in that folder."""
    file = os.path.realpath(path)
    return mask is not None and os.path.realpath(mask) in (file, os.path.dirname(file))


def named_areas(options, pixels, path):
    """The Areas that --area or --mask names in a photo. Raises UserError."""
    block = parse_block_size(options.block_size) if options.block_size else None
    if options.area:
        return given_areas(pixels, [check_area(group, pixels, path) for group in in_fours(options.area)], block=block)
    mask_path = mask_of(options.mask, path)
    white, alpha, _ = read_photo(mask_path)
    if white.shape[:2] != pixels.shape[:2]:
        raise UserError(
            f"{display_path(mask_path)}: is {white.shape[1]} x {white.shape[0]} pixels, {display_path(path)} is "
            f"{pixels.shape[1]} x {pixels.shape[0]}; draw the mask on the photo"
        )
    mask = white.sum(axis=2, dtype=np.uint16) > 127 * white.shape[2]
    areas = given_areas(pixels, mask=mask if alpha is None else mask & (alpha > 127), block=block)
    if not areas:
        raise UserError(f"{display_path(mask_path)}: has no white pixels; paint white what is pixelated")
    return areas


def mask_of(mask, path):
    """The file of a photo's mask: `mask`, or in that folder the file of the photo's name. Raises UserError."""
    if not os.path.isdir(mask):
        return mask
    stem = os.path.splitext(os.path.basename(path))[0]
    files = (os.path.join(mask, stem + ending) for ending in (".png", *EXTENSIONS, "_mask.png"))
    found = next(filter(os.path.isfile, files), None)
    if found is None:
        raise UserError(f"{display_path(path)}: has no mask; put {stem}.png into {display_path(mask)}")
    return found
