"""The challenge."""

import re

import numpy as np
from conftest import TINY_UNET, log
from PIL import Image

import main as entry
from architectures import BasicCNN
from depixelation.tasks.depixelation import Depixelation


def test_black_photos_have_no_points_and_no_place(run, tmp_path, capsys):
    (tmp_path / "black").mkdir()
    for i in range(4):
        Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(tmp_path / "black" / f"{i}.png")
    assert run("--evaluate", "--network", "IdentityModel", "--images", "black") == 0
    table = capsys.readouterr().out
    assert re.search(r"^IdentityModel .* - +- ", table, re.M) and "nan" not in table


def test_two_images_are_learned_by_heart(tmp_path):
    """The whole chain: the loss on two images falls far below what any model has on new ones."""
    options = [*TINY_UNET, "--output_dir", str(tmp_path), "--cache_dir", str(tmp_path / "cache"), "--max_images", "2"]
    options += ["--network_options", '{"channels": [32, 64], "blocks": [1, 2]}', "--learning_rate", "4e-3"]
    options += ["--synthetic_images", "80", "--validation_fraction", "0.1", "--epochs", "8", "--batch_size", "4"]
    assert entry.main(options) == 0
    rows = log(tmp_path)
    assert rows[-1]["train_loss"] < 0.6 * rows[0]["train_loss"] and rows[-1]["train_loss"] < 0.5 * rows[-1]["score"]


def test_windows_widen_in_the_course_of_training():
    task = Depixelation(Depixelation.Config())
    network = task.build_network("OddUNet", {"channels": [16, 32], "blocks": [1, 1]})
    assert network.training
    for progress, pixels in ((0, 8), (0.29, 8), (0.3, 4), (0.69, 4), (0.7, 0), (1, 0)):
        task.begin_step(network, progress)
        assert network.narrowed == pixels
    task.begin_step(BasicCNN(), 0)  # has no windows
    Depixelation(Depixelation.Config(init="models/photos.pt")).begin_step(network, 0)
    assert network.narrowed == 0  # that model knows full windows
