"""Classification: training, what --evaluate draws, and the labels of pictures of one's own."""

import csv
import os
import re
import signal

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

import main as entry
from architectures import ResidualCNN, SimpleCNN
from tasks import digits
from tasks.classification import NAMES, Classification, ClassificationConfig, augment, normalize, opaque, with_views
from utils import ROOT

TINY = ["--task", "classification", "--network", "SimpleCNN", "--synthetic_images", "400", "--batch_size", "32"]
TINY += ["--device", "cpu", "--precision", "float32"]


def draw(digit, size, ink, paper, mode="L", font="DejaVuSans-Bold", place=(0.3, 0.15)):
    """A picture of a digit, width x height pixels."""
    path = os.path.join(digits.matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    image = Image.new(mode, size, paper)
    corner = [length * share for length, share in zip(size, place)]
    ImageDraw.Draw(image).text(corner, str(digit), ink, ImageFont.truetype(path, min(size) * 0.6))
    return image


# ------------------------------------------------------------------------------------------------ networks and data


def test_networks():
    images = torch.rand(3, 1, 28, 28)
    simple, ours = SimpleCNN().eval(), ResidualCNN().eval()
    assert simple(images).shape == ours(images).shape == (3, 10)
    # 32 (9 + 1) + 64 (32 * 9 + 1) + 128 (3136 + 1) + 10 (128 + 1)
    assert sum(p.numel() for p in simple.parameters()) == 421642
    assert 2 * sum(p.numel() for p in ours.parameters()) < 1e6  # stored in half precision


def test_views_are_shifted_and_mirrored():
    images, network = F.pad(torch.rand(2, 1, 20, 20), (4, 4, 4, 4)), SimpleCNN().eval()
    around = [images, images.roll(1, 3), images.roll(-1, 3), images.roll(1, 2), images.roll(-1, 2)]
    mirrored = [image.flip(3) for image in around]
    for labels, count, views in (("digits", 1, around[:1]), ("digits", 10, around), ("clothes", 10, around + mirrored)):
        mean = torch.stack([network(view) for view in views]).mean(0)
        assert torch.allclose(with_views(network, count, labels)(images), mean, atol=1e-5)
    mean = (network(images) + network(images.flip(3))) / 2
    assert torch.allclose(with_views(network, 2, "clothes")(images), mean, atol=1e-5)


def test_augmentation():
    image = torch.zeros(1, 1, 28, 28)
    image[..., 8:20, 12:14], image[..., 16:20, 12:24] = 1, 1  # an L, its foot to the right
    torch.manual_seed(0)
    for labels, mirrored in (("digits", False), ("clothes", True)):
        views = augment(image.expand(300, -1, -1, -1), labels)
        assert views.shape == (300, 1, 28, 28) and 0 <= views.min() and views.max() <= 1
        assert len(views.flatten(1).unique(dim=0)) > 80
        blur = (views - views.round()).abs().max()
        assert blur < 1e-4 if mirrored else blur > 0.4  # clothes are moved by whole pixels
        right = (views[..., 14:].sum((1, 2, 3)) > views[..., :14].sum((1, 2, 3))).double().mean()
        assert 0.3 < right < 0.7 if mirrored else right > 0.8
        assert views.sum() < image.sum() * 300  # some of it is hidden


def test_classes_are_named_after_the_images():
    for images, labels in (("FashionMNIST", "clothes"), ("/data/fashion/raw", "clothes"), ("MNIST", "digits")):
        assert Classification(ClassificationConfig(images=images)).config.labels == labels
    assert Classification(ClassificationConfig(images="MNIST", labels="clothes")).config.labels == "clothes"


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


def test_train_interrupt_resume(run, tmp_path, monkeypatch):
    ours = ["--network", "ResidualCNN", "--network_options", '{"channels": [16, 32], "blocks": [1, 1]}']
    ours += ["--synthetic_images", "100", "--epochs", "2"]
    assert run("--name", "whole", *ours) == 0
    with monkeypatch.context() as patch:
        calls, loss = [], Classification.loss

        def interrupted(*arguments):
            calls.append(1)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return loss(*arguments)

        patch.setattr(Classification, "loss", interrupted)
        assert run("--name", "parts", *ours) == 130
    assert run("--name", "parts", "--resume", *ours[:6]) == 0
    whole, parts = (torch.load(tmp_path / "models" / f"{name}.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(map(torch.equal, whole["weights"].values(), parts["weights"].values()))
    assert whole["config"]["labels"] == "digits"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run that learned drawn digits well: models/classification.pt."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--synthetic_images", "1500", "--epochs", "4", "--output_dir", str(folder)]
    assert entry.main([*TINY, *options, "--name", "classification"]) == 0
    return folder


def test_log_has_both_accuracies(trained):
    with open(trained / "losses" / "classification.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and {"train_loss", "train_accuracy", "accuracy"} <= rows[0].keys()
    assert float(rows[-1]["accuracy"]) > 90 and float(rows[-1]["train_accuracy"]) > 50
    assert (trained / "losses" / "classification.png").exists()


@pytest.mark.usefixtures("figures")
def test_evaluation(trained, run, tmp_path, capsys):
    model = str(trained / "models" / "classification.pt")
    assert run("--evaluate", model, "--name", "it", "--synthetic_images", "3000") == 0
    with open(tmp_path / "losses" / "it_evaluation.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["model"] == model and 90 < float(row["accuracy"]) <= 100
    assert "500 drawn digits, the test part" in capsys.readouterr().out
    for name in ("it_evaluation_confusion.png", "it_evaluation_samples.png"):
        with Image.open(tmp_path / "losses" / name) as image:
            assert min(image.size) > 400 and np.ptp(np.asarray(image.convert("L"))) > 200


def test_the_sheet_shows_the_most_confident_mistakes():
    task = Classification(ClassificationConfig())
    images = np.zeros((60, 28, 28), np.uint8)
    images[:, 0, 0] = np.arange(60)  # the predictor says class 0, ever more surely
    dataset = task.dataset(images, np.arange(60) % 2, False)

    def predict(inputs):
        return torch.cat([inputs[:, 0, :1, 0] * 20, torch.zeros(len(inputs), 9)], 1)

    measured = task.measure([predict], dataset, torch.device("cpu"), torch.float32)
    assert measured.figures["accuracy"].mean() == 50
    shown, labels, predictions, confidence = measured.sample
    assert shown[:, 0, 0, 0].tolist() == list(range(59, 11, -2)) and labels.eq(1).all() and predictions.eq(0).all()
    assert measured.details.tolist() == [[i % 2, 0] for i in range(60)]


@pytest.mark.usefixtures("figures")
def test_predict_labels_pictures_of_any_kind(trained, tmp_path, capsys):
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
    assert entry.main([*command, "--model", str(trained / "models" / "classification.pt")]) == 0
    lines = capsys.readouterr().out.splitlines()
    form = r"(.+): label (\d) \((\w+)\), probability (\d\.\d{3}); runner-up (\d), (\d\.\d{3}); "
    form += r"(dark on light|light on dark)"
    found = [match.groups() for line in lines if (match := re.fullmatch(form, line))]
    assert [(row[0], row[1], row[2]) for row in found] == [
        (path, str(digit), NAMES["digits"][digit]) for path, digit in zip(paths, (7, 3, 4))
    ]
    assert [row[6] for row in found] == ["dark on light", "light on dark", "dark on light"]
    assert all(float(row[3]) > float(row[5]) >= 0 and row[1] != row[4] for row in found)
    with Image.open(tmp_path / "losses" / "classification_predictions.png") as image:
        assert image.format == "PNG" and np.ptp(np.asarray(image.convert("L"))) == 255


def test_pictures_that_cannot_be_labelled_are_one_line(trained, tmp_path, capsys):
    Image.new("L", (40, 40), 200).save(tmp_path / "blank.png")
    (tmp_path / "text.png").write_text("no picture")
    draw(1, (60, 60), 0, 255).save(tmp_path / "one.png")
    for name, message in (("blank.png", "shows nothing"), ("text.png", "not a readable"), ("gone.png", "No such file")):
        command = ["--task", "classification", "--device", "cpu", "--output_dir", str(tmp_path / "out"), "--predict"]
        command += [str(tmp_path / "one.png"), str(tmp_path / name)]
        assert entry.main([*command, "--model", str(trained / "models" / "classification.pt")]) == 2
        output = capsys.readouterr()
        assert name in output.err and message in output.err and output.err.count("\n") == 1
        assert "label" not in output.out and not (tmp_path / "out").exists()


def test_predict_refuses_the_models_of_other_tasks(trained, tmp_path, capsys):
    checkpoint = torch.load(trained / "models" / "classification.pt", weights_only=True)
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
