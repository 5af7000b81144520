"""--task classification --predict: the labels of pictures of one's own."""

import os
import re

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

import main as entry
from depixelation.commands.classify import normalize, normalize_ink, opaque
from depixelation.commands.isolating import find_things
from depixelation.images import digits
from utils import ROOT


def draw(digit, size, ink, paper, mode="L", font="DejaVuSans-Bold", place=(0.3, 0.15)):
    """A picture of a digit, width x height pixels."""
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    image = Image.new(mode, size, paper)
    corner = [length * share for length, share in zip(size, place)]
    ImageDraw.Draw(image).text(corner, str(digit), ink, ImageFont.truetype(path, min(size) * 0.6))
    return image


# ------------------------------------------------------------------------------------------------ own pictures


def test_pictures_are_normalized_as_mnist_was():
    images, _ = digits.draw_digits(0, "test", 50)
    for image in images:
        plain, dark = normalize(image.astype(float), "digits")
        assert not dark and plain.max() >= 250
        rows, columns = np.nonzero(plain > 50)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20, 21)
        weights = plain / plain.sum()
        center = [(weights.sum(axis) * np.arange(28)).sum() for axis in (0, 1)]
        assert np.abs(np.array(center) - 14).max() < 0.8
        inverted, dark = normalize(255.0 - image, "digits")
        assert dark and np.array_equal(inverted, plain)
        large = np.pad(image.repeat(5, 0).repeat(5, 1), ((200, 30), (10, 300)))  # in a corner of something larger
        again, _ = normalize(large.astype(float), "digits")
        best = min(
            np.abs(np.roll(again, (y, x), (0, 1)).astype(int) - plain).mean() for y in (-1, 0, 1) for x in (-1, 0, 1)
        )
        assert best < 12 < plain.mean()
    with pytest.raises(ValueError, match="shows nothing"):
        normalize(np.full((50, 60), 99.0), "digits")


def test_clothes_fill_the_image_and_keep_their_tone():
    grey = np.full((300, 200), 250.0)
    grey[50:250, 60:140] = 150
    image, dark = normalize(grey, "clothes")
    assert dark and image.max() == 100 and image.any(1).all() and image.any(0).sum() == 11
    assert abs(np.flatnonzero(image.any(0)).mean() - 13.5) <= 0.5


def test_transparent_pictures_stand_on_their_opposite():
    alpha = np.zeros((10, 10), np.uint8)
    alpha[2:5, 2:5] = 255
    for ink, paper in ((0, 255), (255, 0)):
        grey = opaque(np.full((10, 10, 3), ink, np.uint8), alpha)
        assert grey[3, 3] == ink and grey[0, 0] == paper


# ------------------------------------------------------------------------------------------------ from end to end


@pytest.mark.usefixtures("figures")
def test_predict_labels_pictures_of_any_kind(trained_digits, tmp_path, capsys):
    kinds = [
        ("L", (300, 400), 0, 255),
        ("RGB", (90, 60), (250, 240, 30), (40, 0, 60)),
        ("RGBA", (64, 64), "black", None),
    ]
    paths = []
    for digit, (mode, size, ink, paper) in zip((7, 3, 4), kinds):
        paths.append(str(tmp_path / f"{digit}.png"))
        draw(digit, size, ink, paper if paper is not None else (0, 0, 0, 0), mode).save(paths[-1])
    command = ["--task", "classification", "--device", "cpu", "--output_dir", str(tmp_path), "--predict", *paths]
    assert entry.main([*command, "--model", str(trained_digits / "models" / "classification.pt")]) == 0
    lines = capsys.readouterr().out.splitlines()
    form = r"(.+): label (\d) \((\w+)\), probability (\d\.\d{3}); runner-up (\d), (\d\.\d{3}); "
    form += r"(dark on light|light on dark)"
    found = [match.groups() for line in lines if (match := re.fullmatch(form, line))]
    assert [(row[0], row[1], row[2]) for row in found] == [
        (path, str(digit), digits.NAMES["digits"][digit]) for path, digit in zip(paths, (7, 3, 4))
    ]
    assert [row[6] for row in found] == ["dark on light", "light on dark", "dark on light"]
    assert all(float(row[3]) > float(row[5]) >= 0 and row[1] != row[4] for row in found)
    with Image.open(tmp_path / "losses" / "classification_predictions.png") as image:
        assert image.format == "PNG" and np.ptp(np.asarray(image.convert("L"))) == 255


def test_pictures_that_cannot_be_labelled_are_one_line(trained_digits, tmp_path, capsys):
    Image.new("L", (40, 40), 200).save(tmp_path / "blank.png")
    (tmp_path / "text.png").write_text("no picture")
    draw(1, (60, 60), 0, 255).save(tmp_path / "one.png")
    names = ["text.png", "one.png", "blank.png", "gone.png"]
    command = ["--task", "classification", "--device", "cpu", "--output_dir", str(tmp_path / "out"), "--model"]
    command += [str(trained_digits / "models" / "classification.pt"), "--predict"]
    assert entry.main([*command, *(str(tmp_path / name) for name in names)]) == 1
    output = capsys.readouterr()
    lines = output.err.splitlines()
    for line, name, words in zip(lines, ("text", "blank", "gone"), ("not a readable", "shows nothing", "No such file")):
        assert f"{name}.png" in line and words in line
    assert len(lines) == 3 and "one.png: label 1" in output.out and output.out.count("label ") == 1
    assert entry.main([*command, str(tmp_path / "text.png")]) == 2 and "label" not in capsys.readouterr().out


def test_predict_refuses_the_models_of_other_tasks(trained_digits, tmp_path, capsys):
    checkpoint = torch.load(trained_digits / "models" / "classification.pt", weights_only=True)
    checkpoint["config"]["task"] = "denoising"
    torch.save(checkpoint, tmp_path / "other.pt")
    draw(1, (60, 60), 0, 255).save(tmp_path / "one.png")
    command = [
        "--task",
        "classification",
        "--predict",
        str(tmp_path / "one.png"),
        "--model",
        str(tmp_path / "other.pt"),
    ]
    assert entry.main(command) == 2 and "is a model for --task denoising" in capsys.readouterr().err
    command[2:4] = ["--init", os.path.join(ROOT, "models", "photos.pt"), "--output_dir", str(tmp_path)]
    assert entry.main(command[:-2]) == 2 and "is a model for --task depixelation" in capsys.readouterr().err
    command[2:4] = ["--network_options", '{"classes": 5}']
    assert entry.main(command[:-2]) == 2 and "(1, 5), not (1, 10)" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- several, uneven, unsure


def on(background, digit, box):
    """A picture, (H, W), with a drawn digit in dark ink in a square: left, top, side."""
    left, top, side = box
    image = digits.draw_digits(1, "test", 10)[0][digit]
    ink = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) / 255
    result = background.copy()
    result[top : top + side, left : left + side] *= 1 - 0.8 * ink
    return result


def backgrounds():
    """{name: (H, W) float array} of 240 x 320 pixels."""
    y, x = np.mgrid[:240, :320]
    vignette = 240 * (1 - 0.9 * np.hypot(y / 240 - 0.5, x / 320 - 0.5))
    table = np.where((np.abs(y - 120 + x / 20) < 85) & (np.abs(x - 160 - y / 20) < 100), 225.0, 80 + 12 * np.sin(y / 4))
    ruled = np.where(y % 24 < 2, 150.0, 240.0)
    squared = np.where((y % 20 < 1) | (x % 20 < 1), 160.0, 240.0)
    return {"vignette": vignette, "table": table, "ruled": ruled, "squared": squared}


@pytest.mark.parametrize("name", ["vignette", "table", "ruled", "squared"])
def test_uneven_backgrounds_are_taken_away(name):
    for digit in (2, 4, 7):
        grey = on(backgrounds()[name], digit, (100, 60, 120))
        even = on(np.full((240, 320), 230.0), digit, (100, 60, 120))
        plain = normalize_ink(find_things(even, "digits")[0].ink, "digits")

        def judge(things):  # takes what looks like the digit on even paper for sure
            images = [normalize_ink(thing.ink, "digits").astype(float) for thing in things]
            return np.array([np.corrcoef(image.ravel(), plain.ravel())[0, 1] > 0.8 for image in images])

        (thing,) = find_things(grey, "digits", judge)
        assert thing.dark_on_light and judge([thing])[0]
        assert 95 < thing.box[0] < thing.box[2] < 225 and 55 < thing.box[1] < thing.box[3] < 185


def test_things_are_found_row_by_row():
    grey = np.full((300, 400), 235.0)
    places = [(20, 20, 90), (150, 30, 90), (290, 10, 90), (60, 180, 90), (220, 190, 90)]
    for digit, place in zip((3, 5, 8, 0, 4), places):
        grey = on(grey, digit, place)
    grey[290:292, 5:7] = 0  # dust
    for picture, dark in ((grey, True), (255 - grey, False)):
        things = find_things(picture, "digits")
        assert [thing.dark_on_light for thing in things] == [dark] * 5
        for thing, (left, top, side) in zip(things, places):
            assert left - 5 <= thing.box[0] < thing.box[2] <= left + side + 5
            assert top - 5 <= thing.box[1] < thing.box[3] <= top + side + 5
    assert not find_things(np.full((30, 40), 90.0), "digits")


def predict(folder, capsys, *paths):
    command = ["--task", "classification", "--device", "cpu", "--output_dir", str(folder)]
    command += ["--model", os.path.join(ROOT, "models", "MNIST.pt"), "--predict", *map(str, paths)]
    assert entry.main(command) == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("figures")
def test_what_is_no_digit_is_unsure_and_sheets_are_kept(tmp_path, capsys):
    grey = on(on(np.full((200, 400), 230.0), 2, (30, 40, 120)), 7, (240, 40, 120))
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "two.png")
    shapes = {"heart": [(100, 180), (20, 90), (40, 40), (80, 40), (100, 70), (120, 40), (160, 40), (180, 90)]}
    shapes["square"] = [(30, 30), (170, 30), (170, 170), (30, 170)]
    for name, corners in shapes.items():
        image = Image.new("L", (200, 200), 255)
        ImageDraw.Draw(image).polygon(corners, fill=0)
        image.save(tmp_path / f"{name}.png")
    for name, lines in (
        ("plus", [(100, 30, 100, 170), (30, 100, 170, 100)]),
        ("triangle", [(100, 30, 165, 150, 35, 150, 100, 30)]),
    ):
        shapes[name] = Image.new("L", (200, 200), 255)
        for line in lines:
            ImageDraw.Draw(shapes[name]).line(line, 0, 14, "curve")
        shapes[name].save(tmp_path / f"{name}.png")
    first = predict(tmp_path, capsys, tmp_path / "two.png")
    assert "two.png: 2 things: 2 7" in first and "(thing 2 of 2, at x 2" in first and "unsure" not in first
    sheet = tmp_path / "losses" / "classification_predictions.png"
    kept = sheet.read_bytes()
    second = predict(tmp_path, capsys, *(tmp_path / f"{name}.png" for name in shapes))
    assert second.count("unsure; most like label") == 4 and "classification_predictions_2.png" in second
    assert sheet.read_bytes() == kept and (tmp_path / "losses" / "classification_predictions_2.png").exists()
