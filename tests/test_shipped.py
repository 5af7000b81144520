"""The models that the repository ships: complete, small enough, and right in every number that they promise."""

import csv
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import HEIGHT_RANGE, SIZE_RANGE, WIDTH_RANGE, draw_rectangle, prepare_image
from depixelation.block_grid import BlockGrid
from depixelation.engine.models import load_weights
from depixelation.engine.predictor import Predictor
from depixelation.engine.restoration import restore, rmse_per_image
from depixelation.images.synthetic import synthetic_colour_image, synthetic_image
from depixelation.mosaics.area import Area, pixelate_area
from depixelation.mosaics.restoring import block_values, restore_area
from depixelation.tasks import load_task
from main import main
from utils import ROOT, config_from_dict, display_path, load_checkpoint

NAMES = ("photos", "photos_cpu", "BasicCNN", "DeePixV1")
OTHERS = {"MNIST": "accuracy", "FashionMNIST": "accuracy"}  # other tasks' models: their score
OTHERS |= {"denoising": "mae", "denoising_skip": "mae", "denoising_unet": "mae"}
OTHERS |= {
    "SR": "psnr_y",
    "BasicSRModel": "psnr_y",
    "finder": "f1",
    "flow": "score",
    "SR_real": "psnr_y",
    "files": "score",
}
LAST = ("flow", "SR_real")  # of which the last weights are kept, not the best

IN_REPOSITORY = os.path.exists(os.path.join(ROOT, ".git")) or os.path.exists(os.path.join(ROOT, "models", "files.pt"))
pytestmark = pytest.mark.skipif(not IN_REPOSITORY, reason="what --zip made to be handed in holds one model")


@pytest.fixture(scope="module")
def samples():
    """(pixelated images, known arrays, images) as the test set has them, 100 of each."""
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(synthetic_image(7, i, 96)).resize((64, 64), Image.Resampling.BILINEAR) for i in range(100)
    ]
    images = [np.asarray(image)[None] for image in images]
    samples = [prepare_image(i, *draw_rectangle(rng, 64, 64, WIDTH_RANGE, HEIGHT_RANGE, SIZE_RANGE)) for i in images]
    pixelated, known, _ = (np.stack(arrays) for arrays in zip(*((p, k, i) for (p, k, _), i in zip(samples, images))))
    return tuple(map(torch.from_numpy, (pixelated, known, np.stack(images))))


def load(name):
    checkpoint = load_checkpoint(os.path.join(ROOT, "models", f"{name}.pt"), "it is part of the repository")
    task_type = load_task(checkpoint["config"].get("task", "depixelation"))
    config = config_from_dict(task_type.Config, checkpoint["config"], name)
    network = task_type(config).build_network(config.network, config.network_options)
    load_weights(network, checkpoint, name)
    return network.eval().to(memory_format=torch.channels_last), checkpoint


def predictor(network, dtype=torch.float32):
    return Predictor(network, torch.device("cpu"), dtype)


def test_all_together_are_small():
    sizes = {name: os.path.getsize(os.path.join(ROOT, "models", f"{name}.pt")) for name in (*NAMES, *OTHERS)}
    assert sum(sizes.values()) < 40e6 and all(sizes[name] < 5e6 for name in OTHERS)
    assert load_task("depixelation").shipped == os.path.join(ROOT, "models", "photos.pt")


@pytest.mark.parametrize("name", (*NAMES, *OTHERS))
def test_each_has_its_config_and_log(name):
    score, (_, checkpoint) = OTHERS.get(name, "score"), load(name)
    with open(os.path.join(ROOT, "models", f"{name}.json"), encoding="utf-8") as file:
        assert json.load(file) == checkpoint["config"]
    with open(os.path.join(ROOT, "losses", f"{name}.csv"), encoding="utf-8") as file:
        scores = [float(row[score]) for row in csv.DictReader(file)]
    best = scores[-1] if name in LAST else min(scores) if score in ("score", "mae") else max(scores)
    assert best == pytest.approx(checkpoint[score]) and checkpoint["config"]["name"] == name
    assert name in OTHERS or checkpoint["config"]["images"] == "training.zip"
    assert os.path.exists(os.path.join(ROOT, "losses", f"{name}.png"))


@pytest.mark.parametrize("name, most", [("photos", 750_000), ("photos_cpu", 130_000)])
def test_predictions_of_ours(name, most, samples):
    """Known pixels as they were, block means as given, and the same in bfloat16 and for any batch."""
    network, _ = load(name)
    assert sum(p.numel() for p in network.parameters()) < most
    pixelated, known, images = (t[:8] for t in samples)
    predictions = {
        dtype: restore(predictor(network, dtype), pixelated, known) for dtype in (torch.float32, torch.bfloat16)
    }
    grid = BlockGrid(pixelated, ~known, range(SIZE_RANGE[0], SIZE_RANGE[1] + 1))
    scores = {}
    for dtype, prediction in predictions.items():
        assert torch.equal(prediction[known], pixelated[known])
        # The floor takes up to 1 off the mean, and rounding moves the mean by up to 0.5.
        means = grid.means(prediction.float()) - grid.means(pixelated.float())
        assert -0.6 < means.min() and means.max() < 1.1
        scores[dtype] = rmse_per_image(prediction.double(), images.double(), known).mean().item()
    assert abs(scores[torch.float32] - scores[torch.bfloat16]) < 0.02
    one_by_one = [restore(predictor(network), pixelated[i : i + 1], known[i : i + 1]) for i in range(4)]
    assert (
        torch.cat(one_by_one).int() - predictions[torch.float32][:4].int()
    ).abs().max() <= 1  # one level: a rounding
    identity = rmse_per_image(pixelated.double(), images.double(), known).mean().item()
    assert scores[torch.float32] < 0.7 * identity  # drawn images, which it was not trained on


@pytest.mark.parametrize("name", ("BasicCNN", "DeePixV1"))
def test_predictions_of_the_others(name, samples):
    network, _ = load(name)
    pixelated, known, images = (t[: 3 if name == "DeePixV1" else 40] for t in samples)
    identity = rmse_per_image(pixelated.double(), images.double(), known).mean()
    scores = []
    for dtype in (torch.float32, torch.bfloat16):
        prediction = restore(predictor(network, dtype), pixelated, known)
        assert torch.equal(prediction[known], pixelated[known])
        scores.append(rmse_per_image(prediction.double(), images.double(), known).mean())
    assert scores[0] < 0.9 * identity and abs(scores[0] - scores[1]) < 0.03


@pytest.mark.parametrize("average", ("srgb", "center"))
def test_files_sees_how_blocks_were_averaged(average):
    """It is not told; middle pixels taken for means would hardly be restored at all."""
    network, before, after, tellings = load("files")[0], [], [], set()
    for i in range(6):
        truth = synthetic_colour_image(3, i, 144)
        pixels, area = truth.copy(), Area(24, 24, 96, 96, 8.0, 8.0)
        pixelate_area(pixels, replace(area, average=average))
        blocks = block_values(pixels, area)
        restored, *told = restore_area(predictor(network), pixels, area, blocks)
        tellings.add(tuple(told))
        for errors, picture in ((before, pixels), (after, restored)):
            errors.append(np.sqrt(np.mean((picture[area.box()].astype(float) - truth[area.box()]) ** 2)))
    assert np.mean(after) < 0.78 * np.mean(before)
    assert (average, True) in tellings and {name for name, sure in tellings if sure} == {average}


@pytest.mark.parametrize("model, average", [("files", "center"), ("photos_cpu", None)])
def test_depixelate_says_how_blocks_were_averaged(model, average, tmp_path, capsys):
    """Where the model can tell: one that keeps the means cannot."""
    area = ["--area", "24", "24", "96", "96"]
    Image.fromarray(synthetic_colour_image(3, 1, 144)).save(tmp_path / "p.png")
    assert main(["--pixelate", str(tmp_path / "p.png"), *area, "--block_size", "8", "--average", "center"]) == 0
    path = os.path.join(ROOT, "models", f"{model}.pt")
    capsys.readouterr()
    assert main(["--depixelate", str(tmp_path / "p_pixelated.png"), *area, "--json", "--model", path]) == 0
    (found,) = json.loads(capsys.readouterr().out)["areas"]
    assert found["average"] == average and found["block_width"] == 8


@pytest.mark.parametrize(
    ("task", "names", "column", "reference"),
    (
        ("super_resolution", ("SR", "BasicSRModel", "SR_real"), "psnr_y", "bicubic"),
        ("denoising", ("denoising_unet", "denoising", "denoising_skip"), "psnr", "minus mean"),
        ("classification", ("MNIST",), "accuracy", 0.8),
        ("flow", ("flow",), "score", "IdentityModel"),
    ),
)
@pytest.mark.usefixtures("figures")
def test_the_other_tasks_models_do_what_they_are_for(task, names, column, reference, tmp_path):
    """On images that the program draws, better than what needs no training."""
    paths = [os.path.join(ROOT, "models", f"{name}.pt") for name in names]
    options = ["--images", "synthetic", "--synthetic_images", "20" if task in ("super_resolution", "flow") else "200"]
    folders = ["--output_dir", str(tmp_path), "--cache_dir", str(tmp_path / "cache")]
    assert main(["--task", task, "--evaluate", *paths, *options, *folders, "--device", "cpu", "--name", "it"]) == 0
    with open(tmp_path / "losses" / "it_evaluation.csv", encoding="utf-8") as file:
        table = {row["depixelation_model"]: float(row[column]) for row in csv.DictReader(file)}
    figures = [table.pop(display_path(path)) for path in paths]
    bar, sign = table.get(reference, reference), -1 if column == "score" else 1
    assert all(sign * figure > sign * bar for figure in figures)
