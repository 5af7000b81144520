"""Own photos of any size and colour: what is pixelated is found and restored, the rest is untouched."""

import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import main as entry
from architectures import ResidualUNet
from datasets import block_means
from synthetic import synthetic_image
from tasks import own_photos
from tasks.areas import (
    LARGEST,
    block_values,
    estimate_block_size,
    find_exact,
    parts_of,
    restore_area,
    square_area,
    view_area,
    working_side,
)
from tasks.mosaics import Area, pixelate_area
from tasks.own_photos import read_photo, restore_areas, result_bases


def photo(width, height, seed=0):
    """(height, width, 3) uint8: three drawn images, their differences halved, as the channels of photos are alike."""
    channels = np.stack([synthetic_image(9, seed + i, max(width, height))[:height, :width] for i in range(3)], axis=2)
    return (channels // 2 + channels[:, :, :1] // 2).astype(np.uint8)


def pixelated(pixels, x, y, width, height, size):
    result = pixels.copy()
    area = slice(y, y + height), slice(x, x + width)
    result[area] = np.floor(block_means(result[area], size))
    return result


CASES = [
    (200, 150, (60, 40, 80, 60, 9)),
    (150, 200, (0, 0, 31, 46, 15)),
    (180, 180, (100, 90, 80, 90, 25)),
    (90, 80, (30, 20, 25, 22, 3)),
    (120, 100, (20, 30, 49, 41, 8)),  # the last column and row are one pixel wide
    (300, 260, (50, 60, 200, 150, 40)),
]


@pytest.mark.parametrize("width, height, rectangle", CASES)
def test_rectangle_and_block_size_are_found(width, height, rectangle):
    pixels = pixelated(photo(width, height), *rectangle)
    x, y, w, h, size = rectangle
    found = [area for values in (pixels, pixels[:, :, :1]) for area in find_exact(values)]
    assert [(area.box(), area.block_width) for area in found] == 2 * [((slice(y, y + h), slice(x, x + w)), size)]
    assert estimate_block_size(pixels[y : y + h, x : x + w]) == size
    assert find_exact(photo(width, height)) == []
    dark = pixelated(photo(width, height) // 8 + 4, *rectangle)
    assert estimate_block_size(dark[y : y + h, x : x + w]) == size


def test_an_area_may_begin_within_a_block():
    """Whether it is named or found, and at the photo's edge."""
    for x, y in ((50, 30), (0, 0)):
        pixels = photo(160, 140)
        area = Area(x, y, 77, 83, 16.0, 16.0, 13.0, 2.0)
        pixelate_area(pixels, area)
        assert square_area(pixels, (x, y, 77, 83)) == area
        assert find_exact(pixels) == [area]


@pytest.mark.parametrize("width, height, rectangle", CASES)
def test_restored_channels_keep_their_block_means_and_the_rest(width, height, rectangle):
    """With a network that has learned nothing, which is the interpolation: already better than the blocks."""
    truth = photo(width, height)
    pixels = pixelated(truth, *rectangle)
    x, y, w, h, size = rectangle
    inside = slice(y, y + h), slice(x, x + w)
    network = ResidualUNet((8, 8), (1, 1)).eval()
    area = square_area(pixels, rectangle[:4])
    blocks = block_values(pixels, area)
    restored, average, _ = restore_area(network, pixels, area, blocks, torch.device("cpu"), torch.float32)
    assert average == "srgb"
    outside = np.ones(pixels.shape[:2], dtype=bool)
    outside[inside] = False
    assert restored.dtype == np.uint8 and np.array_equal(restored[outside], pixels[outside])
    assert np.abs(block_means(restored[inside], size) - pixels[inside]).max() <= 1  # the floor and the rounding
    errors = [np.sqrt(np.mean((image[inside].astype(float) - truth[inside]) ** 2)) for image in (restored, pixels)]
    assert errors[0] < 0.95 * errors[1]


def test_areas_may_overlap():
    """An L of blocks, as two rectangles: the blocks in both keep the values that the file has."""
    pixels, network = photo(120, 110), ResidualUNet((8, 8), (1, 1)).eval()
    sides = [(8, 8, 96, 32), (8, 8, 32, 96)]
    for area in sides:
        pixels = pixelated(pixels, *area, 8)
    restore = partial(restore_area, network, device=torch.device("cpu"), precision=torch.float32)
    result, *_ = restore_areas(restore, pixels, [square_area(pixels, area) for area in sides])
    for x, y, width, height in sides:
        inside = slice(y, y + height), slice(x, x + width)
        assert np.abs(block_means(result[inside], 8) - pixels[inside]).max() <= 1
        assert not np.array_equal(result[inside], pixels[inside])


def test_the_first_part_of_a_large_area_says_how_all_of_it_was_averaged(monkeypatch):
    monkeypatch.setattr("tasks.areas.LARGEST", 64)
    pixels, seen = photo(160, 160), []

    def restore(pixels, area, blocks):
        seen.append(area.average)
        return pixels, area.average or ("linear" if seen[1:] else "center"), len(seen) == 1

    areas = [Area(8, 8, 128, 96, 12.0, 12.0), Area(8, 112, 40, 40, 16.0, 16.0)]
    _, likely, sure = restore_areas(restore, pixels, areas)
    assert seen == [None, *["center"] * (len(seen) - 2), None] and len(seen) > 3
    assert [area.average for area in likely] == ["center", "linear"] and sure == [True, False]
    assert [replace(area, average=None) for area in likely] == areas


@pytest.mark.parametrize("phases", [(0.0, 4.0), (4.0, 0.0), (4.0, 12.0), (0.0, 0.0)])
def test_blocks_beyond_the_photo_are_not_known(phases):
    """In the corner of a photo, with first blocks that were cut off: their copies complete them, and no more."""
    area = Area(0, 0, 60, 60, 16.0, 16.0, *phases)
    pixels = photo(100, 100)
    pixelate_area(pixels, area)
    view = view_area(pixels, area, block_values(pixels, area)[0])
    assert not view.known[0, 0, 0, 0] and view.known[0, 0, :, -1].all() and view.known[0, 0, -1].all()


@pytest.mark.usefixtures("figures")
def test_files(tmp_path, capsys):
    """As typed: EXIF orientation, transparency, grayscale, JPEG with --area, mistakes."""
    pixels = photo(160, 120)
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "gray.png")
    alpha = np.full((120, 160), 200, dtype=np.uint8)
    alpha[:40] = 0
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "clear.png")
    names = ("colour.png", "turned.jpg", "gray.png", "clear.png")
    assert entry.main(["--pixelate", *(str(tmp_path / name) for name in names), "--block_size", "10"]) == 0
    made = [tmp_path / f"{name.partition('.')[0]}_pixelated.png" for name in names]
    assert entry.main(["--task", "depixelation", "--depixelate", *map(str, made), "--views", "1"]) == 0
    for path, mode, size in zip(made, ("RGB", "RGB", "L", "RGBA"), ((160, 120), (120, 160), (160, 120), (160, 120))):
        with Image.open(path) as before, Image.open(f"{str(path)[:-4]}_depixelated.png") as after:
            assert before.mode == after.mode == mode and before.size == after.size == size
            assert "exif" not in after.info
            x, y, width, height = (n // 3 for n in size * 2)
            a, b = np.asarray(before).copy(), np.asarray(after).copy()
            assert not np.array_equal(a, b)
            a[y : y + height, x : x + width] = b[y : y + height, x : x + width] = 0
            assert np.array_equal(a, b)
        with Image.open(f"{str(path)[:-4]}_before_after.png") as picture:
            assert picture.width > 2 * size[0] and picture.height == size[1]
    capsys.readouterr()
    Image.fromarray(pixelated(pixels, 40, 30, 60, 50, 12)).save(tmp_path / "lossy.jpg", quality=90)
    area = ["--area", "40", "30", "60", "50"]
    assert entry.main(["--depixelate", str(tmp_path / "lossy.jpg"), *area, "--views", "1"]) == 0
    values = read_photo(tmp_path / "lossy.jpg")[0][30:80, 40:100]
    assert estimate_block_size(values) == 12
    (tmp_path / "text.png").write_text("x")
    for status, options, words in (
        (1, [str(tmp_path / "missing.png")], "missing.png: No such file"),
        (1, [str(tmp_path / "text.png")], "text.png: not a readable picture"),
        (1, [str(tmp_path / "colour.png"), "--area", "100", "100", "100", "100"], "area: 100 100 100 100"),
        (2, [str(tmp_path / "colour.png"), "--area", "1", "2", "x", "4"], "area"),
    ):
        capsys.readouterr()
        assert entry.main(["--depixelate", *options]) == status
        (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert words in error


@pytest.mark.usefixtures("figures")
def test_results_are_known_kept_and_completed(tmp_path, capsys):
    """A large profile hides no sign; what exists stays, what is missing is written; a name too long costs a line."""
    folder = tmp_path / "photos"
    folder.mkdir()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + np.random.default_rng(0).bytes(
        200000
    )
    Image.fromarray(photo(60, 60)).save(folder / "z.png", icc_profile=profile)
    Image.fromarray(photo(60, 60)).save(folder / f"{'n' * 240}.png")
    command = ["--depixelate", str(folder), "--area", "10", "10", "20", "20", "--views", "1"]
    assert entry.main(command) == 1
    captured = capsys.readouterr()
    assert captured.err.count("main.py: error: ") == 1 and "nnn_depixelated.png" in captured.err
    results = [folder / f"z_{kind}.png" for kind in ("before_after", "depixelated")]
    before = results[1].stat().st_mtime_ns
    results[0].unlink()
    assert entry.main(command) == 1 and results[0].exists() and results[1].stat().st_mtime_ns == before
    assert entry.main([*command, "--overwrite"]) == 1 and results[1].stat().st_mtime_ns > before
    assert len(list(folder.iterdir())) == 4


def test_a_photo_that_takes_too_much_memory_ends_no_work_on_others(tmp_path, monkeypatch, capsys):
    for name in ("a", "b", "c"):
        Image.fromarray(photo(60, 60)).save(tmp_path / f"{name}.png")

    def restore(predict, pixels, *more, **options):
        if (tmp_path / "a_depixelated.png").exists() and not tried:
            tried.append(True)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return restore_area(predict, pixels, *more, **options)

    tried = []
    monkeypatch.setattr(own_photos, "restore_area", restore)
    assert entry.main(["--depixelate", str(tmp_path), "--area", "10", "10", "20", "20", "--views", "1"]) == 1
    assert "b.png: the memory is used up" in capsys.readouterr().err
    assert sorted(path.name[0] for path in tmp_path.glob("*_depixelated.png")) == ["a", "c"]


def test_pixelated_jpegs_lie_over_white_in_the_folder_that_is_named(tmp_path):
    image = Image.fromarray(photo(60, 60))
    image.putalpha(Image.fromarray(np.repeat(np.uint8([0, 255]), 30)[None].repeat(60, axis=0)))
    image.save(tmp_path / "cut.png")
    assert (
        entry.main(["--pixelate", str(tmp_path / "cut.png"), "--quality", "95", "--output", str(tmp_path / "o")]) == 0
    )
    assert sorted(path.name for path in tmp_path.rglob("*.*g")) == ["cut.png", "cut_pixelated.jpg"]
    assert read_photo(tmp_path / "o" / "cut_pixelated.jpg")[0][:, :16].min() > 240


def test_the_colour_profile_stays(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photo(90, 80)).save(tmp_path / "a.png", icc_profile=profile)
    assert entry.main(["--pixelate", str(tmp_path / "a.png")]) == 0
    with Image.open(tmp_path / "a_pixelated.png") as image:
        assert image.info["icc_profile"] == profile


@pytest.mark.parametrize("side, phase", [(2.0, 1.0), (7.0, 3.0), (10.4, 0.0), (60.0, 20.0)])
def test_huge_areas_are_cut_along_their_grid(side, phase):
    area = Area(5, 9, 4000, 900, side, side, phase, phase)
    parts = list(parts_of(area))
    assert sum(part.width * part.height for part in parts) == 4000 * 900
    assert len(parts) == {2.0: 16 * 4, 7.0: 3, 10.4: 3, 60.0: 1}[side]  # blocks of 2 are restored as blocks of 12
    scale = working_side(side) / side
    assert max(max(part.width, part.height) for part in parts) * scale <= LARGEST + 12
    lines = {line + part.x - area.x for part in parts for line in part.lines()[1].tolist()}
    assert lines == set(area.lines()[1].tolist())


def test_photos_whose_names_differ_by_case_alone_have_results_of_different_names(tmp_path):
    for name in ("One.JPG", "one.png", "two.png"):
        (tmp_path / name).touch()
    files = [(str(tmp_path / name), name) for name in ("One.JPG", "one.png", "two.png")]
    assert result_bases(files, "out") == [os.path.join("out", name) for name in ("One_JPG", "one_png", "two")]
