"""How well photos are restored whose pixelated areas nobody points out:
python tests/benchmarks/wild.py FOLDER [COUNT [SHEET.png]]

Makes COUNT (400) pictures of a folder's photos, or of drawn images ("synthetic"): PNG, JPEG of quality 95 and 80,
scaled JPEG; blocks of 4 to 64 pixels, three averages, both grids, up to three areas, every fifth without. Prints for
each format what the program finds and how much nearer to the truth it comes: the RMSE inside the areas before and
after, the ratio of their means, the same if all areas and averages were known, and the mean of each picture's ratio.
Then the same per area, by block size and by average, and how often the average is told. SHEET.png shows three.

python tests/benchmarks/wild.py FOLDER kinds [COUNT]: mosaics of other shapes and grids, half of them PNGs, the others
JPEGs, COUNT (8) of each kind, and what only looks like one: the share of the mosaic that is covered, of the other
pixels that are changed, and the RMSE in the mosaic after over that before.

python tests/benchmarks/wild.py FOLDER confidence [COUNT [CHART.png]]: how many of the areas that are told with a
confidence are right (intersection over union of 0.7), of COUNT (400) pictures as in the first table.
"""

import itertools
import os
import resource
import sys
import time

import numpy as np
from PIL import Image

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
sys.path.insert(0, os.path.abspath(os.path.dirname(__file__)))  # of wild_kinds, where a test imports this

from wild_kinds import KINDS, MIMICS, ODD  # noqa: E402

from depixelation.commands.depixelate import DepixelateOptions, Restorer  # noqa: E402
from depixelation.figures.areas import mark_areas  # noqa: E402
from depixelation.figures.curves import Panel, plot_curves  # noqa: E402
from depixelation.images.cache import open_cache  # noqa: E402
from depixelation.images.photo_files import save_photo  # noqa: E402
from depixelation.mosaics.area import AVERAGES, Area, pixelate_area  # noqa: E402
from depixelation.mosaics.making import FORMATS, MosaicPhotos, compress  # noqa: E402
from depixelation.mosaics.photo import find_areas, restore_areas  # noqa: E402
from depixelation.tasks.files import Files  # noqa: E402
from depixelation.tasks.finding import FOUND, compare_areas  # noqa: E402

ALMOST_ALL = 0.95  # the sensitivity at which confidences are measured
BINS = (0, 0.3, 0.5, 0.7, 0.85, 0.95, 1.01)


def errors_inside(picture, truth, areas):
    """The RMSE inside these areas, all pixels and channels alike."""
    inside = np.zeros(truth.shape[:2], dtype=bool)
    for area in areas:
        inside[area.box()] |= area.inside
    return np.sqrt(np.mean((picture[inside].astype(float) - truth[inside]) ** 2))


def mean(values):
    """Of those that are numbers."""
    return values[~np.isnan(values)].mean() if not np.isnan(values).all() else np.nan


def measure(pictures, predictor, finder, sheet, kinds):
    """Rows of (format, areas, found, false, error of size, error inside before, after, if all was known,
    seconds), one a picture.

    sheet: gets (with what was found, restored, truth) of three pictures; kinds: (blocks' side, number of the average,
    whether it was found, whether its average is told correctly, NaN if not told, the three errors) of each area.
    """
    for i in range(len(pictures)):
        (pixels, areas, file), truth = pictures[i], pictures.truth(i)
        started = time.monotonic()
        found = find_areas(finder, pixels)
        result, likely, sure = restore_areas(predictor, pixels, found)
        seconds = time.monotonic() - started
        (_, share, false, error), hits = compare_areas(found, areas)
        images = pixels, result, restore_areas(predictor, pixels, areas)[0]
        for area, hit in zip(areas, hits):
            same = max(range(len(found)), key=lambda i: area.overlap(found[i])) if hit else None
            right = likely[same].average == area.average if hit and sure[same] else np.nan
            side = (area.block_width + area.block_height) / 2
            errors = (errors_inside(image, truth, [area]) for image in images)
            kinds.append((side, AVERAGES.index(area.average), hit, right, *errors))
        if len(sheet) < 3 and len(areas) > 1 and file != "PNG":
            sheet.append(np.concatenate([mark_areas(pixels, found), result, truth], axis=1))
        errors = (errors_inside(image, truth, areas) if areas else np.nan for image in images)
        yield file, len(areas), sum(hits), false, error if any(hits) else np.nan, *errors, seconds


def shipped_restorer():
    """What --depixelate restores with, one view."""
    return Restorer(Files(Files.Config()), DepixelateOptions(model=Files.shipped, views=1))


def main(source, count=400, sheet=None, cache_dir=".cache"):
    restorer = shipped_restorer()
    cache = open_cache(source, cache_dir, 0, 40, colour=True)
    pictures = MosaicPhotos(cache, range(len(cache)), int(count))
    shown, kinds = [], []
    rows = list(measure(pictures, restorer.accurate, restorer.finder, shown, kinds))
    if sheet:
        save_photo(np.concatenate(shown), None, None, sheet)
    print(
        f"{'':16} pictures  areas  found  false per picture  size off by  before  after  ratio  known  of each  seconds"
    )
    for file in (*FORMATS, "all"):
        own = [row[1:] for row in rows if file in (row[0], "all")]
        areas, hits, false, error, before, after, known, seconds = map(np.array, zip(*own))
        share, each = hits.sum() / max(1, areas.sum()), mean(after / before)
        ratio, best = mean(after) / mean(before), mean(known) / mean(before)
        print(
            f"{file:16} {len(own):8} {areas.sum():6} {share:6.1%} {false.mean():16.3f} {mean(error):12.1%} "
            f"{mean(before):7.2f} {mean(after):6.2f} {ratio:6.3f} {best:6.3f} {each:8.3f} {mean(seconds):8.2f}"
        )
    side, average, hits, right, before, after, known = np.array(kinds).T
    ends = itertools.pairwise((2, 6, 12, 24, 97))
    groups = {f"blocks of {a} to {b} pixels": (a <= side) & (side < b) for a, b in ends}
    groups |= {f"average {name}": average == i for i, name in enumerate(AVERAGES)} | {"all": side > 0}
    for group, own in groups.items():
        if not own.any():
            continue
        ratio, best = (mean(errors[own]) / mean(before[own]) for errors in (after, known))
        print(
            f"{group:25} {own.sum():4} areas, {mean(hits[own]):6.1%} found, ratio {ratio:.3f}, known {best:.3f}; "
            f"average told for {np.isfinite(right[own]).mean():5.1%}, correctly for {mean(right[own]):6.1%} of these"
        )
    return rows


def time_large(source, cache_dir=".cache"):
    """Print for each photo the seconds that its areas take to be found in 12 megapixels, and whether they are."""
    finder, cache = shipped_restorer().finder, open_cache(source, cache_dir, 0, 40, colour=True)
    areas = [Area(500, 400, 800, 600, 40.0, 40.0), Area(2000, 1500, 300, 200, 12.0, 12.0)]
    for i in range(len(cache)):
        photo = Image.fromarray(np.repeat(cache[i], 3 // cache[i].shape[2], axis=2))
        pixels = np.asarray(photo.resize((4000, 3000), Image.Resampling.BICUBIC)).copy()
        for area in areas:
            pixelate_area(pixels, area)
        for file, stored in (("PNG", pixels), ("JPEG 85", compress(pixels, 85, 2))):
            started = time.monotonic()
            found = find_areas(finder, stored)
            seconds = time.monotonic() - started
            (_, _, false, _), hits = compare_areas(found, areas)
            print(f"photo {i}, {file:7}: {seconds:4.1f} s, {sum(hits)} of 2 found, {false:.0f} false")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def measure_kinds(source, count=8, cache_dir=".cache"):
    """Print a row for each of KINDS, ODD and MIMICS. Returns them as {name: (covered, harmed, ratio) or (changed,)}."""
    restorer, rows = shipped_restorer(), {}
    cache = open_cache(source, cache_dir, 0, 40, colour=True)
    print(f"{'':24} pictures  covered   harmed  after / before   seconds a picture")
    for number, (name, kind) in enumerate({**KINDS, **ODD, **MIMICS}.items()):
        measured, started = [], time.monotonic()
        for i in range(int(count)):
            rng = np.random.default_rng((38, i, len(name)))
            photo = cache[(i // 2 + 3 * number) % len(cache)]
            photo = np.repeat(photo, 3 // photo.shape[2], axis=2)
            photo = np.asarray(Image.fromarray(photo).resize((352, 264), Image.Resampling.BICUBIC))
            made = kind(rng, photo)
            pixels, truth, mask = (made, made, np.zeros(made.shape[:2], dtype=bool)) if name in MIMICS else made
            if i % 2 and kind is not MIMICS["JPEG quality 8 to 18"]:
                quality = int(rng.integers(75, 93))
                pixels, truth = (compress(each, quality, 2) for each in (pixels, truth))
            measured.append(measure_kind(restorer, pixels, truth, mask))
        covered, harmed, changed, before, after = np.array(measured, dtype=float).T
        seconds = (time.monotonic() - started) / len(measured)
        if name not in MIMICS:
            rows[name] = mean(covered), mean(harmed), mean(after) / mean(before)
            print(f"{name:24} {len(measured):8}  {rows[name][0]:6.1%}  {rows[name][1]:7.3%}  {rows[name][2]:14.3f}"
                  f"  {seconds:18.1f}", flush=True)
        else:
            rows[name] = (int(changed.sum()),)
            print(f"{name:24} {len(measured):8}  {int(changed.sum())} changed, {mean(harmed):.3%} of their pixels")
    figures = [mean(np.array(column)) for column in zip(*(rows[name] for name in KINDS))]
    print(f"{'all kinds':24} {'':8}  {figures[0]:6.1%}  {figures[1]:7.3%}  {figures[2]:14.3f}")
    return rows


def measure_confidence(source, count=400, chart=None, cache_dir=".cache"):
    """Print how many areas of each confidence are right; draw it. Returns (told, right), arrays of all areas."""
    finder, cache = shipped_restorer().finder, open_cache(source, cache_dir, 0, 40, colour=True)
    pictures, told, right = MosaicPhotos(cache, range(len(cache)), int(count)), [], []
    finder.sensitivity = ALMOST_ALL
    for i in range(len(pictures)):
        pixels, areas, _ = pictures[i]
        for area in find_areas(finder, pixels):
            told.append(area.confidence)
            right.append(max((area.overlap(true) for true in areas), default=0) >= FOUND)
    told, right, shown = np.array(told), np.array(right), []
    for low, high in itertools.pairwise(BINS):
        own = (low <= told) & (told < high)
        if own.any():
            mean_told, share = told[own].mean(), right[own].mean()
            shown.append((mean_told, share))
            print(f"{low:.2f} to {min(high, 1):.2f}: {own.sum():4} areas, told {mean_told:.2f}, {share:6.1%} right")
    if chart:
        curves = {"measured": tuple(zip(*shown)), "if it were true": ((0, 1), (0, 1))}
        plot_curves([Panel("share of areas that are right", curves, x_label="confidence")], chart)
    return told, right


def measure_kind(restorer, pixels, truth, mask):
    """(share of the mask covered, share of other pixels changed, whether any pixel is, RMSE in the mask before, after),
    NaN where the mask is empty or has all pixels."""
    areas = find_areas(restorer.finder, pixels)
    result = restore_areas(restorer.accurate, pixels, areas)[0]
    found, changed = np.zeros(mask.shape, dtype=bool), (result != pixels).any(axis=2)
    for area in areas:
        found[area.box()] |= area.inside
    harmed = np.nan if mask.all() else (changed & ~mask).sum() / (~mask).sum()
    if not mask.any():
        return np.nan, harmed, changed.any(), np.nan, np.nan
    errors = [np.sqrt(np.mean((image[mask].astype(float) - truth[mask]) ** 2)) for image in (pixels, result)]
    return found[mask].mean(), harmed, changed.any(), *errors


if __name__ == "__main__":
    if sys.argv[2:3] == ["kinds"]:
        measure_kinds(sys.argv[1], *sys.argv[3:4])
    elif sys.argv[2:3] == ["confidence"]:
        measure_confidence(sys.argv[1], *sys.argv[3:5])
    else:
        time_large(sys.argv[1]) if sys.argv[2:] == ["large"] else main(*sys.argv[1:4])
