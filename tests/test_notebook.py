"""restore(), as a notebook calls it: arrays and Pillow images in and out, nothing written, nothing printed."""

import numpy as np
import pytest
from conftest import drawn_photo
from PIL import Image

from depixelation import Restored, notebook, restore
from depixelation.mosaics.area import Area, pixelate_area
from utils import UserError

PLACE = (40, 30, 48, 40)


@pytest.fixture(scope="module")
def photo():
    pixels = drawn_photo(120, 100, 5)
    before = pixels.copy()
    pixelate_area(pixels, Area(*PLACE, 8.0, 8.0, average="srgb"))
    return before, pixels


@pytest.fixture(autouse=True)
def silent(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def outside(pixels):
    x, y, width, height = PLACE
    rest = np.ones(pixels.shape[:2], dtype=bool)
    rest[y : y + height, x : x + width] = False
    return rest


def test_an_area_is_found_and_restored(photo):
    before, pixels = photo
    given = pixels.copy()
    result = restore(pixels)
    assert isinstance(result, Restored) and np.array_equal(pixels, given)
    (area,) = result.areas
    assert (area.x, area.y, area.width, area.height) == PLACE
    assert result.image.dtype == np.uint8 and result.image.shape == pixels.shape
    rest = outside(pixels)
    assert np.array_equal(result.image[rest], pixels[rest])
    errors = [np.sqrt(np.mean((each[~rest].astype(float) - before[~rest]) ** 2)) for each in (result.image, pixels)]
    assert errors[0] < errors[1]


def test_images_come_back_as_they_were_given(photo):
    _, pixels = photo
    colour = restore(pixels, [PLACE]).image
    image = restore(Image.fromarray(pixels), [PLACE]).image
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), colour)
    transparent = Image.fromarray(pixels).convert("RGBA")
    transparent.putalpha(77)
    image = restore(transparent, [PLACE]).image
    assert image.mode == "RGBA" and image.getpixel((0, 0))[3] == 77
    grey = np.ascontiguousarray(pixels[:, :, 1])
    assert restore(grey, [PLACE]).image.shape == grey.shape
    assert restore(Image.fromarray(grey), [PLACE]).image.mode == "L"
    plain = restore(np.full((40, 40, 3), 9, np.uint8))
    assert plain.areas == [] and (plain.image == 9).all()


def test_a_mask_says_what_may_change(photo):
    _, pixels = photo
    x, y, width, height = PLACE
    mask = np.zeros(pixels.shape[:2], dtype=bool)
    mask[y : y + height, x : x + width] = True
    assert np.array_equal(restore(pixels, mask=mask).image, restore(pixels, [PLACE]).image)
    mask[y : y + 8, x : x + 8] = False
    result = restore(pixels, mask=mask).image
    assert np.array_equal(result[~mask], pixels[~mask]) and not np.array_equal(result[mask], pixels[mask])


def test_a_block_size_may_be_given(photo):
    _, pixels = photo
    for block_size, sides in ((12, (12, 12)), ((8, 4), (8, 4))):
        (area,) = restore(pixels, [PLACE], block_size=block_size).areas
        assert (area.block_width, area.block_height) == sides and area.confidence is None


def test_a_seed_draws_another_original(photo):
    _, pixels = photo
    small = np.ascontiguousarray(pixels[25:75, 35:95, :1])[:, :, 0]
    place = (5, 5, 48, 40)
    first, second, again, accurate = (restore(small, [place], seed=seed).image for seed in (0, 1, 0, None))
    assert np.array_equal(first, again) and not np.array_equal(first, second)
    assert not np.array_equal(first, accurate)


def test_each_call_has_its_own_sensitivity(photo, monkeypatch):
    seen = []
    monkeypatch.setattr(notebook, "find_areas", lambda finder, pixels: seen.append(finder.sensitivity) or [])
    for sensitivity in (0.9, 0.2):
        restore(photo[1], sensitivity=sensitivity)
    restore(photo[1])
    assert seen == [0.9, 0.2, 0.5]


@pytest.mark.parametrize(
    "error, words, options",
    [
        (TypeError, "uint8", {"image": np.zeros((9, 9))}),
        (TypeError, "str", {"image": "photo.jpg"}),
        (ValueError, "shape", {"image": np.zeros((9, 9, 4), np.uint8)}),
        (ValueError, "mask must be bool", {"mask": np.zeros((3, 3), bool)}),
        (ValueError, "not both", {"mask": np.zeros((60, 60), bool), "areas": []}),
        (ValueError, "block_size must be", {"areas": [(5, 5, 20, 20)], "block_size": 1}),
        (ValueError, "one of them, too", {"block_size": 8}),
        (UserError, "does not lie in", {"areas": [(50, 0, 20, 20)]}),
        (UserError, "2 pixels", {"areas": [(5, 5, 1, 9)]}),
        (UserError, "realism", {"realism": 2}),
        (UserError, "missing.pt", {"model": "missing.pt"}),
    ],
)
def test_mistakes_are_named(error, words, options):
    with pytest.raises(error, match=words):
        restore(**{"image": np.zeros((60, 60, 3), np.uint8), **options})
