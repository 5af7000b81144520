"""--depixelate: find the pixelated areas of photos of any size and colour, and restore them."""

import contextlib
import functools
import json
import os
import sys
import time
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from depixelation.commands import Command
from depixelation.commands.blending import blend_of
from depixelation.commands.each_photo import FLAG, PhotoOptions, for_each_photo, page_of
from depixelation.commands.naming import changed_option, check_given, is_mask, named_areas
from depixelation.engine.models import chosen_model, load_models, load_network
from depixelation.engine.options import ModelOptions, RealismOptions
from depixelation.engine.predictor import Predictor
from depixelation.figures.areas import mark_areas, white_areas
from depixelation.figures.before_after import before_after
from depixelation.figures.page import NAME, Entry, area_entry
from depixelation.figures.restoration import SPREAD
from depixelation.images.photo_files import only_colours, photo_jobs, read_photo, save_photo
from depixelation.mosaics.area import AREA, BLOCK_SIZE
from depixelation.mosaics.exact import enlarged_by
from depixelation.mosaics.finder import Finder
from depixelation.mosaics.pace import Pace, pixels_to_restore
from depixelation.mosaics.photo import find_areas, restore_areas, restore_photo
from depixelation.tasks.files import Files
from depixelation.tasks.finding import SENSITIVITY, Finding
from utils import UserError, display_path, key

WRITTEN = ("_depixelated.png", "_before_after.png", "_preview.png")
MASK = "_mask.png"


@dataclass(frozen=True)
class DepixelateOptions(PhotoOptions, RealismOptions, ModelOptions):
    """The options of --depixelate."""

    area: list | None = AREA
    mask: str | None = key(
        None, "a picture, white where the photo is pixelated; or a folder of such, named as the photos", path=True
    )
    block_size: str | None = BLOCK_SIZE
    sensitivity: float = SENSITIVITY
    preview: bool = key(False, "only draw what was found into the photo", argparse=FLAG)
    masks: bool = key(False, "write NAME_mask.png too, white where areas are; --mask takes it back", argparse=FLAG)
    json: bool = key(False, "print what was found as JSON, a line for each photo that is restored", argparse=FLAG)


class Restorer:
    """The networks of --depixelate: a finder, and a predictor for each result that is wanted."""

    def __init__(self, task, options):
        """task: depixelation or files, whose output_dir and shipped models are searched for the model."""
        files = Files(Files.Config(**{name: getattr(task.config, name) for name in ("device", "precision")}))
        paths = [chosen_restorer(task, options)]
        (model,), device, precision = load_models(files, options, paths)
        self.finder = None if options.area or options.mask else load_finder(options.sensitivity, device, precision)
        blend = model.predictor if options.preview else blend_of(files, model.predictor, options)
        self.accurate = getattr(blend, "accurate", model.predictor)  # a blend's own remembers what it computed
        self.realistic = blend if options.realism and not options.preview else None
        self.samples = blend.samples(options.samples) if options.samples and not options.preview else []
        # A network that enforces the blocks' means cannot show how they were averaged.
        self.detects_average = bool(
            model.trained_with and not model.trained_with.network_options.get("consistent", True)
        )

    def restore(self, pixels, areas, pace):
        """The PhotoResult of a photo with these Areas, watched by a Pace."""
        realistic = self.realistic and pace.watch("realistic", self.realistic)
        return restore_photo(pixels, areas, pace.watch("accurate", self.accurate), realistic, self.detects_average)

    def pace(self, pixels, areas, say):
        """The Pace of restoring a photo, with its samples."""
        once = pixels_to_restore(areas, pixels.shape[2])
        return Pace({"accurate": once, "realistic": once * (bool(self.realistic) + len(self.samples))}, say)


def chosen_restorer(task, options):
    """The model file, or baseline, to restore with.

    The first that there is: the named one, a restorer that was trained here, the shipped one, the challenge's model.
    """
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

    A photo that fails does not stop the others. Returns 1 if one could not be read or written; 2 if no result may be
    written.
    """
    suffixes = WRITTEN[2:] if options.preview else (*WRITTEN[:2], *sample_suffixes(options.samples))
    suffixes = (*suffixes, MASK) if options.masks else suffixes
    check_given(options)
    files = [job for job in photo_jobs(paths, suffixes, options.output) if not is_mask(options.mask, job[0])]
    if not files:
        raise UserError(f"mask: {display_path(options.mask)} holds all that was named; keep photos and masks apart")
    page = None
    if not options.preview:
        page = page_of(NAME, options, paths, files, lambda path, base: shown(path, base, options))
    out = sys.stderr if options.json else sys.stdout

    def begin():
        with contextlib.redirect_stdout(out):
            restorer = Restorer(task, options)
        return functools.partial(depixelate_photo, restorer, options)

    again = changed_option(options)
    note = f"; --{again} changes nothing there" if again else ""
    status = for_each_photo(files, suffixes, begin, options.overwrite or options.preview, page, note, out)
    return status if all(problem for *_, problem in files) else min(status, 1)


def shown(path, base, options, areas=(), facts=()):
    """The page's Entry of a photo that has results. areas: Areas. facts: lines of text."""
    *samples, spread = [base + suffix for suffix in sample_suffixes(options.samples)] or [None]
    return Entry(path, base + WRITTEN[0], [area_entry(area) for area in areas], list(facts), samples, spread)


def depixelate_photo(restorer, options, path, base):
    """Read one photo, find and restore its areas, write the results, and print what was done.

    Returns the page's Entry. Raises UserError.
    """
    pixels, alpha, metadata = read_photo(path)
    started, entry = time.monotonic(), Entry(path)
    if options.area or options.mask:
        areas = named_areas(options, pixels, path)
    else:
        areas = find_areas(restorer.finder, pixels)
    if not options.json:
        for line in describe(areas, display_path(path)):
            tqdm.write(line)
    written = []

    def save(picture, alpha, metadata, suffix):
        if options.overwrite or options.preview or not os.path.exists(base + suffix):
            save_photo(picture, alpha, metadata, base + suffix)
            written.append(base + suffix)

    if areas and options.masks:
        save(white_areas(pixels, areas), None, None, MASK)
    if areas and options.preview:
        save(mark_areas(pixels, areas), None, only_colours(metadata) if pixels.shape[2] == 3 else None, WRITTEN[2])
    elif areas:
        pace = restorer.pace(pixels, areas, lambda line: tell_pace(options, path, line))
        result = restorer.restore(pixels, areas, pace)
        areas = result.areas
        save(result.restored, alpha, metadata, WRITTEN[0])
        pair = before_after(pixels, result.restored, areas)
        save(pair, None, only_colours(metadata) if pixels.shape[2] == 3 else None, WRITTEN[1])
        *suffixes, last = sample_suffixes(options.samples) or [None]
        samples = zip([pace.watch("realistic", sample) for sample in restorer.samples], suffixes)
        spread = save_samples(samples, pixels, result.likely, lambda sample, end: save(sample, alpha, metadata, end))
        if last:
            save(spread, None, None, last)
        entry = shown(path, base, options, areas, facts(options, areas, spread, time.monotonic() - started))
    tell(options, path, areas, written, time.monotonic() - started, not areas and enlarged_by(pixels) > 1)
    return entry


def save_samples(samples, pixels, areas, save):
    """Save possible originals, one at a time. Returns how far they differ, as a grey picture, (H, W, 1) uint8.

    samples: pairs of a Predictor and the ending of its file.
    """
    box = slice(min(a.y for a in areas), max(a.y + a.height for a in areas))
    box = box, slice(min(a.x for a in areas), max(a.x + a.width for a in areas))
    sums, squares, count = 0.0, 0.0, 0  # of the samples' values and their squares, where they differ
    for predictor, suffix in samples:
        sample, *_ = restore_areas(predictor, pixels, areas)
        save(sample, suffix)
        values = sample[box].astype(np.float32)
        sums, squares, count = sums + values, squares + values**2, count + 1
    spread = np.zeros((*pixels.shape[:2], 1), dtype=np.uint8)
    if count:
        deviation = np.sqrt((squares / count - (sums / count) ** 2).clip(0)).mean(axis=2, keepdims=True)
        spread[box] = (SPREAD * deviation).clip(0, 255).round()
    return spread


def tell_pace(options, path, line):
    """Print how long the rest of a photo takes."""
    tqdm.write(f"{display_path(path)}: {line} to restore the rest", file=sys.stderr if options.json else sys.stdout)


def facts(options, areas, spread, seconds):
    """Lines for the page on how a photo was restored."""
    yield f"realism {options.realism:g} of 1, where 0 is most accurate"
    if options.samples:
        off = np.concatenate([spread[area.box()][area.inside].ravel() for area in areas]).mean() / SPREAD
        yield f"{options.samples} samples: {off:.1f} of 255 grey levels apart (standard deviation)"
    yield f"restored in {seconds:.1f} s"


def tell(options, path, areas, written, seconds, enlarged):
    """Print what became of a photo. enlarged: whether it is one that seems to be enlarged as a whole."""
    if options.json:
        line = json.dumps({"photo": path, "areas": [area.as_json() for area in areas], "written": written})
    elif areas:
        line = f"{display_path(path)}: {', '.join(map(display_path, written))} ({seconds:.1f} s)"
    elif enlarged:
        line = f"{display_path(path)}: looks like an enlarged picture, so nothing is written; "
        line += "--area X Y WIDTH HEIGHT restores it all the same"
    else:
        line = f"{display_path(path)}: no pixelated area found, so nothing is written; "
        line += "--area X Y WIDTH HEIGHT says where one is"
    tqdm.write(line)


def describe(areas, name):
    """A line for each area."""
    for a in areas:
        width, height = (f"{side:.4g}" for side in (a.block_width, a.block_height))
        size = width if width == height else f"{width} x {height}"
        shape = "" if a.mask is None else f", {a.size / (a.width * a.height):.0%} of it"
        sure = "given" if a.confidence is None else f"confidence {a.confidence:.2f}"
        yield f"{name}: area {a.x} {a.y} {a.width} {a.height}{shape}, blocks of {size}, {sure}"


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
