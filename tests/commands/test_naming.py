"""--depixelate with --mask and --block_size: where the user says that photos are pixelated."""

import json

import numpy as np
import pytest
from conftest import drawn_photo
from PIL import Image

import main as entry
from depixelation.commands.depixelate import DepixelateOptions
from depixelation.commands.naming import named_areas
from depixelation.mosaics.area import Area, pixelate_area

Y, X = np.mgrid[:100, :120]
MASK = ((X - 60) / 40) ** 2 + ((Y - 50) / 35) ** 2 <= 1


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = drawn_photo(120, 100)
    blocks = pixels.copy()
    pixelate_area(blocks, Area(0, 0, 120, 100, 9.0, 9.0, average="srgb"))
    pixels = np.where(MASK[:, :, None], blocks, pixels)
    Image.fromarray(pixels).save("a.png")
    Image.fromarray(MASK).save("white.png")
    return pixels


def restored(name="a_depixelated.png"):
    return np.asarray(Image.open(name))


def test_a_mask_says_what_may_change(photo, capsys):
    assert entry.main(["--depixelate", "a.png", "--mask", "white.png", "--views", "1", "--json"]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    (area,) = line["areas"]
    assert area["given"] and area["confidence"] is None and area["pixels"] == MASK.sum()
    assert (area["block_width"], area["block_height"]) == (9, 9) and {"phase_x", "phase_y", "average"} <= area.keys()
    changed = (restored() != photo).any(axis=2)
    assert not changed[~MASK].any() and changed[MASK].mean() > 0.5
    assert entry.main(["--depixelate", "a.png", "--mask", "white.png", "--views", "1"]) == 0
    assert "1 have results" in (out := capsys.readouterr().out) and "--mask changes nothing there" in out
    given = ["--mask", "white.png", "--block_size", "12x9", "--overwrite", "--views", "1"]
    assert entry.main(["--depixelate", "a.png", *given]) == 0
    assert "blocks of 12 x 9, given" in capsys.readouterr().out
    assert not (restored() != photo).any(axis=2)[~MASK].any()
    assert entry.main(["--depixelate", "a.png", "--mask", "white.png", "--preview"]) == 0
    drawn = (restored("a_preview.png") != photo).any(axis=2)
    assert drawn.any() and not drawn[~MASK].any()


def test_what_is_transparent_in_a_mask_is_not_in_it(photo):
    """As a painting program writes a layer: white everywhere, transparent where nothing was painted."""
    layer = Image.new("RGB", (120, 100), "white")
    layer.putalpha(Image.fromarray(MASK).convert("L"))
    layer.save("layer.png")
    (area,) = named_areas(DepixelateOptions(mask="layer.png"), photo, "a.png")
    assert area.size == MASK.sum()


def test_a_folder_of_masks(photo, tmp_path, capsys):
    """By the photos' names; where one is missing, a line says so. Masks in the photos' folder are no photos."""
    (tmp_path / "masks").mkdir()
    (tmp_path / "photos" / "masks").mkdir(parents=True)
    for name in ("a", "b"):
        Image.fromarray(photo).save(tmp_path / "photos" / f"{name}.png")
    Image.fromarray(MASK).save(tmp_path / "photos" / "masks" / "a.png")
    command = ["--depixelate", "photos", "--mask", "photos/masks", "--views", "1"]
    assert entry.main(command) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(error) == 1 and "b.png" in error[0] and "photos/masks" in error[0]
    assert (tmp_path / "photos" / "a_depixelated.png").exists()
    assert not list((tmp_path / "photos" / "masks").glob("*depixelated*"))


def test_masks_are_written_and_taken_back(photo, tmp_path, capsys):
    """White where something was found, and what --mask makes of it; in folders they are no photos."""
    assert entry.main(["--depixelate", ".", "--masks", "--preview", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = next(line for line in lines if line["photo"].endswith("a.png"))
    assert [path.rpartition("a_")[2] for path in found["written"]] == ["mask.png", "preview.png"]
    mask = np.asarray(Image.open("a_mask.png"))
    assert set(np.unique(mask)) == {0, 255} and (mask == 255).sum() == sum(a["pixels"] for a in found["areas"])
    assert (mask[MASK] == 255).mean() > 0.95
    assert entry.main(["--depixelate", "a.png", "--mask", "a_mask.png", "--views", "1"]) == 0
    assert not (restored() != photo).any(axis=2)[mask == 0].any()
    (tmp_path / "masks").mkdir()
    (tmp_path / "a_mask.png").rename(tmp_path / "masks" / "a_mask.png")
    assert entry.main(["--depixelate", "a.png", "--mask", "masks", "--preview"]) == 0
    assert "a.png: area" in capsys.readouterr().out and not list(tmp_path.glob("**/a_mask_*"))


@pytest.mark.parametrize(
    "status, words, options",
    [
        (2, "give only one of them", ["--mask", "white.png", "--area", "1", "2", "30", "40"]),
        (2, "--area X Y", ["--block_size", "8"]),
        (2, "block_size", ["--area", "1", "2", "30", "40", "--block_size", "8x"]),
        (2, "does not exist", ["--mask", "none.png"]),
        (2, "keep photos and masks apart", ["--mask", "a.png"]),
        (1, "no white pixels", ["--mask", "black.png"]),
        (1, "draw the mask on the photo", ["--mask", "small.png"]),
        (1, "not a readable picture", ["--mask", "text.png"]),
    ],
)
def test_mistakes_are_named(photo, tmp_path, capsys, status, words, options):
    Image.new("L", (120, 100)).save("black.png")
    Image.new("L", (20, 10), 255).save("small.png")
    (tmp_path / "text.png").write_text("x")
    assert entry.main(["--depixelate", "a.png", *options]) == status
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert words in error and not (tmp_path / "a_depixelated.png").exists()
