"""--depixelate: find the pixelated areas of photos of any size and colour, and restore them."""

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from depixelation.commands import Command
from depixelation.commands.blending import blend_of
from depixelation.engine.models import chosen_model, load_models, load_network
from depixelation.engine.options import ModelOptions, RealismOptions
from depixelation.engine.outputs import check_outputs
from depixelation.engine.predictor import Predictor
from depixelation.engine.processes import shortage
from depixelation.figures.areas import mark_areas
from depixelation.figures.restoration import SPREAD
from depixelation.images.photo_files import EXTENSIONS, list_files, read_photo, result_bases, save_photo
from depixelation.mosaics.area import AREA, check_area, in_fours
from depixelation.mosaics.exact import square_area
from depixelation.mosaics.finder import Finder
from depixelation.mosaics.photo import find_areas, restore_areas, restore_photo
from depixelation.tasks.files import Files
from depixelation.tasks.finding import SENSITIVITY, Finding
from utils import UserError, display_path, key

WRITTEN = ("_depixelated.png", "_before_after.png", "_preview.png")
FLAG = {"nargs": "?", "const": "true"}  # an option that may stand without a value


@dataclass(frozen=True)
class DepixelateOptions(RealismOptions, ModelOptions):
    """Of --depixelate."""

    area: list | None = AREA
    sensitivity: float = SENSITIVITY
    output: str | None = key(None, "the folder for photos that are written; none: beside each", path=True)
    overwrite: bool = key(False, "restore photos again that have a result", argparse=FLAG)
    preview: bool = key(False, "only draw what was found into the photo", argparse=FLAG)
    json: bool = key(False, "print what was found as JSON, a line for each photo that is restored", argparse=FLAG)


class Restorer:
    """What --depixelate restores photos with: a finder, and predictors for each result that is wanted."""

    def __init__(self, task, options):
        """task: depixelation or files, in whose models and output_dir the model is looked for."""
        files = Files(Files.Config(**{name: getattr(task.config, name) for name in ("device", "precision")}))
        paths = [chosen_restorer(task, options)]
        (model,), device, precision = load_models(files, options, paths)
        self.finder = None if options.area else load_finder(options.sensitivity, device, precision)
        blend = model.predictor if options.preview else blend_of(files, model.predictor, options)
        self.accurate = model.predictor
        self.realistic = blend if options.realism and not options.preview else None
        self.samples = blend.samples(options.samples) if options.samples and not options.preview else []
        # A network that keeps the means has them in any case: its result tells nothing of how they came about.
        self.detects_average = bool(
            model.trained_with and not model.trained_with.network_options.get("consistent", True)
        )

    def restore(self, pixels, areas):
        """The PhotoResult of a photo with these Areas."""
        return restore_photo(pixels, areas, self.accurate, self.realistic, self.detects_average)


def chosen_restorer(task, options):
    """The model file, or baseline, to restore with: one that was named, a restorer that was trained, the shipped one,
    or as the last the challenge's."""
    config = task.config
    if options.network in task.baselines() and not options.model:
        return options.network
    configured = config.name if config.name != type(config)().name else Files.Config().name
    named = options.model or config.file("models", ".pt", options.name or configured)
    if os.path.exists(named) or options.model:
        return named
    return Files.shipped if options.name is None and os.path.exists(Files.shipped) else chosen_model(task, options)


def load_finder(sensitivity, device, precision):
    """The shipped Finder; None without its file."""
    task = Finding(Finding.Config())
    if not os.path.exists(task.shipped):
        print(
            f"{display_path(task.shipped)} is missing, so only areas are found that a file has kept exactly",
            file=sys.stderr,
        )
        return None
    network, _, _ = load_network(task, task.shipped, device)
    return Finder(Predictor(network, device, precision), True, sensitivity)


def depixelate(task, options, paths):
    """Restore the pixelated areas of photos, and write them beside the photos or to --output.

    Returns 1 where a photo could not be read or written, which does not end the work on the others.
    """
    files = list_files(paths)
    files = [(path, base) for (path, _), base in zip(files, result_bases(files, options.output))]
    if not files:
        raise UserError(
            f"{display_path(paths[0])}: has no photos (looked for {', '.join(EXTENSIONS)}, also in subfolders)"
        )
    suffixes = WRITTEN[2:] if options.preview else (*WRITTEN[:2], *sample_suffixes(options.samples))
    check_outputs([(base + suffix, "picture") for _, base in files for suffix in suffixes], [path for path, _ in files])
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        restorer = Restorer(task, options)
    failed = skipped = 0
    for path, base in tqdm(files, desc="restoring", unit=" photos", leave=False, disable=len(files) < 2):
        if not (options.overwrite or options.preview) and all(os.path.exists(base + suffix) for suffix in suffixes):
            skipped += 1
            continue
        reason = attempt(restorer, options, path, base)
        if reason:
            failed += 1
            tqdm.write(f"main.py: error: {reason}", file=sys.stderr)
    if skipped or (failed and len(files) > 1):
        line = f"{failed} of {len(files)} photos failed, {skipped} have results, left as they are without --overwrite"
        print(line, file=sys.stderr if options.json else sys.stdout)
    return 1 if failed else 0


def attempt(restorer, options, path, base):
    """Restore one photo. Returns why that failed, if it did."""
    try:
        depixelate_photo(restorer, options, path, base)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{display_path(error.filename or base)}: cannot be written ({error.strerror})"
    except (MemoryError, RuntimeError) as error:
        if not shortage(error):
            raise
        return f"{display_path(path)}: {shortage(error)}"
    return None


def depixelate_photo(restorer, options, path, base):
    """Read one photo, find its areas, restore them, write what became of it, print what was done. Raises UserError."""
    pixels, alpha, profile = read_photo(path)
    started = time.monotonic()
    if options.area:
        areas = [square_area(pixels, check_area(group, pixels, path)) for group in in_fours(options.area)]
    else:
        areas = find_areas(restorer.finder, pixels)
    if not options.json:
        for line in describe(areas, display_path(path)):
            tqdm.write(line)
    written = []

    def save(picture, alpha, profile, suffix):
        if options.overwrite or options.preview or not os.path.exists(base + suffix):
            save_photo(picture, alpha, profile, base + suffix)
            written.append(base + suffix)

    if areas and options.preview:
        save(mark_areas(pixels, areas), None, profile if pixels.shape[2] == 3 else None, WRITTEN[2])
    elif areas:
        result = restorer.restore(pixels, areas)
        areas = result.areas
        gap = np.full((len(pixels), max(2, pixels.shape[1] // 50), pixels.shape[2]), 255, dtype=np.uint8)
        save(result.restored, alpha, profile, WRITTEN[0])
        save(np.concatenate([pixels, gap, result.restored], axis=1), None, profile, WRITTEN[1])
        *suffixes, last = sample_suffixes(options.samples) or [None]
        samples = zip(restorer.samples, suffixes)
        spread = save_samples(samples, pixels, result.likely, lambda sample, end: save(sample, alpha, profile, end))
        if last:
            save(spread, None, None, last)
    tell(options, path, areas, written, time.monotonic() - started)


def save_samples(samples, pixels, areas, save):
    """Save possible originals, one at a time. Returns how far they differ, as a grey picture, (H, W, 1) uint8.

    samples: pairs of a Predictor and the ending of its file.
    """
    sums, count = np.zeros((2, *pixels.shape), dtype=np.float32), 0  # of the samples' values and their squares
    for predictor, suffix in samples:
        sample, *_ = restore_areas(predictor, pixels, areas)
        save(sample, suffix)
        sums += np.stack([sample, np.square(sample, dtype=np.float32)])
        count += 1
    mean, squares = sums / max(1, count)
    spread = SPREAD * np.sqrt((squares - mean**2).clip(0)).mean(axis=2, keepdims=True)
    return spread.clip(0, 255).round().astype(np.uint8)


def tell(options, path, areas, written, seconds):
    """Print what became of a photo."""
    if options.json:
        line = json.dumps({"photo": path, "areas": [asdict(area) for area in areas], "written": written})
    elif areas:
        line = f"{display_path(path)}: {', '.join(map(display_path, written))} ({seconds:.1f} s)"
    else:
        line = f"{display_path(path)}: no pixelated area found, so nothing is written; "
        line += "--area X Y WIDTH HEIGHT says where one is"
    tqdm.write(line)


def describe(areas, name):
    """A line for each area."""
    for a in areas:
        width, height = (f"{side:.4g}" for side in (a.block_width, a.block_height))
        size = width if width == height else f"{width} x {height}"
        yield f"{name}: area {a.x} {a.y} {a.width} {a.height}, blocks of {size}, confidence {a.confidence:.2f}"


def sample_suffixes(count):
    """The endings of what --samples writes."""
    return [*(f"_sample_{i + 1}.png" for i in range(count)), "_spread.png"] if count else []


COMMAND = Command(
    "depixelate",
    depixelate,
    "find and restore the pixelated areas of photos of any size and colour",
    "+",
    "PHOTO|FOLDER",
    DepixelateOptions,
    ("depixelation", "files"),
    "python main.py --depixelate holiday.jpg",
)
