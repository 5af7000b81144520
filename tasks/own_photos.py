"""Photos of any size and colour with a pixelated rectangle: restored (`depixelate`), and made (`pixelate`)."""

import os

import numpy as np
import torch
from PIL import Image, ImageOps

from datasets import SIZE_RANGE, block_means, to_8_bits
from tasks import Action
from tasks.evaluation import load_models
from tasks.restoration import restore_float
from utils import UserError, atomic_write, show

WORKING_SIZE = 12  # of larger blocks at the scale at which they are restored
CONTEXT = 24  # pixels around the rectangle that a network sees, at that scale


def read_photo(path):
    """A photo as (pixels, (H, W, C) uint8 with C 1 or 3, upright; alpha, (H, W) uint8 or None; ICC profile or None).

    Raises UserError.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            profile = file.info.get("icc_profile") if image.mode in ("RGB", "RGBA", "P", "L") else None
            alpha = None
            if image.has_transparency_data:
                image = image.convert("RGBA")
                alpha = np.asarray(image.getchannel("A"))
                profile = profile if file.mode != "L" else None  # of grey values, for what is colours now
            if image.mode.startswith("I"):
                pixels = to_8_bits(image)
            else:
                pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'not a readable picture'}; name a photo") from None
    except Exception as error:  # whatever a broken file makes a decoder raise
        raise UserError(f"{path}: not a readable picture ({error})") from None
    return pixels.reshape(*pixels.shape[:2], -1), alpha, profile


def check_area(area, pixels, path):
    """(x, y, width, height) that lies in the photo. Raises UserError."""
    x, y, width, height = area
    if x < 0 or y < 0 or width < 2 or height < 2 or x + width > pixels.shape[1] or y + height > pixels.shape[0]:
        raise UserError(
            f"area: {x} {y} {width} {height} (x, y, width, height) does not lie in {path}, "
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
        )
    return area


def estimate_block_size(values):
    """The size of the blocks in a pixelated rectangle, (H, W, C), also where a JPEG has blurred them a little.

    It is the largest for which the blocks are as constant as for the best one, up to 2 grey levels.
    """
    sizes = range(2, max(values.shape[:2]) + 1)
    spreads = [np.sqrt(np.mean((values - block_means(values, size)) ** 2)) for size in sizes]
    return max(size for size, spread in zip(sizes, spreads) if spread <= 2 * min(spreads) + 2)


def find_area(pixels):
    """(x, y, width, height) of the pixelated rectangle: the largest that is covered by constant 2x2 squares.

    None where there is none of more than 4x4 pixels that is made of blocks (a JPEG, say, has blurred them).
    """
    equal_right = (pixels[:, :-1] == pixels[:, 1:]).all(axis=2)
    equal_down = (pixels[:-1] == pixels[1:]).all(axis=2)
    constant = equal_right[:-1] & equal_right[1:] & equal_down[:, :-1]
    covered = np.zeros(pixels.shape[:2], dtype=bool)
    for top in (0, 1):
        for left in (0, 1):
            covered[top : top + constant.shape[0], left : left + constant.shape[1]] |= constant
    best, heights = (0, 0, 0, 0, 0), np.zeros(covered.shape[1] + 1, dtype=int)
    for bottom, row in enumerate(covered):  # the largest rectangle under a histogram, row by row
        heights[:-1] = np.where(row, heights[:-1] + 1, 0)
        stack = []
        changes = np.flatnonzero(np.diff(heights, prepend=-1))
        for right in changes.tolist() + [len(heights)]:
            height = int(heights[right]) if right < len(heights) else -1
            start = right
            while stack and stack[-1][1] >= height:
                start, tall = stack.pop()
                best = max(best, (tall * (right - start), start, bottom + 1 - tall, right - start, tall))
            stack.append((start, height))
    _, x, y, width, height = best
    if width <= 4 or height <= 4:
        return None
    size = estimate_block_size(pixels[y : y + height, x : x + width])
    # A last column or row of blocks that is one pixel wide holds no 2x2 square.
    column = pixels[y : y + height, x + width : x + width + 1]
    if width % size == 0 and column.size and np.array_equal(block_means(column, size), column):
        width += 1
    row = pixels[y + height : y + height + 1, x : x + width]
    if height % size == 0 and row.size and np.array_equal(block_means(row, size), row):
        height += 1
    area = pixels[y : y + height, x : x + width]
    return (x, y, width, height) if np.array_equal(block_means(area, size), area) else None


def restore_area(predict, pixels, area, device, precision):
    """The photo, (H, W, C) uint8, with its pixelated rectangle restored; each channel keeps the means of its blocks.

    Blocks of a size that the network does not know are restored at a scale at which it does.
    """
    x, y, width, height = area
    values = pixels[y : y + height, x : x + width]
    size = estimate_block_size(values)
    means = block_means(values, size)
    working = size if SIZE_RANGE[0] <= size <= SIZE_RANGE[1] else WORKING_SIZE
    scale = working / size
    extent = [max(2, round(n * scale)) for n in (width, height)]
    before = [min(CONTEXT, int(start * scale)) for start in (x, y)]
    after = [
        min(CONTEXT, int((total - start - n) * scale))
        for start, n, total in ((x, width, pixels.shape[1]), (y, height, pixels.shape[0]))
    ]
    sides = [b + e + a for b, e, a in zip(before, extent, after)]
    box = (x - before[0] / scale, y - before[1] / scale, x + width + after[0] / scale, y + height + after[1] / scale)
    filled = pixels.copy()
    filled[y : y + height, x : x + width] = means.round()
    inputs = np.stack([_resize(channel, sides, box) for channel in np.moveaxis(filled, 2, 0)])[:, None]
    inside = (slice(None), 0, slice(before[1], before[1] + extent[1]), slice(before[0], before[0] + extent[0]))
    known = np.ones(inputs.shape, dtype=bool)
    known[inside] = False
    positions = [np.minimum((np.arange(e) // working) * size, n - 1) for e, n in zip(extent, (width, height))]
    blocks = np.floor(means[np.ix_(positions[1], positions[0])])  # (h, w, C): as the challenge pixelates
    inputs[inside] = np.moveaxis(blocks, 2, 0)
    outputs = restore_float(
        predict,
        torch.from_numpy(inputs.astype(np.uint8)).to(device),
        torch.from_numpy(known).to(device),
        precision,
    )
    restored = outputs.cpu().numpy()[:, 0] * 255  # (C, h, w)
    box = (before[0], before[1], before[0] + extent[0], before[1] + extent[1])
    restored = np.stack([_resize(channel, (width, height), box) for channel in restored], axis=2).astype(np.float64)
    for _ in range(10):  # alternate between what has these means and what is within [0, 255]
        restored = np.clip(restored + means - block_means(restored, size), 0, 255)
    result = pixels.copy()
    result[y : y + height, x : x + width] = restored.round()
    return result


def _resize(channel, sides, box):
    return np.asarray(
        Image.fromarray(channel.astype(np.float32)).resize(tuple(sides), Image.Resampling.BICUBIC, box)
    ).clip(0, 255)


def _save(pixels, alpha, profile, path):
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    with atomic_write(path) as file:
        image.save(file, "PNG", icc_profile=profile)


def depixelate(task, given, paths):
    """Restore the pixelated rectangle of each photo, and write it beside the photo. Returns the exit status."""
    (model,), device, precision = load_models(task, given, [])
    config = task.config
    for path in paths:
        pixels, alpha, profile = read_photo(path)
        area = check_area(config.area, pixels, path) if config.area else find_area(pixels)
        if area is None:
            raise UserError(f"{path}: no pixelated rectangle was found; give it with --area X Y WIDTH HEIGHT")
        result = restore_area(model.predict, pixels, area, device, precision)
        base = os.path.splitext(path)[0]
        _save(result, alpha, profile, f"{base}_depixelated.png")
        gap = np.full((len(pixels), max(2, pixels.shape[1] // 50), pixels.shape[2]), 255, dtype=np.uint8)
        _save(np.concatenate([pixels, gap, result], axis=1), None, profile, f"{base}_before_after.png")
        print(
            f"{show(path)}: restored {area[2]} x {area[3]} pixels at {area[0]}, {area[1]}: "
            f"{show(base)}_depixelated.png, {show(base)}_before_after.png"
        )
    return 0


def pixelate(task, given, paths):
    """Pixelate a rectangle of each photo (by default its middle), and write it beside the photo."""
    config = task.config
    for path in paths:
        pixels, alpha, profile = read_photo(path)
        height, width = pixels.shape[:2]
        if min(height, width) < 8:
            raise UserError(f"{path}: smaller than 8 pixels; name a larger photo")
        area = check_area(config.area or (width // 3, height // 3, width // 3, height // 3), pixels, path)
        x, y, width, height = area
        size = config.block_size or max(2, min(width, height) // 8)
        result = pixels.copy()
        result[y : y + height, x : x + width] = np.floor(block_means(result[y : y + height, x : x + width], size))
        written = f"{os.path.splitext(path)[0]}_pixelated.png"
        _save(result, alpha, profile, written)
        print(f"{show(path)}: pixelated {width} x {height} pixels at {x}, {y}, blocks of {size}: {show(written)}")
    return 0


ACTIONS = {
    "depixelate": Action(
        "+", "PHOTO", "restore the pixelated rectangle of photos of any size and colour; see also --area", depixelate
    ),
    "pixelate": Action(
        "+", "PHOTO", "pixelate a rectangle of photos, by default the middle; see also --area, --block_size", pixelate
    ),
}
