"""--pixelate."""

import numpy as np
import pytest
from conftest import drawn_photo
from PIL import Image, ImageCms

import main as entry
from depixelation.images.photo_files import read_photo


def test_pixelated_jpegs_lie_over_white_in_the_folder_that_is_named(tmp_path):
    image = Image.fromarray(drawn_photo(60, 60))
    image.putalpha(Image.fromarray(np.repeat(np.uint8([0, 255]), 30)[None].repeat(60, axis=0)))
    image.save(tmp_path / "cut.png")
    assert (
        entry.main(["--pixelate", str(tmp_path / "cut.png"), "--quality", "95", "--output", str(tmp_path / "o")]) == 0
    )
    assert sorted(path.name for path in tmp_path.rglob("*.*g")) == ["cut.png", "cut_pixelated.jpg"]
    assert read_photo(tmp_path / "o" / "cut_pixelated.jpg")[0][:, :16].min() > 240


def test_the_colour_profile_stays(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(drawn_photo(90, 80)).save(tmp_path / "a.png", icc_profile=profile)
    assert entry.main(["--pixelate", str(tmp_path / "a.png")]) == 0
    with Image.open(tmp_path / "a_pixelated.png") as image:
        assert image.info["icc_profile"] == profile


@pytest.mark.parametrize("width, height", [(8, 8), (8, 500), (500, 8), (20, 20), (9, 31)])
def test_what_is_pixelated_is_found_also_in_tiny_pictures(run, model, tmp_path, width, height, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(noise).save("tiny.png")
    assert run("--pixelate", "tiny.png") == 0
    assert "--area" not in capsys.readouterr().out
    assert run("--depixelate", "tiny_pixelated.png", "--model", "model.pt") == 0


def test_pixelated_flat_area_is_told(run, tmp_path, capsys):
    Image.new("RGB", (60, 60), "white").save("white.png")
    assert run("--pixelate", "white.png") == 0
    assert "--area 20 20 20 20" in capsys.readouterr().out


def test_blocks_begin_where_the_picture_does(tmp_path):
    Image.fromarray(drawn_photo(90, 80)).save(tmp_path / "a.png")
    options = ["--grid", "picture", "--block_size", "7", "--area", "30", "26", "40", "30"]
    assert entry.main(["--pixelate", str(tmp_path / "a.png"), *options]) == 0
    pixels = read_photo(tmp_path / "a_pixelated.png")[0]
    for y, x in ((28, 35), (42, 49)):  # multiples of 7
        block = pixels[y : y + 7, x : x + 7]
        assert (block == block[0, 0]).all() and (pixels[y, x] != pixels[y - 1, x - 1]).any()
