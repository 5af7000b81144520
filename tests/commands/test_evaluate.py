"""--evaluate: tables and pictures of several models, on images that they were not trained on."""

import csv
import re
import zipfile

import numpy as np
import pytest
from conftest import TINY_UNET as TINY  # noqa: F401 (the options of run)
from PIL import Image

from depixelation.commands.evaluate import print_differences
from depixelation.engine.measuring import Measurement
from depixelation.engine.models import Model
from depixelation.tasks.depixelation import Depixelation


def test_differences_are_paired_and_from_the_first(capsys):
    task = Depixelation(Depixelation.Config())
    values = np.array([3.0, 50, 4, 9])
    print_differences(
        task,
        [Model(name, None, task.config) for name in "ab"],
        Measurement({"score": np.stack([values, values - 1])}, None, None),
        np.arange(4),
    )
    assert "-1.000 (-1.000 to -1.000)" in capsys.readouterr().out


@pytest.mark.usefixtures("figures")
def test_evaluate_several_models(run, tmp_path, capsys):
    for name in "ab":
        assert run("--epochs", "1", "--name", name, "--seed", str(ord(name) - 97)) == 0
    capsys.readouterr()
    models = [str(tmp_path / "models" / f"{name}.pt") for name in "ab"]
    assert run("--evaluate", *models, "--views", "1", "--seed", "0") == 0
    table = capsys.readouterr().out
    rows = {line.split()[0]: line for line in table.splitlines() if "to" in line and line[:1] not in ("\n", "P")}
    assert "IdentityModel" in rows and "ensemble" in rows and "rectangle" in table and "block size" in table
    assert len([line for line in table.splitlines() if re.match(r".*[ab]\.pt .* to [^)]*$", line)]) == 2
    for name in ("default_evaluation.png", "default_evaluation_samples.png"):
        with Image.open(tmp_path / "losses" / name) as picture:
            assert min(picture.size) > 300 and np.ptp(np.asarray(picture.convert("L"))) == 255


def test_photos_of_the_training_are_not_evaluated(run, photos, tmp_path, capsys):
    assert run("--epochs", "1", "--images", str(photos)) == 0
    capsys.readouterr()
    assert run("--evaluate", "--images", str(photos), "--views", "1") == 0
    table = capsys.readouterr().out
    with open(tmp_path / "losses" / "default.csv", encoding="utf-8") as file:
        row = re.compile(rf"default.pt +{float(next(csv.DictReader(file))['score']):.3f} ")
    assert "On 5 images" in table and "held out of training" in table and row.search(table)
    with zipfile.ZipFile(tmp_path / f"{photos.name}.zip", "w") as file:  # the same photos, packed
        for path in photos.rglob("*.jpg"):
            file.write(path, path.relative_to(photos))
    assert run("--evaluate", "--images", str(tmp_path / f"{photos.name}.zip"), "--views", "1") == 0
    assert row.search(capsys.readouterr().out)
    photos_of_others = photos.rename(photos.with_name("others"))
    try:
        assert run("--evaluate", "--images", str(photos_of_others), "--views", "1") == 0
    finally:
        photos_of_others.rename(photos)
    output = capsys.readouterr().out
    assert "On 5 images of " in output and "others, held out of training" in output, output  # known by content
