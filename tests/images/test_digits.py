"""The files of MNIST and Fashion-MNIST, digits that are drawn, and the split of both."""

import gzip
import itertools
import os
import struct

import numpy as np
import pytest
import torch
import torchvision
from conftest import CPU, interrupt_at

from datasets import NoisyFashionMNIST
from depixelation.engine.options import EvaluateOptions
from depixelation.images import digits
from depixelation.tasks.denoising import Denoising, DenoisingConfig
from utils import UserError

TINY = ["--task", "denoising", "--network", "DenoisingCNN", "--batch_size", "16", *CPU]


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
    yield images, whole[:-1], "not all of one"
    yield images, whole + b"x", "no idx file"
    yield images, whole[:9], "no idx file"
    yield images, b"", "no idx file"
    yield images, b"PK\x03\x04" + whole, "no idx file"
    yield images, gzip.compress(whole)[:-20], "truncated gzip"
    yield images, b"\x1f\x8b" + whole, "gzip"
    yield images, whole[:4] + b"\xff" * 12 + whole[16:], "no idx file"
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
        (str(tmp_path / "nowhere"), ("not a folder",)),
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
    assert task.validation_set.fixed and not task.training_set.fixed
    seen = [*task.training_set.images, *task.validation_set.images]
    assert len(seen) == 60 and {image.tobytes() for image in seen} == {image.tobytes() for image in images}
    with pytest.raises(UserError, match=digits.FILES["test"][0]):
        task.evaluation_set([], EvaluateOptions())


def test_drawn_digits():
    images, labels = digits.draw_digits(0, "train", 200)
    assert images.shape == (200, 28, 28) and images.dtype == np.uint8 and np.bincount(labels).tolist() == [20] * 10
    assert np.array_equal(digits.draw_digits(0, "train", 200)[0], images)
    drawn = [digits.draw_digits(seed, part, 200)[0] for seed in (0, 1) for part in ("train", "test")]
    for one, other in itertools.combinations(drawn, 2):  # no test digit of one seed is trained on with another
        assert not {image.tobytes() for image in one} & {image.tobytes() for image in other}
    assert images.max() > 200 and 15 < images.mean() < 70 and not images[:, :2, :2].any()  # light on black, centred


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


def test_resume_refuses_other_images(run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "raw"
    write_mnist(folder)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, owner=Denoising, name="loss")
        assert run("--images", str(folder), "--epochs", "2") == 130
    images, labels = digits.draw_digits(4, "train", 60)
    write_idx(folder / digits.FILES["train"][0], images)
    capsys.readouterr()
    assert run("--resume") == 2 and "no longer holds the same" in capsys.readouterr().err
