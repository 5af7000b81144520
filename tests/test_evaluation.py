"""Scores, points, places, the rehearsal of the hand-in and its archive."""

import bz2
import csv
import gzip
import lzma
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from test_main import TINY, test_set  # noqa: F401 (the options of run, a fixture)

import main as entry
from architectures import IdentityModel, ResidualUNet
from submission_serialization import deserialize, load_test_set, serialize
from tasks.challenge import read_submission
from tasks.depixelation import Depixelation, place_in_2023, points
from tasks.evaluation import Measurement, Model, confidence_interval, load_weights, mean_of, print_differences
from utils import UserError


def test_a_larger_network_starts_as_the_smaller_one():
    torch.manual_seed(0)
    small, large = ResidualUNet((8, 12), (1, 1)), ResidualUNet((12, 20), (2, 1))
    for parameter in small.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    checkpoint = {"weights": small.state_dict(), "config": {"network": "ResidualUNet"}}
    load_weights(large, checkpoint, "small.pt")
    inputs = torch.rand(2, 2, 32, 32)
    inputs[:, 1] = 1
    inputs[:, 1, 8:20, 4:20] = 0
    inputs[:, :1, 8:20, 4:20] = inputs[:, :1, 8:9, 4:5]
    with torch.no_grad():
        assert torch.allclose(small.eval()(inputs), large.eval()(inputs), atol=1e-5)
    large(inputs).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in large.named_parameters() if "conv1" not in name)
    with pytest.raises(UserError, match="do not fit ResidualUNet"):
        load_weights(ResidualUNet((8, 8), (1, 1)), checkpoint, "small.pt")


def test_points_and_places_of_the_course():
    scores = (24, 23, 20, 17, 16.9, 12)
    assert [points(score, identity=23, reference=17) for score in scores] == [0, 0, 100, 200, 250, 250]
    scores = (12, 12.649, 13, 13.65, 13.9, 14, 14.4, 17)
    expected = ["1", "1", "2", "3", "4 to 5", "6 to 7", "8 to 10", "below 10"]
    assert [place_in_2023(score, 23.163) for score in scores] == expected
    assert place_in_2023(2 * 13.9, 2 * 23.163) == "4 to 5"  # images that are harder for all


def test_confidence_interval_is_that_of_the_mean():
    errors = np.random.default_rng(1).normal(13, 8, 2000)
    low, high = confidence_interval(errors)
    half = 1.96 * errors.std() / 2000**0.5
    assert low == pytest.approx(errors.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(errors.mean() + half, abs=0.1 * half)
    assert np.allclose(confidence_interval(errors.repeat(9), np.arange(2000).repeat(9)), (low, high))  # as few photos


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


def test_mean_of_predictions_scores_no_worse_than_the_mean_of_scores():
    class Off(torch.nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = by

        def forward(self, inputs):
            return inputs[:, :1] + self.by * (1 - inputs[:, 1:])

    image = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    known = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    known[..., 2:6, 2:6] = False
    samples = [(image[0].numpy(), known[0].numpy(), image[0, :, 2:6, 2:6].numpy(), "")] * 10
    networks = [Off(4 / 255), Off(-8 / 255)]
    networks += [mean_of(networks), IdentityModel()]
    task = Depixelation(Depixelation.Config())
    figures, seconds, sample, geometry, _ = task.measure(networks, samples, torch.device("cpu"), torch.float32)
    assert figures["score"].tolist() == [[4.0] * 10, [8.0] * 10, [2.0] * 10, [0.0] * 10]
    assert geometry.tolist() == [[16, 16]] * 10 and (seconds > 0).all()
    assert torch.equal(sample[2][0], torch.where(known, image, 104)[0]) and len(sample[0]) == 8


def test_views_and_several_models_are_averaged(run, test_set):  # noqa: F811
    assert run("--epochs", "1", "--network", "ResidualUNet") == 0
    saved = torch.load("models/default.pt", weights_only=True)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        weights = {key: 0.05 * torch.randn(weight.shape) for key, weight in saved["weights"].items()}
        torch.save({**saved, "weights": weights}, f"{name}.pt")

    def submit(*words):
        assert run("--predict", *words, "--test_set", test_set[0], "--submission", "s.bin") == 0
        return np.concatenate(deserialize("s.bin")).astype(int)

    a, b, both = (submit(*names, "--views", "1") for names in (["a.pt"], ["b.pt"], ["a.pt", "b.pt"]))
    assert np.abs(2 * both - a - b).mean() < 0.5 * np.abs(a - b).mean()
    assert not np.array_equal(a, submit("a.pt")) and np.array_equal(submit("a.pt"), submit("a.pt", "--views", "8"))


def test_rehearsal_of_the_hand_in(run, photos, tmp_path, monkeypatch, capsys):
    """From photos to a test pickle, a challenge file and its score, which is the one that --evaluate gives."""
    folder = tmp_path / "rehearsal"
    options = ["--images", str(photos), "--network", "IdentityModel", "--network_options", "{}"]
    assert run("--make_test_set", str(folder), *options) == 0
    commands = [line.split()[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("python main.py")]
    assert [command[0] for command in commands] == ["--predict", "--score"]
    images, known = load_test_set(folder / "test_set.pkl")
    targets = deserialize(folder / "targets.bin")
    assert len(images) == len(known) == len(targets) == 60 and [k.size - k.sum() for k in known] == list(
        map(len, targets)
    )
    monkeypatch.chdir(tmp_path)  # what the program prints is relative to the working directory
    assert (
        run(
            *commands[0],
            "--submission",
            str(folder / "submission.bin"),
            "--test_set",
            str(folder / "test_set.pkl"),
            *options[2:],
        )
        == 0
    )
    capsys.readouterr()
    assert run("--score", str(folder / "submission.bin"), str(folder / "targets.bin")) == 0
    score = float(re.search(r"score ([\d.]+) on 60 images", capsys.readouterr().out)[1])
    assert run("--evaluate", *options) == 0
    table = capsys.readouterr().out
    assert f"{score:.3f}" in re.search(r"^IdentityModel +([\d.]+)", table, re.M)[1] and "all 60 images" in table


def test_compressed_and_broken_submissions(run, tmp_path, capsys):
    arrays = [np.arange(n, dtype=np.uint8) for n in (16, 100, 7)]
    serialize(arrays, tmp_path / "plain.bin")
    data = (tmp_path / "plain.bin").read_bytes()
    for name, module in (("a.gz", gzip), ("a.bz2", bz2), ("a.xz", lzma)):
        (tmp_path / name).write_bytes(module.compress(data))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("submission.bin", data)
    for name in ("plain.bin", "a.gz", "a.bz2", "a.xz", "a.zip"):
        assert all(map(np.array_equal, read_submission(tmp_path / name), arrays))
    shifted = [array + np.uint8(3) for array in arrays]
    serialize(shifted, tmp_path / "shifted.bin")
    assert run("--score", str(tmp_path / "shifted.bin"), str(tmp_path / "a.gz")) == 0
    assert "score 3.000000 on 3 images" in capsys.readouterr().out
    serialize(arrays[:2], tmp_path / "short.bin")
    serialize([*arrays[:2], arrays[2][:3]], tmp_path / "other.bin")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as file:
        file.writestr("a", data)
        file.writestr("b", data)
    for extension in ("gz", "bz2", "xz", "zip"):
        content = (tmp_path / f"a.{extension}").read_bytes()
        (tmp_path / f"cut.{extension}").write_bytes(content[: len(content) // 2])
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(2**28 + 2)))
    bad = ["short.bin", "other.bin", "two.zip", "cut.gz", "cut.bz2", "cut.xz", "cut.zip", "bomb.gz", "missing.bin"]
    for name in bad:
        assert run("--score", str(tmp_path / name), str(tmp_path / "plain.bin")) == 2
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1
    with pytest.raises(UserError):
        read_submission(tmp_path)


def test_damaged_compressed_submissions(tmp_path):
    """Each is refused, or, where a checksum does not cover the damage, read as something."""
    serialize([np.arange(n, dtype=np.uint8) for n in (16, 100, 7)], tmp_path / "plain.bin")
    data = (tmp_path / "plain.bin").read_bytes()
    with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("submission.bin", data)
    whole = [(tmp_path / "zip").read_bytes()] + [module.compress(data) for module in (gzip, bz2, lzma)]
    rng, refused = np.random.default_rng(0), 0
    for i in range(1200):
        damaged = bytearray(whole[i % 4])
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            assert isinstance(read_submission(tmp_path / "damaged"), list)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 900


@pytest.mark.usefixtures("figures")
def test_evaluate_several_models(run, tmp_path, capsys):
    for name in "ab":
        assert run("--epochs", "1", "--name", name, "--views", "1", "--seed", str(ord(name) - 97)) == 0
    capsys.readouterr()
    models = [str(tmp_path / "models" / f"{name}.pt") for name in "ab"]
    assert run("--evaluate", *models, "--views", "1", "--seed", "0") == 0
    table = capsys.readouterr().out
    rows = {line.split()[0]: line for line in table.splitlines() if "to" in line and line[:1] not in ("\n", "P")}
    assert "IdentityModel" in rows and "mean" in rows and "rectangle" in table and "block size" in table
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


def test_archive_to_hand_in(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tasks.challenge.LARGE_HAND_IN", 1e6)
    files = [tmp_path / "a.zip", tmp_path / "b.zip"]
    for file in files:
        assert entry.main(["--zip", str(file), "--output_dir", str(tmp_path)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    output = capsys.readouterr().out
    assert output.count("warning: ") == 2 and "larger than 1 MB" in output
    with zipfile.ZipFile(files[0]) as file:
        names = file.namelist()
        assert all(output.count(f"  {name}\n") == 2 for name in names)
        file.extractall(tmp_path / "unpacked")
    assert {"main.py", "README.md", "config.json", "requirements.txt", "tests/test_main.py", "models/photos.pt"} <= set(
        names
    )
    assert {"tasks/__init__.py", "tasks/depixelation.py", "models/README.md", "tests/README.md"} <= set(names)
    assert {"models/photos.json", "losses/photos.csv", ".ci/run"} <= set(names)
    for folder in ("", "losses/"):
        with open(tmp_path / "unpacked" / folder / "README.md", encoding="utf-8") as file:
            assert {folder + name for name in re.findall(r"!\[.*\]\((.*)\)", file.read())} <= set(names)
    assert not [
        name for name in names if re.search(r"cache|venv|\.git/|\.last\.|pkl|(?<!drawn_evaluation)_samples", name)
    ]
    done = subprocess.run([sys.executable, "main.py", "--summary"], cwd=tmp_path / "unpacked", capture_output=True)
    assert done.returncode == 0 and b"DeePixV1: 2,413,506 parameters, 19.745 GFLOP" in done.stdout
