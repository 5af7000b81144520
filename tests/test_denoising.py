"""Denoising, and the files of MNIST that it shares with classification."""

import csv
import gzip
import os
import signal
import struct

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from architectures import DenoisingCNN, UNet
from datasets import NoisyFashionMNIST, NoisyImages
from tasks import digits
from tasks.denoising import Denoising, DenoisingConfig, median
from tasks.evaluation import mae_per_image, psnr_per_image
from utils import UserError

TINY = ["--task", "denoising", "--network", "DenoisingCNN", "--synthetic_images", "120", "--batch_size", "16"]
TINY += ["--device", "cpu", "--precision", "float32"]


def write_idx(path, array, packed=False):
    """An idx file of bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if packed else open)(path, "wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())


def write_mnist(folder, count=60, packed=False):
    """The four files of a data set with drawn digits; returns the training images and labels."""
    for part, names in digits.FILES.items():
        images, labels = digits.draw_digits(3, part, count)
        for name, array in zip(names, (images, labels)):
            write_idx(folder / (name + ".gz" * packed), array, packed)
    return digits.draw_digits(3, "train", count)


def log(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------ noise and figures


def test_noise_as_the_exercise_says():
    images = np.full((40, 28, 28), 51, np.uint8)  # 0.2
    noisy, clean = NoisyImages(images, fixed=False)[3]
    assert noisy.shape == clean.shape == (1, 28, 28) and noisy.dtype == clean.dtype == torch.float32
    assert torch.equal(clean, torch.full((1, 28, 28), 0.2))
    noise = torch.cat([noisy - clean for noisy, clean in NoisyImages(images, fixed=False)])
    assert 0 <= noise.min() < 0.001 and 0.999 < noise.max() <= 1.0001  # above 1 with the image: not clipped
    assert abs(noise.mean() - 0.5) < 0.01 and abs(noise.std() - 12**-0.5) < 0.01
    noise = torch.cat([n - c for n, c in NoisyImages(images, True, "gaussian", 0.25)])
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 0.25) < 0.01
    for wrong in ({"noise": "salt"}, {"noise_level": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            NoisyImages(images, True, **wrong)


def test_noise_is_fresh_in_training_and_fixed_in_validation():
    images = np.zeros((3, 28, 28), np.uint8)
    training, validation = NoisyImages(images, False, seed=1), NoisyImages(images, True, seed=1)
    assert not torch.equal(training[0][0], training[0][0])
    assert torch.equal(validation[0][0], validation[0][0]) and not torch.equal(validation[0][0], validation[1][0])
    assert torch.equal(training[5, 2][0], training[5, 2][0])  # (epoch, index): the same when a run is resumed
    draws = [training[5, 2], training[6, 2], training[5, 1], NoisyImages(images, False, seed=2)[5, 2]]
    assert len({draw[0].sum().item() for draw in draws}) == 4
    torch.manual_seed(0)
    first = training[0][0]
    torch.manual_seed(0)
    assert torch.equal(training[0][0], first)
    assert len(list(validation)) == 3  # ends with an IndexError


def test_noisy_fashion_mnist_reads_torchvisions_files(tmp_path):
    images, _ = write_mnist(tmp_path / "FashionMNIST" / "raw", 30)
    training, test = NoisyFashionMNIST(tmp_path), NoisyFashionMNIST(str(tmp_path), train=False)
    assert len(training) == len(test) == 30
    noisy, clean = training[7]
    assert np.array_equal((clean[0] * 255).round().numpy(), images[7]) and 0 <= (noisy - clean).min()
    assert torch.equal(test[0][0], test[0][0]) and not torch.equal(training[0][0], training[0][0])
    batch = next(iter(torch.utils.data.DataLoader(training, 8, shuffle=True)))
    assert [part.shape for part in batch] == [(8, 1, 28, 28)] * 2
    with pytest.raises(RuntimeError):
        NoisyFashionMNIST(tmp_path / "elsewhere")


def test_mae_psnr_and_median_by_hand():
    clean = torch.zeros(2, 1, 2, 2)
    restored = torch.tensor([[[[0.5, -0.5], [0.0, 0.0]]], [[[0.1, 0.1], [0.1, 0.1]]]])
    assert torch.allclose(mae_per_image(restored, clean), torch.tensor([0.25, 0.1]))
    # MSE (0.25 + 0.25) / 4 = 0.125 and 0.01
    assert torch.allclose(psnr_per_image(restored, clean), torch.tensor([10 * np.log10(8), 20.0]).float())
    assert psnr_per_image(clean, clean).tolist() == [100.0, 100.0]
    image = torch.arange(25.0).view(1, 1, 5, 5)
    image[0, 0, 2, 2] = 99  # an outlier, gone afterwards: the median of its surroundings is 13
    assert median(image)[0, 0, 2, 2] == 13 and median(image).shape == image.shape


def test_baselines_have_the_errors_that_theory_says():
    task = Denoising(DenoisingConfig())
    dataset = task.dataset(digits.draw_digits(0, "test", 200)[0], None, False)
    measured = task.measure(list(task.baselines().values()), dataset, torch.device("cpu"), torch.float32)
    noisy, less, filtered = measured.figures["mae"].mean(1)
    assert abs(noisy - 0.5) < 0.003 and abs(less - 0.25) < 0.003 and filtered < 0.2
    # MSE of uniform noise: 1/3, and 1/12 without its mean
    assert np.allclose(measured.figures["psnr"].mean(1)[:2], [10 * np.log10(3), 10 * np.log10(12)], atol=0.05)
    baselines, task.config.noise = task.baselines(), "gaussian"  # as a model that is measured wants it
    assert torch.equal(baselines["minus mean"](torch.ones(1)), torch.ones(1))  # this noise has no mean


# ------------------------------------------------------------------------------------------------ networks


def test_networks():
    assert sum(p.numel() for p in DenoisingCNN().parameters()) == 9585
    images = torch.rand(2, 1, 28, 28)
    plain, skip = DenoisingCNN().eval(), DenoisingCNN(skip=True).eval()
    skip.load_state_dict(plain.state_dict())
    assert plain(images).shape == images.shape and torch.allclose(skip(images), images + plain(images))
    with torch.no_grad():
        plain.layers[-1].bias -= 10
    assert plain(images).max() < 0  # no activation at the end
    network = UNet(1, 1, (8, 8, 8, 8), (1, 1, 1, 1))  # halves three times: 28 is no multiple of 8
    torch.nn.init.normal_(network.last.weight)
    assert network(images).shape == images.shape and network(images).std() > 0


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", [".", "raw", "MNIST/raw"])
def test_folders_and_gzip(tmp_path, packed, place):
    images, labels = write_mnist(tmp_path / place, packed=packed)
    found, found_labels = digits.read_part(digits.find_folder(tmp_path), "train")
    assert np.array_equal(found, images) and np.array_equal(found_labels, labels)
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    if place == "MNIST/raw":
        with pytest.raises(UserError, match="several data sets"):
            digits.find_folder(tmp_path)


def broken_files(folder):
    """(file to break, its bytes then, what the error says)"""
    images, labels = (folder / name for name in digits.FILES["train"])
    whole = images.read_bytes()
    yield images, whole[:-1], "holds only"
    yield images, whole + b"x", "holds more"
    yield images, whole[:9], "makes no sense"
    yield images, b"", "no idx file"
    yield images, b"PK\x03\x04" + whole, "no idx file"
    yield images, gzip.compress(whole)[:-20], "truncated gzip"
    yield images, b"\x1f\x8b" + whole, "gzip"
    yield images, whole[:4] + b"\xff" * 12 + whole[16:], "makes no sense"
    yield images, labels.read_bytes(), "images of 28 x 28"
    yield labels, whole, "a label for each"
    yield labels, labels.read_bytes()[:-1] + b"\x0a", "the label 10"


@pytest.mark.parametrize("number", range(11))
def test_broken_files_are_one_line(run, tmp_path, capsys, number):
    folder = tmp_path / "raw"
    write_mnist(folder)
    path, data, message = list(broken_files(folder))[number]
    path.write_bytes(data)
    assert run("--images", str(folder), "--epochs", "1") == 2
    error = capsys.readouterr().err
    assert message in error and str(path) in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.pt"))


def test_missing_files_and_downloads_are_one_line(run, tmp_path, monkeypatch, capsys):
    def refuse(self):
        raise RuntimeError("Error downloading x:\nTried y, got:\n<urlopen error no network>")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", refuse)
    (tmp_path / "empty").mkdir()
    write_mnist(tmp_path / "half")
    (tmp_path / "half" / "train-labels-idx1-ubyte").unlink()
    for images, parts in (
        ("FashionMNIST", ("cannot be downloaded", "no network", "by hand", os.path.join("FashionMNIST", "raw"))),
        (str(tmp_path / "nowhere"), ("no folder",)),
        (str(tmp_path / "empty"), ("holds no train-images-idx3-ubyte",)),
        (str(tmp_path / "half"), ("lacks the file train-labels-idx1-ubyte",)),
    ):
        assert run("--images", images, "--epochs", "1") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and all(part in error for part in (*parts, "images: ")), error


def test_files_put_into_the_cache_need_no_download(run, tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", None)
    images, _ = write_mnist(tmp_path / "cache" / "MNIST" / "raw")
    config = DenoisingConfig(images="MNIST", cache_dir=str(tmp_path / "cache"))
    assert np.array_equal(digits.load_part(config, "train")[0], images)


def test_split_by_class_without_leaks():
    labels = np.random.default_rng(0).integers(0, 10, 2000)
    train, validation = digits.split_by_class(labels, 0.1, 0)
    assert sorted([*train, *validation]) == list(range(2000))
    for label in range(10):
        assert (labels[validation] == label).sum() == round(0.1 * (labels == label).sum())
    again, other = (digits.split_by_class(labels, 0.1, seed)[1] for seed in (0, 1))
    assert np.array_equal(again, validation) and not np.array_equal(other, validation)


def test_training_never_opens_the_test_part(tmp_path):
    images, _ = write_mnist(tmp_path)
    for name in digits.FILES["test"]:
        (tmp_path / name).write_bytes(b"not to be read")
    task = Denoising(DenoisingConfig(images=str(tmp_path), validation_fraction=0.2))
    task.prepare()
    seen = [*task.training_set.images, *task.validation_set.images]
    assert len(seen) == 60 and {image.tobytes() for image in seen} == {image.tobytes() for image in images}
    with pytest.raises(UserError, match=digits.FILES["test"][0]):
        task.evaluation_set(set(), [])


def test_drawn_digits():
    images, labels = digits.draw_digits(0, "train", 200)
    assert images.shape == (200, 28, 28) and images.dtype == np.uint8 and np.bincount(labels).tolist() == [20] * 10
    assert np.array_equal(digits.draw_digits(0, "train", 200)[0], images)
    for other in (digits.draw_digits(1, "train", 200)[0], digits.draw_digits(0, "test", 200)[0]):
        assert not {image.tobytes() for image in other} & {image.tobytes() for image in images}
    assert images.max() > 200 and 15 < images.mean() < 70 and not images[:, :2, :2].any()  # light on black, centred


# ------------------------------------------------------------------------------------------------ from end to end


def interrupt_at(monkeypatch, step):
    """Send SIGINT to this process while the loss of that step is computed."""
    calls, loss = [], Denoising.loss

    def patched(*arguments):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*arguments)

    monkeypatch.setattr(Denoising, "loss", patched)


@pytest.mark.usefixtures("figures")
def test_train_interrupt_resume_evaluate(run, tmp_path, monkeypatch, capsys):
    assert run("--name", "whole", "--epochs", "2") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert run("--name", "parts", "--epochs", "2") == 130
    assert run("--name", "parts", "--resume") == 0
    whole, parts = (torch.load(tmp_path / "models" / f"{name}.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(map(torch.equal, whole["weights"].values(), parts["weights"].values()))
    rows = log(tmp_path / "losses" / "whole.csv")
    assert [row["epoch"] for row in rows] == ["1.0", "2.0"] and {"train_loss", "mae", "psnr"} <= rows[0].keys()
    for name in ("whole.png", "whole_samples.png"):
        with Image.open(tmp_path / "losses" / name) as image:
            assert image.format == "PNG" and np.ptp(np.asarray(image.convert("L"))) > 200

    skip = ["--network_options", '{"skip": true}', "--noise", "gaussian", "--noise_level", "0.5", "--loss", "mae"]
    assert run("--name", "skip", "--epochs", "1", *skip) == 0
    assert run("--name", "both", "--compare", "whole", "parts") == 0
    assert (tmp_path / "losses" / "both_compared.png").exists()
    sheet, model = tmp_path / "sheet.jpg", "models/whole.pt"
    assert run("--evaluate", model, "--sheet", str(sheet)) == 0
    with Image.open(sheet) as image:
        assert image.format == "JPEG"
    table = {row.pop("model"): row for row in log(tmp_path / "losses" / "denoising_evaluation.csv")}
    assert list(table) == [model, "noisy image", "minus mean", "3x3 median"]
    assert abs(float(table["noisy image"]["mae"]) - 0.5) < 0.02 and table[model].keys() == {"mae", "psnr"}
    assert "uniform noise" in capsys.readouterr().out
    assert run("--evaluate", str(tmp_path / "models" / "skip.pt")) == 0  # with the noise that it was trained for
    assert "gaussian noise times 0.5" in capsys.readouterr().out


def test_resume_refuses_other_images(run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "raw"
    write_mnist(folder)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert run("--images", str(folder), "--epochs", "2") == 130
    images, labels = digits.draw_digits(4, "train", 60)
    write_idx(folder / digits.FILES["train"][0], images)
    capsys.readouterr()
    assert run("--resume") == 2 and "no longer holds the same" in capsys.readouterr().err


def test_summary_shows_output_shapes(run, capsys):
    assert run("--summary") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("DenoisingCNN: 9,585 parameters") for line in lines)
    for layer in ("layers.0 Conv2d -> 16x14x14", "layers.2 Conv2d -> 16x7x7", "layers.8 ConvTranspose2d -> 16x28x28"):
        assert any(line.startswith(layer) for line in lines)
