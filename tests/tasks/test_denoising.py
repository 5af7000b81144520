"""Denoising."""

import csv

import numpy as np
import pytest
import torch
from conftest import CPU, interrupt_at, log
from PIL import Image

import main as entry
from architectures import DenoisingCNN, UNet
from datasets import NoisyImages
from depixelation.commands.denoise import BORDER, TILE, Denoiser, measured_deviation
from depixelation.engine.measuring import mae_per_image, psnr_per_image
from depixelation.engine.models import Model
from depixelation.engine.predictor import Predictor
from depixelation.images import digits
from depixelation.tasks.denoising import Denoising, DenoisingConfig, DenoisingEvaluateOptions, median

TINY = ["--task", "denoising", "--network", "DenoisingCNN", "--synthetic_images", "120", "--batch_size", "16", *CPU]


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


def test_mae_psnr_and_median_by_hand():
    clean = torch.zeros(2, 1, 2, 2)
    restored = torch.tensor([[[[0.5, -0.5], [0.0, 0.0]]], [[[0.1, 0.1], [0.1, 0.1]]]])
    assert torch.allclose(mae_per_image(restored, clean), torch.tensor([0.25, 0.1]))
    # MSE (0.25 + 0.25) / 4 = 0.125 and 0.01
    assert torch.allclose(psnr_per_image(restored, clean), torch.tensor([10 * np.log10(8), 20.0]).float())
    assert psnr_per_image(clean, clean).tolist() == [100.0, 100.0]
    for loss, expected in (("mse", 0.25), ("mae", 0.5)):
        found, count = Denoising(DenoisingConfig(loss=loss)).loss(lambda noisy: noisy, (clean + 0.5, clean))
        assert found["train_loss"] == expected and count == 2
    image = torch.arange(25.0).view(1, 1, 5, 5)
    image[0, 0, 2, 2] = 99  # an outlier, gone afterwards: the median of its surroundings is 13
    assert median(image)[0, 0, 2, 2] == 13 and median(image).shape == image.shape


def test_baselines_have_the_errors_that_theory_says():
    task = Denoising(DenoisingConfig())
    dataset = task.dataset(digits.draw_digits(0, "test", 200)[0], None, False)
    measured = task.measure([Predictor(f, torch.device("cpu")) for f in task.baselines().values()], dataset)
    noisy, less, filtered = measured.figures["mae"].mean(1)
    assert abs(noisy - 0.5) < 0.003 and abs(less - 0.25) < 0.003 and filtered < 0.2
    # MSE of uniform noise: 1/3, and 1/12 without its mean
    assert np.allclose(measured.figures["psnr"].mean(1)[:2], [10 * np.log10(3), 10 * np.log10(12)], atol=0.05)
    model = Model("a model", None, DenoisingConfig(noise="gaussian"))  # this noise has no mean
    baselines = task.as_measured([model], DenoisingEvaluateOptions()).baselines()
    assert torch.equal(baselines["minus mean"](torch.ones(1)), torch.ones(1))
    baselines = task.as_measured([model], DenoisingEvaluateOptions(noise="uniform")).baselines()
    assert torch.equal(baselines["minus mean"](torch.ones(1)), torch.full((1,), 0.5))  # named: the task's own


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


# ------------------------------------------------------------------------------------------------ from end to end


@pytest.mark.usefixtures("figures")
def test_train_interrupt_resume_evaluate(run, tmp_path, monkeypatch, capsys):
    assert run("--name", "whole", "--epochs", "2") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, owner=Denoising, name="loss")
        assert run("--name", "parts", "--epochs", "2") == 130
    assert run("--name", "parts", "--resume") == 0
    whole, parts = (torch.load(tmp_path / "models" / f"{name}.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(map(torch.equal, whole["weights"].values(), parts["weights"].values()))
    rows = log(tmp_path, "whole")
    assert [row["epoch"] for row in rows] == [1, 2] and {"train_loss", "mae", "psnr"} <= rows[0].keys()
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
    with open(tmp_path / "losses" / "denoiser_evaluation.csv", encoding="utf-8") as file:
        table = {row.pop("depixelation_model"): row for row in csv.DictReader(file)}
    assert list(table) == [model, "noisy image", "minus mean", "3x3 median"]
    assert abs(float(table["noisy image"]["mae"]) - 0.5) < 0.02 and table[model].keys() == {"mae", "psnr"}
    assert "uniform noise" in capsys.readouterr().out
    assert run("--evaluate", str(tmp_path / "models" / "skip.pt")) == 0  # with the noise that it was trained for
    assert "gaussian noise times 0.5" in capsys.readouterr().out


def test_summary_shows_output_shapes(run, capsys):
    assert run("--summary") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("DenoisingCNN: 9,585 parameters") for line in lines)
    for layer in ("layers.0 Conv2d -> 16x14x14", "layers.2 Conv2d -> 16x7x7", "layers.8 ConvTranspose2d -> 16x28x28"):
        assert any(line.startswith(layer) for line in lines)


# ------------------------------------------------------------------------------------------------ pictures of one's own


def noisy_picture(deviation, shape=(1, 60, 70)):
    """(clean, noisy), uint8, of a smooth picture of middle greys."""
    y, x = np.mgrid[: shape[1], : shape[2]]
    clean = np.broadcast_to(110 + 40 * np.sin(x / 9) * np.cos(y / 11), shape)
    noisy = clean + 255 * deviation * np.random.default_rng(0).standard_normal(shape)
    return tuple(torch.from_numpy(part.clip(0, 255).round().astype(np.uint8)) for part in (clean, noisy))


def test_the_strength_of_noise_is_measured():
    for deviation in (0.0, 0.02, 0.1):
        assert abs(measured_deviation(noisy_picture(deviation)[1]) - deviation) < 0.006
    assert measured_deviation(torch.zeros(1, 2, 9, dtype=torch.uint8)) == 0


def test_tiles_have_no_seams_and_any_size_will_do():
    smooth = Predictor(lambda noisy: torch.nn.functional.avg_pool2d(noisy, 9, 1, 4), torch.device("cpu"))
    for size in ((1, 1), (2, 33), (TILE + 7, 2 * TILE + BORDER)):
        pixels = noisy_picture(0.1, (3, *size))[1]
        denoise = Denoiser(smooth, (0.0, 0.1), (0.0, 0.1))
        whole = denoise.restore(pixels[:, None] / 255, True)[:, 0]
        assert (denoise(pixels) - 255 * whole).abs().max() <= 0.51 and denoise(pixels).shape == pixels.shape


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_predict_keeps_brightness_and_lessens_noise(tmp_path, capsys, mode):
    clean, noisy = noisy_picture(0.1, (len(mode), 60, 70))
    pixels = noisy.permute(1, 2, 0).squeeze(2).numpy().copy()
    if mode == "RGBA":
        pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    command = ["--task", "denoising", "--predict", str(tmp_path / "a.png"), *CPU, "--output_dir", str(tmp_path)]
    assert entry.main(command) == 0
    output = capsys.readouterr().out
    assert "uniform noise of level 1" in output and "measured" in output and "a_denoised.png" in output
    with Image.open(tmp_path / "a_denoised.png") as image:
        assert image.mode == mode and image.size == (70, 60)
        restored = np.atleast_3d(np.asarray(image))[..., :3].astype(float)
    truth, before = (part.permute(1, 2, 0).numpy()[..., :3].astype(float) for part in (clean, noisy))
    assert np.abs(restored - truth).mean() < 0.5 * np.abs(before - truth).mean()
    assert abs(restored.mean() - before.mean()) < 3


def test_the_mean_of_named_noise_is_taken_away(tmp_path, capsys):
    pixels = noisy_picture(0.05)[1].numpy()[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    command = ["--task", "denoising", "--predict", str(tmp_path / "a.png"), *CPU, "--output_dir", str(tmp_path)]
    assert entry.main([*command, "--noise", "uniform", "--noise_level", "0.2"]) == 0  # of mean 0.1
    assert "named" in capsys.readouterr().out
    with Image.open(tmp_path / "a_denoised.png") as image:
        assert abs(np.asarray(image).mean() - (pixels.mean() - 25.5)) < 3
