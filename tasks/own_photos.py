"""Photos of any size and colour with pixelated areas: restored (`depixelate`), and made (`pixelate`)."""

import contextlib
import json
import os
import re
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict, replace
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin
from tqdm import tqdm

from datasets import to_8_bits
from processes import shortage
from tasks import Action, load_task
from tasks.areas import SAME, block_values, exact_area, find_exact, parts_of, restore_area, square_area
from tasks.evaluation import chosen_model, load_model, load_models
from tasks.finding import Finding
from tasks.mosaics import Area, pixelate_area
from tasks.outputs import check_outputs, made_here, sign
from tasks.refining import SPREAD, refined
from utils import UserError, atomic_write, show

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")  # of the photos of a folder
WRITTEN = ("_depixelated.png", "_before_after.png", "_preview.png")
RESULT = re.compile(r"_(depixelated|before_after|preview|spread|sample_\d+)\.png$")


def read_photo(path):
    """A photo as (pixels, (H, W, C) uint8 with C 1 or 3, upright; alpha, (H, W) uint8 or None; ICC profile or None).

    Raises UserError.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for, without end
            raise UserError(f"{path}: is no plain file; name a photo")
        with Image.open(path) as file:
            if getattr(file, "is_animated", False) and file.format != "MPO":
                raise UserError(f"{path}: has several frames or pages; name a picture of one")
            file.load()
            image = file
            with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
                image = ImageOps.exif_transpose(file)  # damaged EXIF spoils no pixel
            if image.mode == "F" or image.mode == "I" and file.format == "TIFF":
                raise UserError(f"{path}: has no greys of 8 or 16 bits, so black and white are unknown; save it with 8")
            profile = file.info.get("icc_profile") if image.mode in ("RGB", "RGBA", "P", "L") else None
            alpha = None
            if image.has_transparency_data and not image.mode.startswith("I"):
                image = image.convert("RGBA")
                alpha = np.asarray(image.getchannel("A"))
                profile = profile if file.mode != "L" else None  # of grey values, for what is colours now
            if image.mode.startswith("I"):
                tqdm.write(f"{show(path)}: has 16 bits a pixel, what is written 8", file=sys.stderr)
                pixels = to_8_bits(image)
            else:
                pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise UserError(
            f"{path}: has more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels; make it smaller"
        ) from None
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


def save_photo(pixels, alpha, profile, path, quality=None):
    """What `read_photo` returned, or what became of it, as a PNG with the program's sign; with a quality, as a JPEG."""
    if alpha is not None and quality:  # no JPEG is transparent: over white
        share = alpha[:, :, None] / 255
        pixels = (pixels * share + 255 * (1 - share)).round().astype(np.uint8)
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    if alpha is not None and not quality:
        image.putalpha(Image.fromarray(alpha))
    with atomic_write(path) as file:
        if quality:
            image.save(file, "JPEG", quality=quality, icc_profile=profile, comment=sign("picture"))
            return
        text = PngImagePlugin.PngInfo()
        text.add_text("Software", sign("picture"))
        image.save(file, "PNG", icc_profile=profile, pnginfo=text)


def check_written(paths, suffix, output=None):
    """The path that is written for each photo, beside it or in the folder `output`, after check_outputs."""
    bases = [os.path.join(output, os.path.basename(path)) if output else path for path in paths]
    written = [os.path.splitext(base)[0] + suffix for base in bases]
    check_outputs([(path, "picture") for path in written], paths)
    return written


def in_fours(numbers):
    """x, y, width and height of each area of a flat list."""
    return [tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]


# ------------------------------------------------------------------------------------------------ restoring


def list_files(paths):
    """[(photo, the same relative to the folder that was named)], of files and of folders, which are walked."""
    found = []
    for path in paths:
        if not os.path.isdir(path):
            found.append((path, os.path.basename(path)))
            continue
        for folder, subfolders, files in os.walk(path, onerror=_tell_unread):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(files):
                file = os.path.join(folder, name)
                result = RESULT.search(name) and os.path.isfile(file) and made_here(file, "picture")
                if name.lower().endswith(EXTENSIONS) and not name.startswith(".") and not result:
                    found.append((file, os.path.relpath(file, path)))
    return list({os.path.realpath(file): (file, name) for file, name in found}.values())


def _tell_unread(error):
    print(f"main.py: error: {show(error.filename)}: left out ({error.strerror})", file=sys.stderr)


def result_bases(files, output):
    """What the names of each photo's results begin with: its own without extension, unless another photo has that too.

    files: as from list_files.
    """
    counts, bases = {}, []  # {folder: how many photos there bear each name without extension}
    for path, relative in files:
        folder, name = os.path.split(path)
        if folder not in counts:
            names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
            # lower: many systems hold names that differ by case alone for one
            counts[folder] = Counter(os.path.splitext(n.lower())[0] for n in names if n.lower().endswith(EXTENSIONS))
        stem, extension = os.path.splitext(relative if output else path)
        others = counts[folder][os.path.splitext(name)[0].lower()] - name.lower().endswith(EXTENSIONS)
        stem = f"{stem}_{extension[1:]}" if others > 0 else stem
        bases.append(os.path.join(output, stem) if output else stem)
    return bases


def find_areas(finder, pixels, device, precision):
    """The pixelated Areas of a photo: what a file has kept to the bit, and what a Finder (or None) finds beside it."""
    seen, areas = finder.candidates(pixels, device, precision) if finder else [], find_exact(pixels)
    found = [area for area in seen if area.confidence > finder.least]
    for area in filter(None, (exact_area(pixels, area) for area in seen)):  # no doubt is left where blocks are exact
        if not any(area.overlap(other) for other in areas):
            areas.append(area)
    for i, area in enumerate(areas):  # which the finder knows more of
        same = max(found, key=area.overlap, default=None)
        if same and area.overlap(same) >= SAME:
            areas[i] = replace(area, confidence=same.confidence)
    return areas + [a for a in found if all(max(a.share_in(b), b.share_in(a)) < SAME for b in areas)]


def describe(areas, name):
    """A line for each area."""
    for a in areas:
        width, height = (f"{side:.4g}" for side in (a.block_width, a.block_height))
        size = width if width == height else f"{width} x {height}"
        yield f"{name}: area {a.x} {a.y} {a.width} {a.height}, blocks of {size}, confidence {a.confidence:.2f}"


def mark_areas(pixels, areas):
    """The photo in RGB with the areas' edges in red and their grids in yellow."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).convert("RGB")
    pen = ImageDraw.Draw(image)
    for area in areas:
        rows, columns = area.lines()
        right, bottom = area.x + area.width - 1, area.y + area.height - 1
        for line in columns[1:-1].tolist():
            pen.line((area.x + line, area.y, area.x + line, bottom), "yellow")
        for line in rows[1:-1].tolist():
            pen.line((area.x, area.y + line, right, area.y + line), "yellow")
        pen.rectangle((area.x, area.y, right, bottom), None, "red", max(1, min(image.size) // 300))
    return np.asarray(image)


def depixelate(task, given, paths):
    """--depixelate: restore the pixelated areas of photos, and write them beside the photos or to --output.

    Returns 1 where a photo could not be read or written, which does not end the work on the others.
    """
    config = task.config
    files = list_files(paths)
    files = [(path, base) for (path, _), base in zip(files, result_bases(files, config.output))]
    if not files:
        raise UserError(f"{show(paths[0])}: has no photos (looked for {', '.join(EXTENSIONS)}, also in subfolders)")
    suffixes = WRITTEN[2:] if config.preview else (*WRITTEN[:2], *sample_suffixes(config.samples))
    check_outputs([(base + suffix, "picture") for _, base in files for suffix in suffixes], [path for path, _ in files])
    with contextlib.redirect_stdout(sys.stderr if config.json else sys.stdout):
        restorer = load_task("files").like(config, given)
        there = config.network in task.baselines() or os.path.exists(chosen_model(restorer, given))
        paths = [] if there else [chosen_model(task, given)]
        (model,), device, precision = load_models(restorer, given, paths)
    finder = None if config.area else load_finder(config, device)
    search = partial(find_areas, finder, device=device, precision=precision)
    predictors = [model.predict]
    if not config.preview:
        predict = refined(restorer, model.predict, device)
        predictors += [predict] * bool(config.realism) + (predict.samples(config.samples) if config.samples else [])
    restores = [partial(restore_area, p, device=device, precision=precision) for p in predictors]
    # A network that keeps the means has them in any case, and tells nothing of what the values are.
    tells = model.config is not None and not model.config.network_options.get("consistent", True)
    failed = skipped = 0
    for path, base in tqdm(files, desc="restoring", unit=" photos", leave=False, disable=len(files) < 2):
        if not (config.overwrite or config.preview) and all(os.path.exists(base + suffix) for suffix in suffixes):
            skipped += 1
            continue
        try:
            found = depixelate_photo(config, path, base, search, restores, tells)
            for line in found:
                tqdm.write(line)
        except UserError as error:
            failed += 1
            tqdm.write(f"main.py: error: {error}", file=sys.stderr)
        except OSError as error:
            failed += 1
            name = show(error.filename or base)
            tqdm.write(f"main.py: error: {name}: cannot be written ({error.strerror})", file=sys.stderr)
        except (MemoryError, RuntimeError) as error:
            if not shortage(error):
                raise
            failed += 1
            tqdm.write(f"main.py: error: {show(path)}: {shortage(error)}", file=sys.stderr)
    if skipped or (failed and len(files) > 1):
        line = f"{failed} of {len(files)} photos failed, {skipped} have results, left as they are without --overwrite"
        print(line, file=sys.stderr if config.json else sys.stdout)
    return 1 if failed else 0


def load_finder(config, device):
    """The shipped Finder, with the configured sensitivity; None without its file."""
    task = Finding(Finding.Config(sensitivity=config.sensitivity))
    if not os.path.exists(task.shipped):
        print(f"{show(task.shipped)} is missing, so only areas are found that a file has kept exactly", file=sys.stderr)
        return None
    return load_model(task, task.shipped, set(), device).predict


def depixelate_photo(config, path, base, search, restores, tells):
    """Restore one photo, once by each of restores, and write what became of it. Yields the lines that tell of it.

    restores: the accurate one; that of config.realism, unless that is 0; the samples'. tells: whether the accurate one
    can tell how blocks were averaged. Raises UserError.
    """
    pixels, alpha, profile = read_photo(path)
    started = time.monotonic()
    if config.area:
        areas = [square_area(pixels, check_area(group, pixels, path)) for group in in_fours(config.area)]
    else:
        areas = search(pixels)
    if not config.json:
        yield from describe(areas, show(path))
    written = []

    def save(picture, alpha, profile, suffix):
        if config.overwrite or config.preview or not os.path.exists(base + suffix):
            save_photo(picture, alpha, profile, base + suffix)
            written.append(base + suffix)

    if areas and config.preview:
        save(mark_areas(pixels, areas), None, profile if pixels.shape[2] == 3 else None, WRITTEN[2])
    elif areas:
        suffixes = sample_suffixes(config.samples)
        result, likely, sure = restore_areas(restores[0], pixels, areas)
        areas = [known if tells and told else area for area, known, told in zip(areas, likely, sure)]
        if config.realism:
            result, *_ = restore_areas(restores[1], pixels, likely)
        gap = np.full((len(pixels), max(2, pixels.shape[1] // 50), pixels.shape[2]), 255, dtype=np.uint8)
        save(result, alpha, profile, WRITTEN[0])
        save(np.concatenate([pixels, gap, result], axis=1), None, profile, WRITTEN[1])
        sums = np.zeros((2, *pixels.shape), dtype=np.float32)  # of the samples' values and their squares
        for restore, suffix in zip(restores[1 + bool(config.realism) :], suffixes):
            sample, *_ = restore_areas(restore, pixels, likely)
            save(sample, alpha, profile, suffix)
            sums += np.stack([sample, np.square(sample, dtype=np.float32)])
        if config.samples:
            mean, squares = sums / config.samples
            spread = SPREAD * np.sqrt((squares - mean**2).clip(0)).mean(axis=2, keepdims=True)
            save(spread.clip(0, 255).round().astype(np.uint8), None, None, suffixes[-1])
    if config.json:
        yield json.dumps({"photo": path, "areas": [asdict(area) for area in areas], "written": written})
    elif areas:
        seconds = time.monotonic() - started
        yield f"{show(path)}: {', '.join(map(show, written))} ({seconds:.1f} s)"
    else:
        yield f"{show(path)}: no pixelated area found, so nothing is written; --area X Y WIDTH HEIGHT says where one is"


def restore_areas(restore, pixels, areas):
    """(the photo with all areas restored, those with the smallest blocks first; the areas, with how they most likely
    were averaged; whether that is sure, of each)."""
    likely, sure = list(areas), [False] * len(areas)
    order = sorted(range(len(areas)), key=lambda i: areas[i].block_width * areas[i].block_height)
    parts = [(i, part) for i in order for part in parts_of(areas[i])]
    blocks = [block_values(pixels, part) for _, part in parts]  # before any is restored: areas may overlap
    for (i, part), values in zip(parts, blocks):
        known = likely[i].average
        pixels, average, told = restore(pixels=pixels, area=replace(part, average=known), blocks=values)
        if known is None:  # then an area's other parts are restored as its first one
            likely[i], sure[i] = replace(likely[i], average=average), told
    return pixels, likely, sure


def sample_suffixes(count):
    """The endings of what --samples writes."""
    return [*(f"_sample_{i + 1}.png" for i in range(count)), "_spread.png"] if count else []


# ------------------------------------------------------------------------------------------------ pixelating


def pixelate(task, given, paths):
    """--pixelate: pixelate areas of each photo (by default its middle); write it beside the photo or to --output."""
    config = task.config
    suffix = "_pixelated.jpg" if config.quality else "_pixelated.png"
    for path, written in zip(paths, check_written(paths, suffix, config.output)):
        pixels, alpha, profile = read_photo(path)
        height, width = pixels.shape[:2]
        if min(height, width) < 8:
            raise UserError(f"{path}: smaller than 8 pixels; name a larger photo")
        middle = [max(8, length // 3) for length in (width, height)]  # fewer pixels would not be found again
        start = [min(length // 3, length - extent) for length, extent in zip((width, height), middle)]
        result = pixels.copy()
        for x, y, width, height in [check_area(a, pixels, path) for a in in_fours(config.area or (*start, *middle))]:
            size = config.block_size or max(2, min(width, height) // 8)
            phases = (0.0, 0.0) if config.grid == "rectangle" else (float(-x % size), float(-y % size))
            pixelate_area(result, Area(x, y, width, height, float(size), float(size), *phases, config.average))
            print(f"{show(path)}: pixelated {width} x {height} pixels at {x}, {y}, blocks of {size}: {show(written)}")
        save_photo(result, alpha, profile, written, config.quality)
        middle_box = slice(start[1], start[1] + middle[1]), slice(start[0], start[0] + middle[0])
        if not config.quality and not config.area and middle_box not in [area.box() for area in find_exact(result)]:
            print(f"To restore it, say where it is: --depixelate FILE --area {' '.join(map(str, (*start, *middle)))}")
    return 0


ACTIONS = {
    "depixelate": Action(
        "+",
        "PHOTO|FOLDER",
        "find and restore the pixelated areas of photos of any size and colour; see also --area, --sensitivity, "
        "--output, --overwrite, --preview, --json, --model, --realism, --samples",
        depixelate,
    ),
    "pixelate": Action(
        "+",
        "PHOTO",
        "pixelate areas of photos, by default the middle; see also --area, --block_size, --grid, --average, --quality",
        pixelate,
    ),
}
