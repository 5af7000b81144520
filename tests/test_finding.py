"""Pixelated areas of all kinds: made, found, and restored; and the task that trains the finder."""

import csv
import json
import os
import signal

import numpy as np
import pytest
import torch
import wild
from conftest import contents, save_photo
from PIL import Image

import main as entry
from datasets import means_between, spread_between
from synthetic import synthetic_colour_image
from tasks import finder as finding_areas
from tasks.areas import block_values, keep_values, tell_average
from tasks.finder import (
    MosaicNet,
    find_cells,
    find_flat,
    find_regions,
    fit_area,
    fit_grid,
    outline,
    predict_cells,
    region_boxes,
)
from tasks.finding import Finding, compare_areas, losses_of
from tasks.mosaics import (
    FORMATS,
    Area,
    MosaicCrops,
    MosaicPhotos,
    averaged,
    compress,
    draw_areas,
    from_light,
    grid_lines,
    is_visible,
    log_distance,
    pixelate_area,
    to_light,
)
from tasks.own_photos import read_photo
from utils import ROOT

CPU = torch.device("cpu")


class Photos:
    """Stands for a cache."""

    names = ["a", "b", "c"]

    def __getitem__(self, index):
        return synthetic_colour_image(11, index, 200)


# ------------------------------------------------------------------------------------------------ making areas


def test_grids():
    assert grid_lines(10, 4, 0).tolist() == [0, 4, 8, 10]
    assert grid_lines(10, 4, 2).tolist() == [0, 2, 6, 10]
    assert grid_lines(10, 3.4, 0).tolist() == [0, 3, 7, 10]
    values = np.arange(24.0).reshape(4, 6, 1)
    rows, columns = np.array([0, 1, 4]), np.array([0, 2, 6])
    means = means_between(values, rows, columns)
    assert means[0, 0, 0] == 0.5 and means[1, 1, 0] == values[1:, 2:].mean()
    assert np.array_equal(means_between(spread_between(means, rows, columns), rows, columns), means)
    a = Area(10, 10, 20, 20, 4.0, 4.0)
    assert a.overlap(a) == 1 and a.overlap(Area(30, 10, 20, 20, 4.0, 4.0)) == 0
    assert a.overlap(Area(20, 10, 20, 20, 4.0, 4.0)) == pytest.approx(1 / 3)
    b = a.scaled(0.5, 100, 100)
    assert (b.x, b.y, b.width, b.height, b.block_width) == (5, 5, 10, 10, 2)


def test_light():
    assert np.allclose(from_light(to_light(np.arange(256))), np.arange(256))
    assert to_light(188) == pytest.approx(255 / 2, abs=1)  # half the light


@pytest.mark.parametrize("average", ["srgb", "linear", "center"])
def test_pixelated_areas(average):
    pixels = synthetic_colour_image(1, 2, 64)
    result, area = pixels.copy(), Area(5, 7, 30, 22, 8.0, 8.0, 3.0, 1.0, average)
    pixelate_area(result, area)
    block = result[8:16, 8:16]  # of the grid of the picture, from (5 + 3, 7 + 1) on
    assert (block == block[0, 0]).all() and (result[7, 5:8] == result[7, 5]).all()
    outside = np.ones(pixels.shape[:2], dtype=bool)
    outside[area.box()] = False
    assert np.array_equal(result[outside], pixels[outside])
    truth = pixels[8:16, 8:16].astype(float)
    expected = {"srgb": truth.mean((0, 1)), "linear": from_light(to_light(truth).mean((0, 1))), "center": truth[4, 4]}
    assert np.abs(block[0, 0] - expected[average]).max() <= 1
    values, tolerance = block_values(result, area)
    assert tolerance == 0 and np.array_equal(spread_between(values, *area.lines()), result[area.box()])
    lossy, rough = block_values(compress(result, 70, 2), area)
    assert 0 < rough < 12 and np.abs(lossy - values).mean() < 8
    assert tell_average(truth_of(pixels, area) + 1, values, area) == (average, True)
    kept = keep_values(truth_of(pixels, area), values, 0.0, area)
    if average != "center":
        means = means_between(to_light(kept) if average == "linear" else kept, *area.lines())
        means = from_light(means) if average == "linear" else means
        assert np.abs(means - values).max() < 0.5
    loose = keep_values(truth_of(pixels, area), values, 300.0, area)
    assert np.allclose(loose, truth_of(pixels, area))  # a tolerance that allows everything changes nothing


@pytest.mark.parametrize("average", ["srgb", "linear"])
def test_block_means_are_kept_without_steps(average):
    area = Area(0, 0, 61, 40, 8.0, 8.0, 5.0, 0.0, average)
    cells = np.tile(100 + 10.0 * np.arange(8)[:, None], (5, 1, 1))
    kept = keep_values(np.full((40, 61, 1), 120.0), cells, 0.0, area)
    assert np.allclose(averaged(kept, area.lines(), average), cells, atol=1e-3)
    assert np.abs(np.diff(kept, axis=1)).max() < 4 and np.abs(np.diff(kept, axis=0)).max() < 1e-6


def truth_of(pixels, area):
    return pixels[area.box()].astype(float)


def test_drawn_areas_do_not_overlap_and_can_be_seen():
    rng = np.random.default_rng(0)
    for i in range(30):
        before = np.ascontiguousarray(np.tile(synthetic_colour_image(3, i, 128), (2, 2, 1)))
        pixels = before.copy()
        areas = draw_areas(rng, pixels, 3)
        assert all(0 <= a.x and a.x + a.width <= 256 and a.y + a.height <= 256 for a in areas)
        assert not any(a.overlap(b) for i, a in enumerate(areas) for b in areas[:i])
        assert all(is_visible(before[a.box()], pixels[a.box()], int(a.block_width)) for a in areas)
        again = before.copy()
        for area in areas:
            pixelate_area(again, area)
        assert np.array_equal(again, pixels)
    flat = np.full((64, 64, 3), 100, dtype=np.uint8)
    assert draw_areas(rng, flat, 2) == [] and (flat == 100).all()


def test_samples_follow_their_key():
    crops = MosaicCrops(Photos(), [0, 1, 2], 5, 10)
    for i in range(6):
        one, two = crops[(1, i)], crops[(1, i)]
        assert all(map(torch.equal, one, two)) and not torch.equal(one[0], crops[(2, i)][0])
        luma, covered, grids, averages, weights = one
        assert luma.shape == (1, 256, 256) and grids.shape == (6, 64, 64)
        assert covered.shape == weights.shape == (1, 64, 64) and 0 <= covered.min() <= covered.max() <= 1
        assert ((grids != 0).any(0) == (averages >= 0)).all() and ((covered[0] >= 0.5) == (averages >= 0)).all()
        assert weights.min() == 1 and weights.max() <= 8
    pictures = MosaicPhotos(Photos(), [0, 1, 2], 20)
    kinds = [pictures[i] for i in range(20)]
    assert [file for _, _, file in kinds[:4]] == list(FORMATS)
    assert not any(areas for _, areas, _ in kinds[16:]) and sum(bool(areas) for _, areas, _ in kinds) >= 12
    pixels, areas, _ = kinds[0]
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    for area in areas:
        inside[area.box()] = True
    assert np.array_equal(pictures.truth(0)[~inside], pixels[~inside])


# ------------------------------------------------------------------------------------------------ finding areas


def test_regions():
    mask = np.zeros((60, 70), dtype=bool)
    mask[5:20, 6:30] = mask[5:20, 40:64] = True  # two
    mask[30:55, 5:20] = mask[45:55, 5:60] = True  # an L
    mask[50, 68] = True  # a speck
    assert len(find_regions(mask)) == 4
    boxes = sorted(tuple(map(int, box)) for box in region_boxes(mask))
    assert boxes[0] == (5, 20, 6, 30) and boxes[1] == (5, 20, 40, 64) and len(boxes) == 4
    u = np.zeros((10, 11), dtype=bool)
    u[:, 1] = u[:, 8] = u[9, 1:9] = True  # joined in the last row only
    assert len(find_regions(u)) == 1 and find_regions(np.zeros((5, 5), dtype=bool)) == []


@pytest.mark.parametrize(
    "side, scale, quality", [(5, 1.0, 90), (9, 1.0, 70), (16, 0.7, 85), (24, 1.3, 80), (64, 1.0, 75)]
)
def test_grids_are_fitted(side, scale, quality):
    """With and without a guess; in JPEGs, scaled."""
    pixels = np.ascontiguousarray(np.tile(synthetic_colour_image(3, 8, 128), (3, 3, 1)))
    area = Area(20, 30, 5 * side + 3, 4 * side, float(side), float(side), 3.0, 0.0)
    pixelate_area(pixels, area)
    size = round(384 * scale)
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC) if scale != 1 else pixels
    area = area.scaled(scale, size, size)
    luma = finding_areas.to_luma(compress(np.asarray(image), quality, 2))
    box = area.y, area.y + area.height, area.x, area.x + area.width
    for guess in (None, (1.1 * area.block_width, 0.92 * area.block_height)):
        found = fit_area(luma, box, guess)
        assert found.block_width == pytest.approx(area.block_width, rel=0.06)
        assert found.block_height == pytest.approx(area.block_height, rel=0.06)
        assert found.overlap(area) > 0.85


def test_no_grid_is_no_area():
    assert fit_grid(np.zeros(30)) is None and fit_area(np.zeros((4, 4), np.uint8), (0, 4, 0, 4)) is None
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3)).astype(np.uint8)
    assert find_flat(noise) == []
    area = Area(20, 30, 40, 40, 8.0, 8.0)
    pixelate_area(noise, area)
    (found,) = find_flat(noise)
    assert found.overlap(area) > 0.9 and found.block_width == pytest.approx(8, rel=0.03)


def test_network_and_loss():
    network = MosaicNet().eval()
    assert sum(p.numel() for p in network.parameters()) < 500_000
    luma = synthetic_colour_image(1, 1, 130)[:, :, 0]
    torch.nn.init.normal_(network.unet.last.weight, std=0.1)
    cells = predict_cells(network, luma, CPU, torch.float32)
    assert cells.shape == (10, 33, 33) and 0 <= cells[0].min() <= cells[0].max() <= 1
    none = torch.zeros(1, 1, 2, 2), torch.zeros(1, 6, 2, 2), torch.full((1, 2, 2), -1), torch.ones(1, 1, 2, 2)
    seen = torch.full((1, 10, 2, 2), -20.0)
    assert losses_of(seen, *none)[0] < 1e-6 and losses_of(seen, *none)[1] == 0 and losses_of(-seen, *none)[0] > 9
    some = torch.ones(1, 1, 2, 2), torch.full((1, 6, 2, 2), 5.0), torch.zeros(1, 2, 2).long(), torch.ones(1, 1, 2, 2)
    right = torch.tensor([20.0, *[5.0] * 6, 20, -20, -20])[None, :, None, None].expand(1, 10, 2, 2)
    assert all(part < 1e-6 for part in losses_of(right, *some)) and losses_of(-right, *some)[1] > 5


def seen_cells(areas, side):
    """What a network that is always right says of a picture of side x side pixels with these (x, y, width, height)."""
    n = side // 4
    middles = np.arange(n) * 4 + 2
    cells = np.zeros((10, n, n))
    for x, y, width, height in areas:
        inside = np.ix_((middles > y) & (middles < y + height), (middles > x) & (middles < x + width))
        cells[0][inside], cells[5:7, *inside] = 1, 3
        for k, line in enumerate((x, y, x + width, y + height)):
            distance = log_distance(np.abs(middles - line))
            cells[1 + k][inside] = np.broadcast_to(distance if k % 2 == 0 else distance[:, None], (n, n))[inside]
    return cells.astype(np.float16)


@pytest.mark.parametrize(
    "areas",
    [
        [(9, 14, 23, 17), (60, 61, 13, 12)],
        [(20, 40, 50, 37), (70, 40, 30, 90)],  # touch, and are an L
        [(20, 20, 200, 60), (20, 80, 60, 80), (80, 80, 100, 99)],  # three that touch
        [(8, 8, 390, 380)],  # farther from the middle than REACH
    ],
)
def test_areas_are_outlined(areas):
    """Each from its own cells, to two pixels, touching or not."""
    found = [outline(cells) for cells in find_cells(seen_cells(areas, 400), 0.5)]
    boxes = sorted((left, top, right - left, bottom - top) for (top, bottom, left, right), *_ in found)
    assert len(boxes) == len(areas) and min(min(share, filled) for _, share, filled in found) > 0.85
    assert np.abs(np.array(boxes) - np.array(sorted(areas))).max() <= 2


def test_areas_that_touch_are_told_apart_by_their_blocks():
    """Where their cells do not see the edge between them, as those of small blocks often do not."""
    cells = seen_cells([(20, 40, 120, 60)], 200)
    for size, count in ((3.4, 2), (3.1, 1)):
        cells[5:7, :, 20:] = size  # from 80 on; in octaves, 3 before
        cells[5:7] += np.random.default_rng(0).normal(0, 0.05, cells[5:7].shape)
        found = find_cells(cells, 0.5)
        assert len(found) == count
        ends = [sorted(each.middles[0])[:: each.middles.shape[1] - 1] for each in found]
        assert sorted(ends) == ([[22, 78], [82, 138]] if count == 2 else [[22, 138]])


def test_hardly_visible_blocks_are_in_the_area_whose_other_cells_see_its_edge(monkeypatch):
    cells = seen_cells([(20, 40, 120, 100)], 200)
    cells[0, 15:20] = 0.2  # from 60 to 80: in two parts, which both see the whole area
    cells[0, 30:] = 0.2  # from 120 on
    monkeypatch.setattr(finding_areas, "predict_cells", lambda *_: cells)
    finder = finding_areas.Finder(None, fit=False)
    (area,) = finder(np.zeros((200, 200, 1), dtype=np.uint8), CPU, torch.float32)
    assert area.overlap(Area(20, 40, 120, 100, 8.0, 8.0)) > 0.95 and area.confidence > finder.least
    cells[3, :30] = np.random.default_rng(0).permutation(cells[3, :30])  # they do not agree where
    assert all(area.x + area.width < 150 for area in finder.candidates(np.zeros((200, 200, 1), np.uint8), CPU, None))


def test_photos_in_tiles(monkeypatch):
    """Cut into tiles, a photo gets the same cells as at once."""
    torch.manual_seed(0)
    network = MosaicNet((8, 8), (1, 1)).eval()
    torch.nn.init.normal_(network.unet.last.weight, std=0.1)
    luma = synthetic_colour_image(2, 2, 300)[:, :, 1]
    whole = predict_cells(network, luma, CPU, torch.float32)
    monkeypatch.setattr(finding_areas, "TILE", 128)
    monkeypatch.setattr(finding_areas, "MARGIN", 64)
    tiled = predict_cells(network, luma, CPU, torch.float32)
    assert np.abs(whole.astype(float) - tiled).max() < 4e-3


def test_figures():
    truth = [Area(0, 0, 20, 20, 4.0, 4.0), Area(50, 50, 20, 20, 4.0, 4.0)]
    figures, hits = compare_areas([Area(1, 0, 20, 20, 5.0, 4.0), Area(80, 80, 9, 9, 3.0, 3.0)], truth)
    assert hits == [1, 0] and figures == (0.5, 0.5, 1.0, pytest.approx(0.125))
    assert compare_areas([], [])[0] == (1.0, 1.0, 0.0, 0.0)


# ------------------------------------------------------------------------------------------------ training


def test_train_interrupt_resume_evaluate(tmp_path, monkeypatch, capsys):
    all_cells = finding_areas.find_cells  # of an untrained network hundreds of areas, which take long to be fitted
    monkeypatch.setattr(finding_areas, "find_cells", lambda *arguments: list(all_cells(*arguments))[:8])
    options = ["--task", "finding", "--synthetic_images", "24", "--crops", "16", "--batch_size", "4", "--pictures", "4"]
    options += ["--network_options", '{"channels": [8, 8], "blocks": [1, 1]}', "--device", "cpu"]
    options += ["--precision", "float32", "--epochs", "2", "--validate_every", "2"]
    options += ["--output_dir", str(tmp_path), "--cache_dir", str(tmp_path / "cache")]
    assert entry.main([*options, "--name", "whole"]) == 0
    original, calls = Finding.loss, []

    def loss(*arguments):
        calls.append(None)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Finding, "loss", loss)
        assert entry.main([*options, "--name", "parts"]) == 130
    assert entry.main(["--task", "finding", "--resume", "--name", "parts", *options[-6:]]) == 0
    logs = []
    for name in ("whole", "parts"):
        with open(tmp_path / "losses" / f"{name}.csv", encoding="utf-8") as file:
            logs.append([{**row, "minutes": ""} for row in csv.DictReader(file)])
    assert logs[0] == logs[1] and {"f1", "found", "false", "size_error", "mask_loss"} <= logs[0][0].keys()
    model = str(tmp_path / "models" / "whole.pt")
    assert entry.main([*options, "--evaluate", model, "--name", "it"]) == 0
    output = capsys.readouterr().out
    assert "no network" in output and "no fit" in output and "scaled JPEG 80" in output
    assert (tmp_path / "losses" / "it_evaluation_samples.png").exists()


# ------------------------------------------------------------------------------------------------ the shipped finder

shipped = pytest.mark.skipif(not os.path.exists(os.path.join(ROOT, "models", "finder.pt")), reason="needs the finder")


@shipped
def test_wild_pictures(tmp_path):
    """The script's table, on drawn images: most areas are found, and what is restored is nearer to the truth."""
    rows = wild.main("synthetic", 4, str(tmp_path / "sheet.png"), str(tmp_path))
    assert Image.open(tmp_path / "sheet.png").size == (3 * 384, 3 * 384)
    areas, found, false = (sum(row[i] for row in rows) for i in (1, 2, 3))
    assert found >= 0.45 * areas and false <= 0.8 * len(rows)
    before, after = (np.nanmean([row[i] for row in rows]) for i in (5, 6))
    assert after < 0.95 * before


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
        out / "a" / f"two_{end}{kind}.png" for end in ("jpg", "png") for kind in ("_before_after", "_depixelated")
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
