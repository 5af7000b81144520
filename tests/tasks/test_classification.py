"""Classification: networks, training, and what --evaluate draws."""

import csv

import numpy as np
import pytest
import torch
from conftest import TINY_DIGITS as TINY  # noqa: F401
from conftest import interrupt_at, load_weights, log
from PIL import Image
from torch.nn import functional as F

from architectures import ResidualCNN, SimpleCNN
from depixelation.engine.options import ModelOptions
from depixelation.engine.predictor import Predictor
from depixelation.tasks.classification import Classification, ClassificationConfig, augment
from utils import config_from_dict

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

    def with_views(count, labels):
        task, trained_with = Classification(ClassificationConfig()), ClassificationConfig(labels=labels)
        return task.predictor(network, trained_with, torch.float32, ModelOptions(views=count))(images)

    around = [images, images.roll(1, 3), images.roll(-1, 3), images.roll(1, 2), images.roll(-1, 2)]
    mirrored = [image.flip(3) for image in around]
    for labels, count, views in (("digits", 1, around[:1]), ("digits", 10, around), ("clothes", 10, around + mirrored)):
        mean = torch.stack([network(view) for view in views]).mean(0)
        assert torch.allclose(with_views(count, labels), mean, atol=1e-5)
    assert torch.equal(with_views(None, "clothes"), with_views(10, "clothes"))
    mean = (network(images) + network(images.flip(3))) / 2
    assert torch.allclose(with_views(2, "clothes"), mean, atol=1e-5)


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


def test_label_smoothing_wants_less_than_certainty():
    images, labels, losses = torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.arange(4), []
    for share in (0.0, 0.1):
        task = Classification(ClassificationConfig(label_smoothing=share, augment=False))
        found, _ = task.loss(lambda images: 20.0 * F.one_hot(labels, 10), (images, labels))
        losses.append(found["train_loss"].item())
    assert losses == pytest.approx([0, 0.1 * 20 * 9 / 10], abs=1e-4)


def test_classes_are_named_after_the_images():
    for images, labels in (("FashionMNIST", "clothes"), ("/data/fashion/raw", "clothes"), ("MNIST", "digits")):
        assert config_from_dict(ClassificationConfig, {"images": images}, "here").labels == labels
    assert config_from_dict(ClassificationConfig, {"images": "MNIST", "labels": "clothes"}, "here").labels == "clothes"


# ------------------------------------------------------------------------------------------------ from end to end


def test_train_interrupt_resume(run, tmp_path, monkeypatch):
    ours = ["--network", "ResidualCNN", "--network_options", '{"channels": [16, 32], "blocks": [1, 1]}']
    ours += ["--synthetic_images", "100", "--epochs", "2"]
    assert run("--name", "whole", *ours) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, owner=Classification, name="loss")
        assert run("--name", "parts", *ours) == 130
    assert run("--name", "parts", "--resume", *ours[:6]) == 0
    # The best model may be from before the interruption; the last state is not.
    whole, parts = (load_weights(tmp_path / "models" / f"{name}.last.pt") for name in ("whole", "parts"))
    assert all(map(torch.equal, whole.values(), parts.values()))
    rows = [{**row, "minutes": 0} for row in log(tmp_path, "whole")]
    assert rows == [{**row, "minutes": 0} for row in log(tmp_path, "parts")] and len(rows) == 2
    assert torch.load(tmp_path / "models" / "whole.pt", weights_only=True)["config"]["labels"] == "digits"


def test_log_has_both_accuracies(trained_digits):
    with open(trained_digits / "losses" / "classification.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and {"train_loss", "train_accuracy", "accuracy"} <= rows[0].keys()
    assert float(rows[-1]["accuracy"]) > 90 and float(rows[-1]["train_accuracy"]) > 50
    assert (trained_digits / "losses" / "classification.png").exists()


@pytest.mark.usefixtures("figures")
def test_evaluation(trained_digits, run, tmp_path, capsys):
    model = str(trained_digits / "models" / "classification.pt")
    assert run("--evaluate", model, "--name", "it", "--synthetic_images", "3000") == 0
    with open(tmp_path / "losses" / "it_evaluation.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["depixelation_model"] == model and 90 < float(row["accuracy"]) <= 100
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

    measured = task.measure([Predictor(predict, torch.device("cpu"))], dataset)
    assert measured.figures["accuracy"].mean() == 50
    shown, labels, predictions, confidence = measured.sample
    assert shown[:, 0, 0, 0].tolist() == list(range(59, 11, -2)) and labels.eq(1).all() and predictions.eq(0).all()
    assert measured.details.tolist() == [[i % 2, 0] for i in range(60)]
