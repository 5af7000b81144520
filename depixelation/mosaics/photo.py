"""A photo's way: find its pixelated areas, restore them. A PhotoResult comes back; nothing is written here."""

from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from depixelation.mosaics.area import Area
from depixelation.mosaics.edges import softened
from depixelation.mosaics.exact import SAME, enlarged_by, exact_area, find_exact, is_drawn, is_pixelated
from depixelation.mosaics.lossy import explained, is_no_mosaic
from depixelation.mosaics.restoring import CONTEXT, block_values, parts_of, restore_area, working_side


@dataclass
class PhotoResult:
    """What became of a photo, (H, W, C) uint8."""

    areas: list[Area]  # with their average, where it was detected
    likely: list[Area]  # with the average that they were restored as
    restored: np.ndarray | None = None  # None: there was nothing to restore


def find_areas(finder, pixels):
    """The pixelated Areas of a photo: what a file has kept to the bit, and what a Finder (or None) finds beside it.

    Where both see one, that counts which explains more pixels. Of a picture that is enlarged as a whole, none.
    """
    if enlarged_by(pixels) > 1:
        return []
    seen, exact = finder.candidates(pixels) if finder else [], find_exact(pixels)
    found = [area for area in seen if area.confidence > finder.least]
    for area in filter(None, (exact_area(pixels, area) for area in seen)):  # no doubt is left where blocks are exact
        if is_pixelated(pixels, area) and not any(area.overlap(other) for other in exact):
            exact.append(area)
    found = [area for area in found if not is_drawn(pixels, area) and not is_no_mosaic(pixels, area)]
    for area in found:  # parts of a larger one whose blocks are of fractional size, or rough
        inside = [each for each in exact if each.share_in(area) >= SAME and each.size < SAME * area.size]
        if inside and explained(pixels, area) > sum(each.size for each in inside):
            exact = [each for each in exact if not any(each is one for one in inside)]
    for i, area in enumerate(exact):  # which the finder knows more of
        same = max(found, key=area.overlap, default=None)
        if same and area.overlap(same) >= SAME:
            exact[i] = replace(area, confidence=same.confidence)
    beside = [a for a in found if all(max(a.share_in(b), b.share_in(a)) < SAME for b in exact)]
    return [softened(pixels, area) for area in exact] + beside


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


def surroundings(area):
    """The part of a photo, as slices, that restoring an Area looks at. All of a large one would take long to copy."""
    sides = area.block_width, area.block_height
    margin = ceil((CONTEXT + 4) * max(sides) / working_side(sum(sides) / 2) + 2 * max(sides))
    place = ((area.y, area.height), (area.x, area.width))
    return tuple(slice(max(0, start - margin), start + length + margin) for start, length in place)


def restore_areas(predictor, pixels, areas):
    """(the photo with all areas restored, those with the smallest blocks first; the areas, with how they most likely
    were averaged; whether that is sure, for each)."""
    likely, sure = list(areas), [False] * len(areas)
    order = sorted(range(len(areas)), key=lambda i: areas[i].block_width * areas[i].block_height)
    parts = [(i, part) for i in order for part in parts_of(areas[i])]
    blocks = [block_values(pixels, part) for _, part in parts]  # before any is restored: areas may overlap
    pixels = pixels.copy()
    for (i, part), values in zip(parts, blocks):
        known, window = likely[i].average, surroundings(part)
        inside = replace(part, x=part.x - window[1].start, y=part.y - window[0].start, average=known)
        pixels[window], average, certain = restore_area(predictor, pixels[window], inside, values)
        if known is None:  # then an area's other parts are restored as its first one
            likely[i], sure[i] = replace(likely[i], average=average), certain
    return pixels, likely, sure
