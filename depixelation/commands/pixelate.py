"""--pixelate: pixelate areas of photos."""

import re
from dataclasses import dataclass

from tqdm import tqdm

from depixelation.commands import Command
from depixelation.commands.each_photo import for_each_photo
from depixelation.images.photo_files import photo_jobs, read_photo, save_photo
from depixelation.mosaics.area import AREA, AVERAGES, GRIDS, Area, check_area, in_fours, pixelate_area
from depixelation.mosaics.exact import find_exact
from utils import Keys, UserError, display_path, key

RESULT = re.compile(r"(?P<base>.+)_pixelated\.(png|jpg)$")


@dataclass(frozen=True)
class PixelateOptions(Keys):
    """Of --pixelate."""

    area: list | None = AREA
    output: str | None = key(None, "the folder for photos that are written; none: beside each", path=True)
    block_size: int | None = key(
        None,
        "side of the blocks, in pixels; none: an eighth of the area's shorter side",
        minimum=2,
        maximum=10**6,
    )
    grid: str = key("rectangle", "where the blocks begin", choices=GRIDS)
    average: str = key("srgb", "how a block is averaged; center: its middle pixel", choices=AVERAGES)
    quality: int | None = key(None, "JPEG quality; none: write a PNG", minimum=1, maximum=100)


def pixelate(task, options, paths):
    """--pixelate: pixelate areas of each photo (by default its middle); write it beside the photo or to --output.

    Returns 1 where a photo could not be read or written, which does not end the work on the others.
    """
    suffix = "_pixelated.jpg" if options.quality else "_pixelated.png"

    def begin():
        return lambda path, base: pixelate_file(options, path, base + suffix)

    return for_each_photo(photo_jobs(paths, [suffix], options.output, RESULT), [suffix], begin)


def pixelate_file(options, path, written):
    """Read a photo, pixelate it, write it and say so. Raises UserError."""
    pixels, alpha, metadata = read_photo(path)
    height, width = pixels.shape[:2]
    if min(height, width) < 8:
        raise UserError(f"{path}: smaller than 8 pixels; name a larger photo")
    middle = [max(8, length // 3) for length in (width, height)]  # fewer pixels would not be found again
    start = [min(length // 3, length - extent) for length, extent in zip((width, height), middle)]
    result, lines = pixels.copy(), []
    for x, y, width, height in [check_area(a, pixels, path) for a in in_fours(options.area or (*start, *middle))]:
        size = options.block_size or max(2, min(width, height) // 8)
        phases = (0.0, 0.0) if options.grid == "rectangle" else (float(-x % size), float(-y % size))
        pixelate_area(result, Area(x, y, width, height, float(size), float(size), *phases, options.average))
        what = f"pixelated {width} x {height} pixels at {x}, {y}, blocks of {size}"
        lines.append(f"{display_path(path)}: {what}: {display_path(written)}")
    save_photo(result, alpha, metadata, written, options.quality)
    middle_box = slice(start[1], start[1] + middle[1]), slice(start[0], start[0] + middle[0])
    if not options.quality and not options.area and middle_box not in [area.box() for area in find_exact(result)]:
        area = " ".join(map(str, (*start, *middle)))
        lines.append(f"To restore it, say where it is: --depixelate FILE --area {area}")
    for line in lines:
        tqdm.write(line)


COMMAND = Command(
    "pixelate",
    pixelate,
    "pixelate areas of photos, by default the middle",
    "+",
    "PHOTO|FOLDER",
    PixelateOptions,
    ("depixelation", "files"),
    "python main.py --pixelate holiday.jpg --area 120 80 200 150 --block_size 12",
)
