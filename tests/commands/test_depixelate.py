"""--depixelate: own photos of any size and colour. What is pixelated is found and restored, the rest is untouched."""

import json
import os

import numpy as np
import pytest
from conftest import contents, drawn_photo, pixelated, save_photo
from PIL import Image, ImageCms

import main as entry
from depixelation.commands.depixelate import DepixelateOptions, facts
from depixelation.images.photo_files import read_photo
from depixelation.images.synthetic import synthetic_colour_image
from depixelation.mosaics import photo
from depixelation.mosaics.area import Area
from depixelation.mosaics.exact import estimate_block_size
from depixelation.mosaics.restoring import restore_area
from depixelation.tasks.finding import Finding


@pytest.mark.usefixtures("figures")
def test_files(tmp_path, capsys):
    """As typed: EXIF orientation, transparency, grayscale, JPEG with --area, mistakes."""
    pixels = drawn_photo(160, 120)
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
            assert picture.width > 2 * size[0] and size[1] < picture.height < size[1] + 40  # captions
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
    Image.fromarray(drawn_photo(60, 60)).save(folder / "z.png", icc_profile=profile)
    Image.fromarray(drawn_photo(60, 60)).save(folder / f"{'n' * 240}.png")
    command = ["--depixelate", str(folder), "--area", "10", "10", "20", "20", "--views", "1"]
    assert entry.main(command) == 1
    captured = capsys.readouterr()
    assert captured.err.count("main.py: error: ") == 1 and "nnn_depixelated.png" in captured.err
    results = [folder / f"z_{kind}.png" for kind in ("before_after", "depixelated")]
    before = results[1].stat().st_mtime_ns
    results[0].unlink()
    assert entry.main(command) == 1 and results[0].exists() and results[1].stat().st_mtime_ns == before
    assert entry.main([*command, "--overwrite"]) == 1 and results[1].stat().st_mtime_ns > before
    assert len(list(folder.iterdir())) == 5  # with the page


def test_a_photo_that_takes_too_much_memory_ends_no_work_on_others(tmp_path, monkeypatch, capsys):
    for name in ("a", "b", "c"):
        Image.fromarray(drawn_photo(60, 60)).save(tmp_path / f"{name}.png")

    def restore(predictor, pixels, *more):
        if (tmp_path / "a_depixelated.png").exists() and not tried:
            tried.append(True)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return restore_area(predictor, pixels, *more)

    tried = []
    monkeypatch.setattr(photo, "restore_area", restore)
    assert entry.main(["--depixelate", str(tmp_path), "--area", "10", "10", "20", "20", "--views", "1"]) == 1
    assert "b.png: the memory is used up" in capsys.readouterr().err
    assert sorted(path.name[0] for path in tmp_path.glob("*_depixelated.png")) == ["a", "c"]


shipped = pytest.mark.skipif(not os.path.exists(Finding.shipped), reason="needs the finder")


@shipped
def test_folders(tmp_path, capsys):
    """A tree in, a tree out; twins keep apart; a broken file costs a line; nothing is done twice."""
    folder, out = tmp_path / "in", tmp_path / "out"
    save_photo(folder / "a" / "one.png", 3, (160, 155))
    options = ["--area", "20", "30", "60", "60", "--area", "90", "85", "64", "64", "--block_size", "10"]
    assert entry.main(["--pixelate", str(folder / "a" / "one.png"), *options, "--quality", "92"]) == 0
    os.replace(folder / "a" / "one_pixelated.jpg", folder / "a" / "two.jpg")
    assert entry.main(["--pixelate", str(folder / "a" / "one.png"), *options, "--average", "linear"]) == 0
    os.replace(folder / "a" / "one_pixelated.png", folder / "a" / "two.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    before = contents(folder)
    capsys.readouterr()
    command = ["--depixelate", str(folder), "--output", str(out), "--views", "1"]
    assert entry.main(command) == 1
    captured = capsys.readouterr()
    assert captured.err.count("main.py: error: ") == 1 and "broken.jpg" in captured.err
    assert "1 of 4 photos failed" in captured.out and "one.png: no pixelated area" in captured.out
    assert sorted(contents(out)) == [
        *(out / "a" / f"two_{end}{kind}.png" for end in ("jpg", "png") for kind in ("_before_after", "_depixelated")),
        out / "depixelated.html",
    ]
    assert "two.png: area 20 30 60 60, blocks of 10, confidence " in captured.out and contents(folder) == before
    assert captured.out.count("two.png: area ") == 2 and "two.jpg: area " in captured.out
    assert entry.main(command) == 1 and "2 have results" in capsys.readouterr().out
    assert entry.main([*command, "--overwrite", "--json"]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [os.path.basename(row["photo"]) for row in found] == ["one.png", "two.jpg", "two.png"]
    assert not found[0]["written"] and {area["block_width"] for area in found[2]["areas"]} == {10}


@shipped
def test_preview_draws_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_photo(tmp_path / "p.png", 5, (200, 160))
    assert entry.main(["--pixelate", "p.png", "--grid", "picture", "--block_size", "9"]) == 0
    assert entry.main(["--depixelate", "p_pixelated.png", "--preview"]) == 0
    assert sorted(os.listdir()) == ["p.png", "p_pixelated.png", "p_pixelated_preview.png"]
    drawn, before = (read_photo(name)[0] for name in ("p_pixelated_preview.png", "p_pixelated.png"))
    assert 0 < (drawn != before).any(axis=2).mean() < 0.2


def test_enlarged_pictures_are_named_and_left_alone(tmp_path, capsys):
    """But where the user says so, they are restored."""
    Image.fromarray(drawn_photo(60, 60).repeat(3, axis=0).repeat(3, axis=1)).save(tmp_path / "large.png")
    assert entry.main(["--depixelate", str(tmp_path / "large.png"), "--views", "1"]) == 0
    assert "large.png: looks like an enlarged picture" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["large.png"]
    area = ["--area", "60", "60", "60", "60"]
    assert entry.main(["--depixelate", str(tmp_path / "large.png"), *area, "--views", "1"]) == 0
    assert "blocks of 3, given" in capsys.readouterr().out and (tmp_path / "large_depixelated.png").exists()


@pytest.mark.parametrize(
    "kind", ["bomb", "truncated", "thin", "sixteen", "cmyk", "palette", "animated", "real", "exif"]
)
def test_hostile_photos(tmp_path, monkeypatch, capsys, kind):
    """Restored, left alone, or one clear line."""
    monkeypatch.chdir(tmp_path)
    image = Image.fromarray(synthetic_colour_image(1, 1, 90))
    if kind == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    if kind == "truncated":
        image.save("x.png")
        data = (tmp_path / "x.png").read_bytes()
        (tmp_path / "x.png").write_bytes(data[: len(data) // 2])
    elif kind == "sixteen":
        Image.fromarray((np.arange(90 * 90, dtype=np.uint16) * 8).reshape(90, 90)).save("x.png")
    elif kind == "animated":
        image.save("x.gif", save_all=True, append_images=[image.rotate(90)])
    elif kind == "real":
        Image.fromarray(np.full((90, 90), 0.5, dtype=np.float32)).save("x.tif")
    elif kind == "exif":
        image.save("x.png", exif=b"Exif\0\0II*\0 no directory")
    else:
        image = {"thin": image.resize((1, 90)), "cmyk": image.convert("CMYK"), "palette": image.convert("P")}.get(
            kind, image
        )
        image.save("x.jpg" if kind == "cmyk" else "x.png")
    (name,) = os.listdir()
    status = entry.main(["--depixelate", name])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and status == (1 if kind in ("bomb", "truncated", "animated", "real") else 0)
    assert (
        (captured.err.count("main.py: error") == 1 and name in captured.err)
        if status
        else "no pixelated" in captured.out or f"{name}: area " in captured.out  # dithering may look pixelated
    )
    assert ("has 16 bits" in captured.err) == (kind == "sixteen")


def test_the_page_says_how_far_samples_are_apart_in_grey_levels():
    area, spread = Area(5, 5, 20, 20, 4.0, 4.0), np.zeros((40, 40, 1), np.uint8)
    spread[area.box()] = 4 * 3  # of which the picture shows four times as much
    lines = list(facts(DepixelateOptions(samples=2), [area], spread, 1.0))
    assert lines[1].startswith("2 samples: 3.0 of 255 grey levels apart")
