"""--task classification --predict: the labels of pictures of one's own."""

import os
import re

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

import main as entry
from depixelation.commands.classify import normalize, opaque
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
    for name, message in (("blank.png", "shows nothing"), ("text.png", "not a readable"), ("gone.png", "No such file")):
        command = ["--task", "classification", "--device", "cpu", "--output_dir", str(tmp_path / "out"), "--predict"]
        command += [str(tmp_path / "one.png"), str(tmp_path / name)]
        assert entry.main([*command, "--model", str(trained_digits / "models" / "classification.pt")]) == 2
        output = capsys.readouterr()
        assert name in output.err and message in output.err and output.err.count("\n") == 1
        assert "label" not in output.out and not (tmp_path / "out").exists()


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
