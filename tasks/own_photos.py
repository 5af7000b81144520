"""Photos of any size and colour with a pixelated rectangle: restored (`depixelate`), and made (`pixelate`)."""

import os

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin

from datasets import SIZE_RANGE, block_means, to_8_bits
from tasks import Action
from tasks.evaluation import load_models
from tasks.outputs import check_outputs, sign
from tasks.restoration import restore_float
from utils import UserError, atomic_write, show

WORKING_SIZE = 12  # of larger blocks at the scale at which they are restored
FLAT_AREAS = 20  # of a single value each that may be larger than the pixelated rectangle
CONTEXT = 24  # pixels around the rectangle that a network sees, at that scale


def read_photo(path):
    """A photo as (pixels, (H, W, C) uint8 with C 1 or 3, upright; alpha, (H, W) uint8 or None; ICC profile or None).

    Raises UserError.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for, without end
            raise UserError(f"{path}: is no plain file; name a photo")
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
    except UserError:
        raise
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
    height, width = values.shape[:2]
    values = values.astype(np.int64)
    square = (values**2).sum()
    sums = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0), (0, 0)))  # of all above and to the left
    sizes, spreads = range(2, max(height, width) + 1), []
    for size in sizes:  # the mean square about the means of blocks is that about 0 less that of the means
        rows, columns = (np.append(np.arange(0, length, size), length) for length in (height, width))
        blocks = np.diff(np.diff(sums[np.ix_(rows, columns)], axis=0), axis=1)
        counts = np.diff(rows)[:, None, None] * np.diff(columns)[:, None]
        spreads.append(np.sqrt(max(0, square - (blocks.astype(np.float64) ** 2 / counts).sum()) / values.size))
    return max(size for size, spread in zip(sizes, spreads) if spread <= 2 * min(spreads) + 2)


def find_area(pixels):
    """(x, y, width, height) of the pixelated rectangle: the largest that is covered by constant 2x2 squares, and not by
    a single value, as a white margin is.

    None where there is none of more than 4x4 pixels that is made of blocks (a JPEG, say, has blurred them).
    """
    equal_right = (pixels[:, :-1] == pixels[:, 1:]).all(axis=2)
    equal_down = (pixels[:-1] == pixels[1:]).all(axis=2)
    constant = equal_right[:-1] & equal_right[1:] & equal_down[:, :-1]
    covered = np.zeros(pixels.shape[:2], dtype=bool)
    for top in (0, 1):
        for left in (0, 1):
            covered[top : top + constant.shape[0], left : left + constant.shape[1]] |= constant
    for _ in range(FLAT_AREAS):
        x, y, width, height = _largest_rectangle(covered)
        if width <= 4 or height <= 4:
            return None
        area = pixels[y : y + height, x : x + width]
        if not (area == area[0, 0]).all():
            return _with_last_blocks(pixels, x, y, width, height)
        covered[y : y + height, x : x + width] = False
    return None


def _largest_rectangle(covered):
    """(x, y, width, height) of the largest rectangle that is True everywhere; 0 each where there is none."""
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
    return best[1:]


def _with_last_blocks(pixels, x, y, width, height):
    """The rectangle as `find_area` gives it, with a last row and column that are one pixel wide where there are any."""
    size = estimate_block_size(pixels[y : y + height, x : x + width])
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


def save_photo(pixels, alpha, profile, path):
    """What `read_photo` returned, or what became of it, as a PNG with the program's sign."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    with atomic_write(path) as file:
        text = PngImagePlugin.PngInfo()
        text.add_text("Software", sign("picture"))
        image.save(file, "PNG", icc_profile=profile, pnginfo=text)


def check_written(paths, *suffixes):
    """check_outputs for what is written beside photos."""
    written = [os.path.splitext(path)[0] + suffix for path in paths for suffix in suffixes]
    check_outputs([(path, "picture") for path in written], paths)


def depixelate(task, given, paths):
    """Restore the pixelated rectangle of each photo, and write it beside the photo. Returns the exit status."""
    check_written(paths, "_depixelated.png", "_before_after.png")
    (model,), device, precision = load_models(task, given, [])
    config = task.config
    for path in paths:
        pixels, alpha, profile = read_photo(path)
        area = check_area(config.area, pixels, path) if config.area else find_area(pixels)
        if area is None:
            raise UserError(f"{path}: no pixelated rectangle was found; give it with --area X Y WIDTH HEIGHT")
        result = restore_area(model.predict, pixels, area, device, precision)
        base = os.path.splitext(path)[0]
        save_photo(result, alpha, profile, f"{base}_depixelated.png")
        gap = np.full((len(pixels), max(2, pixels.shape[1] // 50), pixels.shape[2]), 255, dtype=np.uint8)
        save_photo(np.concatenate([pixels, gap, result], axis=1), None, profile, f"{base}_before_after.png")
        print(
            f"{show(path)}: restored {area[2]} x {area[3]} pixels at {area[0]}, {area[1]}: "
            f"{show(base)}_depixelated.png, {show(base)}_before_after.png"
        )
    return 0


def pixelate(task, given, paths):
    """Pixelate a rectangle of each photo (by default its middle), and write it beside the photo."""
    config = task.config
    check_written(paths, "_pixelated.png")
    for path in paths:
        pixels, alpha, profile = read_photo(path)
        height, width = pixels.shape[:2]
        if min(height, width) < 8:
            raise UserError(f"{path}: smaller than 8 pixels; name a larger photo")
        middle = [max(8, length // 3) for length in (width, height)]  # fewer pixels would not be found again
        start = [min(length // 3, length - extent) for length, extent in zip((width, height), middle)]
        area = config.area or (*start, *middle)
        x, y, width, height = check_area(area, pixels, path)
        size = config.block_size or max(2, min(width, height) // 8)
        result = pixels.copy()
        result[y : y + height, x : x + width] = np.floor(block_means(result[y : y + height, x : x + width], size))
        written = f"{os.path.splitext(path)[0]}_pixelated.png"
        save_photo(result, alpha, profile, written)
        print(f"{show(path)}: pixelated {width} x {height} pixels at {x}, {y}, blocks of {size}: {show(written)}")
        if find_area(result) != (x, y, width, height):
            print(f"To restore it, say where it is: --depixelate FILE --area {x} {y} {width} {height}")
    return 0


ACTIONS = {
    "depixelate": Action(
        "+", "PHOTO", "restore the pixelated rectangle of photos of any size and colour; see also --area", depixelate
    ),
    "pixelate": Action(
        "+", "PHOTO", "pixelate a rectangle of photos, by default the middle; see also --area, --block_size", pixelate
    ),
}
