"""A photo's way: find its pixelated areas, restore them. A PhotoResult comes back; nothing is written here."""

from dataclasses import dataclass, replace

import numpy as np

from depixelation.mosaics.area import Area
from depixelation.mosaics.exact import SAME, exact_area, find_exact
from depixelation.mosaics.restoring import block_values, parts_of, restore_area


@dataclass
class PhotoResult:
    """What became of a photo, (H, W, C) uint8."""

    areas: list[Area]  # with their average, where it was detected
    likely: list[Area]  # with the average that they were restored as
    restored: np.ndarray | None = None  # None: there was nothing to restore


def find_areas(finder, pixels):
    """The pixelated Areas of a photo: what a file has kept to the bit, and what a Finder (or None) finds beside it."""
    seen, areas = finder.candidates(pixels) if finder else [], find_exact(pixels)
    found = [area for area in seen if area.confidence > finder.least]
    for area in filter(None, (exact_area(pixels, area) for area in seen)):  # no doubt is left where blocks are exact
        if not any(area.overlap(other) for other in areas):
            areas.append(area)
    for i, area in enumerate(areas):  # which the finder knows more of
        same = max(found, key=area.overlap, default=None)
        if same and area.overlap(same) >= SAME:
            areas[i] = replace(area, confidence=same.confidence)
    return areas + [a for a in found if all(max(a.share_in(b), b.share_in(a)) < SAME for b in areas)]


def restore_photo(pixels, areas, accurate, realistic=None, detects_average=True):
    """The PhotoResult of a photo with these Areas.

    accurate: a Predictor. realistic: one whose result is returned in place of its. detects_average: False for a network
    that keeps the blocks' means in any case, so that its result tells nothing of how they came about.
    """
    if not areas:
        return PhotoResult(areas, areas)
    restored, likely, sure = restore_areas(accurate, pixels, areas)
    known = [a if detects_average and certain else area for area, a, certain in zip(areas, likely, sure)]
    if realistic:
        restored, *_ = restore_areas(realistic, pixels, likely)
    return PhotoResult(known, likely, restored)


def restore_areas(predictor, pixels, areas):
    """(the photo with all areas restored, those with the smallest blocks first; the areas, with how they most likely
    were averaged; whether that is sure, for each)."""
    likely, sure = list(areas), [False] * len(areas)
    order = sorted(range(len(areas)), key=lambda i: areas[i].block_width * areas[i].block_height)
    parts = [(i, part) for i in order for part in parts_of(areas[i])]
    blocks = [block_values(pixels, part) for _, part in parts]  # before any is restored: areas may overlap
    for (i, part), values in zip(parts, blocks):
        known = likely[i].average
        pixels, average, certain = restore_area(predictor, pixels, replace(part, average=known), values)
        if known is None:  # then an area's other parts are restored as its first one
            likely[i], sure[i] = replace(likely[i], average=average), certain
    return pixels, likely, sure
